// InternLM3: Llama's parts; biases by two keys of its own, which transformers saves under Llama's names.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: InternLM3Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "128512"},      {"hidden_size", "4096"},       {"intermediate_size", "10240"},
    {"num_hidden_layers", "48"},   {"num_attention_heads", "32"}, {"num_key_value_heads", "2"},
    {"head_dim", "128"},           {"hidden_act", "\"silu\""},    {"max_position_embeddings", "32768"},
    {"rms_norm_eps", "1e-05"},     {"rope_theta", "10000.0"},     {"tie_word_embeddings", "false"},
    {"initializer_range", "0.02"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "qkv_bias", "attention_bias"},
    {"o_bias", "qkv_bias", "attention_bias"},
    {"mlp_bias", "bias", "mlp_bias"},
};

}  // namespace

extern const Family kInternlm3 = {
    .name = "internlm3",
    .group = "internlm",
    .class_name = "InternLM3ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .other_class = "LlamaForCausalLM",
};

}  // namespace reshard
