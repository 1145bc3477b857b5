#!/usr/bin/env python3
"""HuggingFace -> NeMo in Python: one tensor at a time as a careful script does it, with safetensors, torch and zarr.

    python_way.py SOURCE TARGET             of a bf16 Llama; TARGET gets the weights only
    python_way.py SOURCE TARGET --whole     as the common scripts do it: the model that transformers loads, every
                                            tensor as float, then the whole NeMo model beside it, then written

zarr knows no bfloat16, so the arrays are uint16 with the same bits; the chunk files are those of a NeMo checkpoint.
"""

import json
import pathlib
import sys
import typing

import torch
import zarr
from safetensors import safe_open


class Source:
    """Tensors by name; keeps one shard open."""

    def __init__(self, folder):
        self.folder = folder
        self.shard_of = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        self.name = self.file = None

    def __getitem__(self, tensor):
        if self.shard_of[tensor] != self.name:
            self.name = self.shard_of[tensor]
            self.file = safe_open(self.folder / self.name, "pt")
        return self.file.get_tensor(tensor)


def grouped(q, k, v, groups):
    """Megatron's order: each group's query heads, its key head, its value head."""
    hidden = q.shape[-1]
    parts = [part.reshape(groups, -1, hidden) for part in (q, k, v)]
    return torch.cat(parts, 1).reshape(-1, hidden)


def whole(folder):
    """The model in memory, as float: what a script that loads it with transformers works on."""
    from transformers import AutoModelForCausalLM  # not needed by the other way
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, low_cpu_mem_usage=True)
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


class Stored(typing.NamedTuple):
    key: str
    value: torch.Tensor
    layer: int | None = None
    fragments: int = 1  # in how many chunks a layer is stored, cut along its rows


def nemo_tensors(hf, config):
    layers, groups = config["num_hidden_layers"], config["num_key_value_heads"]
    yield Stored("embedding.word_embeddings.weight", hf["model.embed_tokens.weight"])
    for n in range(layers):
        def part(name):
            return hf[f"model.layers.{n}.{name}.weight"]

        attention, mlp = "decoder.layers.self_attention.", "decoder.layers.mlp."
        qkv = (part(f"self_attn.{x}_proj") for x in "qkv")
        yield Stored(attention + "linear_qkv.weight", grouped(*qkv, groups), n)
        yield Stored(attention + "linear_qkv.layer_norm_weight", part("input_layernorm"), n)
        yield Stored(attention + "linear_proj.weight", part("self_attn.o_proj"), n)
        yield Stored(mlp + "linear_fc1.weight", torch.cat([part("mlp.gate_proj"), part("mlp.up_proj")]), n, fragments=2)
        yield Stored(mlp + "linear_fc1.layer_norm_weight", part("post_attention_layernorm"), n)
        yield Stored(mlp + "linear_fc2.weight", part("mlp.down_proj"), n)
    yield Stored("decoder.final_layernorm.weight", hf["model.norm.weight"])
    yield Stored("output_layer.weight", hf["lm_head.weight"])


class Writer:
    """The arrays below `folder`, of a model of `layers` layers; those of layers are stacked."""

    def __init__(self, folder, layers):
        self.folder, self.layers, self.arrays = folder, layers, {}

    def store(self, tensor):
        bits = tensor.value.to(torch.bfloat16).contiguous().view(torch.uint16).numpy()
        if tensor.key not in self.arrays:
            shape, chunks = bits.shape, (bits.shape[0] // tensor.fragments, *bits.shape[1:])
            if tensor.layer is not None:
                shape, chunks = (self.layers, *shape), (1, *chunks)
            self.arrays[tensor.key] = zarr.create(shape, chunks, "<u2", compressor=None, fill_value=None,
                                                  store=str(self.folder / "model_weights" / f"model.{tensor.key}"))
        self.arrays[tensor.key][... if tensor.layer is None else tensor.layer] = bits


def main():
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    config = json.loads((source / "config.json").read_text())
    if sys.argv[3:] == ["--whole"]:
        tensors = [tensor._replace(value=tensor.value.clone()) for tensor in nemo_tensors(whole(source), config)]
        tensors = [tensor._replace(value=tensor.value.to(torch.bfloat16)) for tensor in tensors]
    else:
        tensors = nemo_tensors(Source(source), config)
    writer = Writer(target, config["num_hidden_layers"])
    for tensor in tensors:
        writer.store(tensor)


if __name__ == "__main__":
    sys.exit(main())
