"""What a TensorRT-LLM checkpoint of a HuggingFace model must hold, written down from the format's definition.

Independent of the program: every rank is cut out of the whole tensors with plain narrow and cat, and config.json is a dict
in the order of TensorRT-LLM's own classes. `c` is a transformers config of Llama, Mistral, Mixtral, Qwen2 or Qwen2-MoE; tensors
are torch tensors by HuggingFace name. `Layout` is how a model is cut; `Quantization` what config.json says the builder shall do.
"""

import dataclasses
import json
import pathlib

import torch
from nemo_reference import head_dim
from safetensors.torch import save_file

DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


@dataclasses.dataclass(frozen=True)
class Layout:
    tp: int = 1
    pp: int = 1
    embedding_dim: int = None  # the axis on which the embedding is cut; None: every rank has the whole
    shared: bool = False  # one table serves as embedding and head
    moe_ep: int = 1  # parts into which the tensor ranks deal out the experts; each expert is cut by the ranks of a part

    @property
    def moe_tp(self):
        return self.tp // self.moe_ep

    @property
    def ranks(self):
        return range(self.tp * self.pp)

    def options(self):
        words = [f"--tp_size={self.tp}", f"--pp_size={self.pp}"]
        if self.embedding_dim is not None:
            words += ["--use_parallel_embedding", f"--embedding_sharding_dim={self.embedding_dim}"]
        if self.moe_ep > 1:
            words += [f"--moe_tp_size={self.moe_tp}", f"--moe_ep_size={self.moe_ep}"]
        return words + (["--use_embedding_sharing"] if self.shared else [])


@dataclasses.dataclass(frozen=True)
class Quantization:
    weights: str = None
    cache: str = None
    group_size: int = 128
    clamp: tuple = None  # of activations, for FP8
    zero_point: bool = False
    meta_recipe: bool = False  # of 0.15: FP8 as in Meta's checkpoints, in inner MLPs only


def piece(t, axis, parts, i):
    size, rest = divmod(t.shape[axis], parts)
    assert rest == 0, (t.shape, axis, parts)
    return t.narrow(axis, i * size, size).contiguous()


