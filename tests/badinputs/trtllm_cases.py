"""Bad and odd TensorRT-LLM checkpoints (2 tensor ranks in 2 stages), and models that cannot be cut as asked."""
import shutil

import tiny_model
from cases import bad, valid
from hf_folder_cases import edit_json
from safetensors_cases import CUT_OFF
from tiny_model import Tensor, config, read_safetensors, tensors, write_config, write_hf, write_safetensors, write_trtllm

GROUP = "TensorRT-LLM checkpoint"
QKV = "transformer.layers.0.attention.qkv.weight"


def broken(code, *says, arguments=()):
    return bad(GROUP, "trtllm", code, *says, arguments=arguments)


def uncuttable(code, *says, arguments=()):
    return bad("HuggingFace folder for TensorRT-LLM", "hf to trtllm", code, *says, arguments=arguments)


def edit_config(folder, change):
    edit_json(folder / "config.json", change)


def edit_rank(folder, rank, change):
    path = folder / f"rank{rank}.safetensors"
    named = read_safetensors(path)
    change(named)
    write_safetensors(path, named)


def flip(folder, rank, name, byte=0):
    def change(named):
        data = bytearray(named[name].data)
        data[byte] ^= 1
        named[name] = named[name]._replace(data=bytes(data))
    edit_rank(folder, rank, change)


# ---------------------------------------------------------------- which ranks there are

@broken(4, r"config\.json", r"incomplete")
def no_config(folder):
    """no config.json, which is written last"""
    (folder / "config.json").unlink()


@broken(4, r"rank2\.safetensors", r"missing", r"\b4\b")
def rank_missing(folder):
    """file of one rank missing"""
    (folder / "rank2.safetensors").unlink()


@broken(4, r"config\.json", r"TensorRT-LLM", r"rank")
def no_rank(folder):
    """config.json alone: the ranks were not copied"""
    for rank in range(4):
        (folder / f"rank{rank}.safetensors").unlink()


@broken(6, r"rank4\.safetensors", r"\b4\b")
def rank_left_over(folder):
    """file of a rank beyond the world size, left from another run"""
    shutil.copy(folder / "rank3.safetensors", folder / "rank4.safetensors")


@broken(6, r"rank1|rank3", r"attention\.qkv\.weight")
def rank_of_other_tp(folder):
    """one rank left from a run with another TP"""
    other = write_trtllm(folder.parent / "other", tp=1, pp=4, settings=config(num_hidden_layers=4))
    shutil.copy(other / "rank1.safetensors", folder / "rank1.safetensors")
    shutil.rmtree(other)


@broken(6, r"rank2", r"transformer\.vocab_embedding\.weight|lm_head\.weight|ln_f")
def ranks_in_other_order(folder):
    """files of two stages exchanged"""
    (folder / "rank0.safetensors").rename(folder / "x")
    (folder / "rank2.safetensors").rename(folder / "rank0.safetensors")
    (folder / "x").rename(folder / "rank2.safetensors")


@broken(4, r"rank3\.safetensors", CUT_OFF)
def rank_cut_off(folder):
    """file of one rank cut off"""
    path = folder / "rank3.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


# ---------------------------------------------------------------- replicas

@broken(6, r"rank0\.safetensors", r"rank1\.safetensors", r"transformer\.vocab_embedding\.weight")
def embeddings_differ(folder):
    """whole embedding of two ranks, not equal"""
    flip(folder, 1, "transformer.vocab_embedding.weight", 100)


@broken(6, r"rank2\.safetensors", r"rank3\.safetensors", r"transformer\.ln_f\.weight")
def norms_differ(folder):
    """final norm of two ranks, not equal"""
    flip(folder, 3, "transformer.ln_f.weight")


# ---------------------------------------------------------------- config.json against the ranks

@broken(6, r"config\.json", r"world_size", r"\b8\b", r"\b4\b")
def world_size_wrong(folder):
    """`world_size: 8` of TP 2 and PP 2"""
    edit_config(folder, lambda settings: settings["mapping"].update(world_size=8))


@broken(4, r"config\.json", r"tp_size", r"\b0\b")
def tp_zero(folder):
    """`tp_size: 0`"""
    edit_config(folder, lambda settings: settings["mapping"].update(tp_size=0))


