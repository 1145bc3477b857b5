// Gemma 1, CodeGemma: norm weights stored minus one, gelu, embeddings scaled by the root of the hidden size.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: GemmaConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "256000"},
    {"hidden_size", "3072"},
    {"intermediate_size", "24576"},
    {"num_hidden_layers", "28"},
    {"num_attention_heads", "16"},
    {"num_key_value_heads", "16"},
    {"head_dim", "256"},
    {"max_position_embeddings", "8192"},
    {"rms_norm_eps", "1e-06"},
    {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "true"},
    {"initializer_range", "0.02"},
    {"use_bidirectional_attention", "false"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
};

constexpr ConfigKey kKeys[] = {{.hf = "use_bidirectional_attention", .neutral = "false"}};

// NeMo: convert_gemma_hf_to_nemo.py, megatron_gemma_config.yaml.
constexpr FixedKey kFixed[] = {
    {"apply_embedding_scaling", "true", "false", FixedKey::Where::kNemo},
    {"apply_query_key_layer_scaling", "false", "", FixedKey::Where::kNemo},
};

}  // namespace

extern const Family kGemma = {
    .name = "gemma",
    .group = "gemma",
    .class_name = "GemmaForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .keys = kKeys,
    .fixed = kFixed,
    .zero_centred = true,
    .nemo_adds_one = true,
    .act = "gelu_pytorch_tanh",
    .old_act = "gelu",
    .megatron = {.bridge = "megatron.bridge.models.gemma.gemma_provider.GemmaModelProvider", .arguments = false},
};

}  // namespace reshard
