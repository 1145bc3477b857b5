"""TensorRT-LLM checkpoints in tests: the models, the command, and what a folder must hold."""

import dataclasses
import json
import pathlib

import models
import safetensors.torch
import trtllm_reference
from program import convert, files
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
    """Every file of the folder: the ranks as the safetensors library writes them, config.json as text."""
    names = {f"rank{rank}.safetensors" for rank in layout.ranks}
    got = files(folder)
    assert set(got) == {"config.json"} | names
    for rank in layout.ranks:
        want = trtllm_reference.rank_tensors(source.config, source.tensors, layout, rank, dtype, quantization)
        models.assert_equal(load_file(got[f"rank{rank}.safetensors"]), want)
        library = safetensors.torch.save({name: t.contiguous() for name, t in want.items()})
        models.assert_same_file(got[f"rank{rank}.safetensors"].read_bytes(), library)
    cfg = trtllm_reference.config(hf_settings(source), layout, dtype, version, quantization)
    assert got["config.json"].read_text() == trtllm_reference.config_text(cfg)
