// Mistral 7B, Nemo, Small: Llama's blocks without any bias, other defaults, a sliding window.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: MistralConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "32000"},          {"hidden_size", "4096"},
    {"intermediate_size", "14336"},   {"num_hidden_layers", "32"},
    {"num_attention_heads", "32"},    {"num_key_value_heads", "8"},
    {"hidden_act", "\"silu\""},       {"max_position_embeddings", "131072"},
    {"rms_norm_eps", "1e-06"},        {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "false"}, {"initializer_range", "0.02"},
    {"sliding_window", "4096"},
};

}  // namespace

extern const Family kMistral = {
    .name = "mistral",
    .group = "llama",
    .class_name = "MistralForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = {},
    .window = WindowRule::kAll,
    .megatron = {"mistral", "MistralModel", "MistralConfig7B", "",
                 "megatron.bridge.models.mistral.mistral_provider.MistralModelProvider"},
    .trtllm_config = TrtllmConfig::kLlama,
};

}  // namespace reshard
