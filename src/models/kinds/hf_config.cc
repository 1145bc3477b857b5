#include "models/kinds/hf_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "models/families/families.h"
#include "models/kinds/config_reader.h"

namespace reshard {
namespace {

constexpr const char* kWindowSwitch = "use_sliding_window";

std::string KnownFamilies() {
  std::vector<std::string_view> names;
  for (const Family* family : Families()) names.push_back(family->class_name);
  return fmt::format("{}", fmt::join(names, ", "));
}

// Whether a config can be of the family by its class and its model_type; empty: it does not say.
bool IsOf(const Family& family, std::string_view class_name, std::string_view model_type) {
  if (!model_type.empty() && model_type != family.name) return false;
  return class_name.empty() || class_name == family.class_name ||
         (!model_type.empty() && class_name == family.other_class);
}

const Family* FamilyWhere(std::string_view class_name, std::string_view model_type) {
  for (const Family* family : Families())
    if (IsOf(*family, class_name, model_type)) return family;
  return nullptr;
}

// The wrapper that a config says it is; null where it is none.
const Wrapper* WrapperOf(const Json& config) {
  const ConfigReader reader(config, "");
  const Json &classes = reader.At("architectures"), &type = reader.At("model_type");
  const Json first = classes.is_array() && !classes.empty() ? classes[0] : Json();
  for (const Family* family : Families())
    for (const Wrapper& wrapper : family->wrappers)
      if (first.is_string() ? first == wrapper.class_name : type == wrapper.model_type) return &wrapper;
  return nullptr;
}

Error Unsupported(const std::string& path, std::string message) {
  Error error(Code::kUnsupported, std::move(message));
  error.At("reading", path);
  return error;
}

// By `architectures` and `model_type`, which must agree where both are given.
const Family& FamilyOf(const ConfigReader& reader) {
  const Json& classes = reader.At("architectures");
  std::string model_type = reader.String("model_type", "");
  std::string class_name =
      classes.is_array() && !classes.empty() && classes[0].is_string() ? classes[0].get<std::string>() : "";
  if (class_name.empty() && model_type.empty())
    throw Error(
        Code::kCorrupt,
        reader.At("architecture").is_null()
            ? "neither 'architectures' nor 'model_type', expected one of them"
            : "this is the config of a TensorRT-LLM checkpoint ('architecture'), expected its rank files beside it "
              "and no weights of another kind; its conversion or copy may not be finished")
        .At("reading", reader.path());
  if (const Family* family = FamilyWhere(class_name, model_type)) return *family;
  const Family *by_class = FamilyWhere(class_name, ""), *by_type = FamilyWhere("", model_type);
  if (!class_name.empty() && !by_class && (!by_type || by_type->other_class.empty()))
    throw Unsupported(reader.path(),
                      fmt::format("the class {} is not known, expected one of {} (`reshard families` lists them)",
                                  class_name, by_type ? by_type->class_name : KnownFamilies()));
  if (class_name.empty())
    throw Unsupported(reader.path(),
                      fmt::format("model_type '{}' is not known, expected one of {}", model_type, KnownFamilies()));
  const Family& known = by_class ? *by_class : *by_type;
  throw Error(Code::kMismatch,
              fmt::format("'architectures' says {} and 'model_type' says {}, expected {}", class_name, model_type,
                          by_class ? fmt::format("'{}'", known.name) : std::string(known.class_name)))
      .At("reading", reader.path());
}

void RefuseQuantised(const ConfigReader& reader) {
  const Json& quantisation = reader.At("quantization_config");
  if (quantisation.is_null()) return;
  std::string method =
      quantisation.is_object() && quantisation.contains("quant_method") && quantisation["quant_method"].is_string()
          ? quantisation["quant_method"].get<std::string>()
          : "an unnamed method";
  throw Unsupported(
      reader.path(),
      fmt::format("the weights are quantised ({}), expected plain ones; use the model's unquantised checkpoint",
                  method));
}

// What a type of rope scaling cannot do without (transformers: modeling_rope_utils.py).
struct RopeField {
  std::string_view type, field;
  bool list = false;
};
constexpr RopeField kRopeFields[] = {
    {"linear", "factor"},
    {"dynamic", "factor"},
    {"yarn", "factor"},
    {"llama3", "factor"},
    {"llama3", "low_freq_factor"},
    {"llama3", "high_freq_factor"},
    {"llama3", "original_max_position_embeddings"},
    {"longrope", "short_factor", true},
    {"longrope", "long_factor", true},
};

struct Rope {
  Json scaling, theta, local_theta, percent;

