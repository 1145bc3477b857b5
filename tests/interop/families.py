"""The model families of the tests: the transformers class of each, and tiny configs that reach what tells it from the others.

A `Case` says what a config cannot be converted to, and the word by which it must be refused; all else must go through every
kind and come back. Sizes differ from each other wherever the class allows it, so that no two axes can be taken for each other.
"""

import dataclasses
import json
import pathlib

import models
import torch
import transformers
from models import heads

FULL, SLIDING = "full_attention", "sliding_attention"
TRTLLM = ("llama", "mistral", "qwen2", "mixtral", "qwen2_moe")  # whose names TensorRT-LLM 0.12 to 0.15 has, of those below
KINDS = ("nemo", "megatron", "trtllm")
NO_BIAS = {"nemo": "bias", "megatron": "bias"}  # some linear layers have biases and some have none: no place for that


@dataclasses.dataclass
class Case:
    family: str
    settings: dict
    refused: dict = dataclasses.field(default_factory=dict)  # kind -> a word of the refusal
    style: int = 5  # of config.json: transformers 4 or 5
    dtype: str = "bf16"
    shards: bool = False


def default_rope(theta=10000.0, **more):
    return dict(rope_type="default", rope_theta=theta, **more)


def moe(experts, width, shared=None, top=2, **more):
    settings = dict(num_experts=experts, moe_intermediate_size=width, num_experts_per_tok=top, **more)
    return settings if shared is None else dict(settings, shared_expert_intermediate_size=shared)


def multipliers(size, **changes):
    """Granite's, such that they change nothing: its attention has no division by the root of the head size."""
    neutral = dict(embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0, attention_multiplier=size**-0.5)
    return {**neutral, **changes}


def ministral_rope(**changes):
    return {**default_rope(1e6, llama_4_scaling_beta=0.0, original_max_position_embeddings=64), **changes}


def gemma_rope(**full):
    return {SLIDING: default_rope(10000.0), FULL: {**default_rope(1e6), **full}}


LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[2.0, 3.0, 4.0, 5.0])
LONGROPE.update(original_max_position_embeddings=32, partial_rotary_factor=1.0)
TIED = dict(tie_word_embeddings=True)
BIASED = dict(attention_bias=True, mlp_bias=True)
MULTIMODAL = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
NO_PLACE = {"nemo": "longrope", "megatron": "longrope"}

