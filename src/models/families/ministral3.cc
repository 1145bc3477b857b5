// Ministral 3: Mistral's parts, other defaults, positions scaled by YaRN.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMlpNorm, &kGatedMlp};

// transformers: Ministral3Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "131072"},
    {"hidden_size", "4096"},
    {"intermediate_size", "14336"},
    {"num_hidden_layers", "34"},
    {"num_attention_heads", "32"},
    {"num_key_value_heads", "8"},
    {"head_dim", "128"},
    {"hidden_act", "\"silu\""},
    {"max_position_embeddings", "262144"},
    {"rms_norm_eps", "1e-05"},
    {"rope_parameters",
     R"({"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
         "max_position_embeddings": 262144, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
         "llama_4_scaling_beta": 0.1})"},
    {"tie_word_embeddings", "false"},
    {"initializer_range", "0.02"},
    {"sliding_window", "null"},
};

constexpr Wrapper kWrappers[] = {{"mistral3", "Mistral3ForConditionalGeneration"}};

}  // namespace

extern const Family kMinistral3 = {
    .name = "ministral3",
    .group = "llama",
    .class_name = "Ministral3ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = {},
    .wrappers = kWrappers,
    .rope_fields = R"({"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": 16384})",
    .window = WindowRule::kAll,
};

}  // namespace reshard