@broken(4, r"config\.json", r"tp_size|world_size|rank|heads")
def tp_2_40(folder):
    """`tp_size: 2^40`: refused at once"""
    edit_config(folder, lambda settings: settings["mapping"].update(tp_size=2**40, world_size=2**41))


@broken(4, r"config\.json", r"tp_size|world_size")
def product_beyond_64_bits(folder):
    """`tp_size` and `pp_size` whose product, modulo 2^64, is the `world_size`"""
    edit_config(folder, lambda settings: settings["mapping"].update(tp_size=2**32, pp_size=2**32, world_size=0))


@broken(5, r"config\.json", r"cp_size", r"\b2\b")
def context_parallel(folder):
    """`cp_size: 2`"""
    edit_config(folder, lambda settings: settings["mapping"].update(cp_size=2))


@broken(6, r"attention\.qkv\.weight", r"\[24, ?16\]|\[16, ?16\]")
def heads_wrong(folder):
    """`num_attention_heads: 8` over the rows of 4"""
    edit_config(folder, lambda settings: settings.update(num_attention_heads=8))


@broken(6, r"\b3\b", r"\b2\b", r"layers")
def layers_of_no_stage(folder):
    """3 layers in 2 stages"""
    edit_config(folder, lambda settings: settings.update(num_hidden_layers=3))


@broken(6, r"transformer\.layers\.1\.")
def layers_wrong(folder):
    """`num_hidden_layers: 4` over 2 stored layers"""
    edit_config(folder, lambda settings: settings.update(num_hidden_layers=4))


@broken(6, r"lm_head\.weight|vocab_embedding\.weight", r"\b11\b|\b6\b")
def vocabulary_wrong(folder):
    """`vocab_size: 32` over 11 stored rows"""
    edit_config(folder, lambda settings: settings.update(vocab_size=32))


@broken(6, r"vocab_embedding\.weight", r"\[11, ?16\]", r"\[6, ?16\]")
def embedding_not_cut(folder):
    """`use_parallel_embedding` over a whole embedding"""
    edit_config(folder, lambda settings: settings.update(use_parallel_embedding=True))


@broken(4, r"config\.json", r"embedding_sharding_dim", r"\b2\b")
def axis_2(folder):
    """`embedding_sharding_dim: 2`"""
    edit_config(folder, lambda settings: settings.update(embedding_sharding_dim=2))


@broken(4, r"config\.json", r"architecture")
def architecture_missing(folder):
    """no `architecture`"""
    edit_config(folder, lambda settings: settings.pop("architecture"))


@broken(5, r"config\.json", r"FalconForCausalLM")
def architecture_unknown(folder):
    """`architecture` of a family that is not read"""
    edit_config(folder, lambda settings: settings.update(architecture="FalconForCausalLM"))


@broken(6, r"rank1", QKV.replace(".", r"\."), r"missing|not found|no such|lacks")
def tensor_missing_in_one_rank(folder):
    """one tensor of one rank missing"""
    edit_rank(folder, 1, lambda named: named.pop(QKV))


@broken(6, r"rank3", r"transformer\.layers\.0\.mlp\.fc\.bias", r"unexpected|not part|unknown")
def bias_unexpected(folder):
    """MLP bias, which no TensorRT-LLM Llama has"""
    edit_rank(folder, 3, lambda named: named.update({"transformer.layers.0.mlp.fc.bias": Tensor("BF16", (12,), b"\0" * 24)}))


@broken(4, r"config\.json", r"mapping", r"object")
def mapping_no_object(folder):
    """`mapping` that is no object"""
    edit_config(folder, lambda settings: settings.update(mapping=[2, 2]))


@broken(4, r"config\.json", r"quantization", r"object")
def quantisation_no_object(folder):
    """`quantization` that is a text: it is not taken for none"""
    edit_config(folder, lambda settings: settings.update(quantization="FP8"))


@broken(4, r"config\.json", r"norm_epsilon", r"missing")
def epsilon_missing(folder):
    """no `norm_epsilon`: the programs that read it have different defaults"""
    edit_config(folder, lambda settings: settings.pop("norm_epsilon"))