  friend bool operator==(const Rope& a, const Rope& b) {
    return a.scaling == b.scaling && a.theta == b.theta && a.local_theta == b.local_theta && a.percent == b.percent;
  }
};

// What transformers 5 has for each type of layers, where they differ.
constexpr const char *kFullLayers = "full_attention", *kWindowLayers = "sliding_attention";

// Settings of one key; `rope` has what the config's own keys say.
Rope ReadRopeSettings(const Family& family, const Json& settings, const std::string& path, Rope rope) {
  const bool by_type = !family.rope_local_key.empty() && settings.is_object() && settings.contains(kFullLayers) &&
                       settings[kFullLayers].is_object();
  const Json& full = by_type ? settings[kFullLayers] : settings;
  rope.scaling = RopeScalingOf(full, path);
  const ConfigReader reader(full, path);
  rope.theta = reader.Positive("rope_theta", rope.theta);
  rope.percent = reader.Positive("partial_rotary_factor", rope.percent);
  if (!by_type || !settings.contains(kWindowLayers)) return rope;
  if (const Json scaling = RopeScalingOf(settings[kWindowLayers], path); !scaling.is_null())
    throw Unsupported(
        path, fmt::format("layers with a window have rope scaling {}, expected none", scaling["rope_type"].dump()));
  rope.local_theta = ConfigReader(settings[kWindowLayers], path).Positive("rope_theta", rope.local_theta);
  return rope;
}

// What a long-context scaling is relative to is a key of the config itself before transformers 5.
constexpr const char* kOriginal = "original_max_position_embeddings";

Json WithOriginal(const ConfigReader& reader, Json settings) {
  const ConfigReader rope(settings, reader.path());
  const std::string type = settings.is_object() ? rope.String("rope_type", rope.String("type", "")) : "";
  const Json original = reader.Positive(kOriginal, nullptr);
  if ((type == "longrope" || type == "su") && !settings.contains(kOriginal) && !original.is_null())
    settings[kOriginal] = original;
  return settings;
}

// Transformers 4 writes rope_scaling and reads nothing else; 5 writes rope_parameters, and reads the former first.
Rope ReadRope(const Family& family, const ConfigReader& reader) {
  Rope said;
  said.theta = reader.Positive("rope_theta", nullptr);
  said.percent = reader.Positive("partial_rotary_factor", 1.0);
  if (!family.rope_local_key.empty()) said.local_theta = reader.Positive(family.rope_local_key, nullptr);
  std::vector<Rope> ropes;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json& settings = reader.At(key);
    if (settings.is_null() || settings.empty()) continue;
    ropes.push_back(ReadRopeSettings(family, WithOriginal(reader, settings), reader.path(), said));
  }
  if (ropes.empty()) return said;
  if (!(ropes.front() == ropes.back()))
    throw Error(
        Code::kMismatch,
        fmt::format("rope_parameters mean {} with base {} and rope_scaling {} with base {}, expected the same",
                    ropes[0].scaling.dump(), ropes[0].theta.dump(), ropes[1].scaling.dump(), ropes[1].theta.dump()))
        .At("reading", reader.path());
  return ropes.front();
}

// Queries that are scaled by their position. Where positions are scaled too, that is what has no place elsewhere.
void ReadQueryScaling(const ConfigReader& reader, HyperParameters& hyper) {
  constexpr const char* kBeta = "llama_4_scaling_beta";
  const Json& settings = reader.At("rope_parameters");
  if (!settings.is_object()) return;
  const Json beta = ConfigReader(settings, reader.path()).Number(kBeta, 0.0);
  if (beta != 0.0 && hyper.rope_scaling.is_null()) hyper.hf_only = fmt::format("{} {}", kBeta, beta.dump());
}

void SetRope(const Family& family, const ConfigReader& reader, HyperParameters& hyper) {
  const Rope rope = ReadRope(family, reader);
  hyper.rope_theta = rope.theta;
  hyper.rope_scaling = rope.scaling;
  ReadQueryScaling(reader, hyper);
  hyper.rope_local_theta = rope.local_theta;
  hyper.rotary_percent = rope.percent.get<double>() == 1.0 ? Json(1.0) : rope.percent;
  if (!family.partial_rotation && hyper.rotary_percent != 1.0)
    throw Unsupported(reader.path(), fmt::format("partial_rotary_factor {}, expected 1.0", rope.percent.dump()));
}

// Layers [begin, end).
struct LayerRun {
  uint64_t begin, end;

