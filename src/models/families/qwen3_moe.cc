// Qwen3-30B-A3B, 235B-A22B, Coder: Qwen3 with experts.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kQkNorm, &kMlpNorm, &kGatedMlp, &kMoeNorm, &kExperts};

// transformers: Qwen3MoeConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "151936"},         {"hidden_size", "2048"},
    {"intermediate_size", "6144"},    {"num_hidden_layers", "24"},
    {"num_attention_heads", "32"},    {"num_key_value_heads", "4"},
    {"hidden_act", "\"silu\""},       {"max_position_embeddings", "32768"},
    {"rms_norm_eps", "1e-06"},        {"rope_theta", "10000.0"},
    {"tie_word_embeddings", "false"}, {"initializer_range", "0.02"},
    {"sliding_window", "4096"},       {"max_window_layers", "0"},
    {"decoder_sparse_step", "1"},     {"moe_intermediate_size", "768"},
    {"num_experts_per_tok", "8"},     {"num_experts", "128"},
    {"norm_topk_prob", "false"},      {"router_aux_loss_coef", "0.001"},
};

constexpr Flag kFlags[] = {
    {"qk_norm", ""},
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
};

constexpr ConfigKey kKeys[] = {
    {.hf = "num_experts", .mcore = "num_moe_experts", .size = 'E', .synonym = "num_local_experts", .neutral = "null"},
    {.hf = "moe_intermediate_size", .mcore = "moe_ffn_hidden_size", .size = 'M'},
    {.hf = "num_experts_per_tok", .mcore = "moe_router_topk", .absent = "2"},
    {.hf = "norm_topk_prob", .mcore = "moe_router_pre_softmax", .change = Change::kNot, .absent = "false"},
    {.hf = "router_aux_loss_coef", .mcore = "moe_aux_loss_coeff", .absent = "0.0", .of_training = true},
};

constexpr FixedKey kFixed[] = {
    {"moe_router_load_balancing_type", "\"aux_loss\""},
    {"moe_token_dispatcher_type", "\"alltoall\"", "", FixedKey::Where::kMcore},
    {"moe_grouped_gemm", "true", "", FixedKey::Where::kMcore},
};

}  // namespace

extern const Family kQwen3Moe = {
    .name = "qwen3_moe",
    .group = "qwen",
    .class_name = "Qwen3MoeForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .keys = kKeys,
    .fixed = kFixed,
    .layers = LayerRule::kSparseSteps,
    .window = WindowRule::kSwitched,
    .nemo_base = NemoBase::kQwen,
};

}  // namespace reshard