@broken(4, r"config\.json", r"vocab_size", r"missing")
def vocabulary_missing(folder):
    """no `vocab_size`"""
    edit_config(folder, lambda settings: settings.pop("vocab_size"))


@broken(4, r"config\.json", r"norm_epsilon", r"above 0")
def epsilon_zero(folder):
    """`norm_epsilon: 0`, named as the file names it"""
    edit_config(folder, lambda settings: settings.update(norm_epsilon=0))


@broken(5, r"config\.json", r"position_embedding_type", r"rope_gptj", r"rope_gpt_neox")
def other_positions(folder):
    """`position_embedding_type: rope_gptj`: the same tensors, another model"""
    edit_config(folder, lambda settings: settings.update(position_embedding_type="rope_gptj"))


@broken(5, r"config\.json", r"rotary_pct", r"0\.5")
def part_of_a_head_rotated(folder):
    """`rotary_pct: 0.5`"""
    edit_config(folder, lambda settings: settings.update(rotary_pct=0.5))


@broken(5, r"config\.json", r"num_experts", r"\b8\b")
def experts(folder):
    """8 experts in the config of dense weights"""
    edit_config(folder, lambda settings: settings["moe"].update(num_experts=8, top_k=2))


@broken(6, r"rank2\.safetensors", r"lm_head\.weight", r"share_embedding_table")
def shared_and_a_head(folder):
    """`share_embedding_table` beside a stored head"""
    edit_config(folder, lambda settings: settings.update(share_embedding_table=True))


@broken(5, r"W4A16_AWQ", r"quanti[sz]")
def algorithm_awq(folder):
    """`quant_algo: W4A16_AWQ`"""
    edit_config(folder, lambda settings: settings["quantization"].update(quant_algo="W4A16_AWQ"))


@broken(5, r"rank0\.safetensors", r"attention\.dense\.weight", r"I8", r"quanti[sz]")
def weights_int8(folder):
    """weight-only int8 weights, laid out for one class of GPUs"""
    name = "transformer.layers.0.attention.dense.weight"
    scale = Tensor("BF16", (16,), b"\0" * 32)
    for rank in range(4):
        edit_rank(folder, rank, lambda named: named.update({name: Tensor("I8", (8, 16), b"\1" * 128),
                                                            name.replace("weight", "per_channel_scale"): scale}))
    edit_config(folder, lambda settings: settings["quantization"].update(quant_algo="W8A16"))


# ---------------------------------------------------------------- what cannot be cut

@uncuttable(6, r"\b4\b", r"\b8\b", r"heads", arguments=("--tp_size=8",))
def tp_does_not_divide_heads(folder):
    """4 heads on 8 ranks"""


@uncuttable(6, r"\b24\b", r"\b16\b", arguments=("--tp_size=16",))
def tp_does_not_divide_ffn(folder):
    """24 FFN rows on 16 ranks"""
    settings = config(num_attention_heads=16, num_key_value_heads=16)
    write_hf(folder, settings, tensors(settings))


@uncuttable(6, r"\b3\b", r"\b2\b", r"groups", arguments=("--tp_size=2",))
def tp_does_not_divide_groups(folder):
    """3 query groups on 2 ranks"""
    settings = config(num_attention_heads=6, num_key_value_heads=3, hidden_size=24)
    write_hf(folder, settings, tensors(settings))


@uncuttable(6, r"\b3 query groups copied to 4 ranks", r"multiple", r"--tp_size", arguments=("--tp_size=4",))
def groups_do_not_divide_tp(folder):
    """3 query groups replicated on 4 ranks"""
    settings = config(num_attention_heads=12, num_key_value_heads=3, hidden_size=48)
    write_hf(folder, settings, tensors(settings))


@uncuttable(6, r"\b2\b", r"\b4\b", r"layers", arguments=("--pp_size=4",))
def more_stages_than_layers(folder):
    """2 layers in 4 stages"""


@uncuttable(6, r"\b3\b", r"\b2\b", r"layers", arguments=("--pp_size=2",))
def pp_does_not_divide_layers(folder):
    """3 layers in 2 stages: the last is not dropped"""
    settings = config(num_hidden_layers=3)
    write_hf(folder, settings, tensors(settings))


