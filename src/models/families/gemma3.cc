// Gemma 3, text: Gemma 2's norms and norms on q and k, five layers with a window and a rope base of their own to one
// without. Also the text model of the class that has images.
#include "models/families/blocks.h"

namespace reshard {
namespace {

constexpr const Block* kBlocks[] = {&kTrunk, &kQkNorm, &kSandwichNorms, &kGatedMlp};

// transformers: Gemma3TextConfig.
constexpr ConfigDefault kDefaults[] = {
    {"vocab_size", "262208"},
    {"hidden_size", "2304"},
    {"intermediate_size", "9216"},
    {"num_hidden_layers", "26"},
    {"num_attention_heads", "8"},
    {"num_key_value_heads", "4"},
    {"head_dim", "256"},
    {"max_position_embeddings", "131072"},
    {"rms_norm_eps", "1e-06"},
    {"rope_theta", "1000000.0"},
    {"rope_local_base_freq", "10000.0"},
    {"tie_word_embeddings", "true"},
    {"initializer_range", "0.02"},
    {"sliding_window", "4096"},
    {"query_pre_attn_scalar", "256"},
    {"use_bidirectional_attention", "false"},
};

constexpr Flag kFlags[] = {
    {"qk_norm", ""},
    {"qkv_bias", "attention_bias"},
    {"o_bias", "attention_bias"},
};

constexpr ConfigKey kKeys[] = {
    {.hf = "query_pre_attn_scalar", .mcore = "softmax_scale", .change = Change::kInverseSquareRoot, .neutral = "null"},
    {.hf = "attn_logit_softcapping", .neutral = "null"},
    {.hf = "final_logit_softcapping", .neutral = "null"},
    {.hf = "use_bidirectional_attention", .neutral = "false"},
};

// Megatron-Bridge: gemma3_provider.py. NeMo 1 never had the model: its keys are those.
constexpr FixedKey kFixed[] = {
    {"interleaved_attn_pattern", "[5, 1]"},
    {"apply_embedding_scaling", "true", "false", FixedKey::Where::kNemo},
    {"apply_query_key_layer_scaling", "false", "", FixedKey::Where::kNemo},
};

constexpr Wrapper kWrappers[] = {{"gemma3", "Gemma3ForConditionalGeneration"}};

}  // namespace

extern const Family kGemma3 = {
    .name = "gemma3_text",
    .group = "gemma",
    .class_name = "Gemma3ForCausalLM",
    .blocks = kBlocks,
    .defaults = kDefaults,
    .flags = kFlags,
    .keys = kKeys,
    .fixed = kFixed,
    .wrappers = kWrappers,
    .zero_centred = true,
    .act_key = "hidden_activation",
    .act = "gelu_pytorch_tanh",
    .window = WindowRule::kPeriodic,
    .window_period = 6,
    .rope_local_key = "rope_local_base_freq",
    .megatron = {.bridge = "megatron.bridge.models.gemma.gemma3_provider.Gemma3ModelProvider", .arguments = false},
};

}  // namespace reshard
