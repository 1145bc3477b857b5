"""TensorRT-LLM checkpoints that are read: copies in several ranks, and what is refused."""

import json
import shutil

import models
import pytest
import torch
import trtllm_reference
from program import assert_nothing_published, convert, reshard
from safetensors.torch import load_file, save_file
from trtllm_models import Cell, hf_settings, rank_files, to_trtllm, write_model
from trtllm_reference import Layout


@pytest.fixture
def ranks(tmp_path):
    """A checkpoint of 2 groups on 4 ranks in 2 stages, in which a test breaks something; and its model."""
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "ranks")
    folder = tmp_path / "trtllm"
    trtllm_reference.write_trtllm(folder, source.config, source.tensors, hf_settings(source), Layout(4, 2), source.dtype)
    return folder


def assert_unreadable(folder, codes, *says):
    out = folder.parent / "out"
    result = convert(folder, out, to="hf", code=codes)
    assert result.err.startswith(("reshard: error: reading ", "reshard: error: planning from ")), result
    for word in says:
        assert word in result.err, f"no {word} in {result}"
    assert_nothing_published(out)


def edit_config(folder, change):
    cfg = json.loads((folder / "config.json").read_text())
    change(cfg)
    (folder / "config.json").write_text(trtllm_reference.config_text(cfg))


def edit_rank(folder, rank, change):
    path = folder / f"rank{rank}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_a_missing_rank_is_refused(rank, ranks):
    (ranks / f"rank{rank}.safetensors").unlink()
    assert_unreadable(ranks, (3, 4, 6), f"rank{rank}.safetensors", "8")


def test_a_rank_beyond_the_world_size_is_refused(ranks):
    shutil.copy(ranks / "rank7.safetensors", ranks / "rank8.safetensors")
    assert_unreadable(ranks, (4, 6), "rank8.safetensors", "8")


@pytest.mark.parametrize("rank", [1, 5])
def test_a_rank_of_a_run_with_another_tp_is_refused(rank, ranks, tmp_path):
    to_trtllm(tmp_path / "in", tmp_path / "other", Layout(2, 3))
    shutil.copy(tmp_path / "other" / f"rank{rank}.safetensors", ranks / f"rank{rank}.safetensors")
    assert_unreadable(ranks, (4, 6), f"rank{rank}", "transformer.layers.")


# what every rank of a stage has, and the group that two neighbours share (head size 4: its rows follow two heads' queries)
REPLICATED = {
    "transformer.vocab_embedding.weight": (0, 3, 5),
    "transformer.layers.1.input_layernorm.weight": (4, 6, 5),
    "transformer.layers.2.post_layernorm.weight": (0, 1, 0),
    "transformer.ln_f.weight": (4, 7, 1),
    "transformer.layers.0.attention.qkv.weight": (2, 3, 8 * 32 + 7),
}


@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_that_differ_are_refused(name, ranks):
    first, other, place = REPLICATED[name]
    edit_rank(ranks, other, lambda tensors: tensors[name].view(-1).view(torch.int16)[place].bitwise_xor_(1))
    assert_unreadable(ranks, (4, 6), f"rank{first}.safetensors", f"rank{other}.safetensors", name)


@pytest.mark.parametrize("option", [[], ["--dtype=fp32"]], ids=["kept", "cast"])
def test_replicas_are_compared_bit_by_bit(option, ranks, tmp_path):
    """Equal NaNs are equal; zeros of two signs are not."""
    name = "transformer.ln_f.weight"

    def fill(*bits):
        return lambda tensors: tensors[name].view(torch.int16)[: len(bits)].copy_(torch.tensor(bits, dtype=torch.int16))

    for rank in range(4, 8):
        edit_rank(ranks, rank, fill(0x7FC1, -1, 0x7F80, 0))
    convert(ranks, tmp_path / "nan", *option, to="hf")
    edit_rank(ranks, 6, fill(0x7FC1, -1, 0x7F80, -0x8000))
    result = convert(ranks, tmp_path / "out", *option, to="hf", code=6)
    assert all(word in result.err for word in ["rank4", "rank6", name])
    assert_nothing_published(tmp_path / "out")


