"""Bad and odd HuggingFace folders: config.json, the index, the shards, and what they say of each other."""
import json
import os
import shutil

import numpy as np

import tiny_model
from cases import bad, valid
from safetensors_cases import CUT_OFF, GIT_LFS_POINTER, edit_header
from tiny_model import Tensor, config, random_tensor, tensors, write_config, write_hf

GROUP = "HuggingFace folder"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
Q0 = "model.layers.0.self_attn.q_proj.weight"
MISSING = r"missing|not found|no such|lacks"
UNEXPECTED = r"unexpected|not part|unknown"


def broken(code, *says, arguments=()):
    return bad(GROUP, "hf", code, *says, arguments=arguments)


def sharded(folder):
    write_hf(folder, shards=3)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_index(folder, change):
    sharded(folder)
    edit_json(folder / INDEX, change)


def drop(named, *names):
    return {name: tensor for name, tensor in named.items() if name not in names}


def cast(tensor, dtype, seed=1):
    """Other bits of the same shape: the values do not matter here."""
    return random_tensor(np.random.default_rng(seed), tensor.shape, dtype)


# ---------------------------------------------------------------- more than memory bears

@broken(4, r"config\.json", r"\d{8} bytes", r"1,?048,?576")
def config_of_10_mb(folder):
    """config.json of 10 MB, half a million nested lists"""
    write_config(folder, config(more=[[]] * 2_500_000))


@broken(6, r"config\.json", r"100,?000 layers", r"2")
def layers_by_the_config_alone(folder):
    """100,000 layers in config.json and two in the files"""
    write_config(folder, config(num_hidden_layers=100_000))


@broken(5, r"model\.safetensors", r"tensors", r"--max_memory", arguments=("--max_memory=64MiB",))
def empty_tensors_by_the_hundred_thousand(folder):
    """250,000 tensors without elements in a header of 14 MB"""
    entries = (f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(250_000))
    tiny_model.write_raw(folder / "model.safetensors", ("{" + ",".join(entries) + "}").encode(), b"")


@broken(5, r"index\.json", r"tensors", r"--max_memory", arguments=("--max_memory=64MiB",))
def index_of_a_hundred_thousand_short_names(folder):
    """an index of 400,000 tensors in 6 MB"""
    sharded(folder)
    entries = ",".join(f'"{i:x}":"a"' for i in range(400_000))
    (folder / INDEX).write_text('{"weight_map":{' + entries + "}}")


# ---------------------------------------------------------------- config.json

@broken(3, r"config\.json")
def config_missing(folder):
    """no config.json"""
    (folder / "config.json").unlink()


@broken(4, r"config\.json")
def config_empty(folder):
    """config.json of 0 bytes"""
    (folder / "config.json").write_text("")


