// Gemma 2: norms before and behind both parts of a layer, soft caps, a window in every other layer.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kSandwichNorms, &kGatedMlp};

// transformers: Gemma2Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "256000"},
    {"hidden_size", "2304"},
    {"intermediate_size", "9216"},
    {"num_hidden_layers", "26"},
    {"num_attention_heads", "8"},
    {"num_key_value_heads", "4"},
    {"head_dim", "256"},
    {"max_position_embeddings", "8192"},
    {"rms_norm_eps", "1e-06"},
    {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "true"},
    {"initializer_range", "0.02"},
    {"sliding_window", "4096"},
    {"query_pre_attn_scalar", "256"},
    {"final_logit_softcapping", "30.0"},
    {"attn_logit_softcapping", "50.0"},
    {"use_bidirectional_attention", "false"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
};

constexpr ConfigKey kKeys[] = {
    {.hf = "query_pre_attn_scalar",
     .mcore = "query_pre_attn_scalar",
     .neutral = "null",
     .nemo = "mcore_customization_config.query_pre_attn_scalar"},
    {.hf = "attn_logit_softcapping",
     .mcore = "attn_logit_softcapping",
     .neutral = "null",
     .nemo = "mcore_customization_config.attn_logit_softcapping"},
    {.hf = "final_logit_softcapping",
     .mcore = "final_logit_softcapping",
     .neutral = "null",
     .nemo = "mcore_customization_config.final_logit_softcapping"},
    {.hf = "use_bidirectional_attention", .neutral = "false"},
};

// NeMo: megatron_gemma2_config.yaml; `name` chooses the layers' modules.
constexpr FixedKey kFixed[] = {
    {"name", "\"megatron_gemma2\"", "", FixedKey::Where::kNemo},
    {"apply_embedding_scaling", "true", "false", FixedKey::Where::kNemo},
    {"apply_query_key_layer_scaling", "false", "", FixedKey::Where::kNemo},
};

}  // namespace

extern const Family kGemma2 = {
    .name = "gemma2",
    .group = "gemma",
    .class_name = "Gemma2ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .keys = kKeys,
    .fixed = kFixed,
    .zero_centred = true,
    .act_key = "hidden_activation",
    .act = "gelu_pytorch_tanh",
    .window = WindowRule::kPeriodic,
    .window_period = 2,
    .megatron = {.bridge = "megatron.bridge.models.gemma.gemma2_provider.Gemma2ModelProvider", .arguments = false},
};

}  // namespace reshard
