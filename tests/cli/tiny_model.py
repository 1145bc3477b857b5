"""A tiny Llama as a HuggingFace, a NeMo zarr and a TensorRT-LLM folder, written and read with numpy alone.

Nothing here shares code with the program: the layouts are written from their format descriptions, so that a
conversion can be checked in either direction.
"""
import itertools
import json
import struct
import zipfile
from typing import NamedTuple

import numpy as np

# Elements are moved as bits; numpy has no bfloat16.
BITS = {"F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}
ZARR_DTYPES = {"F32": "<f4", "BF16": "bfloat16", "F16": "<f2"}
ITEM_SIZES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.2",
    "vocab_size": 11,
}

MODEL_CONFIG_YAML = """\
mcore_gpt: true
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
encoder_seq_length: 64
max_position_embeddings: 64
num_layers: {num_hidden_layers}
hidden_size: {hidden_size}
ffn_hidden_size: {intermediate_size}
num_attention_heads: {num_attention_heads}
init_method_std: 0.02
kv_channels: null
normalization: rmsnorm
layernorm_epsilon: 1.0e-05
make_vocab_size_divisible_by: 1
bias: false
activation: fast-swiglu
position_embedding_type: rope
rotary_percentage: 1.0
share_embeddings_and_output_weights: {tied}
num_query_groups: {num_key_value_heads}
tokenizer:
  library: huggingface
  type: example/model
  use_fast: true
megatron_amp_O2: false
transformer_engine: true
data:
  splits_string: 900,50,50
  seq_length: 64
optim:
  betas:
  - 0.9
  - 0.98
rotary_base: 10000.0
dist_ckpt_format: zarr
precision: bf16
target: nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel
nemo_version: 2.0.0rc1
"""


class Tensor(NamedTuple):
    dtype: str
    shape: tuple
    data: bytes


# ---------------------------------------------------------------- model

def config(drop=(), **changes):
    """CONFIG with some keys changed and some left out."""
    return {key: value for key, value in {**CONFIG, **changes}.items() if key not in drop}


def random_tensor(rng, shape, dtype="BF16"):
    """Random finite bits: clearing the highest exponent bit keeps every value below 2."""
    bits = BITS[dtype]
    size = np.dtype(bits).itemsize
    keep = bits((1 << 8 * size) - 1 - (1 << 8 * size - 2))
    values = np.frombuffer(rng.bytes(int(np.prod(shape)) * size), bits) & keep
    return Tensor(dtype, tuple(shape), values.tobytes())


def shapes(settings):
    """Name -> shape of every tensor that a Llama with these settings has, in state dict order."""
    hidden, ffn, heads = settings["hidden_size"], settings["intermediate_size"], settings["num_attention_heads"]
    groups = settings.get("num_key_value_heads", heads)
    head_size = settings.get("head_dim", hidden // heads)
    table = {"model.embed_tokens.weight": (settings["vocab_size"], hidden)}
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        table |= {
            prefix + "self_attn.q_proj.weight": (heads * head_size, hidden),
            prefix + "self_attn.k_proj.weight": (groups * head_size, hidden),
            prefix + "self_attn.v_proj.weight": (groups * head_size, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, heads * head_size),
            prefix + "mlp.gate_proj.weight": (ffn, hidden),
            prefix + "mlp.up_proj.weight": (ffn, hidden),
            prefix + "mlp.down_proj.weight": (hidden, ffn),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    table["model.norm.weight"] = (hidden,)
    if not settings.get("tie_word_embeddings", False):
        table["lm_head.weight"] = (settings["vocab_size"], hidden)
    return table


def tensors(settings=CONFIG, dtype="BF16", seed=0):
    rng = np.random.default_rng(seed)
    return {name: random_tensor(rng, shape, dtype) for name, shape in shapes(settings).items()}


def array(tensor):
    return np.frombuffer(tensor.data, BITS[tensor.dtype]).reshape(tensor.shape)


# ---------------------------------------------------------------- HuggingFace folder

def header_of(named):
    """The safetensors header as a dict, and the data: wide elements first, then by name."""
    header, data, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in sorted(named.items(), key=lambda item: (-ITEM_SIZES[item[1].dtype], item[0])):
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        data.append(tensor.data)
        offset = end
    return header, b"".join(data)


def header_text(header):
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def write_raw(path, text, data, length=None):
    """A safetensors file of any header bytes and, where given, a header length that is not theirs."""
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def write_safetensors(path, named):
    header, data = header_of(named)
    write_raw(path, header_text(header), data)


def split_safetensors(path):
    """(header as a dict, data)"""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:start]), content[start:]


