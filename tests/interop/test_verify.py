"""`reshard verify`: verdicts, first and worst differences against numpy, hyper-parameters, and the receipt."""

import json
import math

import models
import nemo_reference
import numpy
import pytest
import torch
from nemo_reference import raw
from program import convert, files, reshard
from safetensors.torch import save_file

SHAPE = models.SHAPES["6x3"]
NAME = "model.layers.1.mlp.up_proj.weight"


def make(folder, dtype=torch.bfloat16, change=None, family="llama", **settings):
    return models.write(folder, models.config(family, **{**SHAPE, **settings}), dtype, seed="verify", change=change)


def verify(*args, code):
    report = reshard("verify", *args, "--json", code=code).json()
    assert report["equal"] == (code == 0)
    return report


def tensor(report, name=NAME):
    return next(t for t in report["tensors"] if t["name"] == name)


def verdicts(report):
    return {t["verdict"] for t in report["tensors"]}


def ordered(bits, dtype):
    """The bits of floating point values as integers whose order, and whose steps, are those of the values."""
    bits = numpy.frombuffer(bits, {torch.bfloat16: "<u2", torch.float16: "<u2", torch.float32: "<u4"}[dtype]).astype(numpy.int64)
    sign = 1 << (8 * dtype.itemsize - 1)
    return numpy.where(bits & sign, -(bits & (sign - 1)), bits)


def differences(a, b):
    """What verify must say of two tensors: a is rounded to the dtype of b first."""
    x, y = a.to(b.dtype), b
    ulps = numpy.abs(ordered(raw(x), b.dtype) - ordered(raw(y), b.dtype))
    places = numpy.flatnonzero(numpy.frombuffer(raw(x), f"V{b.dtype.itemsize}") != numpy.frombuffer(raw(y), f"V{b.dtype.itemsize}"))
    return places, ulps


def flat(index, shape):
    return int(numpy.ravel_multi_index(tuple(index), shape)) if isinstance(index, list) else index


def assert_difference(entry, a, b):
    places, ulps = differences(a, b)
    assert entry["verdict"] == "differs"
    assert entry["differing"] == len(places)
    first, worst = flat(entry["first"]["index"], b.shape), flat(entry["worst"]["index"], b.shape)
    assert first == places[0]
    assert worst == ulps.argmax()
    assert entry["worst"]["ulps"] == ulps.max()
    for found, place in [(entry["first"], first), (entry["worst"], worst)]:
        for side, values in [("a", a), ("b", b)]:
            assert torch.tensor(float(found[side])).to(values.dtype) == values.flatten()[place]


@pytest.fixture
def pair(tmp_path):
    """A model, and a copy of it whose tensors a test may change."""

    def make_pair(change, dtype=torch.bfloat16, **settings):
        return make(tmp_path / "a", dtype), make(tmp_path / "b", dtype, change, **settings)

    return make_pair


def flip(name, place, bit):
    def change(tensors):
        t = tensors[name].clone().flatten()
        t.view(models.WORD[t.dtype])[place] ^= 1 << bit
        tensors[name] = t.reshape(tensors[name].shape)

    return change


@pytest.mark.parametrize("family", models.CLASSES)
def test_kinds_formats_and_shards_do_not_count(family, tmp_path):
    a = make(tmp_path / "a", family=family)
    convert(a.path, tmp_path / "hf", "--max_shard_size=10KB", to="hf")
    convert(a.path, tmp_path / "nemo", f"--hf_model_name={a.path}", to="nemo")
    for x, y in [(a.path, "hf"), (a.path, "nemo"), (tmp_path / "nemo", "hf"), (tmp_path / "nemo", "nemo")]:
        report = verify(x, tmp_path / y, code=0)
        assert verdicts(report) == {"equal"}
        assert report["hyperparameters"] == report["missing"] == report["extra"] == []


