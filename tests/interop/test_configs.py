"""What configs mean: transformers, or a NeMo config, says something that must not be lost, guessed or contradicted."""

import json
import os

import models
import nemo_reference
import pytest
import torch
import yaml
from program import assert_nothing_published, convert, reshard
from safetensors.torch import load_file, save_file

SHAPE = models.SHAPES["8x2"]
NAMED = "--hf_model_name=example/model"


def hf(folder, family="llama", dtype=torch.bfloat16, **settings):
    return models.write(folder, models.config(family, **{**SHAPE, **settings}), dtype, seed="configs")


def nemo(folder, source, **more):
    nemo_reference.write_nemo(folder, source.config, source.tensors, source.dtype, **more)


def edit(folder, drop=(), **keys):
    path = folder / "config.json"
    settings = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps({**settings, **keys}, indent=2) + "\n")


def edit_yaml(folder, **keys):
    path = folder / "model_config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}, sort_keys=False))


def refused(source, target, *options, to, code, words):
    result = convert(source, target, *options, to=to, code=code)
    for word in words:
        assert word in result.err, result
    assert_nothing_published(target)


# -- tied embeddings


@pytest.fixture
def tied(tmp_path):
    source = hf(tmp_path / "tied", tie_word_embeddings=True)
    convert(source.path, tmp_path / "nemo", NAMED, to="nemo")
    return source


