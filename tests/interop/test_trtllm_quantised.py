"""Quantised TensorRT-LLM checkpoints against numpy and torch, element by element as the original's formulas say."""

import json

import models
import numpy as np
import pytest
import torch
from program import assert_nothing_published, convert, hashes, reshard
from safetensors.torch import load_file

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PERM16 = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
PERM32 = [0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27,
          4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31]
SHAPE = dict(hidden_size=128, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
             num_hidden_layers=4)
LINEAR = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj")


def quantise(weight, bits, dtype):
    """Of [outputs, inputs]: integers [outputs, inputs] and the scales, rounded to dtype."""
    levels = 2.0 ** (bits - 1)
    w = weight.to(dtype).float().numpy()
    scale = np.abs(w).max(axis=1).astype(np.float32) * np.float32(1 / levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = w / scale[:, None]
    rounded = np.trunc(x) + np.where(np.abs(x - np.trunc(x)) >= 0.5, np.sign(x), 0)
    q = np.where(scale[:, None] == 0, 0, np.clip(rounded, -levels, levels - 1)).astype(np.int32)
    return q, torch.from_numpy(scale).to(dtype)


def lay_out(q, bits, sm):
    """The bytes that the mixed GEMM kernels of an architecture read."""
    rows, columns = q.shape
    interleaved, bias = 75 <= sm < 90, sm < 90
    out = np.zeros(rows * columns, np.int64)
    n, k = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    source, address = k, n * columns + k
    if interleaved:
        tile, perm = (2, PERM16) if bits == 8 else (4, PERM32)
        source = k // len(perm) * len(perm) + np.array(perm)[k % len(perm)]
        address = n // tile * tile * columns + tile * (k // 64) * 64 + 64 * (n % tile) + k % 64
    values = q[n, source] + (2 ** (bits - 1) if bias else 0)
    if bias and bits == 8:
        address = address // 4 * 4 + np.array([0, 2, 1, 3])[address % 4]
    if bias and bits == 4:
        address = address // 8 * 8 + np.array([0, 4, 1, 5, 2, 6, 3, 7])[address % 8]
    out[address] = values
    if bits == 8:
        return (out & 0xFF).astype(np.uint8)
    return ((out[0::2] & 15) | (out[1::2] & 15) << 4).astype(np.uint8)


def plain(tmp_path, source, *options):
    """The same checkpoint without quantisation, by rank."""
    convert(source, tmp_path / "plain", "--checkpoint_only", *options, to="trtllm")
    return [load_file(p) for p in sorted((tmp_path / "plain").glob("rank*.safetensors"))]


def model(tmp_path, family="llama", change=None, **shape):
    """With zeros, ties and both ends of the range in it."""
    def spice(tensors):
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                tensor[3].zero_()
                tensor[4] = torch.linspace(-1, 1, tensor.shape[1])
        if change:
            change(tensors)
    return models.write(tmp_path / "hf", models.config(family, **{**SHAPE, **shape}), torch.bfloat16, change=spice).path


def is_linear(name):
    return name.endswith(".weight") and name.removesuffix(".weight").endswith(LINEAR)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("sm", [70, 75, 80, 86, 89, 90])
@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only(bits, sm, tp, dtype, family, tmp_path):
    source = model(tmp_path, family)
    ranks = plain(tmp_path, source, f"--tp_size={tp}", f"--dtype={dtype}")
    convert(source, tmp_path / "out", "--checkpoint_only", f"--tp_size={tp}", f"--dtype={dtype}", "--use_weight_only",
            f"--weight_only_precision=int{bits}", f"--sm={sm}", to="trtllm")
    for rank, tensors in enumerate(ranks):
        got = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for name, tensor in tensors.items():
            if not is_linear(name):
                assert torch.equal(got.pop(name), tensor), name
                continue
            weight, scale = got.pop(name), got.pop(name.removesuffix("weight") + "per_channel_scale")
            q, want = quantise(tensor, bits, DTYPES[dtype])
            rows, columns = tensor.shape
            assert weight.dtype == torch.int8 and list(weight.shape) == [columns, rows * bits // 8]
            assert scale.dtype == DTYPES[dtype] and torch.equal(scale, want), name
            assert np.array_equal(weight.numpy().view(np.uint8).reshape(-1), lay_out(q, bits, sm)), name
        assert not got
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"]["quant_algo"] == f"W{bits}A16"


@pytest.mark.parametrize("tp", [1, 2])
def test_weight_only_without_the_plugin(tp, tmp_path):
    source = model(tmp_path)
    ranks = plain(tmp_path, source, f"--tp_size={tp}", "--dtype=bf16")
    convert(source, tmp_path / "out", "--checkpoint_only", f"--tp_size={tp}", "--dtype=bf16", "--use_weight_only",
            "--sm=80", "--disable_weight_only_quant_plugin", to="trtllm")
    for rank, tensors in enumerate(ranks):
        got = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for name in filter(is_linear, tensors):
            assert torch.equal(got[name], tensors[name].T), name
            _, want = quantise(tensors[name], 8, torch.bfloat16)
            assert torch.equal(got[name.removesuffix("weight") + "per_channel_scale"], want), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["disable_weight_only_quant_plugin"] is True


def fp8_rows(weight, reciprocal=False):
    """`reciprocal`: torch divides by a constant on a GPU as it multiplies by the nearest float to its reciprocal."""
    x = weight.float().clamp(-1200.0, 1200.0)
    largest = x.abs().amax(1)
    quotient = largest * torch.tensor(1 / 448, dtype=torch.float32) if reciprocal else largest / 448
    scale = torch.maximum(quotient, torch.tensor(1 / (448 * 512)))
    return (x / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("version", ["0.12", "0.15"])
@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_rowwise(dtype, tp, pp, version, tmp_path):
    source = model(tmp_path)
    ranks = plain(tmp_path, source, f"--tp_size={tp}", f"--pp_size={pp}", f"--dtype={dtype}")
    convert(source, tmp_path / "out", "--checkpoint_only", f"--tp_size={tp}", f"--pp_size={pp}", f"--dtype={dtype}",
            "--use_fp8_rowwise", f"--trtllm_version={version}", to="trtllm")
    bounds = torch.tensor([-1200.0, 1200.0])
    for rank, tensors in enumerate(ranks):
        got = load_file(tmp_path / "out" / f"rank{rank}.safetensors")
        for name, tensor in tensors.items():
            layer = int(name.split(".")[2]) + rank // tp * (4 // pp) if ".layers." in name else 0
            inner = ".mlp." in name and 0 < layer < 3
            if not is_linear(name) or not (inner or version == "0.15"):
                assert torch.equal(got.pop(name), tensor), name
                continue
            weight, scale = fp8_rows(tensor)
            assert torch.equal(got[name].view(torch.uint8), weight.view(torch.uint8)), name
            assert got.pop(name).dtype == torch.float8_e4m3fn
            assert torch.equal(got.pop(name.removesuffix("weight") + "per_channel_scale"), scale), name
        expected = ["mlp", "post_layernorm"] + (["attention", "input_layernorm"] if version == "0.15" else [])
        assert {name.split(".")[-2] for name in got} <= set(expected)
        assert all(name.endswith(".clamp_val") and torch.equal(value, bounds) for name, value in got.items())
        layers = [l for l in range(4 // pp) if version == "0.15" or 0 < l + rank // tp * (4 // pp) < 3]
        assert len(got) == len(layers) * len(expected)
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert quantization["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN"
    assert quantization["clamp_val"] == [-1200.0, 1200.0]


def test_fp8_scales_of_a_gpu(tmp_path):
    source = model(tmp_path)
    [tensors] = plain(tmp_path, source, "--dtype=bf16")
    convert(source, tmp_path / "out", "--checkpoint_only", "--dtype=bf16", "--use_fp8_rowwise", "--fp8_reciprocal_scales",
            to="trtllm")
    got = load_file(tmp_path / "out" / "rank0.safetensors")
    different = 0
    for name in (f"transformer.layers.{layer}.mlp.{module}" for layer in (1, 2) for module in ("fc", "gate", "proj")):
        weight, scale = fp8_rows(tensors[name + ".weight"], reciprocal=True)
        assert torch.equal(got[name + ".weight"].view(torch.uint8), weight.view(torch.uint8)), name
        assert torch.equal(got[name + ".per_channel_scale"], scale), name
        different += (scale != fp8_rows(tensors[name + ".weight"])[1]).sum()
    assert different > 0  # else both forms would pass


def test_the_same_from_nemo_with_any_workers_and_little_memory(tmp_path):
    source = model(tmp_path)
    convert(source, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    options = ["--checkpoint_only", "--tp_size=2", "--dtype=bf16", "--use_weight_only", "--sm=80"]
    convert(source, tmp_path / "a", *options, to="trtllm")
    convert(source, tmp_path / "b", *options, "--workers=5", "--max_memory=64MiB", to="trtllm")
    convert(tmp_path / "nemo", tmp_path / "c", *options, f"--hf_model_name={source}", to="trtllm")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_without_a_quantised_one_are_refused(value, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    source = model(tmp_path, change=lambda tensors: tensors[name][0, 5].fill_(value))
    result = convert(source, tmp_path / "out", "--checkpoint_only", "--use_weight_only", "--sm=80", to="trtllm", code=6)
    assert name in result.err and "finite" in result.err and "row 0" in result.err
    assert_nothing_published(tmp_path / "out")


@pytest.mark.parametrize("options, words", [
    (["--weight_only_precision=int8", "--sm=80"], ["96 input features", "multiple of 64", "mlp.proj.weight"]),
    (["--weight_only_precision=int4", "--sm=90"], ["96 output channels", "multiple of 64"]),
], ids=["inputs", "outputs"])
def test_odd_sizes_are_refused(options, words, tmp_path):
    source = model(tmp_path, intermediate_size=96)
    result = convert(source, tmp_path / "out", "--checkpoint_only", "--use_weight_only", *options, to="trtllm", code=6)
    assert all(word in result.err for word in words), result
    assert_nothing_published(tmp_path / "out")


@pytest.mark.parametrize("options", [
    ["--sm=80"], ["--use_weight_only", "--use_fp8_rowwise"], ["--use_weight_only", "--sm=71"],
    ["--weight_only_precision=int8"], ["--use_fp8_rowwise", "--verify"],
    ["--use_weight_only", "--weight_only_precision=int4", "--disable_weight_only_quant_plugin"],
], ids=" ".join)
def test_options_that_do_not_go_together_are_refused(options, tmp_path):
    result = convert(tmp_path / "in", tmp_path / "out", "--checkpoint_only", *options, to="trtllm", code=2)
    assert "expected" in result.err


@pytest.mark.parametrize("option", ["--smoothquant=0.5", "--int8_kv_cache", "--per_token", "--calib_dataset=x", "--calib_batch_size=1"])
def test_modes_that_need_activations_are_refused(option, tmp_path):
    result = reshard("convert", tmp_path / "in", tmp_path / "out", "--to=trtllm", option, code=5)
    assert "activations" in result.err and option.split("=")[0] in result.err and "--use_fp8_rowwise" in result.err