def test_rounding_to_the_dtype_of_b_is_told_from_equality(tmp_path):
    a = make(tmp_path / "a", torch.float32)
    convert(a.path, tmp_path / "bf16", "--dtype=bf16", to="hf")
    report = verify(a.path, tmp_path / "bf16", code=0)
    assert verdicts(report) == {"equal_rounded"}
    assert {(t["dtype_a"], t["dtype_b"]) for t in report["tensors"]} == {("F32", "BF16")}
    assert len(report["tensors"]) == len(a.tensors)

    report = verify(tmp_path / "bf16", a.path, code=1)  # the other way round, the rounded values are not the exact ones
    assert verdicts(report) == {"differs"}
    assert_difference(tensor(report), a.tensors[NAME].to(torch.bfloat16), a.tensors[NAME])

    convert(tmp_path / "bf16", tmp_path / "wide", "--dtype=fp32", to="nemo")
    assert verdicts(verify(tmp_path / "bf16", tmp_path / "wide", code=0)) <= {"equal", "equal_rounded"}


@pytest.mark.parametrize("bit", [0, 3, 7, 15])
@pytest.mark.parametrize("place", [0, 777, 1919])
def test_one_flipped_bit_is_found(place, bit, pair):
    a, b = pair(flip(NAME, place, bit))
    report = verify(a.path, b.path, code=1)
    assert [t["name"] for t in report["tensors"] if t["verdict"] != "equal"] == [NAME]
    assert_difference(tensor(report), a.tensors[NAME], b.tensors[NAME])


