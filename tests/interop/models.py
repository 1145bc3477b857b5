"""Small random models: configured by transformers, written by the safetensors library."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import struct

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers
from nemo_reference import raw
from safetensors import safe_open
from safetensors.torch import save_file

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
GROUPS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen", "qwen3": "qwen"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
WORD = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}

LINEAR_ROPE = dict(rope_type="linear", rope_theta=10000.0, factor=2.0)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3_ROPE.update(original_max_position_embeddings=8192)


def heads(a, g, size=8, **more):
    return {**dict(num_attention_heads=a, num_key_value_heads=g, hidden_size=a * size, head_dim=size), **more}


SHAPES = {
    "1x1": heads(1, 1, 16),
    "3x1": heads(3, 1),
    "4x4": heads(4, 4),
    "7x7": heads(7, 7),
    "8x2": heads(8, 2),
    "6x3": heads(6, 3),
    "head_dim": dict(heads(4, 2), hidden_size=40, head_dim=24),
    "tied": heads(4, 2, tie_word_embeddings=True),
    "vocab97": heads(6, 2, vocab_size=97, intermediate_size=33),
}


@dataclasses.dataclass
class Model:
    path: pathlib.Path
    config: transformers.PretrainedConfig
    dtype: torch.dtype
    tensors: dict  # as stored, in state-dict order


def read(folder):
    """Name -> tensor of every safetensors file in a folder."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            for name in f.keys():
                assert name not in found, f"{name} is stored twice"
                found[name] = f.get_tensor(name)
    return found


def stored_dtype(folder):
    return read(folder)["model.embed_tokens.weight"].dtype


def read_config(folder):
    with contextlib.redirect_stderr(io.StringIO()):  # remarks about rope settings that tiny models do not meet
        return transformers.AutoConfig.from_pretrained(folder)


def model_class(family):
    return getattr(transformers, CLASSES[family] + "ForCausalLM")


def config(family, **settings):
    settings = {"num_hidden_layers": 2, "intermediate_size": 40, "vocab_size": 64, "max_position_embeddings": 64, **settings}
    settings = {"tie_word_embeddings": False, "rms_norm_eps": 1e-5, **settings}
    return getattr(transformers, CLASSES[family] + "Config")(**settings)


def seed_of(name):
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def random_model(c, dtype, seed):
    """A transformers model; what all dtypes share is the seed, not the values."""
    torch.manual_seed(seed_of(seed))
    model = model_class(c.model_type)(c)
    for p in model.parameters():
        p.data.normal_(0, 0.2) if p.ndim > 1 else p.data.uniform_(0.5, 1.5)
        p.data = p.data.to(dtype)  # the parameters only: the rotary buffers stay in fp32
    return model.eval()


def state(model):
    """The tensors save_pretrained stores, in its order."""
    tensors = {name: p.detach() for name, p in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def style4(settings):
    """config.json as transformers 4 writes it."""
    rope = dict(settings.pop("rope_parameters"))
    settings["rope_theta"] = rope.pop("rope_theta")
    settings["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    settings["torch_dtype"] = settings.pop("dtype")
    settings["transformers_version"] = "4.45.2"
    return settings


def write_shards(folder, tensors, shards):
    """Deals the tensors out in turn, an order no splitter produces, so that nothing can lean on it."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        weight_map.update(dict.fromkeys(names[i::shards], file))
        save_file({n: tensors[n] for n in names[i::shards]}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write(folder, c, dtype, *, seed="", style=5, shards=1, change=None):
    """Writes a random model as a HuggingFace folder; `change` may alter the tensors before they are stored."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    model = random_model(c, dtype, seed or folder.name)
    tensors = state(model)
    if change:
        change(tensors)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    if style == 4:
        path.write_text(json.dumps(style4(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text('{\n  "_from_model_config": true,\n  "transformers_version": "4.45.2"\n}\n')
    write_shards(folder, tensors, shards)
    return Model(folder, c, dtype, tensors)


def assert_equal(got, expected):
    """Names, dtypes, shapes and bytes."""
    assert set(got) == set(expected), sorted(set(got) ^ set(expected))
    for name, want in expected.items():
        have = got[name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape), name
        assert raw(have) == raw(want), f"{name} differs"


def split(content):
    """(header without its padding, data, where the data starts) of a safetensors file."""
    start = 8 + struct.unpack("<Q", content[:8])[0]
    return content[8:start].rstrip(b" "), content[start:], start


def assert_same_file(content, library):
    """The library's bytes but for the padding of the header, which puts the data at a multiple of 4096."""
    header, data, start = split(content)
    assert start % 4096 == 0 and start - 8 - len(header) < 4096
    assert (header, data) == split(library)[:2]


def cast(tensors, dtype):
    return {name: t.to(dtype) for name, t in tensors.items()}


@functools.cache
def token_ids(vocab_size, length=24):
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


def logits(folder):
    """Logits in fp32 of the parameters as stored."""
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(token_ids(model.config.get_text_config().vocab_size)).logits