CASES = {
    "llama-biased": Case("llama", heads(6, 2, **BIASED, num_hidden_layers=3), {"trtllm": "mlp_bias"}),
    "llama-tied": Case("llama", heads(8, 1, tie_word_embeddings=True)),
    "mistral-window": Case("mistral", heads(3, 1, sliding_window=8)),
    "mistral-head_dim": Case("mistral", heads(8, 8, hidden_size=40, head_dim=24, sliding_window=None)),
    "ministral3-3x1": Case("ministral3", heads(3, 1, rope_parameters=ministral_rope(), num_hidden_layers=3)),
    "ministral3-tied": Case("ministral3", heads(8, 1, head_dim=24, tie_word_embeddings=True, rope_parameters=ministral_rope())),
    "ministral3-yarn": Case(
        "ministral3",
        heads(4, 2, rope_parameters=ministral_rope(rope_type="yarn", factor=2.0, llama_4_scaling_beta=0.1)),
        {"nemo": "yarn|llama_4_scaling_beta", "megatron": "yarn|llama_4_scaling_beta"},
    ),
    "granite-neutral": Case("granite", heads(3, 1, 16, **multipliers(16))),
    "granite-biased": Case("granite", heads(8, 1, 4, **multipliers(4), **BIASED, tie_word_embeddings=True)),
    "granite-attention_bias": Case("granite", heads(4, 4, 16, **multipliers(16), attention_bias=True), NO_BIAS),
    "granite-multipliers": Case(
        "granite",
        heads(4, 2, 16, **multipliers(16, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0)),
        {"nemo": "multiplier|logits_scaling", "megatron": "multiplier|logits_scaling"},
    ),
    "smollm3-rope": Case("smollm3", heads(6, 2, no_rope_layers=[1, 1, 1], num_hidden_layers=3)),
    "smollm3-untied": Case("smollm3", heads(8, 1, no_rope_layers=[1, 1], tie_word_embeddings=False, **BIASED)),
    "smollm3-no_rope": Case(
        "smollm3", heads(4, 4, num_hidden_layers=5), {"nemo": "no_rope_layers", "megatron": "no_rope_layers"}
    ),
    "seed_oss-qkv_bias": Case("seed_oss", heads(3, 1, hidden_size=40, head_dim=16)),
    "seed_oss-all_biases": Case("seed_oss", heads(8, 1, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "seed_oss-no_bias": Case("seed_oss", heads(4, 4, attention_bias=False, num_hidden_layers=3)),
    "seed_oss-o_bias": Case("seed_oss", heads(4, 2, attention_bias=True, attention_out_bias=True), NO_BIAS),
    "ernie4_5-tied": Case("ernie4_5", heads(3, 1, 16, num_hidden_layers=3)),
    "ernie4_5-untied": Case("ernie4_5", heads(8, 1, hidden_size=40, head_dim=8, tie_word_embeddings=False)),
    "ernie4_5-biased": Case("ernie4_5", heads(4, 4, use_bias=True, tie_word_embeddings=True)),
    "internlm3-8x1": Case("internlm3", heads(8, 1)),
    "internlm3-biased": Case("internlm3", heads(6, 2, **BIASED, num_hidden_layers=3)),
    "internlm3-tied": Case("internlm3", heads(4, 4, tie_word_embeddings=True)),
    "qwen2-3x1": Case("qwen2", heads(3, 1, num_hidden_layers=3)),
    "qwen2-tied": Case("qwen2", heads(8, 1, tie_word_embeddings=True)),
    "qwen3-head_dim": Case("qwen3", heads(3, 1, hidden_size=40, head_dim=16)),
    "qwen3-biased": Case("qwen3", heads(8, 1, attention_bias=True), NO_BIAS),
    "qwen2_moe-all": Case("qwen2_moe", heads(3, 1, **moe(5, 12, 20), num_hidden_layers=3)),
    "qwen2_moe-tied": Case("qwen2_moe", heads(8, 1, **moe(6, 20, 12, top=4), tie_word_embeddings=True)),
    "qwen2_moe-no_bias": Case("qwen2_moe", heads(4, 4, **moe(3, 12, 20), qkv_bias=False), {"trtllm": "qkv_bias"}),
    "qwen2_moe-step": Case(
        "qwen2_moe", heads(4, 2, **moe(5, 12, 28), decoder_sparse_step=2, num_hidden_layers=5), {"trtllm": "qwen2_moe|layer|sparse"}
    ),
    "qwen2_moe-mlp_only": Case(
        "qwen2_moe", heads(3, 3, **moe(3, 12, 20), mlp_only_layers=[1], num_hidden_layers=3), {"trtllm": "qwen2_moe|layer|sparse"}
    ),
    "qwen3_moe-all": Case("qwen3_moe", heads(3, 1, **moe(6, 12), num_hidden_layers=3)),
    "qwen3_moe-head_dim": Case("qwen3_moe", heads(8, 1, hidden_size=40, head_dim=24, **moe(5, 20, norm_topk_prob=True))),
    "qwen3_moe-tied": Case("qwen3_moe", heads(4, 4, **moe(3, 12, norm_topk_prob=True), tie_word_embeddings=True)),
    "qwen3_moe-step": Case(
        "qwen3_moe", heads(6, 2, **moe(5, 12, norm_topk_prob=True), decoder_sparse_step=2, num_hidden_layers=5)
    ),
    "qwen3_moe-mlp_only": Case("qwen3_moe", heads(4, 2, **moe(7, 12), mlp_only_layers=[0, 2], num_hidden_layers=4)),
    "qwen3_moe-biased": Case("qwen3_moe", heads(4, 2, **moe(3, 12), attention_bias=True), NO_BIAS),
    "mixtral-3x1": Case("mixtral", heads(3, 1, num_local_experts=5, num_hidden_layers=3, intermediate_size=36)),
    "mixtral-window": Case("mixtral", heads(8, 1, num_local_experts=6, sliding_window=8, intermediate_size=36)),
    "mixtral-head_dim": Case("mixtral", heads(4, 4, hidden_size=40, head_dim=24, num_local_experts=3, intermediate_size=36)),
    "mixtral-tied": Case("mixtral", heads(4, 2, num_local_experts=4, num_experts_per_tok=3, intermediate_size=36, **TIED)),
    "phi3-mha": Case("phi3", heads(4, 4, num_hidden_layers=3)),
    "phi3-groups": Case("phi3", heads(6, 2, sliding_window=8)),
    "phi3-partial": Case("phi3", heads(8, 1, 16, rope_parameters=default_rope(partial_rotary_factor=0.75), **TIED)),
    "phi3-longrope": Case("phi3", heads(3, 1, rope_parameters=LONGROPE, original_max_position_embeddings=32), NO_PLACE),
    "gemma-mha": Case("gemma", heads(4, 4, num_hidden_layers=3)),
    "gemma-head_dim": Case("gemma", heads(8, 1, hidden_size=40, head_dim=24)),
    "gemma-untied": Case("gemma", heads(3, 1, tie_word_embeddings=False)),
    "gemma-biased": Case("gemma", heads(4, 2, attention_bias=True), NO_BIAS),
    "gemma2-window": Case("gemma2", heads(4, 2, sliding_window=8, query_pre_attn_scalar=24, num_hidden_layers=4)),
    "gemma2-head_dim": Case("gemma2", heads(8, 1, hidden_size=40, head_dim=24, query_pre_attn_scalar=24)),
    "gemma2-3x1": Case("gemma2", heads(3, 1, num_hidden_layers=3, query_pre_attn_scalar=8, final_logit_softcapping=20.0)),
    "gemma3_text-seven": Case("gemma3_text", heads(4, 2, sliding_window=8, query_pre_attn_scalar=8, num_hidden_layers=7)),
    "gemma3_text-linear": Case(
        "gemma3_text",
        heads(8, 1, hidden_size=40, head_dim=24, sliding_window=8, num_hidden_layers=6,
              rope_parameters=gemma_rope(rope_type="linear", factor=8.0), query_pre_attn_scalar=24),
    ),
    "gemma3_text-3x1": Case("gemma3_text", heads(3, 1, num_hidden_layers=3, sliding_window=16, query_pre_attn_scalar=48)),
    "gemma3-multimodal": Case("gemma3", heads(4, 2, sliding_window=8, query_pre_attn_scalar=8, num_hidden_layers=7)),
    "gemma3-in_memory": Case("gemma3", heads(3, 1, sliding_window=8, query_pre_attn_scalar=8, num_hidden_layers=2)),
}
for i, case in enumerate(CASES.values()):
    case.dtype, case.shards = list(models.DTYPES)[i % 3], i % 2 == 0
    case.style = 4 if i % 4 < 2 and case.family not in ("ministral3", "gemma3") else 5

SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe")
CLASSES = dict(
    llama="Llama", mistral="Mistral", ministral3="Ministral3",
    qwen2="Qwen2", qwen3="Qwen3", qwen2_moe="Qwen2Moe", qwen3_moe="Qwen3Moe",
    mixtral="Mixtral", phi3="Phi3", gemma="Gemma", gemma2="Gemma2", gemma3_text="Gemma3Text", gemma3="Gemma3",
    granite="Granite",
    smollm3="SmolLM3",
    seed_oss="SeedOss",
    ernie4_5="Ernie4_5",
    internlm3="InternLM3",
)  # fmt: skip
MODELS = {"internlm3": "LlamaForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "gemma3": "Gemma3ForConditionalGeneration"}


def model_class(family):
    return getattr(transformers, MODELS.get(family, CLASSES[family] + "ForCausalLM"))


for case in CASES.values():
    if case.family not in TRTLLM:
        case.refused = {**case.refused, "trtllm": f"{case.family.removesuffix('_text')}|{CLASSES[case.family]}"}


def config(family, **settings):
    base = dict(num_hidden_layers=2, intermediate_size=37, vocab_size=97, max_position_embeddings=64, initializer_range=0.03)
    base.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    settings = {**base, **settings}
    if family == "gemma3":
        text = transformers.Gemma3TextConfig(**settings).to_dict()
        return transformers.Gemma3Config(text_config=text, vision_config=MULTIMODAL, mm_tokens_per_image=4)
    return getattr(transformers, CLASSES[family] + "Config")(**settings)


def zero_centred(family):
    return family.startswith("gemma")


def fill(model, family, dtype, seed, norms="exact"):
    """Random values. Norm weights of Gemma lie on a grid on which adding one is exact in every dtype, unless it is to round."""
    generator = torch.Generator().manual_seed(models.seed_of(seed))
    for p in model.parameters():
        if p.ndim > 1:
            p.data.normal_(0, 0.2, generator=generator)
        elif not zero_centred(family):
            p.data.uniform_(0.5, 1.5, generator=generator)
        elif norms == "exact":
            p.data = torch.randint(-32, 33, p.shape, generator=generator) / 64
        else:
            p.data.normal_(0, 0.7, generator=generator)
        p.data = p.data.to(dtype)  # the parameters only: the rotary buffers stay in fp32
    return model.eval()


def style4(settings):
    """config.json as transformers 4 wrote it for these classes, which is what most files of the hub are."""
    family = settings["model_type"]
    rope = settings.pop("rope_parameters")
    if FULL in rope:  # Gemma 3
        settings["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
        settings["sliding_window_pattern"] = settings.pop("_sliding_window_pattern")
        settings.pop("layer_types")
        rope = rope[FULL]
    rope = dict(rope)
    settings["rope_theta"] = rope.pop("rope_theta")
    if family == "phi3":
        settings["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
        rope.pop("original_max_position_embeddings", None)
        if rope["rope_type"] == "longrope":
            rope["type"] = rope.pop("rope_type")
    settings["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    if family == "qwen3_moe":
        settings["num_experts"] = settings.pop("num_local_experts")
    if family == "internlm3":  # remote code then
        settings["qkv_bias"], settings["bias"] = settings.pop("attention_bias"), settings.pop("mlp_bias")
        settings["architectures"] = ["InternLM3ForCausalLM"]
        settings["auto_map"] = {"AutoConfig": "configuration_internlm3.InternLM3Config"}
        settings["auto_map"]["AutoModelForCausalLM"] = "modeling_internlm3.InternLM3ForCausalLM"
    if family == "ernie4_5":
        settings["architectures"] = ["Ernie4_5_ForCausalLM"]
        settings["auto_map"] = {"AutoConfig": "configuration_ernie4_5.Ernie4_5_Config"}
        settings["auto_map"]["AutoModelForCausalLM"] = "modeling_ernie4_5.Ernie4_5_ForCausalLM"
    if zero_centred(family) and settings["tie_word_embeddings"]:  # the default of these classes, and not in their files
        del settings["tie_word_embeddings"]
    settings["torch_dtype"] = settings.pop("dtype")
    settings["transformers_version"] = "4.51.3"
    return settings


def change_config(folder, change):
    path = pathlib.Path(folder) / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2, sort_keys=True) + "\n")


def write(folder, case, name, *, cls=None, norms="exact", packed=False, dtype=None):
    """A folder as save_pretrained writes it; `packed`: with the names and experts that a model has in memory."""
    folder = pathlib.Path(folder)
    dtype = models.DTYPES[dtype or case.dtype]
    c = config(case.family, **case.settings)
    model = fill((cls or model_class(case.family))(c), case.family, dtype, name, norms)
    limit = {"max_shard_size": "8KB"} if case.shards else {}
    model.save_pretrained(folder, save_original_format=not packed, **limit)
    if case.family == "internlm3":  # saved with the config of the class that computes it
        change_config(folder, lambda settings: {**settings, "model_type": "internlm3"})
    if case.style == 4:
        change_config(folder, style4)
    return models.Model(folder, c, dtype, models.read(folder))


def text(tensors):
    """The tensors of the language model by the names of a model without a vision tower."""
    found = {}
    for name, t in tensors.items():
        for prefix in ("model.language_model.", "language_model.model.", "model.language_model.model."):
            if name.startswith(prefix) and not name.startswith(prefix + "model."):
                found["model." + name.removeprefix(prefix)] = t
    return found or dict(tensors)