def test_a_flipped_bit_is_found_through_the_layout_of_nemo(pair, tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    a, b = pair(flip(name, 500, 2))
    convert(b.path, tmp_path / "nemo", f"--hf_model_name={b.path}", to="nemo")
    report = verify(a.path, tmp_path / "nemo", code=1)
    wrong = [t for t in report["tensors"] if t["verdict"] != "equal"]
    assert len(wrong) == 1 and wrong[0]["differing"] == 1
    assert wrong[0]["worst"]["ulps"] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_first_and_worst_of_many_differences(dtype, pair):
    def change(tensors):
        t = tensors[NAME].clone().flatten()
        places = torch.randperm(t.numel(), generator=torch.Generator().manual_seed(3))[:200]
        t[places] *= torch.linspace(0.5, 2, 200).to(t.dtype)
        t[5] = -t[5]  # a change of sign lies many ulps away
        tensors[NAME] = t.reshape(tensors[NAME].shape)

    a, b = pair(change, dtype)
    assert_difference(tensor(verify(a.path, b.path, code=1)), a.tensors[NAME], b.tensors[NAME])


def test_nan_equals_itself_and_nothing_else(pair):
    def change(tensors):
        t = tensors[NAME].clone()
        t[0, 0] = math.nan
        tensors[NAME] = t

    a, b = pair(change)
    assert verdicts(verify(b.path, b.path, code=0)) == {"equal"}
    entry = tensor(verify(a.path, b.path, code=1))
    assert entry["verdict"] == "differs" and entry["differing"] == 1
    assert flat(entry["first"]["index"], b.tensors[NAME].shape) == 0


def test_layers_that_only_one_has_are_missing_or_extra(tmp_path):
    a, b = make(tmp_path / "a"), make(tmp_path / "b", num_hidden_layers=3)
    third = {name for name in b.tensors if ".layers.2." in name}
    report = verify(a.path, b.path, code=1)
    assert set(report["extra"]) == third and report["missing"] == []
    assert any("layers" in h["key"] for h in report["hyperparameters"])
    report = verify(b.path, a.path, code=1)
    assert set(report["missing"]) == third and report["extra"] == []


def test_a_tensor_missing_from_one_folder_is_named(pair):
    a, b = pair(None)
    tensors = dict(b.tensors)
    del tensors[NAME]
    save_file(tensors, b.path / "model.safetensors", {"format": "pt"})
    result = reshard("verify", a.path, b.path, code=(1, 6))
    assert NAME in result.out + result.err


@pytest.mark.parametrize("word, settings", [("theta", {"theta": 500000.0}), ("eps", {"rms_norm_eps": 1e-6}), ("rope", {"linear": 2.0})])
def test_hyperparameters_that_change_the_model_are_differences(word, settings, pair):
    if "theta" in settings:
        settings = {"rope_parameters": dict(rope_type="default", rope_theta=settings["theta"])}
    elif "linear" in settings:
        settings = {"rope_parameters": models.LINEAR_ROPE}
    a, b = pair(None, **settings)
    report = verify(a.path, b.path, code=1)
    assert verdicts(report) == {"equal"}
    assert any(word in h["key"] for h in report["hyperparameters"]), report["hyperparameters"]
    assert all(h["a"] != h["b"] for h in report["hyperparameters"])


def test_both_spellings_of_rope_are_the_same(tmp_path):
    c = models.config("llama", **SHAPE, rope_parameters=models.LINEAR_ROPE)
    a = models.write(tmp_path / "a", c, torch.bfloat16, seed="rope", style=4)
    b = models.write(tmp_path / "b", c, torch.bfloat16, seed="rope", style=5)
    assert verify(a.path, b.path, code=0)["hyperparameters"] == []


@pytest.mark.parametrize("rows", [None, 128])
def test_zero_rows_that_pad_a_vocabulary_do_not_count(rows, tmp_path):
    a = make(tmp_path / "a", vocab_size=97)
    nemo_reference.write_nemo(tmp_path / "nemo", a.config, a.tensors, torch.bfloat16, rows=rows)
    assert verdicts(verify(a.path, tmp_path / "nemo", code=0)) == {"equal"}
    assert verdicts(verify(tmp_path / "nemo", a.path, code=0)) == {"equal"}


def test_a_row_of_padding_that_is_not_zero_counts(tmp_path):
    a = make(tmp_path / "a", vocab_size=97)
    nemo_reference.write_nemo(tmp_path / "nemo", a.config, a.tensors, torch.bfloat16, rows=128)
    chunk = tmp_path / "nemo" / "model_weights" / "model.output_layer.weight" / "0.0"
    content = bytearray(chunk.read_bytes())
    content[-2] = 1
    chunk.write_bytes(content)
    verify(a.path, tmp_path / "nemo", code=1)


@pytest.mark.parametrize("kind", ["hf", "nemo"])
def test_a_checkpoint_is_held_to_its_receipt(kind, tmp_path):
    a = make(tmp_path / "a")
    out = tmp_path / "out"
    convert(a.path, out, f"--hf_model_name={a.path}", to=kind)
    assert reshard("verify", out, code=0)
    receipt = json.loads((out / ".reshard.json").read_text())
    assert receipt
    for name, path in files(out).items():
        content = path.read_bytes()
        spoilt = bytearray(content)
        spoilt[len(spoilt) // 2] ^= 16
        path.write_bytes(spoilt)
        result = reshard("verify", out, code=1)
        assert path.name in result.out + result.err
        path.write_bytes(content[:-1])
        assert path.name in (r := reshard("verify", out, code=1)).out + r.err
        path.unlink()
        assert path.name in (r := reshard("verify", out, code=1)).out + r.err
        path.write_bytes(content)
    reshard("verify", out, code=0)


def test_without_a_receipt_there_is_nothing_to_verify_against(tmp_path):
    a = make(tmp_path / "a")
    result = reshard("verify", a.path, code=3)
    assert ".reshard.json" in result.err


def test_convert_with_verify_publishes_the_same_files(tmp_path):
    a = make(tmp_path / "a")
    convert(a.path, tmp_path / "plain", f"--hf_model_name={a.path}", to="nemo")
    convert(a.path, tmp_path / "verified", f"--hf_model_name={a.path}", "--verify", to="nemo")
    plain, verified = files(tmp_path / "plain"), files(tmp_path / "verified")
    assert {n: p.read_bytes() for n, p in plain.items()} == {n: p.read_bytes() for n, p in verified.items()}