@broken(4, r"config\.json", r"JSON")
def config_cut_off(folder):
    """config.json that ends in the middle"""
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[:len(text) // 2])


@broken(4, r"config\.json", r"object")
def config_is_an_array(folder):
    """config.json that holds an array"""
    (folder / "config.json").write_text("[]")


@broken(4, r"config\.json", r"hidden_size", r"duplicate|twice|two|again|second")
def config_key_twice(folder):
    """one key twice in config.json"""
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"hidden_size": 32,', 1))


@broken(4, r"config\.json")
def config_nested_10000_deep(folder):
    """10,000 open brackets in config.json"""
    (folder / "config.json").write_text('{"a":' + "[" * 10_000)


@broken(4, r"config\.json", r"hidden_size", r"integer|number")
def size_is_a_string(folder):
    """`hidden_size: "16"`"""
    write_config(folder, config(hidden_size="16"))


@broken(4, r"config\.json", r"hidden_size", r"integer|whole")
def size_is_a_fraction(folder):
    """`hidden_size: 16.5`"""
    write_config(folder, config(hidden_size=16.5))


@broken(4, r"config\.json", r"hidden_size")
def size_beyond_64_bits(folder):
    """`hidden_size: 2^70`"""
    write_config(folder, config(hidden_size=2**70))


@broken(4, r"config\.json", r"num_hidden_layers", r"-2")
def size_negative(folder):
    """`num_hidden_layers: -2`"""
    write_config(folder, config(num_hidden_layers=-2))


@broken(4, r"config\.json", r"num_attention_heads", r"\b0\b")
def heads_zero(folder):
    """`num_attention_heads: 0`"""
    write_config(folder, config(num_attention_heads=0))


@broken(4, r"config\.json|tensor", r"num_hidden_layers|model\.layers\.2\b")
def layers_2_40(folder):
    """`num_hidden_layers: 2^40`: refused at once, with a message of bounded length"""
    write_config(folder, config(num_hidden_layers=2**40))


@broken(4, r"config\.json", r"rms_norm_eps|JSON")
def eps_is_nan(folder):
    """`rms_norm_eps: NaN`"""
    write_config(folder, config(rms_norm_eps=float("nan")))


# ---------------------------------------------------------------- the index

@broken(4, SHARD, MISSING)
def shard_missing(folder):
    """shard that the index names is missing"""
    sharded(folder)
    (folder / SHARD).unlink()


@broken(4, r"model-0000\d-of-00003\.safetensors", r"lm_head\.weight")
def indexed_tensor_missing_from_its_shard(folder):
    """shard lacks a tensor that the index places there"""
    def change(index):
        index["weight_map"]["lm_head.weight"] = next(
            file for file in set(index["weight_map"].values()) if file != index["weight_map"]["lm_head.weight"])
    edit_index(folder, change)


@broken(4, r"model\.norm\.weight", r"two|twice|both|duplicate|also|not .*index|unexpected")
def tensor_in_two_shards(folder):
    """one tensor in two shards, with different values"""
    sharded(folder)
    home = json.loads((folder / INDEX).read_text())["weight_map"]["model.norm.weight"]
    other = next(path for path in sorted(folder.glob("*.safetensors")) if path.name != home)
    named = tiny_model.read_safetensors(other)
    named["model.norm.weight"] = random_tensor(np.random.default_rng(9), (16,))
    tiny_model.write_safetensors(other, named)


@broken(4, r"model\.norm\.weight")
def tensor_in_no_index(folder):
    """tensor of the model lies in a shard but not in the index"""
    edit_index(folder, lambda index: index["weight_map"].pop("model.norm.weight"))


@broken(4, INDEX, r"\.\./")
def index_path_leaves_the_folder(folder):
    """index names `../x.safetensors`"""
    edit_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": "../x.safetensors"}))


@broken(4, INDEX, r"/etc/x\.safetensors")
def index_path_absolute(folder):
    """index names `/etc/x.safetensors`"""
    edit_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": "/etc/x.safetensors"}))


@broken(4, INDEX, r"JSON")
def index_not_json(folder):
    """index that is not JSON"""
    sharded(folder)
    (folder / INDEX).write_text("{")


@broken(4, INDEX, r"weight_map")
def index_without_weight_map(folder):
    """index without `weight_map`"""
    edit_index(folder, lambda index: index.pop("weight_map"))


@broken(6, INDEX + "|" + MISSING)
def index_empty(folder):
    """index with an empty `weight_map`"""
    edit_index(folder, lambda index: index["weight_map"].clear())


@broken(4, INDEX, r"string")
def index_file_is_a_number(folder):
    """number as a file name in the index"""
    edit_index(folder, lambda index: index["weight_map"].update({"model.norm.weight": 3}))


@broken(4, INDEX, r"model\.norm\.weight", r"duplicate|twice|two|again|second")
def index_tensor_twice(folder):
    """one tensor twice in the index"""
    sharded(folder)
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"weight_map": {', '"weight_map": {"model.norm.weight": "' + SHARD + '",'))


# ---------------------------------------------------------------- the shards as files

def replace_shard(folder, make):
    sharded(folder)
    (folder / SHARD).unlink()
    make(folder / SHARD)


@broken(4, SHARD)
def shard_is_a_symlink_loop(folder):
    """shard that is a symbolic link to itself"""
    replace_shard(folder, lambda path: path.symlink_to(path.name))


@broken(4, SHARD, r"regular file|FIFO|pipe")
def shard_is_a_fifo(folder):
    """shard that is a FIFO: refused, not waited for"""
    replace_shard(folder, os.mkfifo)


@broken(4, SHARD, r"regular file|device")
def shard_is_a_device(folder):
    """shard that is a link to /dev/zero"""
    replace_shard(folder, lambda path: path.symlink_to("/dev/zero"))


@broken(4, SHARD, r"regular file|directory|folder")
def shard_is_a_folder(folder):
    """shard that is a folder"""
    replace_shard(folder, lambda path: path.mkdir())


@broken(4, SHARD, r"git-lfs|Git LFS", r"git lfs pull")
def shard_is_a_git_lfs_pointer(folder):
    """shard that is git-lfs pointer text"""
    replace_shard(folder, lambda path: path.write_text(GIT_LFS_POINTER))


@broken(4, SHARD, CUT_OFF)
def shard_cut_off(folder):
    """shard that lacks its last 40 bytes"""
    sharded(folder)
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-40])


@broken(3, r"safetensors", r"incomplete|download")
def download_incomplete(folder):
    """only `model.safetensors.incomplete`"""
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")


@broken(3, r"safetensors")
def weights_missing(folder):
    """config.json without weights"""
    (folder / "model.safetensors").unlink()


# ---------------------------------------------------------------- tensors against config

@broken(6, r"model\.layers\.1\.input_layernorm\.weight", r"model\.layers\.1\.mlp\.down_proj\.weight", MISSING)
def layer_missing(folder):
    """no tensor of layer 1: all are listed"""
    named = tensors()
    write_hf(folder, named={name: tensor for name, tensor in named.items() if ".layers.1." not in name})


@broken(6, r"model\.layers\.1\.mlp\.up_proj\.weight", MISSING)
def tensor_missing(folder):
    """one tensor of one layer missing"""
    write_hf(folder, named=drop(tensors(), "model.layers.1.mlp.up_proj.weight"))


@broken(6, r"model\.layers\.1\.mlp\.up_proj\.weight", r"model\.norm\.weight", r"model\.extra\.weight")
def three_problems(folder):
    """two tensors missing and one unexpected: all three in one message"""
    named = drop(tensors(), "model.layers.1.mlp.up_proj.weight", "model.norm.weight")
    write_hf(folder, named={**named, "model.extra.weight": named["lm_head.weight"]})


@broken(6, r"model\.layers\.2\.", UNEXPECTED)
def layer_too_many(folder):
    """layer 2 in a model of two layers"""
    write_hf(folder, named=tensors(config(num_hidden_layers=3)))
    write_config(folder, config())


@broken(6, r"model\.layers\.0\.self_attn\.q_proj\.bias", UNEXPECTED)
def tensor_unexpected(folder):
    """q_proj.bias in a Llama without attention biases: not dropped silently"""
    write_hf(folder, named={**tensors(), "model.layers.0.self_attn.q_proj.bias": Tensor("BF16", (16,), b"\0" * 32)})


@broken(6, Q0, r"\[8, ?32\]", r"\[16, ?16\]")
def shape_wrong(folder):
    """q_proj of shape [8, 32] where config.json says [16, 16]"""
    edit_header(folder, lambda header, _: header[Q0].update(shape=[8, 32]))


@broken(6, r"model\.norm\.weight", r"\[1, ?16\]", r"\[16\]")
def shape_of_other_ndim(folder):
    """norm of shape [1, 16]"""
    edit_header(folder, lambda header, _: header["model.norm.weight"].update(shape=[1, 16]))


@broken(6, r"embed_tokens|lm_head", r"\b11\b", r"\b12\b")
def vocabulary_larger_than_stored(folder):
    """`vocab_size: 12` over 11 stored rows"""
    write_config(folder, config(vocab_size=12))


@broken(6, r"mlp", r"\b24\b", r"\b32\b")
def ffn_size_wrong(folder):
    """`intermediate_size: 32` over 24 stored rows"""
    write_config(folder, config(intermediate_size=32))


@broken(6, r"q_proj|head_dim|head size")
def head_size_wrong(folder):
    """`head_dim: 8` over tensors of head size 4"""
    write_config(folder, config(head_dim=8))


@broken(6, r"\b4\b", r"\b3\b")
def groups_do_not_divide_heads(folder):
    """4 attention heads in 3 query groups"""
    write_config(folder, config(num_key_value_heads=3))


@broken(6, r"\b16\b", r"\b3\b")
def heads_do_not_divide_hidden_size(folder):
    """hidden size 16 with 3 heads and no `head_dim`"""
    write_config(folder, config(num_attention_heads=3, num_key_value_heads=3))


@broken(6, r"lm_head\.weight", r"tie_word_embeddings|tied")
def untied_without_head(folder):
    """`tie_word_embeddings: false` without lm_head"""
    write_hf(folder, named=drop(tensors(), "lm_head.weight"))


@broken(6, r"lm_head\.weight", r"embed_tokens\.weight|embedding", r"differ|equal|tied")
def tied_with_another_head(folder):
    """`tie_word_embeddings: true` with an lm_head that differs from the embedding"""
    write_hf(folder, config(tie_word_embeddings=True), tensors())


@broken(6, r"layers\.0\b|layer 0", r"layers\.1\b|layer 1", r"BF16", r"F32")
def layers_of_two_dtypes(folder):
    """down_proj BF16 in layer 0 and F32 in layer 1, to be stacked"""
    named = tensors()
    name = "model.layers.1.mlp.down_proj.weight"
    write_hf(folder, named={**named, name: cast(named[name], "F32")})


@broken(6, r"q_proj|linear_qkv", r"BF16", r"F32")
def packed_parts_of_two_dtypes(folder):
    """q_proj F32 and k_proj BF16, to be packed into one tensor"""
    named = tensors()
    changed = {name: cast(tensor, "F32") for name, tensor in named.items() if "q_proj" in name}
    write_hf(folder, named={**named, **changed})


# ---------------------------------------------------------------- what is not supported, or not by the target

ROPE_REFUSED = (r"rope", r"allow_rope=config_only")


@broken(5, r"yarn", *ROPE_REFUSED)
def rope_yarn(folder):
    """rope type `yarn`"""
    write_config(folder, config(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}))


