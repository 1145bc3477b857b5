"""config.json of TensorRT-LLM checkpoints: its keys by version, as text, and what they are taken from."""

import json

import models
import pytest
import torch
from program import convert, hashes
from trtllm_models import FAMILIES, SHAPES, Cell, assert_trtllm_folder, hf_settings, to_trtllm, write_model
from trtllm_reference import Layout, Quantization


WORDS = {"W8A16": "int8", "W4A16": "int4"}


def change_quantization(folder, **changes):
    cfg = json.loads((folder / "config.json").read_text())
    cfg["quantization"].update(changes)
    (folder / "config.json").write_text(json.dumps(cfg))


@pytest.mark.parametrize("weights, precision", [(None, None), ("W8A16", "int8"), ("W4A16", "int4")])
@pytest.mark.parametrize("cache", [None, "FP8"])
@pytest.mark.parametrize("version", [12, 13, 14, 15])
@pytest.mark.parametrize("family", FAMILIES)
def test_versions_and_quantisation_keys(family, version, cache, weights, precision, tmp_path):
    """Deferred: the weights stay as they are, and config.json tells the builder what to do with them."""
    cell = Cell(family, "groups2", Layout(4, 2), "bf16", (4, 5)[version % 2], 1)
    source = write_model(tmp_path / "in", cell, family)
    options = [f"--trtllm_version=0.{version}"]
    options += ["--use_weight_only", f"--weight_only_precision={precision}"] if weights else []
    options += ["--fp8_kv_cache"] if cache else []
    to_trtllm(source.path, tmp_path / "out", cell.layout, *options)
    assert_trtllm_folder(tmp_path / "out", source, cell.layout, source.dtype, version, Quantization(weights, cache))
    if weights or cache:  # nothing of it is in the weights, so it reads back
        convert(tmp_path / "out", tmp_path / "back", f"--hf_model_name={source.path}", to="hf")
        models.assert_equal(models.read(tmp_path / "back"), source.tensors)


def test_weight_only_is_int8_where_nothing_else_is_said(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "mha", Layout(), "bf16", 4, 1), "int8")
    to_trtllm(source.path, tmp_path / "out", Layout(), "--use_weight_only")
    assert_trtllm_folder(tmp_path / "out", source, Layout(), source.dtype, 12, Quantization("W8A16"))


@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "no plugin"])
@pytest.mark.parametrize("weights, cache", [("W8A16", None), ("W4A16", "FP8"), (None, "FP8")])
def test_what_is_left_to_the_builder_is_left_to_it_again(weights, cache, plugin, tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "again")
    quantise = ["--use_weight_only", f"--weight_only_precision={WORDS[weights]}"] if weights else []
    quantise += [] if plugin or weights != "W8A16" else ["--disable_weight_only_quant_plugin"]
    quantise += ["--fp8_kv_cache"] if cache else []
    to_trtllm(source.path, tmp_path / "one", Layout(2), *quantise)
    to_trtllm(tmp_path / "one", tmp_path / "two", Layout(4, 2))
    to_trtllm(source.path, tmp_path / "straight", Layout(4, 2), *quantise)
    assert hashes(tmp_path / "two") == hashes(tmp_path / "straight")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["quantization"]["quant_algo"] == weights


def test_options_decide_over_what_the_source_left_to_the_builder(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "again")
    to_trtllm(source.path, tmp_path / "one", Layout(), "--use_weight_only")
    for options in (["--use_weight_only", "--weight_only_precision=int4"], ["--use_fp8_rowwise"]):
        to_trtllm(tmp_path / "one", tmp_path / options[-1], Layout(2), *options)
        to_trtllm(source.path, tmp_path / ("straight" + options[-1]), Layout(2), *options)
        assert hashes(tmp_path / options[-1]) == hashes(tmp_path / ("straight" + options[-1]))


def test_a_checkpoint_with_another_algorithm_is_not_already_complete(tmp_path):
    """Of two sources whose configs alone differ, the target of one is not that of the other."""
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "again")
    to_trtllm(source.path, tmp_path / "one", Layout())
    to_trtllm(tmp_path / "one", tmp_path / "two", Layout(2))
    change_quantization(tmp_path / "one", quant_algo="W8A16")
    to_trtllm(tmp_path / "one", tmp_path / "two", Layout(2), code=3)


@pytest.mark.parametrize("changes, says, remedy", [
    (dict(kv_cache_quant_algo="INT8"), ["kv_cache_quant_algo", "INT8", "--fp8_kv_cache"], ["--fp8_kv_cache"]),
    (dict(quant_algo="W8A16", exclude_modules=["*dense"]), ["exclude_modules", "*dense"], ["--use_weight_only"]),
])
def test_what_a_target_cannot_leave_to_the_builder_is_refused(changes, says, remedy, tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "again")
    to_trtllm(source.path, tmp_path / "one", Layout())
    change_quantization(tmp_path / "one", **changes)
    result = to_trtllm(tmp_path / "one", tmp_path / "two", Layout(2), code=5)
    assert all(word in result.err for word in says), result
    assert not (tmp_path / "two").exists()
    to_trtllm(tmp_path / "one", tmp_path / "two", Layout(2), *remedy)
    convert(tmp_path / "one", tmp_path / "hf", to="hf")