def read_safetensors(path):
    header, data = split_safetensors(path)
    header.pop("__metadata__", None)
    return {name: Tensor(entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def read_hf(folder):
    named = {}
    for path in sorted(folder.glob("*.safetensors")):
        named |= read_safetensors(path)
    return named


def write_config(folder, settings):
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def write_hf(folder, settings=CONFIG, named=None, shards=1):
    """Writes the folder anew; with more than one shard, names are dealt out in turn."""
    named = tensors(settings) if named is None else named
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    write_config(folder, settings)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", named)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: named[name] for name in list(named)[shard::shards]}
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map, sum(len(tensor.data) for tensor in named.values()))
    return folder


def write_index(folder, weight_map, total_size):
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


# ---------------------------------------------------------------- NeMo folder

def nemo_arrays(settings, named):
    """Key -> (dtype, array, chunk shape) of the NeMo model with these weights, saved by one rank."""
    heads = settings["num_attention_heads"]
    groups = settings.get("num_key_value_heads", heads)
    hidden, ffn = settings["hidden_size"], settings["intermediate_size"]

    def grouped(query, key, value):
        by_group = [part.reshape(groups, -1, hidden) for part in (query, key, value)]
        return np.concatenate(by_group, axis=1).reshape(-1, hidden)

    def stacked(join, *parts):
        layers = [[named[f"model.layers.{layer}.{part}.weight"] for part in parts]
                  for layer in range(settings["num_hidden_layers"])]
        return layers[0][0].dtype, np.stack([join(*map(array, layer)) for layer in layers])

    def alone(tensor):
        return tensor

    def single(name):
        return named[name].dtype, array(named[name])

    layers = "model.decoder.layers."
    found = {
        "model.embedding.word_embeddings.weight": single("model.embed_tokens.weight"),
        layers + "self_attention.linear_qkv.weight":
            stacked(grouped, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        layers + "self_attention.linear_qkv.layer_norm_weight": stacked(alone, "input_layernorm"),
        layers + "self_attention.linear_proj.weight": stacked(alone, "self_attn.o_proj"),
        layers + "mlp.linear_fc1.weight":
            stacked(lambda gate, up: np.concatenate([gate, up]), "mlp.gate_proj", "mlp.up_proj"),
        layers + "mlp.linear_fc1.layer_norm_weight": stacked(alone, "post_attention_layernorm"),
        layers + "mlp.linear_fc2.weight": stacked(alone, "mlp.down_proj"),
        "model.decoder.final_layernorm.weight": single("model.norm.weight"),
    }
    if not settings.get("tie_word_embeddings", False):
        found["model.output_layer.weight"] = single("lm_head.weight")

    def chunk_shape(key, shape):
        if not key.startswith(layers):
            return shape
        return (1, ffn, hidden) if key.endswith("linear_fc1.weight") else (1, *shape[1:])

    return {key: (dtype, values, chunk_shape(key, values.shape)) for key, (dtype, values) in found.items()}


def write_zarr(folder, dtype, values, chunks, separator=".", **changes):
    """One array; edge chunks are stored at full size, filled with zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"chunks": list(chunks), "compressor": None, "dtype": ZARR_DTYPES[dtype], "fill_value": None,
              "filters": None, "order": "C", "shape": list(values.shape), "zarr_format": 2, **changes}
    (folder / ".zarray").write_text(json.dumps(fields, indent=4, sort_keys=True))
    grid = [range(-(-extent // chunk)) for extent, chunk in zip(values.shape, chunks)]
    for place in itertools.product(*grid):
        whole = np.zeros(chunks, values.dtype)
        part = values[tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(place, chunks))]
        whole[tuple(slice(extent) for extent in part.shape)] = part
        path = folder / separator.join(map(str, place))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole.tobytes())


def read_zarr(folder):
    """(dtype string, array) of an array that this module or the program wrote."""
    fields = json.loads((folder / ".zarray").read_text())
    bits = np.uint32 if fields["dtype"] == "<f4" else np.uint16
    values = np.zeros(fields["shape"], bits)
    grid = [range(-(-extent // chunk)) for extent, chunk in zip(fields["shape"], fields["chunks"])]
    for place in itertools.product(*grid):
        chunk = np.frombuffer((folder / ".".join(map(str, place))).read_bytes(), bits).reshape(fields["chunks"])
        target = values[tuple(slice(i * extent, (i + 1) * extent) for i, extent in zip(place, fields["chunks"]))]
        target[...] = chunk[tuple(slice(extent) for extent in target.shape)]
    return fields["dtype"], values


def read_nemo(folder):
    """Key -> (dtype string, shape, bytes) of every array in the folder."""
    found = {path.parent.name: read_zarr(path.parent) for path in (folder / "model_weights").glob("*/.zarray")}
    return {key: (dtype, values.shape, values.tobytes()) for key, (dtype, values) in found.items()}


def write_torch_zip(path, pickle):
    """What torch.save makes of an object without tensors."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickle)
        archive.writestr(f"{path.stem}/version", "3\n")


def write_nemo(folder, settings=CONFIG, named=None):
    named = tensors(settings) if named is None else named
    weights = folder / "model_weights"
    for key, (dtype, values, chunks) in nemo_arrays(settings, named).items():
        write_zarr(weights / key, dtype, values, chunks)
    layers = settings["num_hidden_layers"]
    for module in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"):
        state = weights / f"model.decoder.layers.{module}._extra_state"
        state.mkdir()
        for layer in range(layers):
            write_torch_zip(state / f"shard_{layer}_{layers}.pt", bytes.fromhex("80024e2e"))
    write_torch_zip(weights / "common.pt", bytes.fromhex("80027d71002e"))
    (weights / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr", "sharded_backend_version": 1,
                                                       "common_backend": "torch", "common_backend_version": 1}))
    tied = "true" if settings.get("tie_word_embeddings") else "false"
    (folder / "model_config.yaml").write_text(MODEL_CONFIG_YAML.format(**settings, tied=tied))
    return folder