  friend bool operator==(const LayerRun&, const LayerRun&) = default;
};

std::vector<LayerRun> NotEmpty(std::vector<LayerRun> runs) {
  std::erase_if(runs, [](LayerRun run) { return run.begin == run.end; });
  return runs;
}

// The layers of `layer_types` that have a window.
std::vector<LayerRun> WindowedRuns(const Json& types, uint64_t layers, const std::string& path) {
  if (!types.is_array() || types.size() != layers)
    throw Error(Code::kMismatch,
                fmt::format("layer_types is {}, expected one word for each of {} layers",
                            types.is_array() ? fmt::format("{} long", types.size()) : "no list", layers))
        .At("reading", path);
  std::vector<LayerRun> runs;
  for (uint64_t layer = 0; layer < layers; ++layer) {
    if (types[layer] == "full_attention") continue;
    if (types[layer] != "sliding_attention")
      throw Unsupported(
          path, fmt::format("layer_types has {}, expected full_attention or sliding_attention", types[layer].dump()));
    if (runs.empty() || runs.back().end != layer) runs.push_back({layer, layer});
    ++runs.back().end;
  }
  return runs;
}

std::string ToWords(const std::vector<LayerRun>& runs) {
  std::vector<std::string> words;
  for (LayerRun run : runs)
    words.push_back(run.end == run.begin + 1 ? fmt::format("{}", run.begin)
                                             : fmt::format("{} to {}", run.begin, run.end - 1));
  return fmt::format("{}", fmt::join(words, ", "));
}

// The layers that have a window by the family's rule, where the config does not list them.
std::vector<LayerRun> UsualRuns(const Family& family, const ConfigReader& reader, uint64_t layers) {
  if (family.window == WindowRule::kSwitched) {
    const Json& first = reader.At("max_window_layers");
    return {{first.is_number_unsigned() ? std::min(first.get<uint64_t>(), layers) : 0, layers}};
  }
  std::vector<LayerRun> runs;
  const uint64_t period = family.window == WindowRule::kPeriodic ? family.window_period : layers + 1;
  for (uint64_t begin = 0; begin < layers; begin += period)
    runs.push_back({begin, std::min(begin + period - 1, layers)});
  return runs;
}

bool HasSwitch(const Family& family) { return family.window == WindowRule::kSwitched; }

// The window, or null. Which layers have it is put into words where it is not as usual.
void ReadWindow(const Family& family, const ConfigReader& reader, HyperParameters& hyper, uint64_t layers) {
  if (!HasWindow(family)) return;
  Json window = reader.At("sliding_window");
  if (HasSwitch(family) && !reader.Bool(kWindowSwitch, false)) window = nullptr;  // and may be any number
  if (!window.is_null()) window = reader.Size("sliding_window", 0);
  std::vector<LayerRun> runs = UsualRuns(family, reader, layers);
  const Json& period = reader.At("sliding_window_pattern");  // of transformers before layer_types
  if (family.window == WindowRule::kPeriodic && period.is_number_unsigned() && period != family.window_period)
    throw Unsupported(reader.path(),
                      fmt::format("sliding_window_pattern {}, expected {}", period.dump(), family.window_period));
  if (const Json& types = reader.At("layer_types"); !types.is_null() && family.window != WindowRule::kAll) {
    runs = WindowedRuns(types, layers, reader.path());
    if (window.is_null() && !runs.empty())
      throw Error(Code::kMismatch, fmt::format("layer_types has sliding_attention, expected {}a sliding_window",
                                               HasSwitch(family) ? fmt::format("{} and ", kWindowSwitch) : ""))
          .At("reading", reader.path());
  }
  runs = NotEmpty(std::move(runs));
  if (window.is_null() || runs.empty()) {
    if (family.window == WindowRule::kPeriodic) hyper.hf_only = "full attention in all layers";
    return;
  }
  hyper.sliding_window = window;
  const bool usual = family.window == WindowRule::kPeriodic ? runs == NotEmpty(UsualRuns(family, reader, layers))
                                                            : runs.size() == 1 && runs[0] == LayerRun{0, layers};
  if (!usual) hyper.hf_only = fmt::format("a sliding window of {} in layers {} only", window.dump(), ToWords(runs));
}

// Layers whose q and k are not rotated: by a list of truth values, or every so manieth.
void ReadLayersWithoutRope(const ConfigReader& reader, HyperParameters& hyper, uint64_t layers) {
  const Json& rotated = reader.At("no_rope_layers");
  const uint64_t interval = reader.Size("no_rope_layer_interval", layers + 1);
  if (!rotated.is_null() && !rotated.empty() && (!rotated.is_array() || rotated.size() != layers))
    throw Error(Code::kMismatch,
                fmt::format("no_rope_layers is {}, expected a number for each of {} layers", rotated.dump(), layers))
        .At("reading", reader.path());
  std::vector<LayerRun> runs;
  for (uint64_t layer = 0; layer < layers; ++layer) {
    const bool has_rope = rotated.is_array() && !rotated.empty() ? rotated[layer] != 0 && rotated[layer] != false
                                                                 : (layer + 1) % interval != 0;
    if (!has_rope) runs.push_back({layer, layer + 1});
  }
  if (!runs.empty()) hyper.hf_only = fmt::format("layers without rope (no_rope_layers: {})", ToWords(runs));
}

// Keys in which null says something: as many groups as heads, no window, no cap.
constexpr std::string_view kNullable[] = {"num_key_value_heads", "sliding_window", "attn_logit_softcapping",
                                          "final_logit_softcapping"};

// `config` with the family's defaults for keys that are not there, or null without a meaning.
Json WithDefaults(const Family& family, const Json& config) {
  Json full = config;
  for (const ConfigDefault& row : family.defaults) {
    bool nullable = std::find(std::begin(kNullable), std::end(kNullable), row.key) != std::end(kNullable);
    if (!full.contains(row.key) || (full[std::string(row.key)].is_null() && !nullable))
      full[std::string(row.key)] = Json::parse(row.value);
  }
  return full;
}

// A key that has two names has one afterwards.
void ResolveSynonyms(const Family& family, Json& config) {
  auto resolve = [&](std::string_view key, std::string_view synonym) {
    if (!synonym.empty() && !config.contains(key) && config.contains(synonym))
      config[std::string(key)] = Json(config[std::string(synonym)]);
  };
  for (const ConfigKey& key : family.keys) resolve(key.hf, key.synonym);
  for (const Flag& flag : family.flags) resolve(flag.key, flag.synonym);
}

void ReadKeys(const ConfigReader& reader, Model& model) {
  for (const ConfigKey& key : model.family->keys) {
    if (key.size) {
      model.sizes[key.size] = reader.RequiredSize(key.hf);
      continue;
    }
    const Json& value = reader.At(key.hf);
    if (value.is_structured() || value.is_string())
      throw Error(Code::kCorrupt, fmt::format("'{}' is {}, expected a number or a truth value", key.hf, value.dump()))
          .At("reading", reader.path());
    model.hyper.more[std::string(key.hf)] = value;
  }
}

// The keys from which LayerPlan makes the same plan again.
void SetLayerPlan(const Model& model, Json& config) {
  Json dense = Json::array();
  for (size_t layer = 0; layer < model.layers.size(); ++layer)
    if (model.layers[layer] == LayerKind::kDense) dense.push_back(layer);
  if (model.family->layers == LayerRule::kSparseSteps) {
    config["decoder_sparse_step"] = 1;
    config["mlp_only_layers"] = dense;
  }
  if (model.family->layers == LayerRule::kDenseFirst) config["first_k_dense_replace"] = dense.size();
}

void SetRopeKeys(const Model& model, Json& config) {
  const Family& family = *model.family;
  const HyperParameters& hyper = model.hyper;
  const Json& scaling = hyper.rope_scaling;
  if (!family.rope_fields.empty()) {
    Json settings = Json::parse(family.rope_fields);
    settings["rope_type"] = "default";
    if (!scaling.is_null()) settings.update(scaling);
    settings["rope_theta"] = hyper.rope_theta;
    config["rope_parameters"] = std::move(settings);
    return;
  }
  config["rope_theta"] = hyper.rope_theta;
  config["rope_scaling"] = scaling;
  if (!scaling.is_null() && scaling["rope_type"] == "longrope" && scaling.contains(kOriginal))
    config[kOriginal] = scaling[kOriginal];
  if (!family.rope_local_key.empty()) config[std::string(family.rope_local_key)] = hyper.rope_local_theta;
  if (family.partial_rotation) config["partial_rotary_factor"] = hyper.rotary_percent;
}

void ReadSizes(const ConfigReader& reader, Model& model) {
  Sizes& sizes = model.sizes;
  sizes['V'] = reader.RequiredSize("vocab_size");
  sizes['H'] = reader.RequiredSize("hidden_size");
  sizes['F'] = reader.RequiredSize("intermediate_size");
  sizes['L'] = reader.RequiredSize("num_hidden_layers");
  sizes['A'] = reader.RequiredSize("num_attention_heads");
  sizes['G'] = reader.Size("num_key_value_heads", sizes['A']);
  sizes['D'] = reader.Size("head_dim", 0);
  CompleteSizes(model, "num_attention_heads", "num_key_value_heads", reader.path());
}

}  // namespace

