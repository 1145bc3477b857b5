// Seed-OSS: Llama's parts, biases on q, k and v, and on the output of attention by a key of their own.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: SeedOssConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "155136"},      {"hidden_size", "4096"},       {"intermediate_size", "27648"},
    {"num_hidden_layers", "64"},   {"num_attention_heads", "80"}, {"num_key_value_heads", "8"},
    {"head_dim", "128"},           {"hidden_act", "\"silu\""},    {"max_position_embeddings", "524288"},
    {"rms_norm_eps", "1e-06"},     {"rope_theta", "10000.0"},     {"tie_word_embeddings", "false"},
    {"initializer_range", "0.02"}, {"attention_bias", "true"},
};

constexpr Flag kFlags[] = {
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_out_bias"},
    {"mlp_bias", "mlp_bias"},
};

}  // namespace

extern const Family kSeedOss = {
    .name = "seed_oss",
    .group = "seed_oss",
    .class_name = "SeedOssForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
};

}  // namespace reshard
