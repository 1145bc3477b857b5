"""The real megatron-core on a machine without a GPU: dist_checkpointing and GPTModel.

Put one megatron-core version on PYTHONPATH and import this module before anything of megatron. Megatron expects CUDA,
TransformerEngine and an older torch; the workarounds below, each with its reason, let versions 0.8, 0.10 and 0.12 (zarr
and torch_dist) and 0.16 (torch_dist only) save, load and run a GPTModel on torch 2.13 for CPU.
"""
import contextlib
import importlib
import io
import os
import sys
import tempfile
import types
import warnings

warnings.filterwarnings("ignore")
import packaging.version

if "pkg_resources" not in sys.modules:  # mcore 0.8: `from pkg_resources import packaging`
    sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
    sys.modules["pkg_resources"].packaging = packaging

import torch
import torch.distributed as dist

try:
    import tensorstore  # noqa: F401  registers numpy's bfloat16, which the zarr strategy looks up by name
except ImportError:
    pass

torch.cuda.synchronize = lambda *a, **k: None  # zarr strategy
torch.cuda.current_device = lambda: "cpu"  # `device=torch.cuda.current_device()` all over

import torch.distributed.checkpoint.default_planner as _planner
import torch.distributed.checkpoint.filesystem as _fs

_set_up_planner = _planner.DefaultSavePlanner.set_up_planner


def _set_up(self, state_dict, storage_meta=None, is_coordinator=False):
    if isinstance(storage_meta, bool):  # mcore 0.8 knows the two-argument form of torch < 2.4
        storage_meta, is_coordinator = None, storage_meta
    return _set_up_planner(self, state_dict, storage_meta, is_coordinator)


_planner.DefaultSavePlanner.set_up_planner = _set_up

import megatron.core.dist_checkpointing as dist_checkpointing
import megatron.core.dist_checkpointing.strategies.filesystem_async as _async
import megatron.core.tensor_parallel.random as _random
from megatron.core import package_info, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
import family_reference
from nemo_reference import biased, head_dim, rope

VERSION = (package_info.MAJOR, package_info.MINOR)
VERSION_TEXT = "%d.%d.%d" % (package_info.MAJOR, package_info.MINOR, package_info.PATCH)

if VERSION < (0, 13):  # torch >= 2.7 has two more arguments
    _torch_write_item = _fs._write_item

    def _write_item(*args):
        i = next(j for j, x in enumerate(args) if hasattr(x, "write"))  # the stream
        return _torch_write_item(_fs._StorageWriterTransforms(), *args[i : i + 4], _fs.SerializationFormat.TORCH_SAVE)

    _async._write_item = _write_item

if VERSION < (0, 12):  # torch >= 2.4 plans to save the objects of every rank by itself; mcore adds them once more
    import megatron.core.dist_checkpointing.strategies.torch as _torch_strategy

    _torch_strategy.MCoreSavePlanner._add_non_coordinator_iobytes_request = lambda self, plan: None

_queue = None


def _results_queue(*a, **k):
    """mcore spawns a manager process, which imports the main script again; a forked one is quicker and needs no guard."""
    global _queue
    if _queue is None:
        import multiprocessing

        _queue = multiprocessing.get_context("fork").Manager().Queue()
    return _queue


_async._get_write_results_queue = _results_queue
if VERSION < (0, 12):  # torch >= 2.6 refuses the BytesIO that TransformerEngine stores; later mcore says weights_only=False
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
for _module, _name in [
    ("models.gpt.gpt_layer_specs", "TEColumnParallelGroupedLinear"),
    ("models.gpt.gpt_layer_specs", "TEColumnParallelLinear"),
    ("models.gpt.gpt_layer_specs", "TERowParallelLinear"),
    ("models.gpt.moe_module_specs", "TEColumnParallelGroupedLinear"),
    ("models.gpt.moe_module_specs", "TEColumnParallelLinear"),
    ("models.gpt.moe_module_specs", "TERowParallelLinear"),
    ("transformer.moe.moe_utils", "te_general_gemm"),
]:
    try:  # names of TE used unguarded by MoE models
        _module = importlib.import_module("megatron.core." + _module)
    except ImportError:
        continue
    if not hasattr(_module, _name):
        setattr(_module, _name, None)
_random.CudaRNGStatesTracker.fork = lambda self, *a, **k: contextlib.nullcontext()  # dropout's random state


def start(rank=0, world=1, tp=1, pp=1, rendezvous=None):
    rendezvous = rendezvous or tempfile.mktemp()
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=world, rank=rank)
    parallel_state.initialize_model_parallel(tp, pp)


class RMSNorm(torch.nn.RMSNorm):
    """mcore's local layer spec has an RMSNorm only from 0.10 on; the name and shape of the weight are the same."""

    def __init__(self, config, hidden_size, eps=1e-5, **_):
        super().__init__(hidden_size, eps=eps)