@pytest.mark.parametrize("drop, keys", [((), dict(tie_word_embeddings=False)), (("tie_word_embeddings",), {})])
def test_a_template_that_is_not_tied_is_refused_for_a_model_that_is(drop, keys, tied, tmp_path):
    """LlamaConfig without the key is not tied: its head would be random."""
    edit(tied.path, drop, **keys)
    assert not models.read_config(tied.path).tie_word_embeddings
    refused(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={tied.path}", to="hf", code=6, words=["tie_word_embeddings"])


@pytest.mark.parametrize("template", [True, False])
def test_untied_on_the_way_to_hf_loads_with_its_head(template, tied, tmp_path):
    options = [f"--hf_model_name={tied.path}"] if template else ["--model_type=llama", "--vocab_size=64"]
    convert(tmp_path / "nemo", tmp_path / "out", "--untie_embeddings", *options, to="hf")
    assert not models.read_config(tmp_path / "out").tie_word_embeddings
    assert torch.equal(models.logits(tmp_path / "out"), models.logits(tied.path))


def test_an_untied_nemo_copy_says_so(tied, tmp_path):
    convert(tmp_path / "nemo", tmp_path / "copy", "--untie_embeddings", to="nemo")
    settings = [yaml.safe_load((tmp_path / x / "model_config.yaml").read_text()) for x in ("nemo", "copy")]
    assert settings[1] == {**settings[0], "share_embeddings_and_output_weights": False}
    assert (tmp_path / "copy" / "model_weights" / "model.output_layer.weight").is_dir()


# -- the vocabulary


@pytest.mark.parametrize("rows, claim", [(97, 50), (97, 96), (97, 98), (128, 50), (128, 64)])
def test_a_vocabulary_that_the_file_contradicts_is_refused(rows, claim, tmp_path):
    """Qwen's configs have override_vocab_size. 128 rows may be 65 to 128 that were padded to a multiple of 64."""
    source = hf(tmp_path / "in", "qwen2", vocab_size=rows)
    convert(source.path, tmp_path / "nemo", NAMED, to="nemo")
    edit_yaml(tmp_path / "nemo", make_vocab_size_divisible_by=64 if rows == 128 else 1)
    refused(tmp_path / "nemo", tmp_path / "out", f"--vocab_size={claim}", to="hf", code=6, words=[str(rows), str(claim)])


def test_a_vocabulary_by_option_and_another_by_template_are_refused(tmp_path):
    source = hf(tmp_path / "in", vocab_size=97)
    nemo(tmp_path / "nemo", source, rows=128)
    template = f"--hf_model_name={source.path}"
    refused(tmp_path / "nemo", tmp_path / "out", template, "--vocab_size=98", to="hf", code=6, words=["97", "98", "template"])
    convert(tmp_path / "nemo", tmp_path / "out", template, "--vocab_size=97", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


def test_padding_is_to_a_multiple_of_the_tensor_parallel_size_too(tmp_path):
    """Megatron's _vocab_size_with_padding: make_vocab_size_divisible_by times the tensor parallel size."""
    source = hf(tmp_path / "in", vocab_size=97)
    nemo(tmp_path / "nemo", source, tp=2, rows=98)
    edit_yaml(tmp_path / "nemo", make_vocab_size_divisible_by=1, tensor_model_parallel_size=2, override_vocab_size=None)
    refused(tmp_path / "nemo", tmp_path / "out", to="hf", code=6, words=["--vocab_size", "98 rows", "up to 1 may"])
    convert(tmp_path / "nemo", tmp_path / "out", "--vocab_size=97", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


def grown(folder, source, rows):
    """A NeMo checkpoint with values in the rows behind the vocabulary, as those of tokens that training added have."""
    tensors = dict(source.tensors)
    for name in ["model.embed_tokens.weight", "lm_head.weight"]:
        tensors[name] = torch.cat([tensors[name], tensors[name][: rows - source.config.vocab_size]])
    nemo_reference.write_nemo(folder, source.config, tensors, source.dtype)


@pytest.mark.parametrize("to", ["hf", "nemo", "trtllm"])
def test_rows_that_cannot_be_padding_are_not_cut(to, tmp_path):
    options = ["--verify", *(["--checkpoint_only"] if to == "trtllm" else [])]
    source = hf(tmp_path / "in", vocab_size=97)
    grown(tmp_path / "nemo", source, 101)
    for hint in [f"--hf_model_name={source.path}", "--vocab_size=97"]:
        result = convert(tmp_path / "nemo", tmp_path / "out", hint, *options, to=to, code=6)
        assert all(word in result.err for word in ["97", "101", "word_embeddings"]), result
        assert_nothing_published(tmp_path / "out")
    result = reshard("verify", tmp_path / "nemo", source.path, f"--hf_model_name={source.path}", code=1)
    assert "word_embeddings" in result.out
    convert(tmp_path / "nemo", tmp_path / "all", "--vocab_size=101", "--model_type=llama", to="hf")


@pytest.mark.parametrize("keys", [{"make_vocab_size_divisible_by": 128}, {"tensor_model_parallel_size": 4}], ids=["divisor", "ranks"])
def test_padding_may_hold_values(keys, tmp_path):
    """Megatron's padding is initialised at random and trained: 128 rows are 97 padded to 128, 100 are 97 padded to 4 ranks."""
    source = hf(tmp_path / "in", vocab_size=97)
    grown(tmp_path / "nemo", source, 128 if "make_vocab_size_divisible_by" in keys else 100)
    edit_yaml(tmp_path / "nemo", override_vocab_size=None, **keys)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", "--verify", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


# -- sliding windows


WINDOW = dict(use_sliding_window=True, sliding_window=32, max_window_layers=0)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("types", ["ff", "ss", "fs", "sf"])
def test_layer_types_say_which_layers_have_a_window(family, types, tmp_path):
    words = {"f": "full_attention", "s": "sliding_attention"}
    source = hf(tmp_path / "in", family, **WINDOW, layer_types=[words[t] for t in types])
    assert models.read_config(source.path).layer_types == [words[t] for t in types]
    if len(set(types)) > 1:
        layer = f"layers {types.index('s')} only"
        refused(source.path, tmp_path / "out", NAMED, to="nemo", code=5, words=["sliding window of 32", layer])
        return
    convert(source.path, tmp_path / "out", NAMED, to="nemo")
    window = yaml.safe_load((tmp_path / "out" / "model_config.yaml").read_text()).get("window_size")
    assert window == ([32, 0] if types == "ss" else None)


@pytest.mark.parametrize("keys, code", [(dict(layer_types=["full_attention"]), 6), (dict(layer_types=["chunked_attention"] * 2), 5),
                                        (dict(layer_types=["sliding_attention"] * 2, use_sliding_window=False), 6)])
def test_layer_types_that_transformers_cannot_run_are_refused(keys, code, tmp_path):
    source = hf(tmp_path / "in", "qwen2")
    edit(source.path, **keys)
    refused(source.path, tmp_path / "out", NAMED, to="nemo", code=code, words=["layer_types"])


def test_a_window_in_a_llama_config_means_nothing(tmp_path):
    source = hf(tmp_path / "in")
    edit(source.path, sliding_window=8)
    convert(source.path, tmp_path / "nemo", NAMED, to="nemo")
    convert(tmp_path / "nemo", tmp_path / "out", "--model_type=llama", "--vocab_size=64", to="hf")
    assert models.read_config(tmp_path / "out").model_type == "llama"
    assert torch.equal(models.logits(tmp_path / "out"), models.logits(source.path))


# -- rope


@pytest.mark.parametrize("keys, code, words", [
    (dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0), rope_scaling=dict(rope_type="linear", factor=4.0)),
     6, ["rope_parameters", "rope_scaling"]),
    (dict(rope_parameters=dict(full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e6))), 5, ["full_attention"]),
    (dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)), 5, ["partial_rotary_factor"]),
    (dict(partial_rotary_factor=0.5), 5, ["partial_rotary_factor"]),
], ids=["two that differ", "by layer type", "partial", "partial outside"])
def test_rope_settings_that_would_be_lost_are_refused(keys, code, words, tmp_path):
    source = hf(tmp_path / "in")
    edit(source.path, **keys)
    refused(source.path, tmp_path / "out", NAMED, to="nemo", code=code, words=words)


