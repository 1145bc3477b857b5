// Granite 3: Llama's parts, and four multipliers, of which Megatron's configs have a place for attention's only.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: GraniteConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "32000"},
    {"hidden_size", "4096"},
    {"intermediate_size", "11008"},
    {"num_hidden_layers", "32"},
    {"num_attention_heads", "32"},
    {"hidden_act", "\"silu\""},
    {"max_position_embeddings", "2048"},
    {"rms_norm_eps", "1e-06"},
    {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "false"},
    {"initializer_range", "0.02"},
    {"embedding_multiplier", "1.0"},
    {"logits_scaling", "1.0"},
    {"residual_multiplier", "1.0"},
    {"attention_multiplier", "1.0"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
    {"mlp_bias", "mlp_bias"},
};

constexpr ConfigKey kKeys[] = {
    {.hf = "embedding_multiplier", .neutral = "1.0"},
    {.hf = "logits_scaling", .neutral = "1.0"},
    {.hf = "residual_multiplier", .neutral = "1.0"},
    {.hf = "attention_multiplier", .mcore = "softmax_scale", .change = Change::kScale},
};

}  // namespace

extern const Family kGranite = {
    .name = "granite",
    .group = "granite",
    .class_name = "GraniteForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .keys = kKeys,
};

}  // namespace reshard
