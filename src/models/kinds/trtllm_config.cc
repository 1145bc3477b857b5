#include "models/kinds/trtllm_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/bytes.h"
#include "base/error.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/hf_config.h"

namespace reshard {
namespace {

using Quantisation = TrtllmOptions::Quantisation;

// Keys of the two configs that mean the same.
struct KeyPair {
  const char *trtllm, *hf;
};
constexpr KeyPair kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"hidden_size", "hidden_size"},
    {"intermediate_size", "intermediate_size"},
    {"num_hidden_layers", "num_hidden_layers"},
    {"num_attention_heads", "num_attention_heads"},
    {"num_key_value_heads", "num_key_value_heads"},
    {"head_size", "head_dim"},
    {"max_position_embeddings", "max_position_embeddings"},
    {"norm_epsilon", "rms_norm_eps"},
    {"rotary_base", "rope_theta"},
    {"rotary_scaling", "rope_scaling"},
    {"attn_bias", "attention_bias"},
    {"mlp_bias", "mlp_bias"},
    {"tie_word_embeddings", "tie_word_embeddings"},
};

// Scalings that its rotary embedding knows by name.
constexpr std::string_view kScalings[] = {"linear", "dynamic", "longrope", "llama3"};
constexpr unsigned kVersionWithYarn = 15;

constexpr uint64_t kMaxRanks = 4096;

// Keys without which a model would be guessed at: the defaults of TensorRT-LLM are not those of the families.
constexpr const char* kRequired[] = {"vocab_size",        "hidden_size",         "intermediate_size",
                                     "num_hidden_layers", "num_attention_heads", "max_position_embeddings"};

// What the families that are read never do otherwise. Keys of one model may lie in `moe`.
struct FixedKey {
  const char *group, *key, *value;
};
constexpr FixedKey kFixed[] = {
    {"", "position_embedding_type", "\"rope_gpt_neox\""},
    {"", "rotary_pct", "1.0"},
    {"", "residual_mlp", "false"},
    {"", "qk_layernorm", "false"},
    {"", "fc_after_embed", "false"},
    {"", "use_input_layernorm_in_first_layer", "true"},
    {"", "use_last_layernorm", "true"},
};

// Where a config says what it does of experts: in `moe`, or at the top as NeMo's exporter does.
struct MoeKey {
  const char *key, *at_top;
};
constexpr MoeKey kExperts = {"num_experts", "moe_num_experts"}, kTopK = {"top_k", "moe_top_k"},
                 kNormalisation = {"normalization_mode", "moe_normalization_mode"};

// How it calls the activation of a gated expert.
constexpr const char* kGatedSilu = "swiglu";

Error At(const std::string& path, Code code, std::string message) {
  Error error(code, std::move(message));
  error.At("reading", path);
  return error;
}

// -- reading ----------------------------------------------------------------------------------------------------------

// An object of the config; an empty one where it has none.
const Json& ObjectIn(const Json& config, const char* key, const std::string& path) {
  static const Json kEmpty = Json::object();
  auto found = config.find(key);
  if (found == config.end() || found->is_null()) return kEmpty;
  if (!found->is_object())
    throw At(path, Code::kCorrupt, fmt::format("'{}' is {}, expected an object", key, found->dump()));
  return *found;
}

// A model that computes something else of the same tensors.
void RefuseOtherModels(const Json& config, const std::string& path) {
  for (const FixedKey& row : kFixed) {
    const ConfigReader reader(*row.group ? ObjectIn(config, row.group, path) : config, path);
    const Json& found = reader.At(row.key);
    if (!found.is_null() && found != Json::parse(row.value))
      throw At(path, Code::kUnsupported, fmt::format("'{}' is {}, expected {}", row.key, found.dump(), row.value));
  }
}

const Json& MoeValue(const Json& config, const MoeKey& key, const std::string& path) {
  const Json& moe = ObjectIn(config, "moe", path);
  return ConfigReader(moe.contains(key.key) ? moe : config, path).At(moe.contains(key.key) ? key.key : key.at_top);
}