# ---------------------------------------------------------------- NeMo 2 and Megatron folders

def mcore_fields(settings=CONFIG):
    """The fields of a config in megatron-core's names."""
    return {
        "num_layers": settings["num_hidden_layers"], "hidden_size": settings["hidden_size"],
        "ffn_hidden_size": settings["intermediate_size"], "num_attention_heads": settings["num_attention_heads"],
        "num_query_groups": settings["num_key_value_heads"], "kv_channels": None, "seq_length": 64,
        "layernorm_epsilon": 1e-05, "init_method_std": 0.02, "rotary_base": 10000.0, "vocab_size": settings["vocab_size"],
        "make_vocab_size_divisible_by": 1, "share_embeddings_and_output_weights": False, "add_bias_linear": False,
        "add_qkv_bias": False, "gated_linear_unit": True, "normalization": "RMSNorm", "position_embedding_type": "rope",
    }


def write_dist_weights(folder, prefix, settings=CONFIG):
    for key, (dtype, values, chunks) in nemo_arrays(settings, tensors(settings)).items():
        write_zarr(folder / (prefix + key.removeprefix("model.")), dtype, values, chunks)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr", "sharded_backend_version": 1,
                                                      "common_backend": "torch", "common_backend_version": 1}))


def yaml_lines(fields, indent):
    """Block YAML of numbers, texts, null and truth values; its floats have a point."""
    return "".join(f"{indent}{key}: {json.dumps(value)}\n".replace(" 1e", " 1.0e") for key, value in fields.items())


def fiddle_config(key, module, name, arguments, paths=()):
    """The objects that fiddle's JSON has of a configured class; arguments are values of it."""
    pyref = {"type": "pyref", "module": module, "name": name}
    names = {"type": {"type": "pyref", "module": "builtins", "name": "tuple"},
             "items": [[f"Index(index={i})", argument] for i, argument in enumerate(arguments)], "metadata": None}
    metadata = {"type": "pyref", "module": "fiddle._src.config", "name": "BuildableTraverserMetadata"}
    fields = [["Attr(name='fn_or_cls')", pyref], ["Attr(name='argument_names')", {"type": "ref", "key": key + "_names"}]]
    config = {"type": {"type": "pyref", "module": "fiddle._src.config", "name": "Config"},
              "items": [[f"Attr(name='{argument}')", value] for argument, value in arguments.items()],
              "metadata": {"type": "ref", "key": key + "_metadata"}, "paths": list(paths)}
    return {key + "_names": names, key + "_metadata": {"type": metadata, "items": fields, "metadata": metadata}, key: config}


def write_io_json(path, settings=CONFIG):
    fields = {k: {"type": "leaf", "value": v} for k, v in mcore_fields(settings).items()}
    llama = "nemo.collections.llm.gpt.model.llama"
    objects = fiddle_config("llama_config_1", llama, "LlamaConfig", fields)
    objects |= fiddle_config("llama_model_1", llama, "LlamaModel", {"config": {"type": "ref", "key": "llama_config_1"}})
    objects |= fiddle_config("trainer_context_1", "nemo.lightning.io.pl", "TrainerContext",
                             {"model": {"type": "ref", "key": "llama_model_1"}})
    document = {"root": {"type": "ref", "key": "trainer_context_1"}, "objects": objects, "refcounts": {}, "version": "0.0.1"}
    path.write_text(json.dumps(document))