def test_rope_settings_in_both_spellings_that_agree_are_one(tmp_path):
    source = hf(tmp_path / "in", rope_parameters=models.LINEAR_ROPE)
    edit(source.path, rope_theta=10000.0, rope_scaling=dict(type="linear", factor=2.0))
    convert(source.path, tmp_path / "out", NAMED, to="nemo")
    settings = yaml.safe_load((tmp_path / "out" / "model_config.yaml").read_text())
    assert (settings["seq_len_interpolation_factor"], settings["rotary_base"]) == (2.0, 10000.0)


def test_a_template_with_another_llama3_factor_is_refused(tmp_path):
    source = hf(tmp_path / "in", rope_parameters=models.LLAMA3_ROPE)
    convert(source.path, tmp_path / "nemo", NAMED, to="nemo")
    edit(source.path, rope_parameters=dict(models.LLAMA3_ROPE, factor=32.0))
    refused(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf", code=6, words=["32.0", "8.0"])


# -- nulls, dtypes, other settings


def test_null_is_the_class_default_where_it_means_nothing(tmp_path):
    source = hf(tmp_path / "in")
    edit(source.path, ("rope_parameters",), rms_norm_eps=None, rope_theta=None, initializer_range=None)
    convert(source.path, tmp_path / "out", NAMED, to="nemo")
    settings = yaml.safe_load((tmp_path / "out" / "model_config.yaml").read_text())
    default = models.config("llama")
    assert settings["init_method_std"] == default.initializer_range
    assert (settings["layernorm_epsilon"], settings["rotary_base"]) == (1e-6, 10000.0)  # LlamaConfig's


def test_null_groups_are_as_many_as_heads_and_a_null_window_is_none(tmp_path):
    source = hf(tmp_path / "in", "mistral", num_key_value_heads=8, sliding_window=None)
    edit(source.path, num_key_value_heads=None, sliding_window=None)
    convert(source.path, tmp_path / "out", NAMED, to="nemo")
    settings = yaml.safe_load((tmp_path / "out" / "model_config.yaml").read_text())
    assert (settings["num_query_groups"], settings.get("window_size")) == (8, None)


def test_a_cast_config_without_a_dtype_gets_one(tmp_path):
    source = hf(tmp_path / "in")
    edit(source.path, ("dtype",))
    convert(source.path, tmp_path / "out", "--dtype=fp32", to="hf")
    assert models.read_config(tmp_path / "out").dtype == torch.float32
    convert(source.path, tmp_path / "same", to="hf")
    assert (tmp_path / "same" / "config.json").read_bytes() == (source.path / "config.json").read_bytes()


def test_one_tensor_of_another_dtype_is_not_the_models(tmp_path):
    source = hf(tmp_path / "in")
    path = source.path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float()
    save_file(tensors, path, {"format": "pt"})
    convert(source.path, tmp_path / "nemo", NAMED, to="nemo")
    assert yaml.safe_load((tmp_path / "nemo" / "model_config.yaml").read_text())["precision"] == "bf16"
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    assert (tmp_path / "out" / "config.json").read_bytes() == (source.path / "config.json").read_bytes()
    convert(tmp_path / "nemo", tmp_path / "derived", "--model_type=llama", "--vocab_size=64", to="hf")
    assert models.read_config(tmp_path / "derived").dtype == torch.bfloat16


@pytest.mark.parametrize("keys, code", [
    (dict(transformer_block_type="post_ln"), 5),
    (dict(headscale=True), 5),
    (dict(rotary_interleaved=True), 5),
    (dict(window_size=[64, 64]), 5),
    (dict(window_size=[64]), 4),
    (dict(seq_len_interpolation_factor=0), 4),
    (dict(layernorm_epsilon=-1), 4),
    (dict(rotary_base=0), 4),
    (dict(rope_scaling=True), 4),
    (dict(rope_scaling={}), 4),
], ids=str)
def test_nemo_settings_that_change_the_function_are_refused(keys, code, tmp_path):
    nemo(tmp_path / "nemo", hf(tmp_path / "in"))
    edit_yaml(tmp_path / "nemo", **keys)
    refused(tmp_path / "nemo", tmp_path / "out", "--model_type=llama", "--vocab_size=64", to="hf", code=code, words=keys)


@pytest.mark.parametrize("window", [[-1, -1], [-1, 0], [None, 0], None], ids=str)
def test_a_nemo_window_of_everything_is_none(window, tmp_path):
    source = hf(tmp_path / "in")
    nemo(tmp_path / "nemo", source)
    edit_yaml(tmp_path / "nemo", window_size=window)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


# -- what lies in the folders


def test_two_arrays_that_differ_in_their_prefix_only_are_refused(tmp_path):
    nemo(tmp_path / "nemo", hf(tmp_path / "in"))
    weights = tmp_path / "nemo" / "model_weights"
    name = "decoder.final_layernorm.weight"
    copy = weights / f"module.{name}"
    copy.mkdir()
    for path in (weights / f"model.{name}").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    words = [f"model.{name}", f"module.{name}"]
    refused(tmp_path / "nemo", tmp_path / "out", "--model_type=llama", "--vocab_size=64", to="hf", code=4, words=words)


def test_errors_name_the_arrays_as_their_folders_are_named(tmp_path):
    nemo(tmp_path / "nemo", hf(tmp_path / "in"))
    weights = tmp_path / "nemo" / "model_weights"
    for path in list(weights.glob("model.*")):
        path.rename(weights / path.name.replace("model.", "model.module.", 1))
    (weights / "model.module.output_layer.weight").rename(weights / "gone")
    refused(tmp_path / "nemo", tmp_path / "out", "--model_type=llama", "--vocab_size=64", to="hf", code=6,
            words=["'model.module.output_layer.weight'"])


@pytest.mark.parametrize("kind, name", [("hf", "tokenizer.json"), ("nemo", "tokenizer.model")])
def test_a_link_to_a_file_that_was_not_downloaded_is_refused(kind, name, tmp_path):
    source = hf(tmp_path / "in")
    os.symlink("../../blobs/missing", source.path / name)
    refused(source.path, tmp_path / "out", to=kind, code=4, words=[name, "download"])


def test_a_template_with_such_a_link_is_refused(tmp_path):
    source = hf(tmp_path / "in")
    nemo(tmp_path / "nemo", source)
    os.symlink("../../blobs/missing", source.path / "tokenizer.json")
    refused(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf", code=4, words=["tokenizer.json"])


def test_what_is_stored_and_no_part_of_the_model_is_shown(tmp_path):
    source = hf(tmp_path / "in")
    nemo(tmp_path / "nemo", source)
    weights = tmp_path / "nemo" / "model_weights"
    (weights / "optimizer.state.exp_avg.model.decoder.final_layernorm.weight").mkdir()
    template = f"--hf_model_name={source.path}"
    plan = reshard("plan", tmp_path / "nemo", tmp_path / "out", "--to=hf", template, "--json").json()
    assert "optimizer.state.exp_avg.model.decoder.final_layernorm.weight" in plan["left"]
    assert "optimizer.state.exp_avg" in reshard("inspect", tmp_path / "nemo").out

    (source.path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (source.path / "model-00001-of-00001.safetensors").write_bytes(b"old")
    plan = reshard("plan", source.path, tmp_path / "out", "--to=hf", "--json").json()
    assert {"model.safetensors.index.json", "model-00001-of-00001.safetensors"} <= set(plan["left"])


def test_a_tokenizer_folder_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    source = hf(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    convert(source.path, tmp_path / "out", "--hf_model_name=./in", to="nemo")
    settings = yaml.safe_load((tmp_path / "out" / "model_config.yaml").read_text())
    assert settings["tokenizer"]["type"] == str(source.path)
