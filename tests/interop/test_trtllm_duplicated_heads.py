"""--remove_duplicated_kv_heads: key and value heads stored twice become those of a model that stores them once."""

import dataclasses
import itertools

import models
import pytest
import torch
import trtllm_reference
from program import convert, hashes
from trtllm_models import assert_refused, assert_trtllm_files, change_config, hf_settings, sample, to_trtllm
from trtllm_reference import Layout

REMOVE = "--remove_duplicated_kv_heads"
SIZES = dict(num_hidden_layers=6, intermediate_size=128)
SHAPES = {
    "groups1": models.heads(8, 1, 4),
    "groups2": models.heads(8, 2, 4),
    "groups4": models.heads(8, 4, 4, vocab_size=45),
    "groups8": models.heads(16, 8, 4),
    "head_dim": dict(models.heads(8, 4), hidden_size=40, head_dim=12),
    "tied": models.heads(8, 4, 4, tie_word_embeddings=True),
    "bias": models.heads(8, 2, 4, attention_bias=True),
    "large": models.heads(8, 4, 16),  # enough for int8 on 2 ranks
}


def is_key_or_value(name):
    return "k_proj." in name or "v_proj." in name


def write_pair(tmp_path, family="llama", shape="groups2", dtype=torch.bfloat16, *, style=4, shards=1, change=None):
    """A model, and the same with every key and value head twice in a row, in which `change` may alter tensors."""
    c = models.config(family, **SIZES, **SHAPES[shape])
    once = models.write(tmp_path / "once", c, dtype, seed=shape, style=style, shards=shards)
    size = trtllm_reference.head_dim(c)

    def twice(tensors):
        for name in filter(is_key_or_value, list(tensors)):
            tensors[name] = once.tensors[name].unflatten(0, (-1, size)).repeat_interleave(2, 0).flatten(0, 1)
        if change:
            change(tensors)

    source = models.write(tmp_path / "twice", c, dtype, seed=shape, style=style, shards=shards, change=twice)
    change_config(source, num_key_value_heads=2 * c.num_key_value_heads)
    return once, source


def assert_once(folder, once, layout, dtype):
    ranks = [trtllm_reference.rank_tensors(once.config, once.tensors, layout, rank, dtype) for rank in layout.ranks]
    cfg = trtllm_reference.config(hf_settings(once), layout, dtype)
    assert_trtllm_files(folder, ranks, {**cfg, "remove_duplicated_kv_heads": True})


@dataclasses.dataclass
class Cell:
    family: str
    shape: str
    layout: Layout
    dtype: str
    wanted: str
    turn: int


