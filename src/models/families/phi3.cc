// Phi-3, 3.5, 4 and 4-mini: Llama's parts, with q, k and v in one matrix and gate and up in another.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kFusedTrunk, &kMlpNorm, &kFusedMlp};

// transformers: Phi3Config.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "32064"},
    {"hidden_size", "3072"},
    {"intermediate_size", "8192"},
    {"num_hidden_layers", "32"},
    {"num_attention_heads", "32"},
    {"hidden_act", "\"silu\""},
    {"max_position_embeddings", "4096"},
    {"original_max_position_embeddings", "4096"},
    {"rms_norm_eps", "1e-05"},
    {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "false"},
    {"initializer_range", "0.02"},
    {"sliding_window", "null"},
};

}  // namespace

extern const Family kPhi3 = {
    .name = "phi3",
    .group = "phi",
    .class_name = "Phi3ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = {},
    .window = WindowRule::kAll,
    .partial_rotation = true,
};

}  // namespace reshard