// The value that a config has by the family's renormalisation: Qwen's class never does it.
Json Normalisation(const Family& family) { return family.trtllm_config == TrtllmConfig::kQwen ? Json(0) : Json(1); }

// What a config says of experts, by the names of config.json.
void TranslateExperts(const Json& config, const std::string& path, Json& translated) {
  const Json experts = MoeValue(config, kExperts, path);
  if (experts.is_null() || experts == 0) return;
  translated["num_local_experts"] = translated["num_experts"] = experts;
  translated["num_experts_per_tok"] = MoeValue(config, kTopK, path);
  for (auto [trtllm, hf] : {std::pair{"moe_intermediate_size", "moe_intermediate_size"},
                            std::pair{"moe_shared_expert_intermediate_size", "shared_expert_intermediate_size"}})
    if (config.contains(trtllm)) translated[hf] = config[trtllm];
}

void CheckExperts(const Json& config, const std::string& path, const Model& model) {
  const Json &experts = MoeValue(config, kExperts, path), &mode = MoeValue(config, kNormalisation, path);
  if (!model.sizes['E'] && !experts.is_null() && experts != 0)
    throw At(path, Code::kUnsupported,
             fmt::format("num_experts is {} for {}, expected 0", experts.dump(), model.family->class_name));
  if (model.sizes['E'] && mode != Normalisation(*model.family))
    throw At(path, Code::kUnsupported,
             fmt::format("'normalization_mode' is {}, expected {} for {}", mode.dump(),
                         Normalisation(*model.family).dump(), model.family->class_name));
}

// Under the names that the config has for them.
void CheckKeys(const Json& config, const std::string& path) {
  const ConfigReader reader(config, path);
  for (const char* key : kRequired) reader.RequiredSize(key);
  if (reader.At("norm_epsilon").is_null())
    throw At(path, Code::kCorrupt, "'norm_epsilon' is missing, expected a number");
  for (const char* key : {"norm_epsilon", "rotary_base"}) reader.Positive(key, 1);
  reader.Size("head_size", 1);
  reader.Bool("attn_bias", false);
}

// Weights of a quantised checkpoint are other numbers; those whose quantisation is left to trtllm-build are plain.
void RefuseQuantised(const Json& config, const std::string& path) {
  const Json& quantisation = ObjectIn(config, "quantization", path);
  const std::string algorithm = ConfigReader(quantisation, path).String("quant_algo", "");
  if (algorithm.empty() || algorithm == "W8A16" || algorithm == "W4A16") return;
  throw At(
      path, Code::kUnsupported,
      fmt::format("the weights are quantised ({}), expected plain ones; convert the unquantised model", algorithm));
}

// `mapping`, the keys of which lie at the top of configs before 0.9.
const Json& MappingOf(const Json& config, const std::string& path) {
  return config.contains("mapping") ? ObjectIn(config, "mapping", path) : config;
}

void RefuseModel(const Model& model, const std::string& path) {
  auto refuse = [&](const std::string& what) { throw At(path, Code::kUnsupported, what); };
  if (model.family->trtllm_config == TrtllmConfig::kNone)
    refuse(
        fmt::format("{} ({}) has no place in a TensorRT-LLM checkpoint here, expected Llama, Mistral, Mixtral, "
                    "Qwen2 or Qwen2-MoE",
                    model.family->class_name, model.family->name));
  if (model.Has("mlp_bias")) refuse("the MLP has biases (mlp_bias), expected none: TensorRT-LLM has no place for them");
  if (model.family->trtllm_config == TrtllmConfig::kQwen && !model.Has("qkv_bias"))
    refuse(fmt::format("qkv_bias is false, expected true: TensorRT-LLM's {} always has these biases",
                       model.family->class_name));
  if (!model.IsUniform()) refuse("some layers have experts and some have none, expected experts in all of them");
  if (const Json renormalised = model.hyper.more.value("norm_topk_prob", Json(false)); renormalised == true)
    refuse(fmt::format("norm_topk_prob is true, expected false: TensorRT-LLM's {} does not renormalise",
                       model.family->class_name));
}