@pytest.mark.parametrize("rank", [1, 6])
def test_a_rank_of_another_dtype_is_refused(rank, ranks):
    edit_rank(ranks, rank, lambda tensors: tensors.update({name: t.float() for name, t in tensors.items()}))
    assert_unreadable(ranks, (4, 6), "BF16", "F32", "transformer.")


@pytest.mark.parametrize("word", [["--vocab_size=45"], []], ids=["told", "untold"])
def test_a_tied_qwen2_of_0_15_comes_back_tied(word, tmp_path):
    source = write_model(tmp_path / "in", Cell("qwen2", "tied-odd", Layout(), "bf16", 4, 1), "tied")
    to_trtllm(source.path, tmp_path / "trtllm", Layout(4), "--trtllm_version=0.15")
    convert(tmp_path / "trtllm", tmp_path / "out", *word, to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_head_that_differs_from_the_embedding_of_a_tied_model_is_refused(tmp_path):
    source = write_model(tmp_path / "in", Cell("qwen2", "tied-odd", Layout(), "bf16", 4, 1), "tied")
    folder = tmp_path / "trtllm"
    to_trtllm(source.path, folder, Layout(4), "--trtllm_version=0.15")
    edit_rank(folder, 2, lambda tensors: tensors["lm_head.weight"].view(torch.int16)[1, 1].bitwise_xor_(1))
    assert_unreadable(folder, (6,), "rank2.safetensors", "lm_head.weight")


def test_the_biases_of_replicas_are_compared_too(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "bias", Layout(), "bf16", 4, 1), "bias")
    folder = tmp_path / "trtllm"
    trtllm_reference.write_trtllm(folder, source.config, source.tensors, hf_settings(source), Layout(2), source.dtype)
    name = "transformer.layers.5.attention.dense.bias"
    edit_rank(folder, 1, lambda tensors: tensors[name].view(torch.int16)[31].bitwise_xor_(1))
    assert_unreadable(folder, (4, 6), "rank0.safetensors", "rank1.safetensors", name)


