"""Llama 3.1 models whose inner MLPs fbgemm has quantised to FP8, carried over to TensorRT-LLM: against plain cuts."""

import dataclasses
import itertools

import models
import pytest
import torch
import trtllm_reference
from program import hashes
from trtllm_models import assert_refused, assert_trtllm_files, change_config, hf_settings, sample, to_trtllm
from trtllm_reference import Layout, Quantization, piece

LAYERS = 6
PARTS = dict(fc="gate_proj", gate="up_proj", proj="down_proj")  # TensorRT-LLM's names and those of HuggingFace


def inner(l):
    return 0 < l < LAYERS - 1


def quantise(tensors, bounds=False):
    """Any bytes but NaN, as what is carried over is not computed with."""
    random = torch.Generator().manual_seed(8)
    for l, part in itertools.product(filter(inner, range(LAYERS)), PARTS.values()):
        stem = f"model.layers.{l}.mlp.{part}."
        rows, columns = tensors[stem + "weight"].shape
        magnitude, sign = (torch.randint(0, n, (rows, columns), generator=random) for n in (127, 2))
        tensors[stem + "weight"] = (magnitude + 128 * sign).to(torch.uint8).view(torch.float8_e4m3fn)
        tensors[stem + "weight_scale"] = torch.rand(rows, 1, generator=random)
        if bounds:
            tensors[stem + "input_scale_ub"] = torch.tensor([1200.0])


def write_fp8(folder, *, bound=1200.0, bounds=True, style=4, shards=1, change=None, **settings):
    """`bound` None: config.json does not say it."""
    sizes = dict(models.heads(8, 4, 4), intermediate_size=48, num_hidden_layers=LAYERS, vocab_size=45)

    def change_tensors(tensors):
        quantise(tensors, bounds)
        if change:
            change(tensors)

    c = models.config("llama", **{**sizes, **settings})
    source = models.write(folder, c, torch.bfloat16, seed="fp8", style=style, shards=shards, change=change_tensors)
    kept = [f"model.layers.{l}.mlp.{part}" for l in range(LAYERS) if not inner(l) for part in PARTS.values()]
    kept += [f"model.layers.{l}.self_attn.{x}_proj" for l in range(LAYERS) for x in "qkvo"] + ["lm_head"]
    quantization = dict(quant_method="fbgemm_fp8", activation_scale_ub=bound, modules_to_not_convert=kept)
    if bound is None:
        del quantization["activation_scale_ub"]
    change_config(source, quantization_config=quantization)
    return source


def rank_tensors(source, layout, dtype, bound, cache=None):
    hf = source.tensors
    for rank in layout.ranks:
        stage, r = divmod(rank, layout.tp)
        per_stage = LAYERS // layout.pp
        out = trtllm_reference.rank_tensors(source.config, hf, layout, rank)
        out = {name: t if t.dtype == torch.float8_e4m3fn else t.to(dtype) for name, t in out.items()}
        for n in filter(lambda n: inner(stage * per_stage + n), range(per_stage)):
            new, old = f"transformer.layers.{n}.", f"model.layers.{stage * per_stage + n}.mlp."
            for part, name in PARTS.items():
                scale = hf[f"{old}{name}.weight_scale"].flatten()
                out[f"{new}mlp.{part}.per_channel_scale"] = scale if part == "proj" else piece(scale, 0, layout.tp, r)
            for norm in ("mlp", "post_layernorm"):
                out[f"{new}{norm}.clamp_val"] = torch.tensor([-bound, bound])
        if cache:
            for n in range(per_stage):
                out[f"transformer.layers.{n}.attention.kv_cache_scaling_factor"] = torch.tensor([1.0])
        yield out


def assert_fp8_folder(folder, source, layout, dtype=torch.bfloat16, version=12, bound=1200.0, cache=None, **changes):
    quantization = Quantization("FP8_PER_CHANNEL_PER_TOKEN", cache, clamp=(-bound, bound), meta_recipe=True)
    cfg = trtllm_reference.config(hf_settings(source), layout, dtype, version, quantization)
    assert_trtllm_files(folder, list(rank_tensors(source, layout, dtype, bound, cache)), {**cfg, **changes})