def all_cells():
    grid = itertools.product(("llama", "mistral"), SHAPES, (1, 2, 4, 8), (1, 2, 3))
    kept = [x for x in grid if x[:2] != ("mistral", "bias")]
    for i, (family, shape, tp, pp) in enumerate(kept):
        dtype, wanted = list(itertools.product(models.DTYPES, repeat=2))[i // 2 % 9]
        yield f"{family}-{shape}-tp{tp}-pp{pp}-{dtype}-{wanted}", Cell(family, shape, Layout(tp, pp), dtype, wanted, i)


CELLS = dict(all_cells())


@pytest.mark.parametrize("cell", sample(CELLS, 7))
def test_heads_stored_twice_become_one(cell, tmp_path):
    cell = CELLS[cell]
    style, shards = (4, 5)[cell.turn // 3 % 2], (1, 5)[cell.turn // 4 % 2]
    once, source = write_pair(tmp_path, cell.family, cell.shape, models.DTYPES[cell.dtype], style=style, shards=shards)
    memory = ["--max_memory=64MiB"] if cell.turn % 3 == 0 else []
    to_trtllm(source.path, tmp_path / "out", cell.layout, REMOVE, f"--dtype={cell.wanted}", *memory)
    assert_once(tmp_path / "out", once, cell.layout, models.DTYPES[cell.wanted])


@pytest.mark.parametrize("options", [
    [], ["--use_weight_only"], ["--use_weight_only", "--weight_only_precision=int8", "--sm=80"], ["--use_fp8_rowwise"],
    ["--fp8_kv_cache", "--trtllm_version=0.15"], ["--use_parallel_embedding", "--workers=5"],
], ids=" ".join)
def test_whatever_else_is_asked_for(options, tmp_path):
    """config.json differs in one line, the ranks do not."""
    once, source = write_pair(tmp_path, shape="large")
    to_trtllm(once.path, tmp_path / "want", Layout(2, 2), *options)
    to_trtllm(source.path, tmp_path / "out", Layout(2, 2), REMOVE, *options)
    want, got = hashes(tmp_path / "want"), hashes(tmp_path / "out")
    assert {n: h for n, h in got.items() if n != "config.json"} == {n: h for n, h in want.items() if n != "config.json"}
    text = (tmp_path / "want" / "config.json").read_text()
    line = '"remove_duplicated_kv_heads": '
    assert (tmp_path / "out" / "config.json").read_text() == text.replace(line + "false", line + "true") != text


def test_what_is_written_is_the_model_with_every_head_once(tmp_path):
    once, source = write_pair(tmp_path)
    to_trtllm(source.path, tmp_path / "out", Layout(4, 2), REMOVE)
    convert(tmp_path / "out", tmp_path / "back", f"--hf_model_name={once.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), once.tensors)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("options", [[], ["--tp_size=8"], ["--pp_size=3", "--dtype=fp32"]], ids=" ".join)
@pytest.mark.parametrize("name, place", [
    ("model.layers.0.self_attn.k_proj.weight", 7 * 32 + 5),  # head 1, the copy of head 0
    ("model.layers.5.self_attn.v_proj.weight", -1),
    ("model.layers.3.self_attn.k_proj.bias", 12),
    ("model.layers.3.self_attn.v_proj.bias", 0),
])
def test_copies_that_differ_are_refused(name, place, options, tmp_path):
    """By one bit: the last of the fraction."""
    flip = lambda tensors: tensors[name].view(-1).view(torch.int16)[place].bitwise_xor_(1)
    _, source = write_pair(tmp_path, shape="bias", change=flip)
    assert_refused(source.path, tmp_path / "out", REMOVE, *options, codes=(4, 6), says=[name])


def test_heads_that_are_equal_in_another_order_are_refused(tmp_path):
    """Not 0 0 1 1 but 0 1 0 1, as tiling a tensor gives it."""
    name = "model.layers.1.self_attn.k_proj.weight"

    def tile(tensors):
        tensors[name] = tensors[name].unflatten(0, (-1, 4))[[0, 2, 1, 3]].flatten(0, 1)

    _, source = write_pair(tmp_path, change=tile)
    assert_refused(source.path, tmp_path / "out", REMOVE, codes=(4, 6), says=[name])


@pytest.mark.parametrize("heads, groups", [(8, 1), (9, 3)])
def test_an_odd_number_of_heads_is_refused(heads, groups, tmp_path):
    c = models.config("llama", **SIZES, **models.heads(heads, groups, 4))
    source = models.write(tmp_path / "in", c, torch.bfloat16)
    says = [rf"\b{groups}\b", f"{REMOVE}|remove copies"]
    assert_refused(source.path, tmp_path / "out", REMOVE, codes=(5, 6), says=says)


def test_ranks_count_for_the_heads_that_remain(tmp_path):
    """6 heads on 4 ranks would not divide either, but it is the 3 that count."""
    source = models.write(tmp_path / "in", models.config("llama", **SIZES, **models.heads(12, 6, 4)), torch.bfloat16)
    assert_refused(source.path, tmp_path / "out", REMOVE, "--tp_size=4", codes=(5, 6), says=[r"\b3\b", r"\b4\b"])


def test_qwen2_is_refused(tmp_path):
    _, source = write_pair(tmp_path, "qwen2")
    assert_refused(source.path, tmp_path / "out", REMOVE, codes=(2, 5, 6), says=[REMOVE, "(?i)qwen"])


@pytest.mark.parametrize("to", ["hf", "nemo"])
def test_other_targets_are_refused(to, tmp_path):
    _, source = write_pair(tmp_path)
    assert_refused(source.path, tmp_path / "out", REMOVE, codes=(2,), says=[REMOVE, "trtllm"], to=to)


@pytest.mark.parametrize("kind", ["nemo", "trtllm"])
def test_other_sources_are_refused(kind, tmp_path):
    _, source = write_pair(tmp_path)
    template = f"--hf_model_name={source.path}"
    convert(source.path, tmp_path / kind, *(["--checkpoint_only"] if kind == "trtllm" else [template]), to=kind)
    options = [REMOVE] + ([template] if kind == "nemo" else [])
    assert_refused(tmp_path / kind, tmp_path / "out", *options, codes=(2, 5), says=[REMOVE])