def test_padding_that_is_not_zero_is_dropped_or_refused_but_never_kept(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups4-odd", Layout(), "bf16", 4, 1), "padding")
    folder = tmp_path / "trtllm"
    trtllm_reference.write_trtllm(folder, source.config, source.tensors, hf_settings(source), Layout(2), source.dtype)
    edit_rank(folder, 1, lambda tensors: tensors["lm_head.weight"][-1].fill_(3.0))
    result = convert(folder, tmp_path / "out", f"--hf_model_name={source.path}", to="hf", code=(0, 4, 6))
    if result.code == 0:
        models.assert_equal(models.read(tmp_path / "out"), source.tensors)


LIES = {
    "world_size": (lambda cfg: cfg["mapping"].update(world_size=4), ["world_size", "4", "8"]),
    "world_size and pp": (lambda cfg: cfg["mapping"].update(world_size=4, pp_size=1), ["rank4.safetensors", "4"]),
    "tp and pp": (lambda cfg: cfg["mapping"].update(tp_size=8, pp_size=1), ["attention.qkv.weight"]),
    "tp 0": (lambda cfg: cfg["mapping"].update(tp_size=0), ["tp_size", "0"]),
    "heads": (lambda cfg: cfg.update(num_attention_heads=16), ["attention.qkv.weight"]),
    "groups": (lambda cfg: cfg.update(num_key_value_heads=8), ["attention.qkv.weight"]),
    "head size": (lambda cfg: cfg.update(head_size=8), ["attention.qkv.weight"]),
    "layers": (lambda cfg: cfg.update(num_hidden_layers=8), ["transformer.layers.3."]),
    "fewer layers": (lambda cfg: cfg.update(num_hidden_layers=4), ["transformer.layers.2."]),
    "layers by stages": (lambda cfg: cfg.update(num_hidden_layers=5), ["5", "2"]),
    "ffn": (lambda cfg: cfg.update(intermediate_size=64), ["mlp.fc.weight", "16", "12"]),
    "vocabulary": (lambda cfg: cfg.update(vocab_size=128), ["64", "128"]),
    "bias": (lambda cfg: cfg.update(attn_bias=True), ["attention.qkv.bias"]),
    "parallel embedding": (lambda cfg: cfg.update(use_parallel_embedding=True), ["transformer.vocab_embedding.weight", "64", "16"]),
    "sharing": (lambda cfg: cfg.update(share_embedding_table=True), ["lm_head"]),
    "architecture": (lambda cfg: cfg.update(architecture="BananaForCausalLM"), ["BananaForCausalLM"]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_config_that_lies_is_refused(lie, ranks):
    change, says = LIES[lie]
    edit_config(ranks, change)
    assert_unreadable(ranks, (4, 5, 6), *says)


def test_without_config_the_ranks_are_no_checkpoint(ranks):
    """config.json is written last, so what lacks it is incomplete."""
    (ranks / "config.json").unlink()
    assert_unreadable(ranks, (4,), "config.json", "incomplete")


@pytest.mark.parametrize("said", ["float16", "float8"])
def test_the_dtype_is_that_of_the_tensors_whatever_config_says(said, ranks, tmp_path):
    edit_config(ranks, lambda cfg: cfg.update(dtype=said))
    convert(ranks, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), models.read(tmp_path / "in"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    to_trtllm(ranks, tmp_path / "other", Layout())
    assert json.loads((tmp_path / "other" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_config_of_another_model_than_the_template_is_refused(ranks, tmp_path):
    edit_config(ranks, lambda cfg: cfg.update(num_attention_heads=16))
    result = convert(ranks, tmp_path / "out", f"--hf_model_name={tmp_path / 'in'}", to="hf", code=6)
    assert all(word in result.err for word in ["heads", "16", "8", "template"])
    assert_nothing_published(tmp_path / "out")


def test_an_unexpected_tensor_is_refused(ranks):
    edit_rank(ranks, 5, lambda tensors: tensors.update({"transformer.layers.0.mlp.extra.weight": torch.zeros(2)}))
    assert_unreadable(ranks, (6,), "rank5", "transformer.layers.0.mlp.extra.weight")


def test_a_missing_tensor_is_refused(ranks):
    edit_rank(ranks, 5, lambda tensors: tensors.pop("transformer.layers.0.mlp.gate.weight"))
    assert_unreadable(ranks, (6,), "rank5", "transformer.layers.0.mlp.gate.weight")


def quantise(folder, dtype):
    """The linear weights as a quantising writer stores them; what the bytes are does not matter here."""

    def change(tensors):
        for name in [n for n in tensors if n.endswith(("qkv.weight", "dense.weight", "fc.weight", "gate.weight", "proj.weight"))]:
            tensors[name] = torch.zeros(tensors[name].t().shape, dtype=dtype)
            tensors[name.replace("weight", "per_channel_scale")] = torch.ones(tensors[name].shape[1], dtype=torch.bfloat16)

    for rank in rank_files(folder):
        edit_rank(folder, rank, change)


ALGORITHMS = ["W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ", "W8A8_SQ_PER_CHANNEL", "FP8", "FP8_PER_CHANNEL_PER_TOKEN"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_quantised_checkpoint_is_refused_by_the_name_of_its_algorithm(algorithm, ranks):
    quantise(ranks, torch.float8_e4m3fn if "FP8" in algorithm else torch.int8)
    edit_config(ranks, lambda cfg: cfg["quantization"].update(quant_algo=algorithm))
    assert_unreadable(ranks, (5,), algorithm)


@pytest.mark.parametrize("algorithm", ["W8A16", "W4A16", None])
def test_weights_that_are_not_plain_are_refused_by_their_names(algorithm, ranks):
    """Weight-only checkpoints may be plain, deferred; whether they are is seen in the tensors."""
    quantise(ranks, torch.int8)
    edit_config(ranks, lambda cfg: cfg["quantization"].update(quant_algo=algorithm))
    assert_unreadable(ranks, (5,), "transformer.layers.0.attention.dense.weight", "I8", "unquantised")
