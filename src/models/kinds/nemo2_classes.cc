// Sources: NVIDIA-NeMo/NeMo 8cfedd7, nemo/collections/llm/gpt/model/{base,llama,mistral,qwen2,qwen3}.py, and what they
// inherit of NVIDIA/Megatron-LM d98e8a6, megatron/core/transformer/transformer_config.py. Only fields that say what the
// model is; equal values are repeated where the source repeats them for a model's own size only.
#include "models/kinds/nemo2_classes.h"

#include <algorithm>

#include "models/families/families.h"

namespace reshard {
namespace {

constexpr ConfigDefault kGPTConfig[] = {
    {"share_embeddings_and_output_weights", "true"},
    {"make_vocab_size_divisible_by", "128"},
    {"position_embedding_type", "\"learned_absolute\""},
    {"rotary_base", "10000"},
    {"rotary_percent", "1.0"},
    {"seq_length", "1024"},
    {"layernorm_epsilon", "1e-05"},
    {"init_method_std", "0.02"},
    {"normalization", "\"LayerNorm\""},
    {"activation_func", "\"gelu\""},
    {"gated_linear_unit", "false"},
    {"add_bias_linear", "true"},
    {"add_qkv_bias", "false"},
    {"qk_layernorm", "false"},
};
constexpr ConfigDefault kLlamaConfig[] = {
    {"seq_length", "4096"},
    {"normalization", "\"RMSNorm\""},
    {"activation_func", "\"silu\""},
    {"gated_linear_unit", "true"},
    {"position_embedding_type", "\"rope\""},
    {"add_bias_linear", "false"},
    {"share_embeddings_and_output_weights", "false"},
};
constexpr ConfigDefault kLlama2Config7B[] = {
    {"num_layers", "32"},         {"hidden_size", "4096"},    {"num_attention_heads", "32"},
    {"ffn_hidden_size", "11008"}, {"num_query_groups", "32"},
};
constexpr ConfigDefault kLlama2Config13B[] = {
    {"num_layers", "40"},         {"hidden_size", "5120"},    {"num_attention_heads", "40"},
    {"ffn_hidden_size", "13824"}, {"num_query_groups", "40"},
};
constexpr ConfigDefault kLlama2Config70B[] = {
    {"num_layers", "80"},         {"hidden_size", "8192"},   {"num_attention_heads", "64"},
    {"ffn_hidden_size", "28672"}, {"num_query_groups", "8"},
};
constexpr ConfigDefault kLlama3Config[] = {
    {"num_query_groups", "8"},
    {"init_method_std", "0.01"},
    {"layernorm_epsilon", "1e-05"},
};
constexpr ConfigDefault kLlama31Config[] = {
    {"scale_factor", "8.0"},     {"low_freq_factor", "1.0"},  {"high_freq_factor", "4.0"},
    {"old_context_len", "8192"}, {"init_method_std", "0.02"},
};
constexpr ConfigDefault kLlama3Config8B[] = {
    {"num_layers", "32"},         {"hidden_size", "4096"},   {"num_attention_heads", "32"},
    {"ffn_hidden_size", "14336"}, {"rotary_base", "500000"}, {"seq_length", "8192"},
};
constexpr ConfigDefault kLlama3Config70B[] = {
    {"num_layers", "80"},      {"hidden_size", "8192"}, {"num_attention_heads", "64"},   {"ffn_hidden_size", "28672"},
    {"rotary_base", "500000"}, {"seq_length", "8192"},  {"init_method_std", "0.008944"},
};
constexpr ConfigDefault kLlama31Config8B[] = {
    {"num_layers", "32"},         {"hidden_size", "4096"},   {"num_attention_heads", "32"},
    {"ffn_hidden_size", "14336"}, {"rotary_base", "500000"}, {"seq_length", "131072"},
};
constexpr ConfigDefault kLlama31Config70B[] = {
    {"num_layers", "80"},         {"hidden_size", "8192"},   {"num_attention_heads", "64"},
    {"ffn_hidden_size", "28672"}, {"rotary_base", "500000"}, {"seq_length", "131072"},
};
constexpr ConfigDefault kLlama31Config405B[] = {
    {"num_layers", "126"},        {"hidden_size", "16384"},  {"num_attention_heads", "128"},
    {"ffn_hidden_size", "53248"}, {"rotary_base", "500000"}, {"seq_length", "131072"},
};
constexpr ConfigDefault kLlama32Config1B[] = {
    {"num_layers", "16"},
    {"hidden_size", "2048"},
    {"num_attention_heads", "32"},
    {"ffn_hidden_size", "8192"},
    {"num_query_groups", "8"},
    {"scale_factor", "32.0"},
    {"share_embeddings_and_output_weights", "true"},
    {"rotary_base", "500000"},
    {"seq_length", "131072"},
};
constexpr ConfigDefault kLlama32Config3B[] = {
    {"num_layers", "28"},
    {"hidden_size", "3072"},
    {"num_attention_heads", "24"},
    {"ffn_hidden_size", "8192"},
    {"num_query_groups", "8"},
    {"scale_factor", "32.0"},
    {"share_embeddings_and_output_weights", "true"},
    {"rotary_base", "500000"},
    {"seq_length", "131072"},
};
constexpr ConfigDefault kCodeLlamaConfig7B[] = {
    {"rotary_base", "1000000"},
    {"seq_length", "16384"},
};
constexpr ConfigDefault kCodeLlamaConfig13B[] = {
    {"rotary_base", "1000000"},
    {"seq_length", "16384"},
};
constexpr ConfigDefault kCodeLlamaConfig34B[] = {
    {"num_layers", "48"},      {"hidden_size", "8192"},    {"num_attention_heads", "64"}, {"ffn_hidden_size", "22016"},
    {"num_query_groups", "8"}, {"rotary_base", "1000000"}, {"seq_length", "16384"},
};
constexpr ConfigDefault kMistralConfig7B[] = {
    {"normalization", "\"RMSNorm\""},
    {"activation_func", "\"silu\""},
    {"gated_linear_unit", "true"},
    {"position_embedding_type", "\"rope\""},
    {"add_bias_linear", "false"},
    {"share_embeddings_and_output_weights", "false"},
    {"num_layers", "32"},
    {"hidden_size", "4096"},
    {"num_attention_heads", "32"},
    {"ffn_hidden_size", "14336"},
    {"num_query_groups", "8"},
    {"seq_length", "32768"},
    {"init_method_std", "0.02"},
    {"layernorm_epsilon", "1e-05"},
    {"window_size", "[4096, 0]"},
};
constexpr ConfigDefault kMistralNeMoConfig12B[] = {
    {"num_layers", "40"},   {"hidden_size", "5120"}, {"kv_channels", "128"},
    {"seq_length", "4096"}, {"window_size", "null"}, {"rotary_base", "1000000.0"},
};
constexpr ConfigDefault kMistralNeMoConfig123B[] = {
    {"num_layers", "88"},   {"hidden_size", "12288"}, {"ffn_hidden_size", "28672"}, {"num_attention_heads", "96"},
    {"kv_channels", "128"}, {"seq_length", "4096"},   {"window_size", "null"},      {"rotary_base", "1000000.0"},
};
constexpr ConfigDefault kQwen2Config[] = {
    {"normalization", "\"RMSNorm\""}, {"activation_func", "\"silu\""},
    {"gated_linear_unit", "true"},    {"position_embedding_type", "\"rope\""},
    {"add_bias_linear", "false"},     {"share_embeddings_and_output_weights", "false"},
    {"add_qkv_bias", "true"},         {"seq_length", "4096"},
    {"init_method_std", "0.02"},      {"vocab_size", "151936"},
    {"layernorm_epsilon", "1e-06"},   {"rotary_base", "1000000.0"},
};
constexpr ConfigDefault kQwen2Config500M[] = {
    {"num_layers", "24"},        {"hidden_size", "896"},    {"num_attention_heads", "14"},
    {"ffn_hidden_size", "4864"}, {"num_query_groups", "2"},
};
constexpr ConfigDefault kQwen25Config500M[] = {
    {"seq_length", "32768"},
};
constexpr ConfigDefault kQwen2Config1P5B[] = {
    {"num_layers", "28"},        {"hidden_size", "1536"},   {"num_attention_heads", "12"},
    {"ffn_hidden_size", "8960"}, {"num_query_groups", "2"},
};
constexpr ConfigDefault kQwen25Config1P5B[] = {
    {"seq_length", "131072"},
};
constexpr ConfigDefault kQwen25Config3B[] = {
    {"num_layers", "36"},         {"hidden_size", "2048"},   {"num_attention_heads", "16"},
    {"ffn_hidden_size", "11008"}, {"num_query_groups", "2"}, {"share_embeddings_and_output_weights", "true"},
};
constexpr ConfigDefault kQwen2Config7B[] = {
    {"num_layers", "28"},         {"hidden_size", "3584"},   {"num_attention_heads", "28"},
    {"ffn_hidden_size", "18944"}, {"num_query_groups", "4"}, {"vocab_size", "152064"},
};
constexpr ConfigDefault kQwen25Config7B[] = {
    {"seq_length", "131072"},
};
constexpr ConfigDefault kQwen25Config14B[] = {
    {"num_layers", "48"},      {"hidden_size", "5120"},  {"num_attention_heads", "40"},  {"ffn_hidden_size", "13824"},
    {"num_query_groups", "8"}, {"vocab_size", "152064"}, {"layernorm_epsilon", "1e-05"}, {"seq_length", "131072"},
};
constexpr ConfigDefault kQwen25Config32B[] = {
    {"num_layers", "64"},      {"hidden_size", "5120"},  {"num_attention_heads", "40"},  {"ffn_hidden_size", "27648"},
    {"num_query_groups", "8"}, {"vocab_size", "152064"}, {"layernorm_epsilon", "1e-05"}, {"seq_length", "131072"},
};
constexpr ConfigDefault kQwen2Config72B[] = {
    {"num_layers", "80"},      {"hidden_size", "8192"},  {"num_attention_heads", "64"},  {"ffn_hidden_size", "29568"},
    {"num_query_groups", "8"}, {"vocab_size", "152064"}, {"layernorm_epsilon", "1e-05"},
};
constexpr ConfigDefault kQwen25Config72B[] = {
    {"seq_length", "131072"},
};
constexpr ConfigDefault kQwen3Config[] = {
    {"add_qkv_bias", "false"},
    {"qk_layernorm", "true"},
    {"kv_channels", "128"},
    {"num_query_groups", "8"},
    {"max_position_embeddings", "40960"},
};
constexpr ConfigDefault kQwen3Config600M[] = {
    {"num_layers", "28"},
    {"hidden_size", "1024"},
    {"num_attention_heads", "16"},
    {"ffn_hidden_size", "3072"},
    {"share_embeddings_and_output_weights", "true"},
};
constexpr ConfigDefault kQwen3Config1P7B[] = {
    {"num_layers", "28"},
    {"hidden_size", "2048"},
    {"num_attention_heads", "16"},
    {"ffn_hidden_size", "6144"},
    {"share_embeddings_and_output_weights", "true"},
};
constexpr ConfigDefault kQwen3Config4B[] = {
    {"num_layers", "36"},
    {"hidden_size", "2560"},
    {"num_attention_heads", "32"},
    {"ffn_hidden_size", "9728"},
    {"share_embeddings_and_output_weights", "true"},
};
constexpr ConfigDefault kQwen3Config8B[] = {
    {"num_layers", "36"},
    {"hidden_size", "4096"},
    {"num_attention_heads", "32"},
    {"ffn_hidden_size", "12288"},
};
constexpr ConfigDefault kQwen3Config14B[] = {
    {"num_layers", "40"},
    {"hidden_size", "5120"},
    {"num_attention_heads", "40"},
    {"ffn_hidden_size", "17408"},
};
constexpr ConfigDefault kQwen3Config32B[] = {
    {"num_layers", "64"},
    {"hidden_size", "5120"},
    {"num_attention_heads", "64"},
    {"ffn_hidden_size", "25600"},
};

constexpr Nemo2Class kClasses[] = {
    {"GPTConfig", "", kGPTConfig},
    {"LlamaConfig", "GPTConfig", kLlamaConfig},
    {"Llama2Config7B", "LlamaConfig", kLlama2Config7B},
    {"Llama2Config13B", "LlamaConfig", kLlama2Config13B},
    {"Llama2Config70B", "LlamaConfig", kLlama2Config70B},
    {"Llama3Config", "LlamaConfig", kLlama3Config},
    {"Llama31Config", "Llama3Config", kLlama31Config},
    {"Llama3Config8B", "Llama3Config", kLlama3Config8B},
    {"Llama3Config70B", "Llama3Config", kLlama3Config70B},
    {"Llama31Config8B", "Llama31Config", kLlama31Config8B},
    {"Llama31Config70B", "Llama31Config", kLlama31Config70B},
    {"Llama31Config405B", "Llama31Config", kLlama31Config405B},
    {"Llama32Config1B", "Llama31Config", kLlama32Config1B},
    {"Llama32Config3B", "Llama31Config", kLlama32Config3B},
    {"CodeLlamaConfig7B", "Llama2Config7B", kCodeLlamaConfig7B},
    {"CodeLlamaConfig13B", "Llama2Config13B", kCodeLlamaConfig13B},
    {"CodeLlamaConfig34B", "LlamaConfig", kCodeLlamaConfig34B},
    {"CodeLlamaConfig70B", "Llama2Config70B", {}},
    {"MistralConfig7B", "GPTConfig", kMistralConfig7B},
    {"MistralNeMoConfig12B", "MistralConfig7B", kMistralNeMoConfig12B},
    {"MistralNeMoConfig123B", "MistralConfig7B", kMistralNeMoConfig123B},
    {"Qwen2Config", "GPTConfig", kQwen2Config},
    {"Qwen2Config500M", "Qwen2Config", kQwen2Config500M},
    {"Qwen25Config500M", "Qwen2Config500M", kQwen25Config500M},
    {"Qwen2Config1P5B", "Qwen2Config", kQwen2Config1P5B},
    {"Qwen25Config1P5B", "Qwen2Config1P5B", kQwen25Config1P5B},
    {"Qwen25Config3B", "Qwen2Config", kQwen25Config3B},
    {"Qwen2Config7B", "Qwen2Config", kQwen2Config7B},
    {"Qwen25Config7B", "Qwen2Config7B", kQwen25Config7B},
    {"Qwen25Config14B", "Qwen2Config", kQwen25Config14B},
    {"Qwen25Config32B", "Qwen2Config", kQwen25Config32B},
    {"Qwen2Config72B", "Qwen2Config", kQwen2Config72B},
    {"Qwen25Config72B", "Qwen2Config72B", kQwen25Config72B},
    {"Qwen3Config", "Qwen2Config", kQwen3Config},
    {"Qwen3Config600M", "Qwen3Config", kQwen3Config600M},
    {"Qwen3Config1P7B", "Qwen3Config", kQwen3Config1P7B},
    {"Qwen3Config4B", "Qwen3Config", kQwen3Config4B},
    {"Qwen3Config8B", "Qwen3Config", kQwen3Config8B},
    {"Qwen3Config14B", "Qwen3Config", kQwen3Config14B},
    {"Qwen3Config32B", "Qwen3Config", kQwen3Config32B},
};

}  // namespace

const Nemo2Class* FindNemo2Class(std::string_view dotted_name) {
  const std::string_view name = dotted_name.substr(dotted_name.rfind('.') + 1);
  auto found =
      std::find_if(std::begin(kClasses), std::end(kClasses), [&](const Nemo2Class& row) { return row.name == name; });
  return found == std::end(kClasses) ? nullptr : found;
}

Json Nemo2Defaults(const Nemo2Class& of) {
  Json defaults = of.parent.empty() ? Json::object() : Nemo2Defaults(*FindNemo2Class(of.parent));
  for (const ConfigDefault& row : of.defaults) defaults[std::string(row.key)] = Json::parse(row.value);
  return defaults;
}

const Family* FamilyOfNemo2Class(const Nemo2Class& of) {
  for (const Family* family : Families())
    if (family->megatron.config == of.name) return family;
  return of.parent.empty() ? nullptr : FamilyOfNemo2Class(*FindNemo2Class(of.parent));
}

}  // namespace reshard
