"""What Megatron's arrays of every model family must hold, written down from the sources of the formats.

Independent of the program and of Megatron. Keys, axes and chunks: megatron-core's transformer_block.py, attention.py, mlp.py,
moe/experts.py, moe/shared_experts.py, moe/router.py. Which norm is which: Megatron-Bridge's mappings of the families and NeMo's
converters. `c` is a transformers config; `hf` holds tensors by their names on disk, text towers by the names of a model without
a vision tower (`families.text`).
"""

import torch
from nemo_reference import Array, _grouped_rows, head_dim

NORMS = {  # HuggingFace -> Megatron, of a layer with a dense MLP
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm": "mlp.linear_fc1.layer_norm_weight",
}
SANDWICH = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm": "self_attention.linear_proj.post_layernorm.weight",
    "pre_feedforward_layernorm": "mlp.linear_fc1.layer_norm_weight",
    "post_feedforward_layernorm": "mlp.linear_fc2.post_layernorm.weight",
}


def experts_of(c):
    return {"mixtral": "num_local_experts", "qwen2_moe": "num_experts", "qwen3_moe": "num_experts"}.get(c.model_type)


def plan(c):
    """Of each layer, whether it has experts."""
    if not experts_of(c):
        return [False] * c.num_hidden_layers
    if c.model_type == "mixtral":
        return [True] * c.num_hidden_layers
    step = c.decoder_sparse_step
    return [n not in c.mlp_only_layers and n % step == step - 1 for n in range(c.num_hidden_layers)]


def plus_one(t):
    return (t.float() + 1).to(t.dtype)


def _attention(c, hf, p):
    """Rest of the key -> (tensor, chunk) of a layer's attention."""
    A, G, D = c.num_attention_heads, c.num_key_value_heads, head_dim(c)
    out = {}
    for kind in ("weight", "bias"):
        if p + f"self_attn.qkv_proj.{kind}" in hf:  # Phi-3: all queries, then all keys, then all values
            q, k, v = hf[p + f"self_attn.qkv_proj.{kind}"].split([A * D, G * D, G * D])
        elif p + f"self_attn.q_proj.{kind}" in hf:
            q, k, v = (hf[p + f"self_attn.{x}_proj.{kind}"] for x in "qkv")
        else:
            continue
        out[f"self_attention.linear_qkv.{kind}"] = _grouped_rows(c, q, k, v), 1
    for kind in ("weight", "bias"):
        if p + f"self_attn.o_proj.{kind}" in hf:
            out[f"self_attention.linear_proj.{kind}"] = hf[p + f"self_attn.o_proj.{kind}"], 1
    for x in "qk":
        if p + f"self_attn.{x}_norm.weight" in hf:
            out[f"self_attention.{x}_layernorm.weight"] = hf[p + f"self_attn.{x}_norm.weight"], 1
    return out


def _gated(hf, p, to):
    """A dense MLP: fc1 is all rows of the gate, then all of the other, saved as two fragments."""
    out = {}
    for kind in ("weight", "bias"):
        if p + f"gate_up_proj.{kind}" in hf:
            out[f"{to}linear_fc1.{kind}"] = hf[p + f"gate_up_proj.{kind}"], 2
        elif p + f"gate_proj.{kind}" in hf:
            out[f"{to}linear_fc1.{kind}"] = torch.cat([hf[p + f"{x}_proj.{kind}"] for x in ("gate", "up")]), 2
        if p + f"down_proj.{kind}" in hf:
            out[f"{to}linear_fc2.{kind}"] = hf[p + f"down_proj.{kind}"], 1
    return out


def _experts(c, hf, p):
    """Experts: one array for all, a fragment an expert, two of fc1."""
    mixtral = c.model_type == "mixtral"
    block = p + ("block_sparse_moe." if mixtral else "mlp.")
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    E = getattr(c, experts_of(c))
    fc1 = [torch.cat([hf[f"{block}experts.{e}.{x}.weight"] for x in (gate, up)]) for e in range(E)]
    out = {"mlp.router.weight": (hf[block + "gate.weight"], 1)}
    out["mlp.experts.experts.linear_fc1.weight"] = torch.stack(fc1), (E, 2)
    out["mlp.experts.experts.linear_fc2.weight"] = torch.stack([hf[f"{block}experts.{e}.{down}.weight"] for e in range(E)]), (E, 1)
    if block + "shared_expert_gate.weight" in hf:
        out.update(_gated(hf, block + "shared_expert.", "mlp.shared_experts."))
        out["mlp.shared_experts.gate_weight"] = hf[block + "shared_expert_gate.weight"], 1
    return out


