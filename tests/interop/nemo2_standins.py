"""Stand-ins for the classes of NeMo 2 that a context names, with the parameters and defaults of NVIDIA-NeMo/NeMo 2.4
(nemo/collections/llm/gpt/model/*.py; nemo/lightning/io/{pl,artifact/file}.py), and a loader that does with a context
what nemo/lightning/io/mixin.py does, by the real fiddle. Importing it puts the modules into sys.modules.

Only fields that say what a model is are here: one that a checkpoint gives besides fails to build.
"""

import dataclasses
import json
import pathlib
import pydoc
import sys
import types
import typing

import fiddle
import torch
from fiddle._src.experimental import serialization
from torch.nn import functional

for _dtype in ("float16", "bfloat16", "float32"):
    serialization.register_constant("torch", _dtype, compare_by_identity=True)

MODELS = "nemo.collections.llm.gpt.model."


def _module(name):
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
        if "." in name:
            setattr(_module(name.rpartition(".")[0]), name.rpartition(".")[2], sys.modules[name])
    return sys.modules[name]


def in_module(name):
    """Puts a class where NeMo has it."""

    def move(cls):
        cls.__module__ = name
        setattr(_module(name), cls.__name__, cls)
        return cls

    return move


@in_module(MODELS + "base")
@dataclasses.dataclass
class GPTConfig:
    num_layers: int = 0
    hidden_size: int = 0
    num_attention_heads: int = 0
    num_query_groups: typing.Optional[int] = None
    ffn_hidden_size: typing.Optional[int] = None
    kv_channels: typing.Optional[int] = None
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layernorm_epsilon: float = 1e-5
    layernorm_zero_centered_gamma: bool = False
    add_bias_linear: bool = True
    add_qkv_bias: bool = False
    gated_linear_unit: bool = False
    activation_func: typing.Callable = functional.gelu
    num_moe_experts: typing.Optional[int] = None
    rotary_interleaved: bool = False
    window_size: typing.Optional[typing.List[int]] = None
    normalization: str = "LayerNorm"
    qk_layernorm: bool = False
    init_method_std: float = 0.02
    cp_comm_type: typing.Optional[str] = None
    fp16: bool = False
    bf16: bool = False
    params_dtype: torch.dtype = torch.float32
    share_embeddings_and_output_weights: bool = True
    make_vocab_size_divisible_by: int = 128
    position_embedding_type: str = "learned_absolute"
    rotary_base: int = 10000
    rotary_percent: float = 1.0
    seq_len_interpolation_factor: typing.Optional[float] = None
    seq_length: int = 1024
    vocab_size: typing.Optional[int] = None


@dataclasses.dataclass
class _Rms(GPTConfig):
    normalization: str = "RMSNorm"
    activation_func: typing.Callable = functional.silu
    gated_linear_unit: bool = True
    position_embedding_type: str = "rope"
    add_bias_linear: bool = False
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    share_embeddings_and_output_weights: bool = False


@in_module(MODELS + "llama")
@dataclasses.dataclass
class LlamaConfig(_Rms):
    seq_length: int = 4096


@in_module(MODELS + "llama")
@dataclasses.dataclass
class Llama3Config(LlamaConfig):
    num_query_groups: int = 8
    init_method_std: float = 0.01


@in_module(MODELS + "llama")
@dataclasses.dataclass
class Llama31Config(Llama3Config):
    scale_factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    old_context_len: int = 8192
    init_method_std: float = 0.02


@in_module(MODELS + "mistral")
@dataclasses.dataclass
class MistralConfig7B(_Rms):
    num_layers: int = 32
    hidden_size: int = 4096
    num_attention_heads: int = 32
    num_query_groups: int = 8
    ffn_hidden_size: int = 14336
    seq_length: int = 32768
    window_size: typing.List[int] = dataclasses.field(default_factory=lambda: [4096, 0])
    cp_comm_type: str = "a2a"
    params_dtype: torch.dtype = torch.bfloat16


@in_module(MODELS + "qwen2")
@dataclasses.dataclass
class Qwen2Config(_Rms):
    add_qkv_bias: bool = True
    seq_length: int = 4096
    vocab_size: int = 151936
    layernorm_epsilon: float = 1e-6
    rotary_base: float = 1000000.0


@in_module(MODELS + "qwen3")
@dataclasses.dataclass
class Qwen3Config(Qwen2Config):
    add_qkv_bias: bool = False
    qk_layernorm: bool = True
    kv_channels: typing.Optional[int] = 128
    num_query_groups: int = 8
    max_position_embeddings: int = 40960


class _Model:
    def __init__(self, config=None, optim=None, tokenizer=None, model_transform=None):
        self.config, self.tokenizer = config, tokenizer


for _family, _name in [("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3")]:
    in_module(MODELS + _family)(type(_name + "Model", (_Model,), {}))


@in_module("nemo.collections.common.tokenizers.huggingface.auto_tokenizer")
class AutoTokenizer:
    def __init__(self, pretrained_model_name, vocab_file=None, merges_file=None, use_fast=True, trust_remote_code=False):
        self.pretrained_model_name = pretrained_model_name


@in_module("nemo.lightning.io.artifact.file")
class DirOrStringArtifact:
    def __init__(self, attr, required=True, skip=False):
        self.attr = attr


@in_module("nemo.lightning.io.pl")
@dataclasses.dataclass
class TrainerContext:
    model: typing.Any
    trainer: typing.Any
    extra: typing.Dict[str, typing.Any] = dataclasses.field(default_factory=dict)


def model_class(family):
    return getattr(sys.modules[MODELS + family], family.capitalize() + "Model")


def _settle(config, context):
    """A tokenizer's name is a path within the context, unless it is kept as a text."""
    if not isinstance(config, fiddle.Config):
        return
    if config.__fn_or_cls__ is AutoTokenizer:
        name = config.pretrained_model_name
        config.pretrained_model_name = fiddle.build(name).attr if isinstance(name, fiddle.Config) else str(context / name)
    for value in config.__arguments__.values():
        _settle(value, context)


def load(context, subpath=None):
    """Builds what io.json says, or the part of it that lies at `subpath`."""
    context = pathlib.Path(context)
    document = json.loads((context / "io.json").read_text())
    wanted = "<root>." + subpath if subpath else None
    for value in document["objects"].values():
        if not wanted or any(wanted in path for path in value.get("paths", [wanted])):
            assert pydoc.locate("{module}.{name}".format(**value["type"])), value["type"]
    if wanted:
        (document["root"]["key"],) = [key for key, value in document["objects"].items() if wanted in value.get("paths", ())]
    config = serialization.Deserialization(document).result
    _settle(config, context)
    return fiddle.build(config)