// -- writing ----------------------------------------------------------------------------------------------------------

// The scaling with its keys in the order of the HuggingFace config, or as Llama 3.1 has them. Llama's config class of
// that time gave a scaling that had only `type` a `rope_type`, too.
Json RotaryScaling(const Model& model, const Json& hf_config) {
  const Json& scaling = model.hyper.rope_scaling;
  if (scaling.is_null()) return nullptr;
  std::vector<std::string> order;
  const ConfigReader reader(hf_config, "");
  const Json& stored = reader.At("rope_scaling").is_object() ? reader.At("rope_scaling") : reader.At("rope_parameters");
  if (stored.is_object())
    for (const auto& [key, value] : stored.items()) order.push_back(key);
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"})
    order.push_back(key);
  for (const auto& [key, value] : scaling.items())
    if (key != "rope_type") order.push_back(key);
  const bool has_type = std::find(order.begin(), order.end(), "type") != order.end();
  if (!has_type || model.family->name == "llama") order.push_back("rope_type");
  Json ordered = Json::object();
  for (const std::string& key : order) {
    if (key == "type") ordered[key] = scaling.at("rope_type");
    if (scaling.contains(key)) ordered[key] = scaling.at(key);
  }
  return ordered;
}

void RefuseScaling(const Json& scaling, unsigned version, const std::string& path) {
  if (scaling.is_null()) return;
  const std::string type = scaling.at("rope_type");
  const bool known = std::find(std::begin(kScalings), std::end(kScalings), type) != std::end(kScalings);
  if (known || (type == "yarn" && version >= kVersionWithYarn)) return;
  throw At(path, Code::kUnsupported,
           fmt::format("rope scaling '{}', expected linear, dynamic, longrope or llama3 for TensorRT-LLM 0.{}{}", type,
                       version, type == "yarn" ? "; --trtllm_version=0.15 knows it" : ""));
}

Json Moe(const Model& model, unsigned version) {
  const uint64_t experts = model.sizes['E'];
  const bool none = !experts && model.family->trtllm_config == TrtllmConfig::kLlama;
  Json moe = {{"num_experts", experts}};
  if (version >= 14) {
    moe["moe_intermediate_size"] = 0;
    moe["num_shared_experts"] = 0;
  }
  moe["top_k"] = experts ? model.hyper.more.value("num_experts_per_tok", Json(0)) : Json(0);
  moe["normalization_mode"] = none ? Json(nullptr) : Normalisation(*model.family);
  if (version >= 13) moe["sparse_mixer_epsilon"] = 0.01;
  moe["tp_mode"] = 0;
  if (version >= 15) {
    moe["device_limited_n_group"] = 0;
    moe["device_limited_topk_group"] = 0;
    moe["device_limited_routed_scaling_factor"] = 1.0;
  }
  return moe;
}

Json Mapping(const TrtllmOptions& options) {
  return {{"world_size", options.tp * options.pp},
          {"gpus_per_node", 8},
          {"cp_size", 1},
          {"tp_size", options.tp},
          {"pp_size", options.pp},
          {"moe_tp_size", options.moe_tp},
          {"moe_ep_size", options.moe_ep}};
}

Json Algorithm(Quantisation quantisation) {
  switch (quantisation) {
    case Quantisation::kNone:
      return nullptr;
    case Quantisation::kInt8:
      return "W8A16";
    case Quantisation::kInt4:
      return "W4A16";
    case Quantisation::kFp8Rowwise:
      return "FP8_PER_CHANNEL_PER_TOKEN";
    case Quantisation::kGptq:
      return "W4A16_GPTQ";
  }
  throw Error(Code::kInternal, "a quantisation without a name");
}