@pytest.mark.parametrize("version", [12, 13, 14, 15])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_whether_the_embeddings_are_tied_is_said_where_the_version_says_it(family, tied, version, tmp_path):
    source = write_model(tmp_path / "in", Cell(family, "tied" if tied else "mha", Layout(), "fp16", 4, 1), "tied")
    to_trtllm(source.path, tmp_path / "out", Layout(), f"--trtllm_version=0.{version}")
    assert_trtllm_folder(tmp_path / "out", source, Layout(), source.dtype, version)


def change_settings(source, **changes):
    """Changes config.json; a value of None takes the key out."""
    settings = {**hf_settings(source), **changes}
    (source.path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}, indent=2))


ORDERS = {
    "llama 3.1": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_type"],
    "sorted": ["factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings", "rope_type"],
    "type first": ["rope_type", "original_max_position_embeddings", "high_freq_factor", "low_freq_factor", "factor"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", ORDERS)
def test_rope_scaling_is_copied_in_the_order_of_the_file(order, family, tmp_path):
    source = write_model(tmp_path / "in", Cell(family, "mha", Layout(), "bf16", 4, 1), "rope")
    scaling = {key: {**models.LLAMA3_ROPE, "factor": 32.0}[key] for key in ORDERS[order]}
    change_settings(source, rope_scaling=scaling, rope_theta=500000.0)
    to_trtllm(source.path, tmp_path / "out", Layout())
    assert_trtllm_folder(tmp_path / "out", source, Layout(), source.dtype)


@pytest.mark.parametrize("order", ORDERS)
def test_rope_scaling_of_nemo_is_that_of_hf(order, tmp_path):
    """With the model as template in its order, without one in that of Llama 3.1."""
    source = write_model(tmp_path / "in", Cell("llama", "groups4-odd", Layout(), "bf16", 4, 1), "rope")
    change_settings(source, rope_scaling={key: models.LLAMA3_ROPE[key] for key in ORDERS[order]}, rope_theta=500000.0)
    to_trtllm(source.path, tmp_path / "hf", Layout())
    convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    to_trtllm(tmp_path / "nemo", tmp_path / "template", Layout(), f"--hf_model_name={source.path}")
    assert hashes(tmp_path / "template") == hashes(tmp_path / "hf")
    to_trtllm(tmp_path / "nemo", tmp_path / "none", Layout(), "--model_type=llama", "--vocab_size=45")
    change_settings(source, rope_scaling={key: models.LLAMA3_ROPE[key] for key in ORDERS["llama 3.1"]})
    assert_trtllm_folder(tmp_path / "none", source, Layout(), source.dtype)


@pytest.mark.parametrize("style", [4, 5])
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_both_spellings_of_rope_are_read(kind, style, tmp_path):
    """What TensorRT-LLM's own code makes of rope_parameters is a base of 10000 without a word."""
    rope = dict(linear=models.LINEAR_ROPE, llama3=models.LLAMA3_ROPE)[kind]
    c = models.config("llama", **SHAPES["mha"], rope_parameters=dict(rope, rope_theta=70000.0))
    source = models.write(tmp_path / "in", c, torch.bfloat16, style=style)
    to_trtllm(source.path, tmp_path / "out", Layout())
    cfg = json.loads((tmp_path / "out" / "config.json").read_text())
    assert cfg["rotary_base"] == 70000.0
    assert cfg["rotary_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_rope_type_gets_its_new_name_besides_for_llama(family, tmp_path):
    source = write_model(tmp_path / "in", Cell(family, "mha", Layout(), "bf16", 4, 1), "rope")
    change_settings(source, rope_scaling={"type": "linear", "factor": 2.0})
    to_trtllm(source.path, tmp_path / "out", Layout())
    want = '"rotary_scaling": {\n        "type": "linear",\n        "factor": 2.0'
    want += ',\n        "rope_type": "linear"\n    }' if family == "llama" else "\n    }"
    assert want in (tmp_path / "out" / "config.json").read_text()


def test_numbers_keep_their_kind(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "mha", Layout(), "bf16", 4, 1), "numbers")
    change_settings(source, rope_theta=1000000, rms_norm_eps=1e-6)
    to_trtllm(source.path, tmp_path / "out", Layout())
    assert_trtllm_folder(tmp_path / "out", source, Layout(), source.dtype)
    text = (tmp_path / "out" / "config.json").read_text()
    assert '"rotary_base": 1000000,' in text and '"norm_epsilon": 1e-06,' in text


def test_keys_that_the_file_leaves_out_get_the_defaults_of_transformers(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "mha", Layout(), "bf16", 4, 1), "defaults")
    change_settings(source, rope_theta=..., rope_scaling=..., num_key_value_heads=..., head_dim=...)
    to_trtllm(source.path, tmp_path / "out", Layout(2))
    assert_trtllm_folder(tmp_path / "out", source, Layout(2), source.dtype)
    assert '"rotary_base": 10000.0,' in (tmp_path / "out" / "config.json").read_text()