def _layer(c, hf, n, sparse):
    p = f"model.layers.{n}."
    norms = dict(SANDWICH if p + "pre_feedforward_layernorm.weight" in hf else NORMS)
    if sparse:
        norms["post_attention_layernorm"] = "pre_mlp_layernorm.weight"
    out = _attention(c, hf, p)
    out.update({to: (hf[f"{p}{of}.weight"], 1) for of, to in norms.items()})
    out.update(_experts(c, hf, p) if sparse else _gated(hf, p + "mlp.", "mlp."))
    return out


def _chunk(shape, fragments):
    fragments = fragments if isinstance(fragments, tuple) else (fragments,)
    assert all(n % f == 0 for n, f in zip(shape, fragments))
    return tuple(n // f for n, f in zip(shape, fragments)) + tuple(shape[len(fragments) :])


def arrays(c, hf, prefix="", norms=lambda t: t):
    """Key -> Array as one rank stores it; `norms` is what becomes of HuggingFace's norm weights."""
    hf = {name: norms(t) if "norm" in name else t for name, t in hf.items()}
    sparse = plan(c)
    layers = [_layer(c, hf, n, s) for n, s in enumerate(sparse)]
    out = {}

    def add(key, t, chunk):
        out[prefix + key] = Array(t, tuple(chunk))

    add("embedding.word_embeddings.weight", hf["model.embed_tokens.weight"], hf["model.embed_tokens.weight"].shape)
    if len(set(sparse)) == 1:
        for key, (t, fragments) in layers[0].items():
            stacked = torch.stack([layer[key][0] for layer in layers])
            add(f"decoder.layers.{key}", stacked, (1, *_chunk(t.shape, fragments)))
    else:  # layers of two kinds do not make one array
        for n, layer in enumerate(layers):
            for key, (t, fragments) in layer.items():
                add(f"decoder.layers.{n}.{key}", t, _chunk(t.shape, fragments))
    add("decoder.final_layernorm.weight", hf["model.norm.weight"], hf["model.norm.weight"].shape)
    if "lm_head.weight" in hf:
        add("output_layer.weight", hf["lm_head.weight"], hf["lm_head.weight"].shape)
    return out


def nemo_arrays(c, hf):
    """As NeMo 1 has them: its Gemma 1 stores the norm weight itself, where HuggingFace and all else store it minus one."""
    return arrays(c, hf, "model.", plus_one if c.model_type == "gemma" else lambda t: t)


# -- the other forms in which experts are found -------------------------------------------------------------------------


def _unstacked(tensors, layers):
    """Each layer's part of arrays over all layers."""
    out = {}
    for key, t in tensors.items():
        head, _, rest = key.partition("decoder.layers.")
        if rest and not rest[0].isdigit():
            out.update({f"{head}decoder.layers.{n}.{rest}": t[n].clone() for n in range(layers)})
        else:
            out[key] = t
    return out


def _by_expert(tensors, name):
    """Each expert's part of arrays over all experts; `name` is (layer's prefix, linear_fc1 or linear_fc2, expert) -> key."""
    out = {}
    for key, t in tensors.items():
        head, found, rest = key.partition("mlp.experts.experts.")
        if found:
            out.update({name(head, rest.removesuffix(".weight"), e): t[e].clone() for e in range(len(t))})
        else:
            out[key] = t
    return out


def _singleton(tensors):
    """Each half of every gated fc1 under a key of its own."""
    out = {}
    for key, t in tensors.items():
        if key.endswith("linear_fc1.weight"):
            out[key + "_w"], out[key + "_v"] = (half.clone() for half in t.chunk(2))
        else:
            out[key] = t
    return out


def older(tensors, layers):
    """megatron-core before `experts` was said twice."""
    return {key.replace("mlp.experts.experts.", "mlp.experts."): t for key, t in tensors.items()}


def numbered(tensors, layers):
    return _unstacked(tensors, layers)


def numbered_older(tensors, layers):
    return older(_unstacked(tensors, layers), layers)


def sequential(tensors, layers):
    name = "{0}mlp.experts.local_experts.{2}.{1}.weight".format
    return _by_expert(_unstacked(tensors, layers), name)


def grouped(tensors, layers):
    return _by_expert(_unstacked(tensors, layers), "{0}mlp.experts.{1}.weight{2}".format)


def singleton(tensors, layers):
    return _singleton(_by_expert(_unstacked(tensors, layers), "{0}mlp.experts.experts.{2}.{1}.weight".format))


FORMS = dict(older=older, numbered=numbered, numbered_older=numbered_older, sequential=sequential, grouped=grouped, singleton=singleton)