@broken(5, r"dynamic", *ROPE_REFUSED)
def rope_dynamic(folder):
    """rope type `dynamic`"""
    write_config(folder, config(rope_scaling={"type": "dynamic", "factor": 2.0}))


@broken(5, r"llama3", r"\b32", *ROPE_REFUSED)
def rope_llama3_with_factor_32(folder):
    """rope type `llama3` with factor 32 (Llama 3.2)"""
    write_config(folder, config(rope_scaling={"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}))


@broken(5, r"banana", r"rope")
def rope_unknown(folder):
    """rope type that nobody knows"""
    write_config(folder, config(rope_scaling={"rope_type": "banana", "factor": 2.0}))


@broken(4, r"rope", r"factor")
def rope_linear_without_factor(folder):
    """rope type `linear` without its factor"""
    write_config(folder, config(rope_scaling={"rope_type": "linear"}))


def quantised(method):
    return config(quantization_config={"quant_method": method, "bits": 4, "group_size": 16})


@broken(5, r"gptq", r"quanti[sz]")
def quantised_gptq(folder):
    """GPTQ checkpoint given as a plain one"""
    named = {name: tensor for name, tensor in tensors().items() if name != Q0}
    gptq = {"qweight": Tensor("I32", (2, 16), b"\1" * 128), "qzeros": Tensor("I32", (1, 2), b"\1" * 8),
            "scales": Tensor("F16", (1, 16), b"\1" * 32)}
    write_hf(folder, quantised("gptq"), {**named, **{Q0.replace("weight", end): tensor for end, tensor in gptq.items()}})


@broken(5, r"awq", r"quanti[sz]")
def quantised_awq(folder):
    """AWQ checkpoint given as a plain one"""
    write_config(folder, quantised("awq"))


@broken(5, r"fp8", r"quanti[sz]")
def quantised_fp8(folder):
    """FP8 checkpoint given as a plain one"""
    named = tensors()
    write_hf(folder, quantised("fp8"), {**named, Q0: Tensor("F8_E4M3", (16, 16), b"\1" * 256)})


@broken(5, r"q_proj", r"F8_E4M3")
def fp8_tensor_without_quantization_config(folder):
    """q_proj in F8_E4M3 and no `quantization_config`"""
    write_hf(folder, named={**tensors(), Q0: Tensor("F8_E4M3", (16, 16), b"\1" * 256)})


@broken(5, r"MambaForCausalLM|mamba", r"reshard families|families")
def family_unknown(folder):
    """architecture that is in no family"""
    write_config(folder, config(architectures=["MambaForCausalLM"], model_type="mamba"))


@broken(6, r"q_proj\.bias", MISSING)
def config_of_another_family(folder):
    """config.json of a Qwen2 over tensors of a Llama"""
    write_config(folder, config(architectures=["Qwen2ForCausalLM"], model_type="qwen2"))


@broken(6, r"config\.json", r"qwen2", r"LlamaForCausalLM|llama")
def architecture_contradicts_model_type(folder):
    """`model_type: qwen2` with `architectures: [LlamaForCausalLM]`"""
    write_config(folder, config(model_type="qwen2"))


@broken(6, r"model_type", r"qwen", r"llama", arguments=("--model_type=qwen",))
def option_contradicts_the_family(folder):
    """`--model_type=qwen` over a Llama"""
    assert folder.is_dir()


@broken(6, r"convert_from", r"nemo", r"\bhf\b|HuggingFace", arguments=("--convert_from=nemo",))
def option_contradicts_the_kind(folder):
    """`--convert_from=nemo` over a HuggingFace folder"""
    assert folder.is_dir()


@broken(3, r"checkpoint|config\.json")
def folder_without_a_checkpoint(folder):
    """folder with a readme only"""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "README.md").write_text("Hello.\n")


@broken(3, MISSING + r"|does not exist")
def folder_missing(folder):
    """input path that does not exist"""
    shutil.rmtree(folder)


@broken(3, r"regular file|not a folder|not a checkpoint|no checkpoint|expected")
def file_instead_of_a_folder(folder):
    """input path that is a text file"""
    shutil.rmtree(folder)
    folder.write_text("Hello.\n")


# ---------------------------------------------------------------- valid

@valid(GROUP, "hf")
def shards_with_an_index(folder):
    """three shards"""
    sharded(folder)


@valid(GROUP, "hf")
def total_size_wrong(folder):
    """wrong `total_size` in the index"""
    edit_index(folder, lambda index: index["metadata"].update(total_size=7))


@valid(GROUP, "hf")
def total_size_a_float(folder):
    """`total_size` as a float"""
    edit_index(folder, lambda index: index["metadata"].update(total_size=7.0))


@valid(GROUP, "hf")
def index_metadata_null(folder):
    """`metadata: null` in the index"""
    edit_index(folder, lambda index: index.update(metadata=None))


@valid(GROUP, "hf")
def index_metadata_missing(folder):
    """no `metadata` in the index"""
    edit_index(folder, lambda index: index.pop("metadata"))


@valid(GROUP, "hf")
def shards_in_a_subfolder(folder):
    """index that names shards in a sub-folder"""
    sharded(folder)
    (folder / "weights").mkdir()
    (folder / SHARD).rename(folder / "weights" / SHARD)
    edit_json(folder / INDEX, lambda index: index["weight_map"].update(
        {name: "weights/" + file for name, file in index["weight_map"].items() if file == SHARD}))


@valid(GROUP, "hf")
def shard_is_a_symlink(folder):
    """weights behind a symbolic link, as in the hub cache"""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    (folder / "model.safetensors").rename(blobs / "0123abcd")
    (folder / "model.safetensors").symlink_to("../blobs/0123abcd")


@valid(GROUP, "hf")
def file_that_no_index_names(folder):
    """further safetensors file beside the shards that the index names"""
    sharded(folder)
    tiny_model.write_safetensors(folder / "adapter_model.safetensors", {"x": Tensor("F32", (1,), b"\0" * 4)})


@valid(GROUP, "hf")
def pickles_beside_safetensors(folder):
    """pytorch_model.bin beside model.safetensors"""
    (folder / "pytorch_model.bin").write_bytes(b"PK\3\4" + b"\0" * 60)


@valid(GROUP, "hf")
def defaults_left_out(folder):
    """config.json without the keys that have class defaults"""
    settings = config(num_key_value_heads=4)
    write_hf(folder, settings)
    write_config(folder, config(drop=(
        "attention_bias", "bos_token_id", "eos_token_id", "hidden_act", "initializer_range", "max_position_embeddings",
        "mlp_bias", "num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta", "tie_word_embeddings",
        "torch_dtype", "transformers_version")))
    return settings, tensors(settings)


@valid(GROUP, "hf")
def config_of_transformers_5(folder):
    """config.json with `rope_parameters` and `dtype`"""
    write_config(folder, config(drop=("rope_theta", "rope_scaling", "torch_dtype"), dtype="bfloat16",
                                rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))


@valid(GROUP, "hf")
def config_dtype_wrong(folder):
    """`torch_dtype: float32` over BF16 tensors"""
    write_config(folder, config(torch_dtype="float32"))


@valid(GROUP, "hf")
def head_size_differs(folder):
    """`head_dim: 8` with hidden size 16 and 4 heads"""
    settings = config(head_dim=8)
    write_hf(folder, settings)
    return settings, tensors(settings)


@valid(GROUP, "hf")
def head_size_null(folder):
    """`head_dim: null`"""
    write_config(folder, config(head_dim=None))


@valid(GROUP, "hf")
def one_group(folder):
    """one query group"""
    settings = config(num_key_value_heads=1)
    write_hf(folder, settings)
    return settings, tensors(settings)


@valid(GROUP, "hf")
def tied_without_head(folder):
    """tied embeddings, no lm_head"""
    settings = config(tie_word_embeddings=True)
    write_hf(folder, settings)
    return settings, tensors(settings)


@valid(GROUP, "hf")
def tied_with_the_same_head(folder):
    """tied embeddings and an equal lm_head"""
    settings = config(tie_word_embeddings=True)
    named = tensors(settings)
    write_hf(folder, settings, {**named, "lm_head.weight": named["model.embed_tokens.weight"]})
    return settings, named


@valid(GROUP, "hf")
def rotary_buffers(folder):
    """`rotary_emb.inv_freq` of old Llama files"""
    inv_freq = Tensor("F32", (2,), b"\0" * 8)
    extra = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": inv_freq for layer in range(2)}
    write_hf(folder, named={**tensors(), **extra})


@valid(GROUP, "hf")
def norms_of_another_dtype(folder):
    """norms F32, matrices BF16: each stack has one dtype"""
    named = {name: cast(tensor, "F32") if "norm" in name else tensor for name, tensor in tensors().items()}
    write_hf(folder, named=named)
    return config(), named


@valid(GROUP, "hf")
def rope_linear(folder):
    """rope type `linear`"""
    write_config(folder, config(rope_scaling={"type": "linear", "factor": 2.0}))


@valid(GROUP, "hf")
def rope_of_llama_31(folder):
    """rope type `llama3` with 8, 1, 4, 8192"""
    write_config(folder, config(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}))


@valid(GROUP, "hf", "--allow_rope=config_only")
def rope_yarn_in_the_config_only(folder):
    """rope type `yarn` with `--allow_rope=config_only`"""
    rope_yarn(folder)