bool HasWindow(const Family& family) { return family.window != WindowRule::kNone; }

Json RopeScalingOf(const Json& settings, const std::string& path) {
  if (!settings.is_object())
    throw Error(Code::kCorrupt, fmt::format("rope settings are {}, expected an object", settings.dump()))
        .At("reading", path);
  for (const auto& [key, value] : settings.items())
    if (value.is_object())
      throw Unsupported(path, fmt::format("rope settings of their own for '{}', expected one for all layers", key));
  ConfigReader rope(settings, path);
  std::string type = rope.String("rope_type", rope.String("type", "default"));
  if (type == "su") type = "longrope";  // its first name
  if (type == "default") return nullptr;
  for (const RopeField& row : kRopeFields)
    if (row.type == type && (row.list ? !rope.At(row.field).is_array() : rope.Positive(row.field, nullptr).is_null()))
      throw Error(Code::kCorrupt, fmt::format("rope scaling '{}' has no '{}', expected one", type, row.field))
          .At("reading", path);
  if (type == "linear") return Json{{"factor", settings["factor"]}, {"rope_type", type}};  // it reads no other field
  std::set<std::string> keys = {"rope_type"};
  for (const auto& [key, value] : settings.items()) keys.insert(key);
  for (const char* other : {"rope_theta", "type", "partial_rotary_factor"}) keys.erase(other);
  Json scaling = Json::object();
  for (const std::string& key : keys) scaling[key] = key == "rope_type" ? Json(type) : settings[key];
  return scaling;
}

