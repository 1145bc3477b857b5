// SmolLM3: Llama's parts; every fourth layer has no rope, which other kinds have no place for.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: SmolLM3Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "128256"},        {"hidden_size", "2048"},
    {"intermediate_size", "11008"},  {"num_hidden_layers", "36"},
    {"num_attention_heads", "16"},   {"num_key_value_heads", "4"},
    {"hidden_act", "\"silu\""},      {"max_position_embeddings", "32768"},
    {"rms_norm_eps", "1e-06"},       {"rope_theta", "2000000.0"},
    {"tie_word_embeddings", "true"}, {"initializer_range", "0.02"},
    {"sliding_window", "null"},      {"no_rope_layer_interval", "4"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
    {"mlp_bias", "mlp_bias"},
};

}  // namespace

extern const Family kSmolLm3 = {
    .name = "smollm3",
    .group = "smollm",
    .class_name = "SmolLM3ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .has_layers_without_rope = true,
    .window = WindowRule::kSwitched,
};

}  // namespace reshard
