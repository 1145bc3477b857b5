// Llama 1 to 3.3 and all that is published under its class, SmolLM2 among it.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: LlamaConfig.
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
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
    {"mlp_bias", "mlp_bias"},
};

}  // namespace

extern const Family kLlama = {
    .name = "llama",
    .group = "llama",
    .class_name = "LlamaForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .megatron = {"llama", "LlamaModel", "LlamaConfig", "Llama31Config"},
    .trtllm_config = TrtllmConfig::kLlama,
};

}  // namespace reshard