Model ModelFromHfConfig(const Json& config, const std::string& path) {
  if (!config.is_object()) throw Error(Code::kCorrupt, "no object at the top, expected one").At("reading", path);
  ConfigReader bare(config, path);
  RefuseQuantised(bare);
  const Family& family = FamilyOf(bare);
  Json full = config;
  ResolveSynonyms(family, full);
  full = WithDefaults(family, full);
  ConfigReader reader(full, path);
  Model model;
  model.family = &family;
  ReadSizes(reader, model);
  ReadKeys(reader, model);
  for (const Flag& flag : family.flags)
    if (flag.key.empty() || reader.Bool(flag.key, false)) model.flags.push_back(flag.flag);
  model.tied = reader.Bool("tie_word_embeddings", false);
  model.layers = LayerPlan(family, model.sizes['L'], full, path);
  HyperParameters& hyper = model.hyper;
  hyper.rms_norm_eps = reader.Positive("rms_norm_eps", nullptr);
  hyper.initializer_range = reader.Number("initializer_range", nullptr);
  hyper.max_position_embeddings = reader.RequiredSize("max_position_embeddings");
  SetRope(family, reader, hyper);
  hyper.hidden_act = family.act;
  ReadWindow(family, reader, hyper, model.sizes['L']);
  if (family.has_layers_without_rope) ReadLayersWithoutRope(reader, hyper, model.sizes['L']);
  const std::string act = reader.String(family.act_key, std::string(family.act));
  if (act != family.act && (family.old_act.empty() || act != family.old_act))
    throw Unsupported(path,
                      fmt::format("{} '{}', expected '{}' for {}", family.act_key, act, family.act, family.class_name));
  return model;
}

