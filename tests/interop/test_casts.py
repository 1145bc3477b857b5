"""Casts through the program against torch: every 16-bit value, sampled 32-bit values, and what overflows."""

import itertools
import re

import models
import numpy
import pytest
import torch
from program import assert_nothing_published, convert, files

HIDDEN = 256
CARRIER = "model.embed_tokens.weight"  # its elements are ours to choose
SHAPE = dict(num_attention_heads=1, num_key_value_heads=1, hidden_size=HIDDEN, head_dim=16, intermediate_size=8, num_hidden_layers=1)
PAIRS = list(itertools.permutations(models.DTYPES, 2))
pairs = pytest.mark.parametrize("stored, wanted", PAIRS, ids=["-".join(x) for x in PAIRS])


def all_words():
    return numpy.arange(1 << 16, dtype=numpy.uint32).astype(numpy.uint16)


def sampled_words():
    """Bit patterns of fp32: at random, around every boundary of the 16-bit formats, and half way between their values."""
    rng = numpy.random.default_rng(7)
    anything = rng.integers(0, 1 << 32, 1 << 16, dtype=numpy.uint32)
    bf16_ties = (rng.integers(0, 1 << 16, 1 << 14, dtype=numpy.uint32) << 16) | 0x8000
    halves = numpy.arange(1 << 15, dtype=numpy.uint16).view(numpy.float16).astype(numpy.float32)
    with numpy.errstate(over="ignore", invalid="ignore"):
        fp16_ties = ((halves[:-1] + halves[1:]) / 2).view(numpy.uint32)
    fp16_ties |= rng.integers(0, 2, len(fp16_ties), dtype=numpy.uint32) << 31
    edges = [0x00000000, 0x00000001, 0x007FFFFF, 0x00800000, 0x33000000, 0x33000001, 0x387FC000, 0x387FE000, 0x38800000, 0x477FE000]
    edges += [0x477FEFFF, 0x477FF000, 0x47800000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7F808000, 0x7FC00000]
    edges += [0x7FFFFFFF, 0x00007FFF, 0x00008000, 0x00008001, 0x00018000, 0x3F808000, 0x3F818000]
    edges = numpy.array(edges, dtype=numpy.uint32)
    nearby = numpy.concatenate([edges - 1, edges, edges + 1])
    words = numpy.concatenate([anything, bf16_ties, fp16_ties, nearby, nearby | 0x80000000, bf16_ties - 1, bf16_ties + 1])
    return numpy.resize(words, -(-len(words) // HIDDEN) * HIDDEN)


def carrier(dtype):
    words = sampled_words().view(numpy.int32) if dtype == torch.float32 else all_words().view(numpy.int16)
    return torch.from_numpy(words.copy()).view(dtype).reshape(-1, HIDDEN)


def source(folder, dtype, values):
    c = models.config("llama", **SHAPE, vocab_size=len(values), tie_word_embeddings=True)
    return models.write(folder, c, dtype, seed="casts", change=lambda tensors: tensors.update({CARRIER: values}))


def overflows(values, dtype):
    return torch.isfinite(values) & torch.isinf(values.to(dtype))


def assert_cast(got, values, dtype):
    want = values.to(dtype)
    nan = torch.isnan(want)
    assert torch.equal(torch.isnan(got), nan)
    word = models.WORD[dtype]
    assert torch.equal(got.view(word)[~nan], want.view(word)[~nan])


@pytest.mark.parametrize("through", ["hf", "nemo"])
@pairs
def test_values_are_those_of_torch(stored, wanted, through, tmp_path):
    dtype = models.DTYPES[wanted]
    values = carrier(models.DTYPES[stored])
    model = source(tmp_path / "in", models.DTYPES[stored], values)
    options = ["--hf_model_name=example/model"] if through == "nemo" else []
    convert(model.path, tmp_path / "out", f"--dtype={wanted}", "--allow_overflow", *options, to=through)
    if through == "hf":
        got = models.read(tmp_path / "out")[CARRIER]
    else:
        chunk = tmp_path / "out" / "model_weights" / "model.embedding.word_embeddings.weight" / "0.0"
        got = torch.frombuffer(bytearray(chunk.read_bytes()), dtype=dtype).reshape(values.shape)
    assert_cast(got, values, dtype)


@pairs
def test_what_does_not_overflow_needs_no_leave(stored, wanted, tmp_path):
    dtype = models.DTYPES[wanted]
    values = carrier(models.DTYPES[stored])
    values[overflows(values, dtype)] = 0  # infinities stay: they are no overflow
    assert torch.isinf(values).any() and torch.isnan(values).any()
    model = source(tmp_path / "in", models.DTYPES[stored], values)
    convert(model.path, tmp_path / "out", f"--dtype={wanted}", to="hf")
    assert_cast(models.read(tmp_path / "out")[CARRIER], values, dtype)


@pytest.mark.parametrize("through", ["hf", "nemo"])
@pytest.mark.parametrize("stored, wanted", [("fp32", "fp16"), ("bf16", "fp16"), ("fp32", "bf16")])
def test_overflow_is_refused_with_tensor_and_count_until_allowed(stored, wanted, through, tmp_path):
    dtype = models.DTYPES[wanted]
    values = carrier(models.DTYPES[stored])
    count = int(overflows(values, dtype).sum())
    assert count > 0
    model = source(tmp_path / "in", models.DTYPES[stored], values)
    command = [model.path, tmp_path / "out", f"--dtype={wanted}", "--hf_model_name=example/model"]
    if through == "hf":
        command.pop()
    result = convert(*command, to=through, code=6)
    assert CARRIER in result.err or "word_embeddings" in result.err
    assert re.search(rf"(?<!\d){count}(?!\d)", result.err.replace(",", "")), f"{count} not in {result.err}"
    assert "allow_overflow" in result.err
    assert_nothing_published(tmp_path / "out")
    convert(*command, "--allow_overflow", to=through)
    assert files(tmp_path / "out")
    if through == "hf":
        assert_cast(models.read(tmp_path / "out")[CARRIER], values, dtype)


def test_every_overflowing_tensor_is_named(tmp_path):
    names = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"]

    def change(tensors):
        for i, name in enumerate(names):
            tensors[name] = tensors[name].clone()
            tensors[name].flatten()[: i + 1] = 1e6

    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.float32, seed="three", change=change)
    result = convert(model.path, tmp_path / "out", "--dtype=fp16", to="hf", code=6)
    for name in names:
        assert name in result.err
    assert_nothing_published(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
@pytest.mark.parametrize("part", range(16))
def test_all_values_of_fp32(part, wanted, tmp_path):
    words = numpy.arange(part << 28, (part + 1) << 28, dtype=numpy.int64).astype(numpy.uint32).view(numpy.int32)
    for i, piece in enumerate(numpy.split(words, 8)):
        values = torch.from_numpy(piece).view(torch.float32).reshape(-1, HIDDEN)
        model = source(tmp_path / f"in{i}", torch.float32, values)
        convert(model.path, tmp_path / f"out{i}", f"--dtype={wanted}", "--allow_overflow", to="hf")
        assert_cast(models.read(tmp_path / f"out{i}")[CARRIER], values, models.DTYPES[wanted])
        for folder in (tmp_path / f"in{i}", tmp_path / f"out{i}"):
            (folder / "model.safetensors").unlink()
