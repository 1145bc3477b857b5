// Qwen3, dense: norms on q and k, head size apart from hidden size, no biases unless attention_bias says so.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kQkNorm, &kMlpNorm, &kGatedMlp};

// transformers: Qwen3Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "151936"},      {"hidden_size", "4096"},       {"intermediate_size", "22016"},
    {"num_hidden_layers", "32"},   {"num_attention_heads", "32"}, {"num_key_value_heads", "32"},
    {"head_dim", "128"},           {"hidden_act", "\"silu\""},    {"max_position_embeddings", "32768"},
    {"rms_norm_eps", "1e-06"},     {"rope_theta", "10000.0"},     {"tie_word_embeddings", "false"},
    {"initializer_range", "0.02"}, {"sliding_window", "4096"},    {"max_window_layers", "28"},
};

constexpr Flag kFlags[] = {
    {"qk_norm", ""},
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
};

}  // namespace

extern const Family kQwen3 = {
    .name = "qwen3",
    .group = "qwen",
    .class_name = "Qwen3ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .window = WindowRule::kSwitched,
    .nemo_base = NemoBase::kQwen,
    .megatron = {"qwen3", "Qwen3Model", "Qwen3Config"},
};

}  // namespace reshard
