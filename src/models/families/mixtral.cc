// Mixtral 8x7B, 8x22B: Mistral's attention, experts in every layer.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kMoeNorm, &kMixtralExperts};

// transformers: MixtralConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "32000"},          {"hidden_size", "4096"},
    {"intermediate_size", "14336"},   {"num_hidden_layers", "32"},
    {"num_attention_heads", "32"},    {"num_key_value_heads", "8"},
    {"hidden_act", "\"silu\""},       {"max_position_embeddings", "131072"},
    {"rms_norm_eps", "1e-05"},        {"rope_theta", "1000000.0"},
    {"tie_word_embeddings", "false"}, {"initializer_range", "0.02"},
    {"sliding_window", "null"},       {"num_local_experts", "8"},
    {"num_experts_per_tok", "2"},     {"router_aux_loss_coef", "0.001"},
};

constexpr ConfigKey kKeys[] = {
    {.hf = "num_local_experts", .mcore = "num_moe_experts", .size = 'E', .synonym = "num_experts", .neutral = "null"},
    {.hf = "intermediate_size", .mcore = "moe_ffn_hidden_size", .size = 'M'},
    {.hf = "num_experts_per_tok", .mcore = "moe_router_topk", .absent = "2"},
    {.hf = "router_aux_loss_coef", .mcore = "moe_aux_loss_coeff", .absent = "0.0", .of_training = true},
};

// Probabilities are of the chosen experts alone. NeMo's own converter says otherwise, and its model is meant so, too.
constexpr FixedKey kFixed[] = {
    {"moe_router_pre_softmax", "false"},
    {"moe_router_load_balancing_type", "\"aux_loss\""},
    {"moe_token_dispatcher_type", "\"alltoall\"", "", FixedKey::Where::kMcore},
    {"moe_grouped_gemm", "true", "", FixedKey::Where::kMcore},
};

}  // namespace

extern const Family kMixtral = {
    .name = "mixtral",
    .group = "llama",
    .class_name = "MixtralForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = {},
    .keys = kKeys,
    .fixed = kFixed,
    .layers = LayerRule::kAllMoe,
    .window = WindowRule::kAll,
    .trtllm_config = TrtllmConfig::kLlama,
};

}  // namespace reshard