std::string TextModelConfig(const std::string& text, const std::string& path) {
  const Json config = ParseJson(text, path);
  const Wrapper* wrapper = config.is_object() ? WrapperOf(config) : nullptr;
  if (!wrapper) return text;
  if (!config.contains("text_config") || !config["text_config"].is_object())
    throw Error(Code::kCorrupt,
                fmt::format("no object 'text_config', expected one in the config of {}", wrapper->class_name))
        .At("reading", path);
  Json inner = config["text_config"];
  const Family* family = nullptr;
  for (const Family* candidate : Families())
    if (inner.value("model_type", Json()) == candidate->name ||
        (!family && std::any_of(candidate->wrappers.begin(), candidate->wrappers.end(),
                                [&](const Wrapper& own) { return &own == wrapper; })))
      family = candidate;
  inner["architectures"] = Json::array({family->class_name});
  if (!inner.contains("model_type")) inner["model_type"] = family->name;
  for (const char* key : {"tie_word_embeddings", "torch_dtype", "dtype", "quantization_config", "bos_token_id",
                          "eos_token_id", "pad_token_id"})
    if (!inner.contains(key) && config.contains(key)) inner[key] = config[key];
  return PythonJson(inner, true) + "\n";
}

std::string HfConfigText(const Model& model, Dtype dtype) {
  const HyperParameters& hyper = model.hyper;
  const Family& family = *model.family;
  Json config = Json::object();
  config["architectures"] = Json::array({family.class_name});
  config["model_type"] = family.name;
  config["vocab_size"] = model.sizes['V'];
  config["hidden_size"] = model.sizes['H'];
  config["intermediate_size"] = model.sizes['F'];
  config["num_hidden_layers"] = model.sizes['L'];
  config["num_attention_heads"] = model.sizes['A'];
  config["num_key_value_heads"] = model.sizes['G'];
  config["head_dim"] = model.sizes['D'];
  config[std::string(family.act_key)] = hyper.hidden_act;
  config["rms_norm_eps"] = hyper.rms_norm_eps;
  config["initializer_range"] = hyper.initializer_range;
  config["max_position_embeddings"] = hyper.max_position_embeddings;
  SetRopeKeys(model, config);
  config["tie_word_embeddings"] = model.tied;
  config["attention_dropout"] = 0.0;
  config["use_cache"] = true;
  config["torch_dtype"] = Row(dtype).torch;
  for (const ConfigKey& key : family.keys)
    config[std::string(key.hf)] = key.size ? Json(model.sizes[key.size]) : hyper.more.value(key.hf, Json());
  SetLayerPlan(model, config);
  for (const Flag& flag : family.flags)
    if (!flag.key.empty()) config[std::string(flag.key)] = model.Has(flag.flag);
  if (HasWindow(family)) config["sliding_window"] = hyper.sliding_window;
  if (family.has_layers_without_rope) config["no_rope_layers"] = std::vector<int>(model.sizes['L'], 1);
  if (HasSwitch(family)) {
    config[kWindowSwitch] = !hyper.sliding_window.is_null();
    config["max_window_layers"] = hyper.sliding_window.is_null() ? model.sizes['L'] : 0;
  }
  return PythonJson(config, true) + "\n";
}

std::string WithHfDtype(const std::string& text, Dtype dtype) {
  std::string value = fmt::format("\"{}\"", Row(dtype).torch);
  std::optional<std::string> changed;
  for (const char* key : {"torch_dtype", "dtype"})
    if (auto with = ReplaceTopLevelValue(changed.value_or(text), key, value)) changed = with;
  return changed ? *changed : WithTopLevelValue(text, "torch_dtype", value);
}

}  // namespace reshard