@uncuttable(5, r"mlp_bias")
def mlp_biases(folder):
    """`mlp_bias: true`: the biases are not dropped"""
    settings, named = config(mlp_bias=True), tensors()
    for layer in range(2):
        for part, rows in (("gate", 24), ("up", 24), ("down", 16)):
            named[f"model.layers.{layer}.mlp.{part}_proj.bias"] = Tensor("BF16", (rows,), b"\1" * 2 * rows)
    write_hf(folder, settings, named)


@uncuttable(5, r"banana", r"rope")
def rope_unknown_to_trtllm(folder):
    """rope type that TensorRT-LLM does not know"""
    write_config(folder, config(rope_scaling={"rope_type": "banana", "factor": 2.0}))


@uncuttable(5, r"yarn", r"0\.15")
def rope_yarn_before_0_15(folder):
    """rope type `yarn`, which 0.15 is the first to know"""
    write_config(folder, config(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}))


# ---------------------------------------------------------------- odd and valid

@valid(GROUP, "trtllm")
def constants_stored(folder):
    """tables of the rotary embedding and scales of an FP8 cache among the weights"""
    table = {"embed_positions": (1, 64, 4), "rotary_inv_freq": (2,), "embed_positions_for_gpt_attention": (1, 256)}
    table["transformer.layers.0.attention.kv_cache_scaling_factor"] = (1,)
    for rank in range(4):
        edit_rank(folder, rank, lambda named: named.update(
            {name: Tensor("F32", shape, b"\0\0\x80\x3f" * (shape[-1] * (shape[1] if len(shape) == 3 else 1)))
             for name, shape in table.items()}))
    edit_config(folder, lambda settings: settings["quantization"].update(kv_cache_quant_algo="FP8"))


@valid(GROUP, "trtllm")
def quantisation_deferred(folder):
    """`quant_algo: W4A16` over plain weights"""
    edit_config(folder, lambda settings: settings["quantization"].update(quant_algo="W4A16"))


@valid(GROUP, "trtllm")
def keys_of_another_version(folder):
    """keys of other versions in config.json"""
    def change(settings):
        settings.update(fc_after_embed=False, runtime_defaults=None, use_prompt_tuning=False)
        settings["mapping"].update(auto_parallel=False, gpus_per_node=4)
        settings["quantization"].update(use_meta_recipe=False)
        settings["moe"].update(sparse_mixer_epsilon=0.01)
    edit_config(folder, change)


@valid(GROUP, "trtllm")
def sharding_axis_without_cut(folder):
    """`embedding_sharding_dim: 1` over a whole embedding"""
    edit_config(folder, lambda settings: settings.update(embedding_sharding_dim=1))


@valid(GROUP, "trtllm")
def many_ranks(folder):
    """4 tensor ranks, of which two share a query group"""
    for rank in range(4):
        (folder / f"rank{rank}.safetensors").unlink()
    settings = config()
    named = tensors(settings)
    twice = dict(named)
    for name, tensor in named.items():
        if "k_proj" in name or "v_proj" in name:
            values = tiny_model.array(tensor).reshape(2, 4, 16).repeat(2, 0).reshape(16, 16)
            twice[name] = Tensor(tensor.dtype, values.shape, values.tobytes())
    write_trtllm(folder, settings, twice, tp=4, pp=1)


@valid(GROUP, "trtllm", "--vocab_size=11")
def vocabulary_padded(folder):
    """`vocab_size: 16`, the stored rows, for 11, the rest zeros"""
    named = tensors()
    rows = {name: Tensor("BF16", (16, 16), named[name].data + b"\0" * 5 * 16 * 2)
            for name in ("model.embed_tokens.weight", "lm_head.weight")}
    write_trtllm(folder, config(vocab_size=16), {**named, **rows})


@valid(GROUP, "trtllm", "--vocab_size=11")
def config_of_the_nemo_exporter(folder):
    """flat config.json of NeMo's exporter, without `mapping`"""
    def change(settings):
        mapping = settings.pop("mapping")
        settings.update(world_size=4, tp_size=mapping["tp_size"], pp_size=mapping["pp_size"])
    edit_config(folder, change)
