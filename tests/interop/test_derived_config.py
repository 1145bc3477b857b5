"""NeMo to HuggingFace without a template: transformers must find in the derived config.json the model that was converted."""

import itertools
import json

import models
import nemo_reference
import pytest
import torch
from program import assert_nothing_published, convert

CASES = {f"{f}-{s}": (f, models.SHAPES[s]) for f, s in itertools.product(models.CLASSES, ["8x2", "head_dim", "tied", "7x7"])}
CASES["llama-biased"] = "llama", dict(models.SHAPES["8x2"], attention_bias=True, mlp_bias=True)
CASES["llama-linear"] = "llama", dict(models.SHAPES["8x2"], rope_parameters=models.LINEAR_ROPE)
CASES["llama-llama3"] = "llama", dict(models.SHAPES["8x2"], rope_parameters=models.LLAMA3_ROPE)
CASES["llama-theta"] = "llama", dict(models.SHAPES["8x2"], rope_parameters=dict(rope_type="default", rope_theta=500000.0))
CASES["mistral-window"] = "mistral", dict(models.SHAPES["8x2"], sliding_window=32)
KEPT = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"]
KEPT += ["max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings", "hidden_act"]


@pytest.mark.parametrize("through", ["our nemo", "reference nemo"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same(case, through, tmp_path):
    family, settings = CASES[case]
    c = models.config(family, **settings, initializer_range=0.03)
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed=case)
    if through == "our nemo":
        convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    else:
        nemo_reference.write_nemo(tmp_path / "nemo", c, source.tensors, torch.bfloat16)
    convert(tmp_path / "nemo", tmp_path / "out", f"--model_type={models.GROUPS[family]}", f"--vocab_size={c.vocab_size}", to="hf")

    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    derived = models.read_config(tmp_path / "out")
    assert {k: getattr(derived, k) for k in KEPT} == {k: getattr(c, k) for k in KEPT}
    assert nemo_reference.head_dim(derived) == nemo_reference.head_dim(c)
    assert nemo_reference.rope(derived) == nemo_reference.rope(c)
    if family != "mistral":  # without a window nothing tells a Mistral from a Llama, and the two compute the same
        assert derived.model_type == family
    elif c.sliding_window:
        assert (derived.model_type, derived.sliding_window) == (family, c.sliding_window)
    model, report = models.model_class(derived.model_type).from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.dtype == torch.bfloat16
    assert torch.equal(models.logits(tmp_path / "out"), models.logits(source.path))


def test_the_rope_keys_are_those_that_old_and_new_transformers_read(tmp_path):
    c = models.config("llama", **dict(models.SHAPES["8x2"], rope_parameters=models.LLAMA3_ROPE))
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed="keys")
    nemo_reference.write_nemo(tmp_path / "nemo", c, source.tensors, torch.bfloat16)
    convert(tmp_path / "nemo", tmp_path / "out", "--model_type=llama", f"--vocab_size={c.vocab_size}", to="hf")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["rope_theta"] == 500000.0
    assert settings["rope_scaling"] == {k: v for k, v in models.LLAMA3_ROPE.items() if k != "rope_theta"}
    assert "rope_parameters" not in settings


@pytest.mark.parametrize("rows, code", [(97, 0), (64, 6), (128, 6)])
def test_rows_that_may_be_padding_are_refused_and_others_are_not(rows, code, tmp_path):
    """A vocabulary of 97 rows cannot be padded to a multiple of 1; 64 rows may be fewer that were padded to a multiple of 64."""
    c = models.config("llama", **dict(models.SHAPES["8x2"], vocab_size=rows))
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed="rows")
    convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    result = convert(tmp_path / "nemo", tmp_path / "out", to="hf", code=code)
    if code:
        assert "--vocab_size" in result.err and str(rows) in result.err
        assert_nothing_published(tmp_path / "out")
    else:
        models.assert_equal(models.read(tmp_path / "out"), source.tensors)


def test_a_model_type_that_contradicts_the_files_is_refused(tmp_path):
    c = models.config("qwen2", **models.SHAPES["8x2"])
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed="type")
    nemo_reference.write_nemo(tmp_path / "nemo", c, source.tensors, torch.bfloat16)
    for start, kind in [(source.path, "nemo"), (tmp_path / "nemo", "hf")]:
        convert(start, tmp_path / "out", "--model_type=llama", to=kind, code=6)
        assert_nothing_published(tmp_path / "out")


@pytest.mark.parametrize("key", ["num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size"])
def test_a_template_that_contradicts_the_weights_is_refused(key, tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["8x2"]), torch.bfloat16, seed="template")
    convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    settings = json.loads((source.path / "config.json").read_text())
    settings[key] *= 2
    (source.path / "config.json").write_text(json.dumps(settings))
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf", code=6)
    assert_nothing_published(tmp_path / "out")


@pytest.mark.parametrize("stored", [True, False], ids=["with biases", "without"])
@pytest.mark.parametrize("kind", ["nemo", "trtllm"])
def test_a_template_that_contradicts_the_biases_is_refused(kind, stored, tmp_path):
    biases = {"attention_bias": True, "mlp_bias": kind == "nemo"}  # those that the kind can say
    told = {key: value != stored for key, value in biases.items() if value}
    c = models.config("llama", **models.SHAPES["8x2"], **(biases if stored else {}))
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed="biases")
    convert(source.path, tmp_path / "middle", "--hf_model_name=example/model" if kind == "nemo" else "--checkpoint_only", to=kind)
    settings = json.loads((source.path / "config.json").read_text())
    (source.path / "config.json").write_text(json.dumps({**settings, **told}))
    result = convert(tmp_path / "middle", tmp_path / "out", f"--hf_model_name={source.path}", to="hf", code=6)
    assert "qkv_bias" in result.err and "template" in result.err
    assert_nothing_published(tmp_path / "out")