Json QuantisationOf(const TrtllmOptions& options, const QuantisedWeights& source) {
  const bool rowwise = options.quantisation == Quantisation::kFp8Rowwise;
  const bool gptq = options.quantisation == Quantisation::kGptq;
  Json json = {{"quant_algo", Algorithm(options.quantisation)},
               {"kv_cache_quant_algo", options.fp8_kv_cache ? Json("FP8") : Json(nullptr)},
               {"group_size", gptq ? source.encoded.group : 128},
               {"smoothquant_val", options.version >= 13 ? Json(0.5) : Json(nullptr)},
               {"clamp_val", rowwise ? Json::array({-source.fp8_bound, source.fp8_bound}) : Json(nullptr)}};
  // Of FP8 weights as they are published; those that are made here are all quantised in 0.15.
  if (options.version >= 15) json["use_meta_recipe"] = source.encoded.encoding == Encoding::kFp8Rows;
  json["has_zero_point"] = gptq;
  json["pre_quant_scale"] = false;
  json["exclude_modules"] = nullptr;
  return json;
}

// The keys that only the config class of the family has, which come first.
Json OwnKeys(const Model& model, const TrtllmOptions& options, Json rotary_scaling) {
  const TrtllmConfig base = model.family->trtllm_config;
  const bool qwen = base == TrtllmConfig::kQwen;
  Json json = {{"mlp_bias", false}, {"attn_bias", model.Has("qkv_bias")}, {"rotary_base", model.hyper.rope_theta}};
  json["rotary_scaling"] = std::move(rotary_scaling);
  if (!qwen) json["residual_mlp"] = false;
  json["disable_weight_only_quant_plugin"] = !options.weight_only_plugin;
  if (qwen && options.version >= 15) json["num_labels"] = 1;
  json["moe"] = Moe(model, options.version);
  if (qwen) return json;
  json["remove_duplicated_kv_heads"] = options.remove_duplicated_kv_heads;
  if (options.version >= 15) {
    json["fc_after_embed"] = false;
    json["use_input_layernorm_in_first_layer"] = true;
    json["use_last_layernorm"] = true;
    json["layer_idx_offset"] = 0;
  }
  return json;
}

void AddCommonKeys(const Model& model, const TrtllmOptions& options, const QuantisedWeights& source, Dtype dtype,
                   Json& json) {
  const Sizes& sizes = model.sizes;
  json["architecture"] = model.family->class_name;
  json["dtype"] = Row(dtype).torch;
  json["vocab_size"] = sizes['V'];
  json["hidden_size"] = sizes['H'];
  json["num_hidden_layers"] = sizes['L'];
  json["num_attention_heads"] = sizes['A'];
  json["hidden_act"] = sizes['E'] ? Json(kGatedSilu) : Json(model.hyper.hidden_act);
  json["logits_dtype"] = "float32";
  json["norm_epsilon"] = model.hyper.rms_norm_eps;
  if (options.version >= 15) json["runtime_defaults"] = nullptr;
  json["position_embedding_type"] = "rope_gpt_neox";
  json["max_position_embeddings"] = model.hyper.max_position_embeddings;
  json["num_key_value_heads"] = sizes['G'];
  json["intermediate_size"] = sizes['F'];
  json["mapping"] = Mapping(options);
  json["quantization"] = QuantisationOf(options, source);
  json["use_parallel_embedding"] = options.parallel_embedding;
  json["embedding_sharding_dim"] = options.embedding_axis;
  json["share_embedding_table"] = options.share_embedding;
  json["head_size"] = sizes['D'];
  json["qk_layernorm"] = false;
}

}  // namespace

