"""TensorRT-LLM checkpoints in tests: the models, the command, and what a folder must hold."""

import dataclasses
import json
import pathlib
import re

import models
import pytest
import safetensors.torch
import trtllm_reference
from program import assert_nothing_published, convert, files
from safetensors.torch import load_file
from trtllm_reference import Layout, Quantization

# Heads 8 on up to 8 ranks, 6 layers in up to 3 stages. "groups": as many as heads, or fewer than the widest TP.
SHAPES = {
    "mha": models.heads(8, 8, 4),
    "groups2": models.heads(8, 2, 4),
    "groups4-odd": models.heads(8, 4, 4, vocab_size=45),
    "head_dim": dict(models.heads(8, 4), hidden_size=40, head_dim=12),
    "tied": models.heads(8, 4, 4, tie_word_embeddings=True),
    "tied-odd": models.heads(8, 1, 4, tie_word_embeddings=True, vocab_size=45),
    "rows-odd": models.heads(8, 4, 4, vocab_size=45),
    "columns": models.heads(8, 2, 4, vocab_size=45),
    "vocab9": models.heads(8, 4, 4, vocab_size=9),
    "shared": models.heads(8, 4, 4, tie_word_embeddings=True),
    "shared-odd": models.heads(8, 2, 4, tie_word_embeddings=True, vocab_size=45),
    "bias": models.heads(8, 4, 4, attention_bias=True),
    "bias-groups2": models.heads(8, 2, 4, attention_bias=True),
}
EMBEDDING_DIMS = {"rows-odd": 0, "columns": 1, "shared": 0, "shared-odd": 0}
FAMILIES = ["llama", "mistral", "qwen2"]


@dataclasses.dataclass
class Cell:
    family: str
    shape: str
    layout: Layout
    dtype: str
    style: int  # of config.json: transformers 4 or 5
    shards: int


def to_trtllm(source, target, layout, *options, code=0):
    return convert(source, target, "--checkpoint_only", *layout.options(), *options, to="trtllm", code=code)


def sample(cells, step):
    """Names of cells as parameters; all but every step-th are for `scripts/test --all`."""
    return [pytest.param(name, marks=[] if i % step == 0 else pytest.mark.slow) for i, name in enumerate(cells)]


def rank_files(folder):
    return {int(p.stem[4:]): p for p in pathlib.Path(folder).glob("rank*.safetensors")}


def write_model(folder, cell, name, **more):
    settings = dict(num_hidden_layers=6, intermediate_size=48, **SHAPES[cell.shape])
    if cell.family == "mistral":
        settings["sliding_window"] = 32  # without a window a NeMo model does not tell Mistral from Llama
    c = models.config(cell.family, **settings, **more)
    return models.write(folder, c, models.DTYPES[cell.dtype], seed=name, style=cell.style, shards=cell.shards)


def hf_settings(source):
    return json.loads((source.path / "config.json").read_text())


def assert_trtllm_folder(folder, source, layout, dtype, version=12, quantization=Quantization()):
    """Every file of the folder is what the reference makes of the source."""
    args = source.config, source.tensors, layout
    ranks = [trtllm_reference.rank_tensors(*args, rank, dtype, quantization) for rank in layout.ranks]
    cfg = trtllm_reference.config(hf_settings(source), layout, dtype, version, quantization)
    assert_trtllm_files(folder, ranks, cfg)


def assert_trtllm_files(folder, ranks, cfg):
    """Every file of the folder: the ranks' tensors as the safetensors library writes them, config.json as text."""
    got = files(folder)
    assert set(got) == {"config.json"} | {f"rank{rank}.safetensors" for rank in range(len(ranks))}
    for rank, want in enumerate(ranks):
        models.assert_equal(load_file(got[f"rank{rank}.safetensors"]), want)
        library = safetensors.torch.save({name: t.contiguous() for name, t in want.items()})
        models.assert_same_file(got[f"rank{rank}.safetensors"].read_bytes(), library)
    assert got["config.json"].read_text() == trtllm_reference.config_text(cfg)


def change_config(source, **changes):
    """Changes keys of the model's config.json; `...` takes one out."""
    settings = {key: value for key, value in {**hf_settings(source), **changes}.items() if value is not ...}
    (source.path / "config.json").write_text(json.dumps(settings, indent=2))


def assert_refused(source, target, *options, says, codes, to="trtllm"):
    """An error of one of these codes with all these words (regular expressions), and nothing published."""
    needed = dict(trtllm=["--checkpoint_only"], nemo=["--hf_model_name=example/model"], hf=[])
    result = convert(source, target, *needed[to], *options, to=to, code=codes)
    assert result.err.startswith("reshard: error: "), result
    missing = [word for word in says if not re.search(word, result.err)]
    assert not missing, f"no {missing} in {result}"
    assert_nothing_published(target)
