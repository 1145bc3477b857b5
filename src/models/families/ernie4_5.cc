// Ernie 4.5, dense: Llama's parts; neighbours are rotated, not halves of a head.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: Ernie4_5Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "103424"},      {"hidden_size", "1024"},       {"intermediate_size", "3072"},
    {"num_hidden_layers", "18"},   {"num_attention_heads", "16"}, {"num_key_value_heads", "2"},
    {"head_dim", "128"},           {"hidden_act", "\"silu\""},    {"max_position_embeddings", "131072"},
    {"rms_norm_eps", "1e-05"},     {"rope_theta", "500000.0"},    {"tie_word_embeddings", "true"},
    {"initializer_range", "0.02"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "use_bias"},
    {"o_bias", "use_bias"},
    {"mlp_bias", "use_bias"},
};

}  // namespace

extern const Family kErnie45 = {
    .name = "ernie4_5",
    .group = "ernie",
    .class_name = "Ernie4_5ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .other_class = "Ernie4_5_ForCausalLM",
    .rope_interleaved = true,
};

}  // namespace reshard