Model ModelFromTrtllmConfig(const Json& config, const std::string& path) {
  if (!config.is_object()) throw At(path, Code::kCorrupt, "no object at the top, expected one");
  const ConfigReader reader(config, path);
  std::string architecture = reader.String("architecture", "");
  if (architecture.empty()) throw At(path, Code::kCorrupt, "'architecture' is missing, expected a class");
  if (architecture == "LLaMAForCausalLM") architecture = "LlamaForCausalLM";  // of NeMo's exporter, in early releases
  RefuseQuantised(config, path);
  RefuseOtherModels(config, path);
  CheckKeys(config, path);
  Json translated = {{"architectures", {architecture}}, {"sliding_window", nullptr}};
  for (const KeyPair& row : kKeys)
    if (config.contains(row.trtllm)) translated[row.hf] = config[row.trtllm];
  if (const std::string act = reader.String("hidden_act", "silu"); act != kGatedSilu) translated["hidden_act"] = act;
  TranslateExperts(config, path, translated);
  Model model = ModelFromHfConfig(translated, path);
  CheckExperts(config, path, model);
  return model;
}

TrtllmOptions CutOfTrtllmConfig(const Json& config, const std::string& path) {
  const ConfigReader reader(config, path), mapping(MappingOf(config, path), path);
  TrtllmOptions cut;
  cut.tp = mapping.Size("tp_size", 1);
  cut.pp = mapping.Size("pp_size", 1);
  auto given = [&](const char* key) { return mapping.At(key) == -1 ? 0 : mapping.Size(key, 1); };
  if (const Json& experts = MoeValue(config, kExperts, path); !experts.is_null() && experts != 0) {
    if (!mapping.At("moe_tp_size").is_null()) cut.moe_tp = given("moe_tp_size");
    if (!mapping.At("moe_ep_size").is_null()) cut.moe_ep = given("moe_ep_size");
  }
  const uint64_t world = mapping.Size("world_size", cut.tp * cut.pp), context = mapping.Size("cp_size", 1);
  if (context != 1)
    throw At(path, Code::kUnsupported, fmt::format("cp_size is {}, expected 1: no context parallelism", context));
  if (world != cut.tp * cut.pp)
    throw At(path, Code::kMismatch,
             fmt::format("world_size is {}, expected {}: tp_size {} times pp_size {}", world, cut.tp * cut.pp, cut.tp,
                         cut.pp));
  if (world > kMaxRanks)
    throw At(path, Code::kUnsupported, fmt::format("{} ranks, expected at most {}", world, kMaxRanks));
  const Json& axis = reader.At("embedding_sharding_dim");
  if (!axis.is_null() && axis != 0 && axis != 1)
    throw At(path, Code::kCorrupt, fmt::format("embedding_sharding_dim is {}, expected 0 or 1", axis.dump()));
  cut.parallel_embedding = reader.Bool("use_parallel_embedding", false);
  cut.embedding_axis = axis == 1 ? 1 : 0;
  cut.share_embedding = reader.Bool("share_embedding_table", false);
  return cut;
}

// Like those before 0.9 it has the keys of `mapping` at the top; TensorRT-LLM's class may add that, too.
bool IsOfNemoExporter(const Json& config) { return !config.contains("mapping") || config.contains("tp_size"); }

void KeepDeferred(const Json& config, const std::string& path, TrtllmOptions& options) {
  const Json& stored = ObjectIn(config, "quantization", path);
  const ConfigReader reader(stored, path);
  const std::string weights = reader.String("quant_algo", ""), cache = reader.String("kv_cache_quant_algo", "");
  if (!weights.empty() && options.quantisation == Quantisation::kNone) {
    if (const Json& excluded = reader.At("exclude_modules"); !excluded.is_null())
      throw At(path, Code::kUnsupported,
               fmt::format("'exclude_modules' is {} beside {}, expected null: it would be lost; give "
                           "--use_weight_only to quantise all linear weights",
                           excluded.dump(), weights));
    options.quantisation = weights == "W4A16" ? Quantisation::kInt4 : Quantisation::kInt8;
    if (ConfigReader(config, path).Bool("disable_weight_only_quant_plugin", false)) options.weight_only_plugin = false;
  }
  if (cache.empty() || options.fp8_kv_cache) return;
  if (cache != "FP8")
    throw At(
        path, Code::kUnsupported,
        fmt::format("'kv_cache_quant_algo' is {}, expected FP8 or null: its scales are of activations and would be "
                    "lost; give --fp8_kv_cache, or convert to hf first",
                    cache));
  options.fp8_kv_cache = true;
}