def mixture(c):
    """(number of experts, fields of TransformerConfig) of a model with experts."""
    if not family_reference.experts_of(c):
        return None, {}
    experts = getattr(c, family_reference.experts_of(c))
    moe = dict(num_moe_experts=experts, moe_router_topk=c.num_experts_per_tok, moe_router_load_balancing_type="none")
    if c.model_type == "mixtral":
        return experts, moe
    moe.update(moe_ffn_hidden_size=c.moe_intermediate_size, moe_router_pre_softmax=not c.norm_topk_prob)
    sparse = family_reference.plan(c)
    if not all(sparse):
        moe.update(moe_layer_freq=[int(s) for s in sparse])
    if c.model_type == "qwen2_moe":
        moe.update(moe_shared_expert_intermediate_size=c.shared_expert_intermediate_size)
        moe.update(dict(moe_shared_expert_gate=True) if VERSION >= (0, 16) else {})
    return experts, moe


def build(c, dtype, vocab_size=None, shared=None):
    """A real GPTModel for transformers config `c` of a family without norms of its own kind, local layer spec."""
    tp = parallel_state.get_tensor_model_parallel_world_size()
    pp = parallel_state.get_pipeline_model_parallel_world_size()
    experts, moe = mixture(c)
    sparse = family_reference.plan(c)
    qkv_bias = c.model_type == "qwen2" or getattr(c, "qkv_bias", False) or (getattr(c, "attention_bias", False) and not biased(c))
    qk_norm = c.model_type in ("qwen3", "qwen3_moe")
    config = TransformerConfig(
        num_layers=c.num_hidden_layers,
        hidden_size=c.hidden_size,
        ffn_hidden_size=c.intermediate_size,
        num_attention_heads=c.num_attention_heads,
        num_query_groups=c.num_key_value_heads,
        kv_channels=head_dim(c),
        normalization="RMSNorm",
        layernorm_epsilon=c.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=biased(c),
        add_qkv_bias=qkv_bias,
        qk_layernorm=qk_norm,
        rotary_interleaved=c.model_type == "ernie4_5",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        perform_initialization=False,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        attention_softmax_in_fp32=True,
        **moe,
    )
    args = dict(num_experts=experts, qk_layernorm=qk_norm)
    if VERSION < (0, 12):
        layer = get_gpt_layer_local_spec(**args)
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        if args["qk_layernorm"]:
            attention = layer.submodules.self_attention.submodules
            attention.q_layernorm = attention.k_layernorm = RMSNorm
        spec = TransformerBlockSubmodules(layer_specs=[layer] * (c.num_hidden_layers // pp), layer_norm=RMSNorm)
    else:
        kinds = {has: get_gpt_layer_local_spec(normalization="RMSNorm", **{**args, "num_experts": experts if has else None}) for has in sparse}
        spec = kinds[sparse[0]]
        if len(kinds) > 1:
            spec = TransformerBlockSubmodules([kinds[has] for has in sparse], layer_norm=spec.submodules.input_layernorm)
        if c.model_type == "qwen2_moe" and VERSION < (0, 16):  # a parameter of the module, later of the config
            kinds[True].submodules.mlp.submodules.shared_experts.params["gate"] = True
        layer = kinds.get(True)
    if experts:  # the TE spec has a norm of its own before the experts; the local spec's key map renames it as in a dense MLP
        layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    theta, linear, llama3 = rope(c)
    extra = dict(rope_scaling=True, rope_scaling_factor=llama3) if llama3 and VERSION >= (0, 12) else {}
    model = GPTModel(
        config,
        spec,
        vocab_size=vocab_size or c.vocab_size,
        max_sequence_length=c.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        rotary_base=theta,
        rotary_percent=(getattr(c, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0),
        seq_len_interpolation_factor=linear,
        share_embeddings_and_output_weights=c.tie_word_embeddings if shared is None else shared,
        parallel_output=False,
        **extra,
    )
    return model.to(dtype).eval()


EXPERTS = {"block_sparse_moe.": ("w1", "w3", "w2"), "mlp.": ("gate_proj", "up_proj", "down_proj")}  # Mixtral, Qwen


def experts_to_gpt(hf, h, m, parts):
    """Those of a layer, from the names of files (transformers 5 has them fused in memory)."""
    gate, up, down = parts
    out = {m + "router.weight": hf[h + "gate.weight"]}
    e = 0
    while f"{h}experts.{e}.{gate}.weight" in hf:
        x = f"{m}experts.local_experts.{e}.linear_"
        out[x + "fc1.weight"] = torch.cat([hf[f"{h}experts.{e}.{gate}.weight"], hf[f"{h}experts.{e}.{up}.weight"]])
        out[x + "fc2.weight"] = hf[f"{h}experts.{e}.{down}.weight"]
        e += 1
    if h + "shared_expert_gate.weight" in hf:
        fc1 = [hf[f"{h}shared_expert.{x}.weight"] for x in (gate, up)]
        out[m + "shared_experts.linear_fc1.weight"] = torch.cat(fc1)
        out[m + "shared_experts.linear_fc2.weight"] = hf[f"{h}shared_expert.{down}.weight"]
        out[m + "shared_experts.gate_weight"] = hf[h + "shared_expert_gate.weight"]
    return out


def hf_to_gpt(c, hf, shared=None):
    """State dict of the local-spec GPTModel (TP = PP = 1) for HF tensors `hf` (name -> tensor)."""
    A, G, D = c.num_attention_heads, c.num_key_value_heads, head_dim(c)
    shared = c.tie_word_embeddings if shared is None else shared
    embedding = hf["model.embed_tokens.weight"]
    out = {"embedding.word_embeddings.weight": embedding, "decoder.final_layernorm.weight": hf["model.norm.weight"]}
    if not shared:
        out["output_layer.weight"] = hf.get("lm_head.weight", embedding)
    for layer in range(c.num_hidden_layers):
        h, m = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        for w in ("weight", "bias"):
            if h + "self_attn.q_proj." + w in hf:
                q, k, v = (hf[h + f"self_attn.{x}_proj.{w}"] for x in "qkv")
                tail = q.shape[1:]
                grouped = [q.reshape(G, A // G * D, *tail), k.reshape(G, D, *tail), v.reshape(G, D, *tail)]
                out[m + "self_attention.linear_qkv." + w] = torch.cat(grouped, dim=1).reshape(-1, *tail)
        copies = {"self_attention.linear_proj": "self_attn.o_proj", "mlp.linear_fc2": "mlp.down_proj"}
        for target, source in copies.items():
            for w in ("weight", "bias"):
                if h + f"{source}.{w}" in hf:
                    out[m + f"{target}.{w}"] = hf[h + f"{source}.{w}"]
        for x in "qk":
            if h + f"self_attn.{x}_norm.weight" in hf:
                out[m + f"self_attention.{x}_layernorm.weight"] = hf[h + f"self_attn.{x}_norm.weight"]
        out[m + "input_layernorm.weight"] = hf[h + "input_layernorm.weight"]
        out[m + "pre_mlp_layernorm.weight"] = hf[h + "post_attention_layernorm.weight"]
        for w in ("weight", "bias"):
            if h + "mlp.gate_proj." + w in hf:
                out[m + "mlp.linear_fc1." + w] = torch.cat([hf[h + "mlp.gate_proj." + w], hf[h + "mlp.up_proj." + w]])
        for block, parts in EXPERTS.items():
            if h + block + "gate.weight" in hf:
                out.update(experts_to_gpt(hf, h + block, m + "mlp.", parts))
    return out


def te18_payload():
    """What TransformerEngine 1.8 - 1.13 stores as _extra_state of a model without fp8."""
    stream = io.BytesIO()
    torch.save(None, stream)
    stream.seek(0)
    return stream


def sharded(model, prefix="model.", core_attention=True, te=False):
    """The model's own sharded state dict, with the _extra_state objects a TE model has besides."""
    sd = model.sharded_state_dict(prefix=prefix)
    if core_attention:  # the local attention has none; TransformerEngine >= 1.9 has one a layer
        for name, x in list(sd.items()):
            if isinstance(x, ShardedObject) and x.key.endswith("self_attention.linear_proj._extra_state"):
                key = x.key.replace("linear_proj", "core_attention")
                name = name.replace("linear_proj", "core_attention")
                sd[name] = ShardedObject(key, None, x.global_shape, x.global_offset, x.replica_id)
    if te:
        for x in sd.values():
            if isinstance(x, ShardedObject) and x.data is None:
                x.data = te18_payload()
    return sd


def save(model, directory, backend, prefix="model.", core_attention=True, te=False):
    """backend: zarr or torch_dist. The directory must exist and be empty."""
    dist_checkpointing.save(sharded(model, prefix, core_attention, te), str(directory), sharded_strategy=(backend, 1))


def load(model, directory, prefix="model.", core_attention=True, strict=None):
    """Loads into the model and returns name -> tensor as loaded (zarr: stored dtype; torch_dist: the model's)."""
    args = {} if strict is None else {"strict": strict}
    got = dist_checkpointing.load(sharded(model, prefix, core_attention), str(directory), **args)
    got = {k.removeprefix(prefix): v for k, v in got.items() if "core_attention._extra_state" not in k}
    model.load_state_dict(got)
    return {k: v for k, v in got.items() if torch.is_tensor(v)}


def logits(model, ids):
    n = ids.shape[1]
    mask = torch.ones(n, n, dtype=torch.bool).triu(1)[None, None]
    with torch.no_grad():
        return model(ids, torch.arange(n)[None].expand(len(ids), -1), mask)
