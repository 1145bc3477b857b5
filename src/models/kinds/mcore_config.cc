#include "models/kinds/mcore_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "models/kinds/hf_config.h"
#include "models/kinds/template.h"

namespace reshard {
namespace {

// -- reading ----------------------------------------------------------------------------------------------------------

// What changes the function that a model computes, and the values (a JSON list) that are handled; an absent key and
// null count as handled.
struct Setting {
  std::string_view key, handled;
};
constexpr Setting kSettings[] = {
    {"apply_residual_connection_post_layernorm", "[false]"},
    {"multi_latent_attention", "[false]"},
    {"attention_output_gate", "[false]"},
    {"qk_l2_norm", "[false]"},
    {"softmax_type", "[\"vanilla\"]"},
    {"glu_linear_offset", "[0.0]"},
    {"activation_func_clamp_value", "[]"},
    {"moe_router_score_function", "[\"softmax\"]"},
    {"moe_router_enable_expert_bias", "[false]"},
    {"moe_router_num_groups", "[]"},
    {"moe_router_topk_scaling_factor", "[1.0]"},
    {"moe_apply_probs_on_input", "[false]"},
    {"moe_latent_size", "[]"},
    {"mtp_num_layers", "[0]"},
    {"linear_attention_freq", "[]"},
    {"experimental_attention_variant", "[]"},
    {"hybrid_layer_pattern", "[]"},
    {"window_attn_skip_freq", "[]"},
    {"no_rope_freq", "[]"},
    {"use_mup", "[false]"},
    {"heterogeneous_block_specs", "[false]"},
};

void RefuseUnsupported(const ConfigReader& reader) {
  RequireText(reader, "normalization", "LayerNorm", {"RMSNorm"});
  RequireText(reader, "position_embedding_type", "learned_absolute", {"rope"});
  for (const Setting& row : kSettings) {
    const Json& value = reader.At(row.key);
    const Json handled = Json::parse(row.handled);
    if (value.is_null() || std::find(handled.begin(), handled.end(), value) != handled.end()) continue;
    throw Error(Code::kUnsupported,
                fmt::format("{} {}, expected {}", row.key, value.dump(), handled.empty() ? "none" : handled[0].dump()))
        .At("reading", reader.path());
  }
}

// By the last part of the function's name: NeMo 2 has the tanh form of gelu under another module and name.
const Activation& ReadActivation(const ConfigReader& reader) {
  const std::string function = reader.String("activation_func", "gelu");
  const std::string name = function.substr(function.rfind('.') + 1);
  for (const Activation& row : Activations())
    if (reader.Bool("gated_linear_unit", false) &&
        (row.mcore.ends_with("." + name) || row.mcore == name || (row.openai_gelu && name == "openai_gelu")))
      return row;
  const bool silu = name == "silu";
  throw Error(Code::kUnsupported,
              fmt::format("activation_func '{}' {}gated, expected {}, gated", function,
                          reader.Bool("gated_linear_unit", false) ? "" : "not ", silu ? "it" : "silu or fast_gelu"))
      .At("reading", reader.path());
}

std::set<std::string_view> FlagsOf(const ConfigReader& reader) {
  std::set<std::string_view> flags;
  if (reader.Bool("add_bias_linear", true)) flags = {"qkv_bias", "o_bias", "mlp_bias"};
  if (reader.Bool("add_qkv_bias", false)) flags.insert("qkv_bias");
  if (reader.Bool("qk_layernorm", false)) flags.insert("qk_norm");
  return flags;
}

NemoTraits TraitsOf(const ConfigReader& reader, HyperParameters& hyper) {
  NemoTraits traits;
  traits.flags = FlagsOf(reader);
  traits.activation = &ReadActivation(reader);
  ReadRotation(reader, "rotary_percent", hyper, traits);
  traits.window = !WindowOf(reader).is_null();
  return traits;
}

// Sizes are as the constructor makes them: as many groups as heads, a width of four times the hidden size.
void ReadSizes(const ConfigReader& reader, Model& model) {
  Sizes& sizes = model.sizes;
  sizes['H'] = reader.RequiredSize("hidden_size");
  sizes['F'] = reader.Size("ffn_hidden_size", 4 * sizes['H']);
  sizes['L'] = reader.RequiredSize("num_layers");
  sizes['A'] = reader.RequiredSize("num_attention_heads");
  sizes['G'] = reader.Size("num_query_groups", sizes['A']);
  sizes['D'] = reader.Size("kv_channels", 0);
  CompleteSizes(model, "num_attention_heads", "num_query_groups", reader.path());
}

// `rope_scaling` with its factor is Megatron's (the other constants are its own); `scale_factor` and what belongs to it
// NeMo 2's.
Json RopeScaling(const ConfigReader& reader) {
  const Json linear = reader.Positive("seq_len_interpolation_factor", LinearFactor(reader));
  const Json factor = reader.Positive("scale_factor", nullptr);
  const bool llama3 = reader.Bool("rope_scaling", false);
  if (const Json& stored = reader.At(kStoredRope); !stored.is_null()) return RopeScalingOf(stored, reader.path());
  if (int(!linear.is_null()) + int(!factor.is_null()) + int(llama3) > 1)
    throw Error(Code::kMismatch,
                "more than one of seq_len_interpolation_factor, rope_scaling and scale_factor, expected at most one")
        .At("reading", reader.path());
  if (llama3) return Llama3Scaling(reader.Positive("rope_scaling_factor", 8.0));
  if (!linear.is_null()) return {{"factor", linear}, {"rope_type", "linear"}};
  if (factor.is_null()) return nullptr;
  Json scaling = Llama3Scaling(factor);
  scaling["low_freq_factor"] = reader.Positive("low_freq_factor", scaling["low_freq_factor"]);
  scaling["high_freq_factor"] = reader.Positive("high_freq_factor", scaling["high_freq_factor"]);
  scaling["original_max_position_embeddings"] = reader.Size("old_context_len", 8192);
  return scaling;
}

// A template's window is believed where the config counts the present token otherwise than its kind does now:
// Megatron-Bridge did before 0.4.
Json Window(const ConfigReader& reader, uint64_t beside, const NemoHints& hints) {
  bool counts_itself = false;
  const Json before = WindowOf(reader, &counts_itself);
  if (before.is_null() || counts_itself) return before;
  if (hints.template_model && hints.template_model->hyper.sliding_window == before) return before;
  return before.get<uint64_t>() + beside;
}

// -- writing ----------------------------------------------------------------------------------------------------------

// One switch is all linear layers' at once, another q, k and v's alone.
void SetBiases(const Model& model, const McoreDialect& dialect, Json& config) {
  const bool qkv = model.Has("qkv_bias"), o = model.Has("o_bias"), mlp = model.Has("mlp_bias");
  if (o != mlp || (mlp && !qkv)) NoPlaceIn(dialect, fmt::format("biases on {} only", o ? "attention" : "the MLP"));
  config["add_bias_linear"] = mlp;
  config["add_qkv_bias"] = qkv && !o;
}

}  // namespace

void NoPlaceIn(const McoreDialect& dialect, const std::string& what) {
  throw Error(Code::kUnsupported,
              fmt::format("{} has no place for {}; this model stays in {}", dialect.title, what, dialect.refuge));
}

void ReplaceMcoreNames(Json& config) {
  for (auto& [key, value] : config.items()) {
    if (!value.is_object() || !value.contains("_target_") || !value["_target_"].is_string()) continue;
    Json name = value["_target_"];
    value = std::move(name);
  }
}

Model ModelFromMcoreConfig(const Json& config, const std::string& path, const McoreDialect& dialect,
                           const NemoEmbedding& embedding, const NemoHints& hints, NemoDoubts& doubts) {
  ConfigReader reader(config, path);
  Model model;
  ReadSizes(reader, model);
  RefuseUnsupported(reader);
  HyperParameters& hyper = model.hyper;
  hyper.rms_norm_eps = reader.Positive("layernorm_epsilon", 1e-5);
  hyper.initializer_range = reader.Number("init_method_std", 0.02);
  hyper.max_position_embeddings = reader.Size("max_position_embeddings", reader.Size("seq_length", 1024));
  hyper.rope_scaling = RopeScaling(reader);
  hyper.sliding_window = Window(reader, dialect.beside_window, hints);
  const NemoTraits traits = TraitsOf(reader, hyper);
  hyper.hidden_act = traits.activation->hf;
  model.family = &NemoFamilyOf(reader, traits, MegatronDialectOf::kMcore, dialect.family, hints);
  for (const Flag& flag : model.family->flags)
    if (traits.flags.count(flag.flag)) model.flags.push_back(flag.flag);
  model.tied = reader.Bool("share_embeddings_and_output_weights", true);
  ReadKeys(reader, MegatronDialectOf::kMcore, model);
  model.sizes['V'] = VocabularyOf(reader, "vocab_size", embedding, hints, doubts);
  if (hints.template_model) {
    CheckTemplate(model, *hints.template_model, {}, path);
    model.tied = hints.template_model->tied;
    // seq_length is what the model was trained with, which may be less than it can.
    hyper.max_position_embeddings = hints.template_model->hyper.max_position_embeddings;
  }
  return model;
}

Json FamilyToTell(const Model& model, const Json& config) {
  HyperParameters read_back;
  const ConfigReader reader(config, "");
  const bool other = IsTakenForAnother(model, reader, TraitsOf(reader, read_back), MegatronDialectOf::kMcore);
  return other ? Json(model.family->name) : Json();
}

bool HasLlama3Rope(const Model& model) {
  const Json& scaling = model.hyper.rope_scaling;
  return !scaling.is_null() && scaling["rope_type"] == "llama3";
}

bool HasMcoreRope(const Model& model) {
  const Json& scaling = model.hyper.rope_scaling;
  return scaling.is_null() || HasLlama3Rope(model) || scaling["rope_type"] == "linear";
}

Json McoreConfigOf(const Model& model, const McoreDialect& dialect, bool keeps_rope) {
  const Sizes& sizes = model.sizes;
  const HyperParameters& hyper = model.hyper;
  if (!hyper.hf_only.empty()) NoPlaceIn(dialect, hyper.hf_only);
  Json config = Json::object();
  config["num_layers"] = sizes['L'];
  config["hidden_size"] = sizes['H'];
  config["ffn_hidden_size"] = sizes['F'];
  config["num_attention_heads"] = sizes['A'];
  config["num_query_groups"] = sizes['G'];
  config["kv_channels"] = sizes['D'];
  config["vocab_size"] = sizes['V'];
  config["make_vocab_size_divisible_by"] = VocabularyDivisor(sizes['V']);
  config["seq_length"] = hyper.max_position_embeddings;
  config["init_method_std"] = hyper.initializer_range;
  config["layernorm_epsilon"] = hyper.rms_norm_eps;
  config["rotary_base"] = RotaryBase(hyper);
  config["rotary_percent"] = hyper.rotary_percent;
  config["rotary_interleaved"] = model.family->rope_interleaved;
  config[kZeroCentred] = WritesZeroCentred(*model.family, MegatronDialectOf::kMcore);
  config["share_embeddings_and_output_weights"] = model.tied;
  SetBiases(model, dialect, config);
  config["qk_layernorm"] = model.Has("qk_norm");
  config["window_size"] = nullptr;
  if (!model.family->rope_local_key.empty()) {
    config["window_size"] = hyper.sliding_window;
  } else if (!hyper.sliding_window.is_null()) {
    config["window_size"] = Json::array({hyper.sliding_window.get<uint64_t>() - dialect.beside_window, 0});
  }
  SetKeys(
      model, MegatronDialectOf::kMcore, [&](const std::string& what) { NoPlaceIn(dialect, what); }, config);
  const Json& scaling = hyper.rope_scaling;
  if (scaling.is_null() || HasLlama3Rope(model)) return config;
  if (!HasMcoreRope(model)) {
    if (!keeps_rope) NoPlaceIn(dialect, fmt::format("rope scaling {}", ScalingInWords(scaling)));
    return config;
  }
  config[std::string(LinearFactorKey(*model.family))] = scaling["factor"];
  return config;
}

void SetMcorePrecision(Dtype dtype, Json& config) {
  config["fp16"] = dtype == Dtype::kF16;
  config["bf16"] = dtype == Dtype::kBF16;
}

std::string TorchName(Dtype dtype) { return fmt::format("torch.{}", Row(dtype).torch); }

}  // namespace reshard