void SettleExperts(TrtllmOptions& options, const std::string& path) {
  uint64_t &tp = options.moe_tp, &ep = options.moe_ep;
  if (!ep) ep = tp && options.tp % tp == 0 ? options.tp / tp : 1;
  if (!tp) tp = options.tp % ep == 0 ? options.tp / ep : 1;
  if (tp * ep != options.tp)
    throw At(path, Code::kMismatch,
             fmt::format("moe_tp_size {} by moe_ep_size {}, expected a product of {}, the tensor ranks", tp, ep,
                         options.tp));
}

std::vector<Rank> TrtllmRanks(const Model& model, uint64_t vocab_rows, const TrtllmOptions& cut,
                              const std::string& path, std::string_view remedy) {
  RefuseModel(model, path);
  const uint64_t layers = model.sizes['L'];
  TrtllmOptions options = cut;
  SettleExperts(options, path);
  std::vector<std::string> problems;
  std::vector<Rank> ranks;
  if (layers % options.pp != 0) problems.push_back(fmt::format("{} layers by {} stages", layers, options.pp));
  if (model.sizes['E'] % options.moe_ep != 0)
    problems.push_back(fmt::format("{} experts by {} parts (moe_ep_size)", model.sizes['E'], options.moe_ep));
  for (uint64_t stage = 0; stage < options.pp; ++stage) {
    for (uint64_t shard = 0; shard < options.tp; ++shard) {
      Rank rank;
      rank.layers = {stage * layers / options.pp, (stage + 1) * layers / options.pp};
      const uint64_t experts = model.sizes['E'] / options.moe_ep, part = shard % options.moe_ep;
      rank.experts = {part * experts, (part + 1) * experts};
      rank.expert_tensor = {shard / options.moe_ep, options.moe_tp};
      rank.vocab_rows = vocab_rows;
      rank.stores_head = !options.share_embedding;
      rank.tensor = {shard, options.tp};
      rank.embedding_axis = options.parallel_embedding ? std::optional(options.embedding_axis) : std::nullopt;
      ranks.push_back(rank);
    }
  }
  for (std::string& problem : Indivisible(model, ranks[0])) problems.push_back(std::move(problem));
  if (problems.empty()) return ranks;
  problems[0] += fmt::format(", expected sizes that divide; {}", remedy);
  throw Gathered(Code::kMismatch, std::move(problems)).At("reading", path);
}

std::string TrtllmConfigText(const Model& model, const TrtllmOptions& options, const QuantisedWeights& source,
                             Dtype dtype, const Json& hf_config, const std::string& path) {
  if (options.remove_duplicated_kv_heads && model.family->trtllm_config != TrtllmConfig::kLlama)
    throw At(path, Code::kUnsupported,
             fmt::format("TensorRT-LLM's config of {} has no key for --remove_duplicated_kv_heads, expected a model of "
                         "its Llama class",
                         model.family->class_name));
  RefuseScaling(model.hyper.rope_scaling, options.version, path);
  Json json = OwnKeys(model, options, RotaryScaling(model, hf_config));
  AddCommonKeys(model, options, source, dtype, json);
  if (model.family->trtllm_config == TrtllmConfig::kQwen) {
    json["qwen_type"] = model.family->name;
    json["moe_intermediate_size"] = model.sizes['M'];
    json["moe_shared_expert_intermediate_size"] = model.sizes['S'];
    if (options.version >= 15) json["tie_word_embeddings"] = model.tied;
  }
  return PythonJson(json, false, 4);
}

}  // namespace reshard