def padded(t, parts):
    rows = -(-t.shape[0] // parts) * parts
    return torch.cat([t, torch.zeros(rows - t.shape[0], *t.shape[1:], dtype=t.dtype)])


def with_rows(hf, rows):
    """The model with zeros behind the vocabulary in its tables."""
    return {name: padded(t, rows) if name in ("model.embed_tokens.weight", "lm_head.weight") else t for name, t in hf.items()}


def groups_of_rank(c, t, tp, r):
    """The rows of keys or values that rank r holds: its share of the groups, or the one group of its queries."""
    G, D = c.num_key_value_heads, head_dim(c)
    if G >= tp:
        return piece(t, 0, tp, r)
    assert tp % G == 0
    group = r * G // tp
    return t[group * D : (group + 1) * D]


def up_gate(hf, up, gate, parts, i):
    """Where one matrix holds both, the gate comes second."""
    return torch.cat([piece(hf[name], 0, parts, i) for name in (up, gate)])


def mlp_tensors(c, hf, layout, r, old, new):
    """What rank r of a stage holds of a layer's MLP."""
    if c.model_type not in ("mixtral", "qwen2_moe"):
        return {
            new + "mlp.fc.weight": piece(hf[old + "mlp.gate_proj.weight"], 0, layout.tp, r),
            new + "mlp.gate.weight": piece(hf[old + "mlp.up_proj.weight"], 0, layout.tp, r),
            new + "mlp.proj.weight": piece(hf[old + "mlp.down_proj.weight"], 1, layout.tp, r),
        }
    mixtral = c.model_type == "mixtral"
    block = old + ("block_sparse_moe." if mixtral else "mlp.")
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    i, part = divmod(r, layout.moe_ep)
    count, rest = divmod(c.num_local_experts if mixtral else c.num_experts, layout.moe_ep)
    assert rest == 0
    fc, proj = [], []
    for e in range(part * count, (part + 1) * count):
        expert = f"{block}experts.{e}."
        fc.append(up_gate(hf, f"{expert}{up}.weight", f"{expert}{gate}.weight", layout.moe_tp, i))
        proj.append(piece(hf[f"{expert}{down}.weight"], 1, layout.moe_tp, i))
    out = {new + "mlp.router.weight": hf[block + "gate.weight"]}
    out.update({new + "mlp.fc.weight": torch.stack(fc), new + "mlp.proj.weight": torch.stack(proj)})
    if not mixtral:
        shared = old + "mlp.shared_expert."
        fc = up_gate(hf, shared + "up_proj.weight", shared + "gate_proj.weight", layout.tp, r)
        out[new + "shared_expert.fc.weight"] = fc
        out[new + "shared_expert.proj.weight"] = piece(hf[shared + "down_proj.weight"], 1, layout.tp, r)
        out[new + "shared_expert_gate.weight"] = hf[old + "mlp.shared_expert_gate.weight"]
    return out


def rank_tensors(c, hf, layout, rank, dtype=None, quantization=Quantization()):
    """Name -> tensor of rank<N>.safetensors."""
    tp, pp = layout.tp, layout.pp
    stage, r = divmod(rank, tp)
    per_stage, rest = divmod(c.num_hidden_layers, pp)
    assert rest == 0
    out = {}

    embedding = hf["model.embed_tokens.weight"]
    if stage == 0:
        if layout.embedding_dim == 0:
            out["transformer.vocab_embedding.weight"] = piece(padded(embedding, tp), 0, tp, r)
        elif layout.embedding_dim == 1:
            out["transformer.vocab_embedding.weight"] = piece(embedding, 1, tp, r)
        else:
            out["transformer.vocab_embedding.weight"] = embedding
    if stage == pp - 1:
        out["transformer.ln_f.weight"] = hf["model.norm.weight"]
        if not layout.shared:
            out["lm_head.weight"] = piece(padded(hf.get("lm_head.weight", embedding), tp), 0, tp, r)

    for n in range(per_stage):
        old, new = f"model.layers.{stage * per_stage + n}.", f"transformer.layers.{n}."
        out[new + "input_layernorm.weight"] = hf[old + "input_layernorm.weight"]
        out[new + "post_layernorm.weight"] = hf[old + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            if old + "self_attn.q_proj." + kind in hf:
                q, k, v = (hf[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv")
                rows = [piece(q, 0, tp, r), groups_of_rank(c, k, tp, r), groups_of_rank(c, v, tp, r)]
                out[new + "attention.qkv." + kind] = torch.cat(rows)
        out[new + "attention.dense.weight"] = piece(hf[old + "self_attn.o_proj.weight"], 1, tp, r)
        if old + "self_attn.o_proj.bias" in hf:
            out[new + "attention.dense.bias"] = hf[old + "self_attn.o_proj.bias"]
        out.update(mlp_tensors(c, hf, layout, r, old, new))
    router = {name: t.float() for name, t in out.items() if name.endswith("mlp.router.weight")}
    out = {name: router[name] if name in router else t.to(dtype) if dtype else t for name, t in out.items()}
    if quantization.cache:
        for n in range(per_stage):
            out[f"transformer.layers.{n}.attention.kv_cache_scaling_factor"] = torch.tensor([1.0])
    return out


def rope(settings):
    """(base, scaling) of a HuggingFace config.json as a dict, of transformers 4 or 5, with its own numbers and order."""
    new = settings.get("rope_parameters")
    if new is None:
        return settings.get("rope_theta", 10000.0), settings.get("rope_scaling")
    scaling = {key: value for key, value in new.items() if key != "rope_theta"}
    return new["rope_theta"], None if scaling["rope_type"] == "default" else scaling


def config(settings, layout, dtype, version=12, quantization=Quantization()):
    """config.json of TensorRT-LLM 0.<version> as a dict; `settings` is config.json of the HuggingFace folder."""
    qwen = settings["model_type"] in ("qwen2", "qwen2_moe")
    sparse = settings["model_type"] in ("mixtral", "qwen2_moe")
    heads = settings["num_attention_heads"]
    base, scaling = rope(settings)

    moe = {"num_experts": settings["num_experts" if qwen else "num_local_experts"] if sparse else 0}
    if version >= 14:
        moe.update(moe_intermediate_size=0, num_shared_experts=0)
    mode = 0 if qwen else 1 if sparse else None
    moe.update(top_k=settings["num_experts_per_tok"] if sparse else 0, normalization_mode=mode)
    if version >= 13:
        moe.update(sparse_mixer_epsilon=0.01)
    moe.update(tp_mode=0)
    if version >= 15:
        moe.update(device_limited_n_group=0, device_limited_topk_group=0, device_limited_routed_scaling_factor=1.0)

    attention_bias = qwen or settings.get("bias", settings.get("attention_bias", False))
    cfg = dict(mlp_bias=False, attn_bias=attention_bias, rotary_base=base, rotary_scaling=scaling)
    if not qwen:
        cfg.update(residual_mlp=False)
    cfg.update(disable_weight_only_quant_plugin=False)
    if qwen and version >= 15:
        cfg.update(num_labels=1)
    cfg.update(moe=moe)
    if not qwen:
        cfg.update(remove_duplicated_kv_heads=False)
    if not qwen and version >= 15:
        cfg.update(fc_after_embed=False, use_input_layernorm_in_first_layer=True, use_last_layernorm=True, layer_idx_offset=0)
    cfg.update(architecture=settings["architectures"][0], dtype=DTYPE_NAMES[dtype], vocab_size=settings["vocab_size"])
    cfg.update(hidden_size=settings["hidden_size"], num_hidden_layers=settings["num_hidden_layers"], num_attention_heads=heads)
    cfg.update(hidden_act="swiglu" if sparse else settings["hidden_act"], logits_dtype="float32", norm_epsilon=settings["rms_norm_eps"])
    if version >= 15:
        cfg.update(runtime_defaults=None)
    cfg.update(position_embedding_type="rope_gpt_neox", max_position_embeddings=settings["max_position_embeddings"])
    cfg.update(num_key_value_heads=settings.get("num_key_value_heads", heads), intermediate_size=settings["intermediate_size"])
    mapping = dict(world_size=layout.tp * layout.pp, gpus_per_node=8, cp_size=1, tp_size=layout.tp, pp_size=layout.pp)
    mapping.update(moe_tp_size=layout.moe_tp, moe_ep_size=layout.moe_ep)
    quant = dict(quant_algo=quantization.weights, kv_cache_quant_algo=quantization.cache)
    quant.update(group_size=quantization.group_size, smoothquant_val=0.5 if version >= 13 else None, clamp_val=quantization.clamp)
    if version >= 15:
        quant.update(use_meta_recipe=quantization.meta_recipe)
    quant.update(has_zero_point=quantization.zero_point, pre_quant_scale=False, exclude_modules=None)
    cfg.update(mapping=mapping, quantization=quant, use_parallel_embedding=layout.embedding_dim is not None)
    cfg.update(embedding_sharding_dim=layout.embedding_dim or 0, share_embedding_table=layout.shared)
    cfg.update(head_size=settings.get("head_dim") or settings["hidden_size"] // heads, qk_layernorm=False)
    if qwen:
        shared = settings.get("shared_expert_intermediate_size", 0)
        cfg.update(qwen_type=settings["model_type"], moe_intermediate_size=settings.get("moe_intermediate_size", 0))
        cfg.update(moe_shared_expert_intermediate_size=shared)
    if qwen and version >= 15:
        cfg.update(tie_word_embeddings=settings["tie_word_embeddings"])
    return cfg


def exporter_config(settings, layout, dtype, mapping):
    """config.json of NeMo's exporter as a dict: it has the sizes of the mapping at the top, and TensorRT-LLM's class that writes
    it may add `mapping`. Early releases name the class of a Llama as TensorRT-LLM spells it."""
    base, scaling = rope(settings)
    heads = settings["num_attention_heads"]
    architecture = "LlamaForCausalLM" if mapping else "LLaMAForCausalLM"
    cfg = dict(architecture=architecture, dtype=DTYPE_NAMES[dtype], num_hidden_layers=settings["num_hidden_layers"])
    cfg.update(num_attention_heads=heads, num_key_value_heads=settings["num_key_value_heads"])
    cfg.update(head_size=settings["hidden_size"] // heads, hidden_size=settings["hidden_size"])
    cfg.update(intermediate_size=settings["intermediate_size"], norm_epsilon=settings["rms_norm_eps"])
    cfg.update(vocab_size=settings["vocab_size"])
    cfg.update(position_embedding_type="rope_gpt_neox", max_position_embeddings=settings["max_position_embeddings"])
    cfg.update(hidden_act="silu", use_parallel_embedding=layout.embedding_dim is not None)
    cfg.update(embedding_sharding_dim=layout.embedding_dim or 0, share_embedding_table=layout.shared)
    cfg.update(quantization=dict(quant_algo=None, kv_cache_quant_algo=None), bias=False)
    cfg.update(apply_query_key_layer_scaling=False, rotary_pct=1.0, rotary_base=base, rotary_scaling=scaling, moe_num_experts=0)
    cfg.update(moe_top_k=0, moe_normalization_mode=1, moe_tp_mode=2, logits_dtype="float32")
    world = dict(world_size=layout.tp * layout.pp, tp_size=layout.tp, pp_size=layout.pp)
    cfg.update(world)
    return {**cfg, "mapping": {**world, "gpus_per_node": 8}} if mapping else cfg


def config_text(cfg):
    return json.dumps(cfg, indent=4)


def rope_tables(c):
    """The tables that TensorRT-LLM itself stores in every rank; the values do not matter to a reader."""
    P, D = c.max_position_embeddings, head_dim(c)
    shapes = {"embed_positions": (1, P, D), "rotary_inv_freq": (D // 2,), "embed_positions_for_gpt_attention": (1, P * D)}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def write_trtllm(folder, c, hf, settings, layout, dtype, *, version=12, tables=False):
    """A checkpoint as TensorRT-LLM writes it; returns rank -> tensors."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    ranks = {}
    for rank in layout.ranks:
        ranks[rank] = rank_tensors(c, hf, layout, rank, dtype)
        stored = {**ranks[rank], **(rope_tables(c) if tables else {})}
        save_file({name: t.contiguous().clone() for name, t in stored.items()}, folder / f"rank{rank}.safetensors")
    (folder / "config.json").write_text(config_text(config(settings, layout, dtype, version)))
    return ranks
