// Qwen1.5, 2, 2.5: Llama's blocks with biases on q, k and v, always.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: Qwen2Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "151936"},         {"hidden_size", "4096"},
    {"intermediate_size", "22016"},   {"num_hidden_layers", "32"},
    {"num_attention_heads", "32"},    {"num_key_value_heads", "32"},
    {"hidden_act", "\"silu\""},       {"max_position_embeddings", "32768"},
    {"rms_norm_eps", "1e-06"},        {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "false"}, {"initializer_range", "0.02"},
    {"sliding_window", "4096"},       {"max_window_layers", "28"},
};

constexpr Flag kFlags[] = {{"qkv_bias", ""}};

}  // namespace

extern const Family kQwen2 = {
    .name = "qwen2",
    .group = "qwen",
    .class_name = "Qwen2ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .window = WindowRule::kSwitched,
    .nemo_base = NemoBase::kQwen,
    .megatron = {"qwen2", "Qwen2Model", "Qwen2Config"},
    .trtllm_config = TrtllmConfig::kQwen,
};

}  // namespace reshard
