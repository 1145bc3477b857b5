"""What a NeMo checkpoint of a HuggingFace model must hold, written down from the formats' definitions.

Independent of the program and of Megatron: the row map of the query groups is spelled out slot by slot, arrays are cut into
chunks by plain slicing, and the model config comes out of OmegaConf, which is what NeMo itself writes it with.
`c` is a transformers config of Llama, Mistral, Qwen2, Qwen3 or Mixtral; tensors are torch tensors by HuggingFace name.
"""

import dataclasses
import io
import itertools
import json
import pathlib

import torch

METADATA = '{"sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}'
OBJECTS = ["self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention", "mlp.linear_fc1", "mlp.linear_fc2"]
ZARR_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "<f2", torch.float32: "<f4"}


def head_dim(c):
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def rope(c):
    """(theta, linear factor or None, llama3 factor or None) of a transformers config, of 4.x or 5.x."""
    r = dict(getattr(c, "rope_parameters", None) or getattr(c, "rope_scaling", None) or {})
    theta = r.get("rope_theta", getattr(c, "rope_theta", None)) or 10000.0
    kind = r.get("rope_type", r.get("type")) or "default"
    return theta, r["factor"] if kind == "linear" else None, r["factor"] if kind == "llama3" else None


def biased(c):
    """Attention and MLP both have biases: the one case of a Llama with biases that a NeMo model can say."""
    both = getattr(c, "attention_bias", False) and getattr(c, "mlp_bias", False)
    return bool(both or getattr(c, "use_bias", False))


def raw(t):
    """The bytes of a tensor."""
    return t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@dataclasses.dataclass
