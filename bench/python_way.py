#!/usr/bin/env python3
"""HuggingFace -> NeMo as a careful Python script does it: one tensor at a time, with safetensors, torch and zarr.

    python_way.py SOURCE TARGET     of a bf16 Llama; TARGET gets the weights only

zarr knows no bfloat16, so the arrays are uint16 with the same bits; the chunk files are those of a NeMo checkpoint.
"""

import json
import pathlib
import sys

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


def main():
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    config = json.loads((source / "config.json").read_text())
    layers, groups = config["num_hidden_layers"], config["num_key_value_heads"]
    hf = Source(source)
    arrays = {}

    def store(key, value, layer=None, fragments=1):
        """`fragments`: in how many chunks a layer is stored, cut along its rows."""
        bits = value.contiguous().view(torch.uint16).numpy()
        if key not in arrays:
            shape, chunks = bits.shape, (bits.shape[0] // fragments, *bits.shape[1:])
            if layer is not None:
                shape, chunks = (layers, *shape), (1, *chunks)
            arrays[key] = zarr.create(shape, chunks, "<u2", compressor=None, fill_value=None,
                                      store=str(target / "model_weights" / f"model.{key}"))
        arrays[key][... if layer is None else layer] = bits

    store("embedding.word_embeddings.weight", hf["model.embed_tokens.weight"])
    for n in range(layers):
        def part(name):
            return hf[f"model.layers.{n}.{name}.weight"]

        attention, mlp = "decoder.layers.self_attention.", "decoder.layers.mlp."
        qkv = (part(f"self_attn.{x}_proj") for x in "qkv")
        store(attention + "linear_qkv.weight", grouped(*qkv, groups), n)
        store(attention + "linear_qkv.layer_norm_weight", part("input_layernorm"), n)
        store(attention + "linear_proj.weight", part("self_attn.o_proj"), n)
        store(mlp + "linear_fc1.weight", torch.cat([part("mlp.gate_proj"), part("mlp.up_proj")]), n, fragments=2)
        store(mlp + "linear_fc1.layer_norm_weight", part("post_attention_layernorm"), n)
        store(mlp + "linear_fc2.weight", part("mlp.down_proj"), n)
    store("decoder.final_layernorm.weight", hf["model.norm.weight"])
    store("output_layer.weight", hf["lm_head.weight"])


if __name__ == "__main__":
    sys.exit(main())