# ---------------------------------------------------------------- the matrix


@dataclasses.dataclass
class Cell:
    layout: Layout
    groups: int
    dtype: str
    turn: int  # what else a cell has takes turns


def all_cells():
    for i, (tp, pp, groups, dtype) in enumerate(itertools.product((1, 2, 4, 8), (1, 2, 3), (2, 8), models.DTYPES)):
        layout = Layout(tp, pp, (None, 0, 1, None, 1)[i % 5])
        yield f"tp{tp}-pp{pp}-groups{groups}-{dtype}", Cell(layout, groups, dtype, i)


CELLS = dict(all_cells())


@pytest.mark.parametrize("cell", sample(CELLS, 4))
def test_fp8(cell, tmp_path):
    cell = CELLS[cell]
    i, bound = cell.turn, (1200.0, 900.5, None)[cell.turn // 3 % 3]
    settings = models.heads(8, cell.groups, 4, vocab_size=(45, 64)[i // 7 % 2])
    settings.update(attention_bias=i // 3 % 4 == 1, tie_word_embeddings=i // 3 % 4 == 2)
    style, shards = (4, 5)[i // 2 % 2], (1, 3)[i // 4 % 2]
    source = write_fp8(tmp_path / "in", bound=bound, bounds=i % 2 == 0, style=style, shards=shards, **settings)
    version = 12 + i // 5 % 4
    memory = ["--max_memory=64MiB"] if i % 3 == 0 else []
    options = [f"--dtype={cell.dtype}", f"--trtllm_version=0.{version}", *memory]
    to_trtllm(source.path, tmp_path / "out", cell.layout, *options)
    assert_fp8_folder(tmp_path / "out", source, cell.layout, models.DTYPES[cell.dtype], version, bound or 1200.0)


# ---------------------------------------------------------------- options


def test_options_that_change_nothing(tmp_path):
    source = write_fp8(tmp_path / "in")
    to_trtllm(source.path, tmp_path / "out", Layout(2, 2))
    others = [["--use_fp8_rowwise"], ["--dtype=bf16"], ["--max_memory=64MiB", "--workers=5"]]
    for i, other in enumerate(others):
        to_trtllm(source.path, tmp_path / str(i), Layout(2, 2), *other)
        assert hashes(tmp_path / str(i)) == hashes(tmp_path / "out"), other


def test_the_bound_of_the_config_is_taken_beside_use_fp8_rowwise_too(tmp_path):
    source = write_fp8(tmp_path / "in", bound=900.5)
    to_trtllm(source.path, tmp_path / "out", Layout(2), "--use_fp8_rowwise")
    assert_fp8_folder(tmp_path / "out", source, Layout(2), bound=900.5)


def test_with_a_cache_in_fp8(tmp_path):
    source = write_fp8(tmp_path / "in")
    to_trtllm(source.path, tmp_path / "out", Layout(2, 2), "--fp8_kv_cache")
    assert_fp8_folder(tmp_path / "out", source, Layout(2, 2), cache="FP8")


def test_twice_stored_heads_are_removed_as_well(tmp_path):
    """As Llama 3.1 405B was first published."""

    def twice(tensors):
        for name in [n for n in tensors if n.endswith(("k_proj.weight", "v_proj.weight"))]:
            tensors[name] = tensors[name].unflatten(0, (-1, 4)).repeat_interleave(2, 0).flatten(0, 1)

    once = write_fp8(tmp_path / "once")
    to_trtllm(once.path, tmp_path / "want", Layout(4, 3))
    source = write_fp8(tmp_path / "in", change=twice)
    change_config(source, num_key_value_heads=8)
    to_trtllm(source.path, tmp_path / "out", Layout(4, 3), "--remove_duplicated_kv_heads")
    want, got = hashes(tmp_path / "want"), hashes(tmp_path / "out")
    assert got.pop("config.json") != want.pop("config.json") and got == want
    assert_fp8_folder(tmp_path / "out", once, Layout(4, 3), remove_duplicated_kv_heads=True)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("to", ["hf", "nemo"])
def test_other_targets_are_refused(to, tmp_path):
    source = write_fp8(tmp_path / "in")
    assert_refused(source.path, tmp_path / "out", codes=(5,), says=["(?i)fp8"], to=to)


@pytest.mark.parametrize("options", [
    ["--use_weight_only"], ["--use_weight_only", "--weight_only_precision=int4", "--sm=80"],
    ["--weight_only_precision=int4_gptq", "--sm=80"],
], ids=" ".join)
def test_other_quantisation_is_refused(options, tmp_path):
    source = write_fp8(tmp_path / "in")
    option = options[0].split("=")[0] + "|int4_gptq"
    assert_refused(source.path, tmp_path / "out", *options, codes=(2, 5, 6), says=["(?i)fp8", option])


def fp8(name, said):
    """A weight in FP8 where none belongs, as well formed as the others; `said` is another way to name it."""

    def change(tensors):
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name + "_scale"] = torch.ones(tensors[name].shape[0], 1)

    return change, [f"{name}|{said}", "F8_E4M3|FP8"]


def replace(name, change, *says):
    return lambda tensors: tensors.update({name: change(tensors[name])}), [name, *says]


STEM = "model.layers.3.mlp."


def plain(tensors, scale=False):
    """A weight that is not quantised, with its scale or without it."""
    if not scale:
        for name in ("weight_scale", "input_scale_ub"):
            del tensors[STEM + "gate_proj." + name]
    tensors[STEM + "gate_proj.weight"] = torch.ones(48, 32).bfloat16()


BROKEN = {
    "attention": fp8("model.layers.2.self_attn.q_proj.weight", "q, layer 2"),
    "output of attention": fp8("model.layers.4.self_attn.o_proj.weight", "o, layer 4"),
    "first layer": fp8("model.layers.0.mlp.gate_proj.weight", "gate, layer 0"),
    "last layer": fp8("model.layers.5.mlp.down_proj.weight", "down, layer 5"),
    "lm_head": fp8("lm_head.weight", "head"),
    "no scale": (lambda t: t.pop(STEM + "up_proj.weight_scale"), [STEM + "up_proj.weight_scale"]),
    "scale of one": replace(STEM + "down_proj.weight_scale", lambda t: t[:1].clone(), r"\b1\b", r"\b32\b"),
    "scale in bf16": replace(STEM + "gate_proj.weight_scale", lambda t: t.bfloat16(), "BF16", "F32"),
    "plain with a scale": (lambda t: plain(t, scale=True), [STEM + "gate_proj"]),
    "plain": (plain, [STEM + "gate_proj|gate, layer 3"]),
    "other kind of FP8": replace(STEM + "gate_proj.weight", lambda t: t.view(torch.float8_e5m2)),
    "weight of another shape": replace(STEM + "down_proj.weight", lambda t: t[:, :47].clone(), r"\b47\b", r"\b48\b"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_refused(case, tmp_path):
    change, says = BROKEN[case]
    source = write_fp8(tmp_path / "in", change=change)
    assert_refused(source.path, tmp_path / "out", "--tp_size=2", codes=(4, 5, 6), says=says)


def test_fp8_tensors_without_a_word_in_the_config_are_refused(tmp_path):
    source = write_fp8(tmp_path / "in")
    change_config(source, quantization_config=...)
    assert_refused(source.path, tmp_path / "out", codes=(4, 5, 6), says=["model.layers.[1-4].mlp."])


def test_ranks_that_do_not_divide_are_refused(tmp_path):
    source = write_fp8(tmp_path / "in", intermediate_size=44)
    assert_refused(source.path, tmp_path / "out", "--tp_size=8", codes=(5, 6), says=[r"\b44\b", r"\b8\b"])
