#!/usr/bin/env python3
"""Makes a HuggingFace folder to measure with, a Llama, a Mixtral or a Qwen3-MoE: random finite bf16 values, or no data.

    make_model.py FOLDER --shape=SHAPE [--layers=N] [--shard_bytes=N] [--sparse]

--sparse writes every shard's header and leaves its data a hole, so that a model larger than the disk has its true
file sizes; it reads as zeros. The index is written last: a folder that has one is complete, and is left as it is.
"""

import argparse
import json
import math
import pathlib
import struct
import sys
import typing

SEED = 20240718
BF16_BYTES = 2
ALIGNMENT = 8


class Shape(typing.NamedTuple):
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    vocabulary: int = 128256
    head: int = 0  # its size; 0: hidden / heads
    experts: int = 0
    expert_ffn: int = 0
    class_name: str = "LlamaForCausalLM"
    model_type: str = "llama"

    @property
    def head_size(self):
        return self.head or self.hidden // self.heads


SHAPES = {
    "small": Shape(layers=12, hidden=2048, ffn=8192, heads=32, groups=8),
    "70b": Shape(layers=80, hidden=8192, ffn=28672, heads=64, groups=8),
    "405b": Shape(layers=126, hidden=16384, ffn=53248, heads=128, groups=8),
    "deep": Shape(layers=1000, hidden=64, ffn=128, heads=4, groups=2, vocabulary=1024),
    "mixtral-8x22b": Shape(56, 6144, 16384, 48, 8, 32768, 128, 8, 16384, "MixtralForCausalLM", "mixtral"),
    "qwen3-235b": Shape(94, 4096, 12288, 64, 4, 151936, 128, 128, 1536, "Qwen3MoeForCausalLM", "qwen3_moe"),
    # 100,000 tensors: Qwen3-235B with more experts
    "100k": Shape(94, 256, 512, 4, 2, 1024, 64, 352, 64, "Qwen3MoeForCausalLM", "qwen3_moe"),
}


def config(shape):
    experts = {"num_experts": shape.experts, "moe_intermediate_size": shape.expert_ffn, "num_experts_per_tok": 8, "norm_topk_prob": True}
    if shape.model_type == "mixtral":
        experts = {"num_local_experts": shape.experts, "num_experts_per_tok": 2}
    return (experts if shape.experts else {}) | {
        "architectures": [shape.class_name],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": shape.model_type,
        "head_dim": shape.head_size,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.groups,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.2",
        "vocab_size": shape.vocabulary,
    }


def tensors(shape):
    """Name -> dimensions, in state dict order."""
    hidden, ffn, head = shape.hidden, shape.ffn, shape.head_size
    layer = {
        "self_attn.q_proj": (shape.heads * head, hidden),
        "self_attn.k_proj": (shape.groups * head, hidden),
        "self_attn.v_proj": (shape.groups * head, hidden),
        "self_attn.o_proj": (hidden, shape.heads * head),
    }
    if shape.model_type == "qwen3_moe":
        layer |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    module, gate, up, down = "mlp", "gate_proj", "up_proj", "down_proj"
    if shape.model_type == "mixtral":
        module, gate, up, down = "block_sparse_moe", "w1", "w3", "w2"
    if shape.experts:
        layer[f"{module}.gate"] = (shape.experts, hidden)
    for place in [f".experts.{n}" for n in range(shape.experts)] or [""]:
        width = shape.expert_ffn if shape.experts else ffn
        layer |= {f"{module}{place}.{name}": (width, hidden) for name in (gate, up)} | {f"{module}{place}.{down}": (hidden, width)}
    layer |= {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    table = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    for n in range(shape.layers):
        table |= {f"model.layers.{n}.{name}.weight": dimensions for name, dimensions in layer.items()}
    return table | {"model.norm.weight": (hidden,), "lm_head.weight": (shape.vocabulary, hidden)}


def split(table, shard_bytes):
    """Greedy, in order, as transformers does it."""
    shards, room = [], 0
    for name, dimensions in table.items():
        size = math.prod(dimensions) * BF16_BYTES
        if size > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = dimensions
        room -= size
    return shards


def header(shard):
    """The header's bytes, length included, and the size of the data behind it."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dimensions in shard.items():
        begin, end = end, end + math.prod(dimensions) * BF16_BYTES
        entries[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, end


def write_random(file, count, rng):
    """Normal values rounded to nearest even bf16; in steps, so that memory stays small."""
    import numpy as np

    step = 1 << 22
    for begin in range(0, count, step):
        values = rng.standard_normal(min(step, count - begin), np.float32) * np.float32(0.02)
        bits = values.view(np.uint32)
        file.write(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2"))


def write_shard(path, shard, rng):
    head, size = header(shard)
    with open(path, "wb") as file:
        file.write(head)
        if rng is None:
            file.truncate(len(head) + size)
            return
        for dimensions in shard.values():
            write_random(file, math.prod(dimensions), rng)


def make(folder, shape, shard_bytes, sparse):
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return
    rng = None
    if not sparse:
        import numpy as np

        rng = np.random.default_rng(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    table = tensors(shape)
    shards = split(table, shard_bytes)
    weight_map = {}
    for n, shard in enumerate(shards, 1):
        name = f"model-{n:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, shard, rng)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(math.prod(dimensions) for dimensions in table.values()) * BF16_BYTES
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--shard_bytes", type=int, default=5 * 10**9)
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = shape._replace(layers=options.layers)
    make(options.folder, shape, options.shard_bytes, options.sparse)


if __name__ == "__main__":
    sys.exit(main())