def write_nemo2(folder, settings=CONFIG):
    (folder / "context").mkdir(parents=True)
    write_io_json(folder / "context" / "io.json", settings)
    write_dist_weights(folder / "weights", "module.", settings)


def write_megatron(folder, settings=CONFIG):
    iteration = folder / "iter_0000100"
    write_dist_weights(iteration, "", settings)
    target = "  _target_: megatron.bridge.models.gpt_provider.GPTModelProvider\n  activation_func: silu\n"
    (iteration / "run_config.yaml").write_text("model:\n" + target + yaml_lines(mcore_fields(settings), "  "))
    (folder / "latest_checkpointed_iteration.txt").write_text("100")


# ---------------------------------------------------------------- TensorRT-LLM folder

def trtllm_config(settings, tp, pp):
    """config.json with the keys of TensorRT-LLM 0.12."""
    same = {key: settings[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
                                           "max_position_embeddings", "num_key_value_heads", "intermediate_size")}
    mapping = {"world_size": tp * pp, "gpus_per_node": 8, "cp_size": 1, "tp_size": tp, "pp_size": pp, "moe_tp_size": tp,
               "moe_ep_size": 1}
    quantization = {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128, "smoothquant_val": None,
                    "clamp_val": None, "has_zero_point": False, "pre_quant_scale": False, "exclude_modules": None}
    return {"mlp_bias": False, "attn_bias": False, "rotary_base": settings["rope_theta"], "rotary_scaling": None,
            "residual_mlp": False, "disable_weight_only_quant_plugin": False,
            "moe": {"num_experts": 0, "top_k": 0, "normalization_mode": None, "tp_mode": 0},
            "remove_duplicated_kv_heads": False, "architecture": settings["architectures"][0], "dtype": "bfloat16",
            **same, "logits_dtype": "float32", "norm_epsilon": settings["rms_norm_eps"],
            "position_embedding_type": "rope_gpt_neox", "mapping": mapping, "quantization": quantization,
            "use_parallel_embedding": False, "embedding_sharding_dim": 0, "share_embedding_table": False,
            "head_size": settings["hidden_size"] // settings["num_attention_heads"], "qk_layernorm": False}


def trtllm_rank(settings, named, tp, pp, rank):
    """Name -> Tensor of one rank; the vocabulary is padded with zero rows for the head."""
    stage, shard = divmod(rank, tp)
    per_stage = settings["num_hidden_layers"] // pp
    found = {}

    def put(name, dtype, values):
        found[name] = Tensor(dtype, values.shape, np.ascontiguousarray(values).tobytes())

    def cut(name, axis):
        return np.split(array(named[name]), tp, axis)[shard]

    for layer in range(per_stage):
        old, new = f"model.layers.{stage * per_stage + layer}.", f"transformer.layers.{layer}."
        dtype = named[old + "mlp.up_proj.weight"].dtype
        put(new + "attention.qkv.weight", dtype,
            np.concatenate([cut(f"{old}self_attn.{part}_proj.weight", 0) for part in "qkv"]))
        put(new + "attention.dense.weight", dtype, cut(old + "self_attn.o_proj.weight", 1))
        for part, source, axis in (("fc", "gate", 0), ("gate", "up", 0), ("proj", "down", 1)):
            put(f"{new}mlp.{part}.weight", dtype, cut(f"{old}mlp.{source}_proj.weight", axis))
        found[new + "input_layernorm.weight"] = named[old + "input_layernorm.weight"]
        found[new + "post_layernorm.weight"] = named[old + "post_attention_layernorm.weight"]
    if stage == 0:
        found["transformer.vocab_embedding.weight"] = named["model.embed_tokens.weight"]
    if stage == pp - 1:
        found["transformer.ln_f.weight"] = named["model.norm.weight"]
        head = array(named["lm_head.weight"])
        padding = np.zeros((-len(head) % tp, head.shape[1]), head.dtype)
        put("lm_head.weight", named["lm_head.weight"].dtype, np.split(np.concatenate([head, padding]), tp)[shard])
    return found


def write_trtllm(folder, settings=CONFIG, named=None, tp=2, pp=2):
    named = tensors(settings) if named is None else named
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(tp * pp):
        write_safetensors(folder / f"rank{rank}.safetensors", trtllm_rank(settings, named, tp, pp, rank))
    (folder / "config.json").write_text(json.dumps(trtllm_config(settings, tp, pp), indent=4))
    return folder
