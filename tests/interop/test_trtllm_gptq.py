"""GPTQ models carried over to TensorRT-LLM: each rank against unpacking, cutting and packing in numpy."""

import dataclasses
import hashlib
import itertools

import models
import numpy as np
import pytest
import torch
import trtllm_reference
from program import convert, files, hashes, reshard
from safetensors.torch import save_file
from test_trtllm_quantised import is_linear, lay_out
from trtllm_models import assert_refused, assert_trtllm_files, change_config, hf_settings, sample, to_trtllm
from trtllm_reference import Layout, Quantization

GPTQ = "--weight_only_precision=int4_gptq"
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
KINDS = {
    "llama": ("llama", {}),
    "llama-bias": ("llama", dict(attention_bias=True)),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", dict(tie_word_embeddings=True)),
}


# ---------------------------------------------------------------- models, and what comes of them


def quantise(tensors, g, sym):
    """The weights of all layers as GPTQ stores them; random values, since none of them is forbidden."""
    random = torch.Generator().manual_seed(g)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        stem, (N, K) = name.removesuffix("weight"), tensors.pop(name).shape
        scales = torch.rand(K // g, N, generator=random) * 10.0 ** torch.randint(-7, 2, (K // g, N), generator=random)
        zeros = torch.randint(-(2**31), 2**31, (K // g, N // 8), generator=random)
        tensors[stem + "qweight"] = torch.randint(-(2**31), 2**31, (K // 8, N), generator=random).int()
        tensors[stem + "qzeros"] = torch.full_like(zeros, 0x77777777).int() if sym else zeros.int()
        tensors[stem + "scales"] = scales.half()
        tensors[stem + "g_idx"] = torch.arange(K).int() // g


def write_gptq(folder, kind="llama", g=128, *, tp=1, groups=2, sym=True, style=4, shards=1, change=None, **settings):
    """A GPTQ model that up to `tp` ranks can hold."""
    family, more = KINDS[kind]
    head = max(32, max(64, g) * tp // 8)
    sizes = dict(models.heads(8, groups, head), intermediate_size=tp * {32: 192, 64: 192, 128: 256}[g], vocab_size=45)

    def change_tensors(tensors):
        quantise(tensors, g, sym)
        if change:
            change(tensors)

    c = models.config(family, **{**sizes, **more, **settings})
    source = models.write(folder, c, torch.float16, seed=kind, style=style, shards=shards, change=change_tensors)
    change_config(source, quantization_config=dict(quant_method="gptq", bits=4, group_size=g, desc_act=False, sym=sym))
    return source


def nibbles(words, axis):
    """Eight values from each word, the low bits first."""
    parts = words.unsqueeze(axis + 1).expand(*words.shape[: axis + 1], 8, *words.shape[axis + 1 :])
    shifts = 4 * torch.arange(8).reshape([8] + [1] * (words.ndim - axis - 1))
    return (parts >> shifts & 15).flatten(axis, axis + 1)


def rank_tensors(source, layout, sm, dtype):
    """By rank. Values, scales and zeros are cut as the weights of three plain models of [outputs, inputs or groups]."""
    plain = {name: t for name, t in source.tensors.items() if not name.endswith(SUFFIXES)}
    values, scales, zeros = dict(plain), dict(plain), dict(plain)
    for stem in [n.removesuffix("qweight") for n in source.tensors if n.endswith("qweight")]:
        qweight, qzeros, s = (source.tensors[stem + x] for x in ("qweight", "qzeros", "scales"))
        values[stem + "weight"], scales[stem + "weight"] = (nibbles(qweight, 0) - 8).T, s.T
        zeros[stem + "weight"] = ((7 - nibbles(qzeros, 1)).float() * s.float()).half().T
    for rank in layout.ranks:
        three = (values, scales, zeros)
        value, scale, zero = (trtllm_reference.rank_tensors(source.config, x, layout, rank) for x in three)
        out = {name: t.to(dtype) for name, t in value.items() if not is_linear(name)}
        for name in filter(is_linear, value):
            N, K = value[name].shape
            packed = lay_out(value[name].numpy(), 4, sm)
            out[name] = torch.from_numpy(packed).view(torch.float16).reshape(K, N // 4)
            out[name.replace("weight", "weights_scaling_factor")] = scale[name].T
            out[name.replace("weight", "zero")] = zero[name].T
        yield out


def assert_gptq_folder(folder, source, layout, sm, g, dtype=torch.float16, version=12):
    quantization = Quantization("W4A16_GPTQ", group_size=g, zero_point=True)
    cfg = trtllm_reference.config(hf_settings(source), layout, dtype, version, quantization)
    assert_trtllm_files(folder, list(rank_tensors(source, layout, sm, dtype)), cfg)


def values_of_the_definition():
    k, n = np.meshgrid(np.arange(128), np.arange(64))
    return (5 * k + 3 * n) % 16 - 8


@pytest.mark.parametrize("sm, digest", [
    (70, "e40bd81eae436d84fff3170960e8f49e78edf0cfcba877d8a9dcdea2e7f6f6eb"),
    (80, "b3019688275429cbef9de0c52b4bdcc2c936cf573be3d72d51abe4cf2791274a"),
    (90, "568a2bad1034aa3c0c51ecca7407d41f4da6dbb9d54ae5dfc516c84d3d57c2d8"),
])
def test_the_layout_of_these_tests_is_that_of_the_definition(sm, digest):
    assert hashlib.sha256(lay_out(values_of_the_definition(), 4, sm).tobytes()).hexdigest() == digest


# ---------------------------------------------------------------- the matrix


@dataclasses.dataclass
class Cell:
    kind: str
    layout: Layout
    sm: int
    g: int
    turn: int  # what else a cell has takes turns

    def model(self):
        i = self.turn
        return dict(groups=(2, 8)[i % 2], sym=i // 2 % 2 == 0, style=(4, 5)[i // 3 % 2], shards=(1, 3)[i // 5 % 2])


def all_cells():
    grid = itertools.product(KINDS, (1, 2, 4), (1, 2), (70, 80, 90), (32, 64, 128))
    for i, (kind, tp, pp, sm, g) in enumerate(grid):
        yield f"{kind}-tp{tp}-pp{pp}-sm{sm}-g{g}", Cell(kind, Layout(tp, pp), sm, g, i)


CELLS = dict(all_cells())


@pytest.mark.parametrize("cell", sample(CELLS, 13))
def test_gptq(cell, tmp_path):
    cell = CELLS[cell]
    layers = 2 * cell.layout.pp  # so that every stage has another second layer
    source = write_gptq(tmp_path / "in", cell.kind, cell.g, tp=cell.layout.tp, num_hidden_layers=layers, **cell.model())
    version, memory = 12 + cell.turn % 4, ["--max_memory=64MiB"] if cell.turn % 3 == 0 else []
    options = [GPTQ, f"--sm={cell.sm}", f"--trtllm_version=0.{version}", *memory]
    to_trtllm(source.path, tmp_path / "out", cell.layout, *options)
    assert_gptq_folder(tmp_path / "out", source, cell.layout, cell.sm, cell.g, version=version)


@pytest.mark.slow
def test_large_weights_in_little_memory(tmp_path):
    """One part of a weight is larger than what one job may hold."""
    sizes = dict(hidden_size=256, intermediate_size=192 * 256, num_hidden_layers=1)
    source = write_gptq(tmp_path / "in", g=64, tp=2, **sizes)
    to_trtllm(source.path, tmp_path / "out", Layout(2), GPTQ, "--sm=80", "--max_memory=64MiB", "--workers=3")
    assert_gptq_folder(tmp_path / "out", source, Layout(2), 80, 64)


# ---------------------------------------------------------------- options


@pytest.fixture
def source(tmp_path):
    return write_gptq(tmp_path / "in", g=64, tp=2, sym=False)


def test_options_that_change_nothing(source, tmp_path):
    options = [GPTQ, "--sm=80"]
    to_trtllm(source.path, tmp_path / "out", Layout(2), *options)
    want = hashes(tmp_path / "out")
    others = [["--sm=75"], ["--sm=86"], ["--sm=89"], ["--group_size=64"], ["--use_weight_only"], ["--dtype=fp16"]]
    for i, other in enumerate(others + [["--max_memory=64MiB", "--workers=5"]]):
        to_trtllm(source.path, tmp_path / str(i), Layout(2), *options, *other)
        assert hashes(tmp_path / str(i)) == want, other


def test_what_is_quantised_stays_fp16_whatever_the_dtype(source, tmp_path):
    """As 0.12 stores it: only what was not quantised is cast."""
    to_trtllm(source.path, tmp_path / "out", Layout(2), GPTQ, "--sm=80", "--dtype=bf16")
    assert_gptq_folder(tmp_path / "out", source, Layout(2), 80, 64, torch.bfloat16)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_embedding_is_cut_where_that_is_asked_for(axis, source, tmp_path):
    """TensorRT-LLM forgets it with GPTQ, and still writes into config.json that it is cut."""
    to_trtllm(source.path, tmp_path / "out", Layout(2, 1, axis), GPTQ, "--sm=80")
    assert_gptq_folder(tmp_path / "out", source, Layout(2, 1, axis), 80, 64)


def test_every_byte_is_read_once(source, tmp_path):
    options = ["--to=trtllm", "--checkpoint_only", "--tp_size=2", "--pp_size=2", GPTQ, "--sm=80", "--json"]
    plan = reshard("plan", source.path, tmp_path / "out", *options).json()
    whole = sum(t.nbytes for t in source.tensors.values())
    orders = sum(t.nbytes for name, t in source.tensors.items() if name.endswith("g_idx"))
    assert whole - orders <= plan["bytes_read"] <= whole
    to_trtllm(source.path, tmp_path / "out", Layout(2, 2), GPTQ, "--sm=80")
    sizes = {name: path.stat().st_size for name, path in files(tmp_path / "out").items()}
    assert sizes == {f["path"]: f["size"] for f in plan["files"]}


def test_what_is_written_is_no_source(source, tmp_path):
    to_trtllm(source.path, tmp_path / "out", Layout(2), GPTQ, "--sm=80")
    assert_refused(tmp_path / "out", tmp_path / "back", to="hf", says=["W4A16_GPTQ"], codes=(5,))


@pytest.mark.parametrize("kind, zero", [("llama", 0.0), ("mistral", 0.0), ("qwen2", 0.0), ("llama", -0.0)])
def test_biases_of_zeros_are_ignored(kind, zero, tmp_path):
    """Old writers store one beside every weight; those of an architecture that has biases are kept."""

    def zeros(tensors):
        for stem in [n.removesuffix("scales") for n in tensors if n.endswith("scales")]:
            tensors.setdefault(stem + "bias", torch.full((tensors[stem + "scales"].shape[1],), zero).half())

    source = write_gptq(tmp_path / "in", kind, change=zeros)
    to_trtllm(source.path, tmp_path / "out", Layout(), GPTQ, "--sm=80")
    kept = ("q_proj.bias", "k_proj.bias", "v_proj.bias") if kind == "qwen2" else ()
    for name in [n for n in source.tensors if n.endswith(".bias") and not n.endswith(kept)]:
        del source.tensors[name]
    assert_gptq_folder(tmp_path / "out", source, Layout(), 80, 128)


# ---------------------------------------------------------------- --quant_ckpt_path


@pytest.mark.parametrize("form", ["file", "file of another name", "folder", "folder of shards"])
@pytest.mark.parametrize("beside", ["plain weights", "only config.json", "quantization_config"])
def test_weights_of_another_path(form, beside, tmp_path):
    source = write_gptq(tmp_path / "quantised", "qwen2", 64, tp=2, shards=3 if form == "folder of shards" else 1)
    to_trtllm(source.path, tmp_path / "want", Layout(2, 2), GPTQ, "--sm=80")
    plain = models.write(tmp_path / "in", source.config, torch.float16, seed="other")
    if beside == "quantization_config":
        change_config(plain, quantization_config=hf_settings(source)["quantization_config"])
    if beside != "plain weights":
        (plain.path / "model.safetensors").unlink()
    path = source.path
    if form.startswith("file"):
        path = path / ("model.safetensors" if form == "file" else "gptq_model-4bit-64g.safetensors")
        (source.path / "model.safetensors").rename(path)
        (source.path / "config.json").unlink()
    to_trtllm(plain.path, tmp_path / "out", Layout(2, 2), GPTQ, "--sm=80", f"--quant_ckpt_path={path}")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "want")


def test_quant_ckpt_path_refused(source, tmp_path):
    plain = models.write(tmp_path / "plain", source.config, torch.float16)
    other, options = tmp_path / "other.safetensors", [GPTQ, "--sm=80"]
    save_file({"x": torch.zeros(1)}, other)
    for path, codes, says in [
        (tmp_path / "nowhere.safetensors", (3,), ["nowhere.safetensors"]),
        (tmp_path / "nowhere", (3,), ["nowhere"]),
        (plain.path, (4, 5, 6), ["(?i)gptq|qweight"]),
        (other, (4, 5, 6), [r"other\.safetensors|model\."]),
    ]:
        assert_refused(plain.path, tmp_path / "out", *options, f"--quant_ckpt_path={path}", codes=codes, says=says)
    word = f"--quant_ckpt_path={source.path}"
    assert_refused(plain.path, tmp_path / "out", word, codes=(2,), says=["--quant_ckpt_path", "int4_gptq"])
    options += [word, "--group_size=128"]
    assert_refused(plain.path, tmp_path / "out", *options, codes=(2, 5, 6), says=["64", "128"])
    assert_refused(plain.path, tmp_path / "out", word, codes=(2,), says=["--quant_ckpt_path"], to="hf")


# ---------------------------------------------------------------- refusals

STEM = "model.layers.1.mlp.down_proj."


@pytest.mark.parametrize("options, codes, says", [
    ([GPTQ], (2,), ["--sm"]),
    ([GPTQ, "--sm=80", "--group_size=128"], (2, 5, 6), ["group_size", "64", "128"]),
    ([GPTQ, "--sm=80", "--use_fp8_rowwise"], (2,), ["--use_fp8_rowwise"]),
    ([GPTQ, "--sm=80", "--disable_weight_only_quant_plugin"], (2,), ["--disable_weight_only_quant_plugin"]),
    ([], (5,), ["(?i)gptq", "int4_gptq"]),
    (["--use_weight_only"], (2, 5), ["(?i)gptq"]),
    (["--use_weight_only", "--weight_only_precision=int4", "--sm=80"], (2, 5), ["(?i)gptq"]),
], ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_options_refused(options, codes, says, source, tmp_path):
    assert_refused(source.path, tmp_path / "out", *options, codes=codes, says=says)


@pytest.mark.parametrize("target", ["hf", "nemo"])
def test_other_targets_are_refused(target, source, tmp_path):
    assert_refused(source.path, tmp_path / "out", codes=(5,), says=["(?i)gptq"], to=target)
    says = ["--weight_only_precision", "trtllm"]
    assert_refused(source.path, tmp_path / "out", GPTQ, codes=(2,), says=says, to=target)


@pytest.mark.parametrize("kind", ["hf", "nemo", "trtllm"])
def test_sources_without_gptq_are_refused(kind, tmp_path):
    source = models.write(tmp_path / "hf", models.config("llama", **models.heads(4, 2, 32)), torch.float16)
    if kind != "hf":
        more = ["--hf_model_name=example/model"] if kind == "nemo" else ["--checkpoint_only"]
        convert(source.path, tmp_path / kind, *more, to=kind)
    template = [f"--hf_model_name={source.path}"] if kind == "nemo" else []
    assert_refused(tmp_path / kind, tmp_path / "out", GPTQ, "--sm=80", *template, codes=(2, 5, 6), says=["(?i)gptq"])


@pytest.mark.parametrize("changes, says", [
    (dict(desc_act=True), ["desc_act"]),
    (dict(bits=8), ["bits", r"\b8\b", r"\b4\b"]),
    (dict(bits=3), ["bits", r"\b3\b", r"\b4\b"]),
    (dict(group_size=32), ["(?i)group.size|qzeros|scales", r"\b32\b", r"\b64\b"]),
    (dict(quant_method="awq"), ["awq"]),
    (dict(checkpoint_format="gptq_v2"), ["gptq_v2"]),  # whose zeros are not one less than they are
    (dict(checkpoint_format="marlin"), ["marlin"]),
], ids=str)
def test_quantization_config_refused(changes, says, source, tmp_path):
    change_config(source, quantization_config={**hf_settings(source)["quantization_config"], **changes})
    assert_refused(source.path, tmp_path / "out", GPTQ, "--sm=80", codes=(4, 5, 6), says=says)


def reorder(t):
    """A column of the last group among the first, as act-order has it."""
    t[STEM + "g_idx"][[5, -1]] = t[STEM + "g_idx"][[-1, 5]]


def shift(t):
    t[STEM + "g_idx"][100] = 77


def biased(t):
    t[STEM + "bias"] = torch.zeros(t[STEM + "scales"].shape[1]).half()
    t[STEM + "bias"][70] = 6e-8


def plain(t):
    for suffix in SUFFIXES:
        del t[STEM + suffix]
    t[STEM + "weight"] = torch.zeros(256, 384).half()


def rows(suffix, count):
    return lambda t: t.update({STEM + suffix: t[STEM + suffix][:count].clone()})


def eight_bits(t):
    """Of all weights: twice as many words."""
    for name in [n for n in t if n.endswith(("qweight", "qzeros"))]:
        t[name] = t[name].repeat(*((2, 1) if name.endswith("qweight") else (1, 2)))


def head(t):
    rows, columns = t.pop("lm_head.weight").shape
    t["lm_head.qweight"] = torch.zeros(columns // 8, rows).int()


BROKEN = {
    "act-order": (reorder, [STEM + "g_idx"]),
    "a wrong group": (shift, [STEM + "g_idx", r"\b77\b", r"\b1\b"]),
    "g_idx too short": (rows("g_idx", 64), [STEM + "g_idx", r"\b64\b", r"\b384\b"]),
    "a bias": (biased, [STEM + "bias"]),
    "no qweight": (lambda t: t.pop(STEM + "qweight"), [STEM + "q?weight"]),
    "no qzeros": (lambda t: t.pop(STEM + "qzeros"), [STEM + "qzeros"]),
    "no scales": (lambda t: t.pop(STEM + "scales"), [STEM + "scales"]),
    "too few zeros": (rows("qzeros", 3), [STEM + "qzeros", r"\b3\b", r"\b6\b"]),
    "too few scales": (rows("scales", 3), [STEM + "(qzeros|scales)", r"\b(3|128)\b", r"\b(6|64)\b"]),
    "too few words": (rows("qweight", 24), [STEM + "(qweight|scales)", r"\b(24|192|32)\b", r"\b(48|384|64)\b"]),
    "8 bits": (eight_bits, ["group_size|_proj.(qweight|scales|qzeros)"]),
    "words of 64 bits": (lambda t: t.update({STEM + "qweight": t[STEM + "qweight"].long()}), [STEM + "qweight"]),
    "a plain weight": (plain, [r"mlp\.(down_proj\.q?weight|proj\.weight)"]),
    "a head": (head, ["lm_head"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_refused(case, tmp_path):
    change, says = BROKEN[case]
    source = write_gptq(tmp_path / "in", g=64, tp=2, change=change)
    assert_refused(source.path, tmp_path / "out", GPTQ, "--sm=80", codes=(4, 5, 6), says=says)


@pytest.mark.parametrize("tp, g, settings, says", [
    (2, 128, dict(intermediate_size=384), ["mlp.(proj|down_proj)", r"\b(192|384)\b", r"\b128\b"]),
    (4, 128, models.heads(8, 8, 32), ["attention.dense|o_proj", r"\b(64|256)\b", r"\b128\b"]),
    (1, 32, dict(intermediate_size=288), ["mlp.(fc|(gate|up|down)_proj|gate|proj)", r"\b288\b", r"\b(64|128)\b"]),
], ids=["ffn in groups", "heads in groups", "sizes"])
def test_cuts_refused(tp, g, settings, says, tmp_path):
    source = write_gptq(tmp_path / "in", g=g, **settings)
    options = [GPTQ, "--sm=80", f"--tp_size={tp}"]
    assert_refused(source.path, tmp_path / "out", *options, codes=(5, 6), says=says)


def test_heads_stored_twice_are_refused_or_rightly_removed(tmp_path):
    """In packed words they lie side by side along the outputs."""

    def twice(tensors):
        for name in [n for n in tensors if "k_proj" in n or "v_proj" in n]:
            if not name.endswith("g_idx"):
                size = 4 if name.endswith("qzeros") else 32
                tensors[name] = tensors[name].unflatten(1, (-1, size)).repeat_interleave(2, 1).flatten(1, 2)

    once = write_gptq(tmp_path / "once", g=64)
    to_trtllm(once.path, tmp_path / "want", Layout(), GPTQ, "--sm=80")
    source = write_gptq(tmp_path / "in", g=64, change=twice)
    change_config(source, num_key_value_heads=4)
    options = ["--checkpoint_only", GPTQ, "--sm=80", "--remove_duplicated_kv_heads"]
    result = convert(source.path, tmp_path / "out", *options, to="trtllm", code=(0, 2, 5, 6))
    if result.code == 0:
        assert hashes(tmp_path / "out")["rank0.safetensors"] == hashes(tmp_path / "want")["rank0.safetensors"]
    else:
        assert "remove_duplicated_kv_heads" in result.err or "_proj" in result.err, result