class Array:
    value: torch.Tensor
    chunk: tuple

    def chunks(self):
        """File name -> bytes; a chunk at the far edge is stored whole, filled with zeros."""
        grid = [range(-(-n // m)) for n, m in zip(self.value.shape, self.chunk)]
        for index in itertools.product(*grid):
            part = self.value[tuple(slice(i * m, (i + 1) * m) for i, m in zip(index, self.chunk))]
            if part.shape != self.chunk:
                whole = torch.zeros(self.chunk, dtype=part.dtype)
                whole[tuple(slice(0, n) for n in part.shape)] = part
                part = whole
            yield ".".join(map(str, index)), raw(part)

    def zarray(self):
        meta = dict(chunks=list(self.chunk), compressor=None, dtype=ZARR_DTYPES[self.value.dtype], fill_value=None, filters=None)
        meta.update(order="C", shape=list(self.value.shape), zarr_format=2)
        return json.dumps(meta, indent=4, sort_keys=True, separators=(",", ": "))


def _grouped_rows(c, q, k, v):
    """Head slot s of A + 2G: group g = s / (R + 2); its R query heads, then its key head, then its value head."""
    A, G, D = c.num_attention_heads, c.num_key_value_heads, head_dim(c)
    R = A // G
    heads = []
    for slot in range(A + 2 * G):
        g, j = divmod(slot, R + 2)
        part, head = (q, g * R + j) if j < R else (k, g) if j == R else (v, g)
        heads.append(part[head * D : (head + 1) * D])
    return torch.cat(heads)


def nemo_arrays(c, hf, shared=None, tp=1, rows=None):
    """Key -> Array, stored as `tp` ranks store it; `rows` pads the vocabulary with zero rows."""
    shared = c.tie_word_embeddings if shared is None else shared
    H, F = c.hidden_size, c.intermediate_size
    QKV = (c.num_attention_heads + 2 * c.num_key_value_heads) * head_dim(c)
    Q = c.num_attention_heads * head_dim(c)

    def layers(tensor_of, *names):
        p = "model.layers.%d."
        return torch.stack([tensor_of(*(hf[p % l + n] for n in names)) for l in range(c.num_hidden_layers)])

    def vocabulary(t):
        return torch.cat([t, torch.zeros(rows - len(t), H, dtype=t.dtype)]) if rows else t

    def same(t):
        return t

    def gate_up(gate, up):
        return torch.cat([gate, up])

    def grouped(q, k, v):
        return _grouped_rows(c, q, k, v)

    attention, mlp = "self_attn.", "mlp."
    qkv = [attention + f"{x}_proj" for x in "qkv"]
    out = {}

    def add(key, value, *chunk):
        out["model." + key] = Array(value, chunk)

    embedding = vocabulary(hf["model.embed_tokens.weight"])
    add("embedding.word_embeddings.weight", embedding, len(embedding) // tp, H)
    d = "decoder.layers."
    add(d + "self_attention.linear_qkv.weight", layers(grouped, *(x + ".weight" for x in qkv)), 1, QKV // tp, H)
    add(d + "self_attention.linear_qkv.layer_norm_weight", layers(same, "input_layernorm.weight"), 1, H)
    add(d + "self_attention.linear_proj.weight", layers(same, attention + "o_proj.weight"), 1, H, Q // tp)
    add(d + "mlp.linear_fc1.weight", layers(gate_up, mlp + "gate_proj.weight", mlp + "up_proj.weight"), 1, F // tp, H)
    add(d + "mlp.linear_fc1.layer_norm_weight", layers(same, "post_attention_layernorm.weight"), 1, H)
    add(d + "mlp.linear_fc2.weight", layers(same, mlp + "down_proj.weight"), 1, H, F // tp)
    first = "model.layers.0."
    if first + "self_attn.q_proj.bias" in hf:
        add(d + "self_attention.linear_qkv.bias", layers(grouped, *(x + ".bias" for x in qkv)), 1, QKV // tp)
    if first + "self_attn.o_proj.bias" in hf:
        add(d + "self_attention.linear_proj.bias", layers(same, attention + "o_proj.bias"), 1, H)
    if first + "mlp.gate_proj.bias" in hf:
        add(d + "mlp.linear_fc1.bias", layers(gate_up, mlp + "gate_proj.bias", mlp + "up_proj.bias"), 1, F // tp)
        add(d + "mlp.linear_fc2.bias", layers(same, mlp + "down_proj.bias"), 1, H)
    for x in "qk":
        if first + f"self_attn.{x}_norm.weight" in hf:
            add(d + f"self_attention.{x}_layernorm.weight", layers(same, attention + f"{x}_norm.weight"), 1, head_dim(c))
    add("decoder.final_layernorm.weight", hf["model.norm.weight"], H)
    if not shared:
        head = vocabulary(hf.get("lm_head.weight", hf["model.embed_tokens.weight"]))
        add("output_layer.weight", head, len(head) // tp, H)
    return out


def object_files(layers, experts=None):
    """The `_extra_state` objects that keep a TransformerEngine of either generation content; all layers have experts or none."""
    d = "model.decoder.layers."
    modules = [x for x in OBJECTS if not (experts and x.startswith("mlp."))]
    found = {f"{d}{x}._extra_state/shard_{l}_{layers}.pt" for x in modules for l in range(layers)}
    for x, l, e in itertools.product(("fc1", "fc2"), range(layers), range(experts or 0)):
        found.add(f"{d}mlp.experts.experts.linear_{x}._extra_state/shard_{l}.{e}_{layers}.{experts}.pt")
    return found


def write_weights(folder, arrays, layers):
    folder = pathlib.Path(folder)
    for key, array in arrays.items():
        (folder / key).mkdir(parents=True)
        (folder / key / ".zarray").write_text(array.zarray())
        for name, content in array.chunks():
            (folder / key / name).write_bytes(content)
    stream = io.BytesIO()
    torch.save(None, stream)
    for name in object_files(layers):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(stream.getvalue())
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(METADATA)


def nemo_config(c, dtype, *, backend="zarr", shared=None, rows=None, tokenizer=None, name="example/model"):
    """The model node that the Python converter writes, with what it loses (rope, head size, tying, biases) put in.

    tokenizer: None for a HuggingFace name, else ("tokenizer.model" or "vocab.json", the artifact's file name).
    """
    family = c.model_type
    qwen = family in ("qwen2", "qwen3")
    shared = c.tie_word_embeddings if shared is None else shared
    rows = rows or c.vocab_size
    length = c.max_position_embeddings
    theta, linear, llama3 = rope(c)
    divisor = 128
    while rows % divisor:
        divisor //= 2
    if tokenizer:
        library, kind = ("sentencepiece", None) if tokenizer[0] == "tokenizer.model" else ("huggingface", name)
        tok = dict(library=library, type=kind, model="nemo:" + tokenizer[1], vocab_file=None, merge_file=None, delimiter=None)
        tok.update(sentencepiece_legacy=False)
    else:
        tok = dict(library="huggingface", type=name, use_fast=True)
    cfg = dict(mcore_gpt=True, micro_batch_size=4, global_batch_size=8, tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    cfg.update(virtual_pipeline_model_parallel_size=None, encoder_seq_length=length, max_position_embeddings=length)
    cfg.update(num_layers=c.num_hidden_layers, hidden_size=c.hidden_size, ffn_hidden_size=c.intermediate_size)
    cfg.update(num_attention_heads=c.num_attention_heads, init_method_std=c.initializer_range, use_scaled_init_method=True)
    cfg.update(hidden_dropout=0.0, attention_dropout=0.0, ffn_dropout=0.0)
    cfg.update(kv_channels=None if head_dim(c) * c.num_attention_heads == c.hidden_size else head_dim(c))
    cfg.update(apply_query_key_layer_scaling=True, normalization="rmsnorm", layernorm_epsilon=c.rms_norm_eps)
    cfg.update(do_layer_norm_weight_decay=False, make_vocab_size_divisible_by=divisor, pre_process=True, post_process=True)
    cfg.update(persist_layer_norm=True, bias=biased(c), **({"qkv_bias": True} if family == "qwen2" else {}))
    cfg.update(activation="fast-swiglu", headscale=False, transformer_block_type="pre_ln", openai_gelu=False)
    cfg.update(normalize_attention_scores=True, position_embedding_type="rope", rotary_percentage=1.0, attention_type="multihead")
    cfg.update(share_embeddings_and_output_weights=shared, overlap_p2p_comm=False, batch_p2p_comm=True)
    cfg.update(num_query_groups=c.num_key_value_heads)
    if qwen:
        cfg.update(override_vocab_size=rows, rotary_base=theta)
    cfg.update(tokenizer=tok, native_amp_init_scale=4294967296, native_amp_growth_interval=1000, hysteresis=2)
    cfg.update(fp32_residual_connection=False, fp16_lm_cross_entropy=False, megatron_amp_O2=qwen, grad_allreduce_chunk_size_mb=125)
    cfg.update(grad_div_ar_fusion=True, gradient_accumulation_fusion=False, bias_activation_fusion=qwen, bias_dropout_add_fusion=False)
    cfg.update(masked_softmax_fusion=True, get_attention_mask_from_fusion=True, **({"apply_rope_fusion": True} if qwen else {}))
    cfg.update(seed=1234, resume_from_checkpoint=None, use_cpu_initialization=False, onnx_safe=False, apex_transformer_log_level=30)
    cfg.update(gradient_as_bucket_view=True, sync_batch_comm=False, activations_checkpoint_granularity=None)
    cfg.update(activations_checkpoint_method=None, activations_checkpoint_num_layers=None)
    cfg.update(num_micro_batches_with_partial_activation_checkpoints=None, activations_checkpoint_layers_per_pipeline=None)
    cfg.update(sequence_parallel=False, transformer_engine=True, fp8=False, fp8_e4m3=False, fp8_hybrid=True, fp8_margin=0, fp8_interval=1)
    cfg.update(fp8_amax_history_len=1024, fp8_amax_compute_algo="max", reduce_amax=True, use_emha=False)
    data = dict(index_mapping_dir=None, data_impl="mmap", splits_string="900,50,50", seq_length=length, skip_warmup=True, num_workers=2)
    data.update(dataloader_type="single", reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False)
    data.update(validation_drop_last=True, no_seqlen_plus_one_input_tokens=False, pad_samples_to_global_batch_size=False)
    data.update(shuffle_documents=True)
    cfg.update(data=data, nsys_profile=dict(enabled=False, start_step=10, end_step=10, ranks=[0], gen_shape=False))
    if qwen:
        optim = dict(name="distributed_fused_adam", lr=0.00015, weight_decay=0.1, betas=[0.9, 0.95], bucket_cap_mb=125)
        optim.update(overlap_grad_sync=True, overlap_param_sync=True, contiguous_grad_buffer=True)
        optim["sched"] = dict(name="CosineAnnealing", warmup_steps=2000, constant_steps=11873, min_lr=1e-05)
        cfg["optim"] = optim
    else:
        optim = dict(name="fused_adam", lr=0.0002, weight_decay=0.01, betas=[0.9, 0.98])
        optim["sched"] = dict(name="CosineAnnealing", warmup_steps=500, constant_steps=50000, min_lr=2e-05)
        cfg.update(optim=optim, rotary_base=theta)
    if family in ("mistral", "mixtral") and c.sliding_window:
        cfg["window_size"] = [c.sliding_window, 0]
    if llama3:
        cfg["scale_positional_embedding"] = True
    if linear:
        cfg["seq_len_interpolation_factor"] = linear
    if family == "qwen3":
        cfg["qk_layernorm"] = True
        cfg["name"] = "decoder_block_gpt"  # the only layers of NeMo 1 that have these norms
    if family == "mixtral":
        cfg.update(num_moe_experts=c.num_local_experts, moe_router_topk=c.num_experts_per_tok)
    if not qwen and rows != c.vocab_size:
        cfg["override_vocab_size"] = rows
    if family == "mistral" and not c.sliding_window:
        cfg["hf_model_type"] = family  # it is a Llama by all other keys
    cfg["dist_ckpt_format"] = backend
    cfg["precision"] = {torch.bfloat16: "bf16", torch.float16: 16, torch.float32: 32}[dtype]
    cfg["target"] = "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel"
    cfg["nemo_version"] = "2.0.0rc1"
    return cfg


def config_text(cfg):
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(cfg))


def write_nemo(folder, c, hf, dtype, *, shared=None, tp=1, rows=None):
    folder = pathlib.Path(folder)
    arrays = nemo_arrays(c, hf, shared, tp, rows)
    write_weights(folder / "model_weights", arrays, c.num_hidden_layers)
    (folder / "model_config.yaml").write_text(config_text(nemo_config(c, dtype, shared=shared, rows=rows)))
