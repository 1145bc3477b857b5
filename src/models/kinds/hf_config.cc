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

std::string KnownFamilies() {
  std::vector<std::string_view> names;
  for (const Family* family : Families()) names.push_back(family->class_name);
  return fmt::format("{}", fmt::join(names, ", "));
}

const Family* FamilyWhere(std::string_view Family::*field, std::string_view value) {
  for (const Family* family : Families())
    if (family->*field == value) return family;
  return nullptr;
}

Error Unsupported(const std::string& path, std::string message) {
  Error error(Code::kUnsupported, std::move(message));
  error.At("reading", path);
  return error;
}

// By `architectures` where it is given, else by `model_type`; where both are, they must agree.
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
  const Family* by_class = FamilyWhere(&Family::class_name, class_name);
  const Family* by_type = FamilyWhere(&Family::name, model_type);
  if (!class_name.empty() && !by_class)
    throw Unsupported(reader.path(),
                      fmt::format("the class {} is not known, expected one of {} (`reshard families` lists them)",
                                  class_name, KnownFamilies()));
  if (class_name.empty() && !by_type)
    throw Unsupported(reader.path(),
                      fmt::format("model_type '{}' is not known, expected one of {}", model_type, KnownFamilies()));
  if (by_class && !model_type.empty() && by_class != by_type)
    throw Error(Code::kMismatch, fmt::format("'architectures' says {} and 'model_type' says {}, expected '{}'",
                                             class_name, model_type, by_class->name))
        .At("reading", reader.path());
  return by_class ? *by_class : *by_type;
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
};
constexpr RopeField kRopeFields[] = {
    {"linear", "factor"},
    {"dynamic", "factor"},
    {"yarn", "factor"},
    {"llama3", "factor"},
    {"llama3", "low_freq_factor"},
    {"llama3", "high_freq_factor"},
    {"llama3", "original_max_position_embeddings"},
};

void RefusePartialRotation(const ConfigReader& reader) {
  Json partial = reader.Number("partial_rotary_factor", 1.0);
  if (partial.get<double>() != 1.0)
    throw Unsupported(reader.path(), fmt::format("partial_rotary_factor {}, expected 1.0", partial.dump()));
}

struct Rope {
  Json scaling, theta;

  friend bool operator==(const Rope& a, const Rope& b) { return a.scaling == b.scaling && a.theta == b.theta; }
};

// Transformers 4 writes rope_scaling and reads nothing else; 5 writes rope_parameters, and reads the former first.
Rope ReadRope(const ConfigReader& reader) {
  Json theta = reader.Positive("rope_theta", nullptr);
  std::vector<Rope> ropes;
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const Json& settings = reader.At(key);
    if (settings.is_null() || settings.empty()) continue;
    Json scaling = RopeScalingOf(settings, reader.path());
    ropes.push_back({scaling, ConfigReader(settings, reader.path()).Positive("rope_theta", theta)});
  }
  if (ropes.empty()) return {nullptr, theta};
  if (!(ropes.front() == ropes.back()))
    throw Error(
        Code::kMismatch,
        fmt::format("rope_parameters mean {} with base {} and rope_scaling {} with base {}, expected the same",
                    ropes[0].scaling.dump(), ropes[0].theta.dump(), ropes[1].scaling.dump(), ropes[1].theta.dump()))
        .At("reading", reader.path());
  return ropes.front();
}

// Layers [begin, end).
struct LayerRun {
  uint64_t begin, end;
};

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

// The window that every layer has, or null; what differs between layers is put into words. Where the family has a
// switch, layer_types says which layers have one, else max_window_layers: layers before it have none.
void ReadWindow(const Family& family, const ConfigReader& reader, HyperParameters& hyper, uint64_t layers) {
  if (!HasWindow(family)) return;
  Json window = reader.At("sliding_window");
  if (!window.is_null()) window = reader.Size("sliding_window", 0);
  if (!family.window_switch.empty() && !reader.Bool(family.window_switch, false)) window = nullptr;
  std::vector<LayerRun> runs = {{0, layers}};
  if (!family.window_switch.empty()) {
    const Json &types = reader.At("layer_types"), &first = reader.At("max_window_layers");
    if (!types.is_null()) {
      runs = WindowedRuns(types, layers, reader.path());
      if (window.is_null() && !runs.empty())
        throw Error(Code::kMismatch, fmt::format("layer_types has sliding_attention, expected {} and a sliding_window",
                                                 family.window_switch))
            .At("reading", reader.path());
    } else if (first.is_number_unsigned()) {
      runs[0].begin = std::min(first.get<uint64_t>(), layers);
    }
  }
  if (window.is_null() || runs.empty() || runs[0].begin == layers) return;
  hyper.sliding_window = window;
  if (runs[0].begin > 0 || runs[0].end < layers)
    hyper.layered_window = fmt::format("a sliding window of {} in layers {} only", window.dump(), ToWords(runs));
}

// Keys in which null says something: as many groups as heads, no window.
constexpr std::string_view kNullable[] = {"num_key_value_heads", "sliding_window"};

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

bool HasWindow(const Family& family) {
  return std::any_of(family.defaults.begin(), family.defaults.end(),
                     [](const ConfigDefault& row) { return row.key == "sliding_window"; });
}

Json RopeScalingOf(const Json& settings, const std::string& path) {
  if (!settings.is_object())
    throw Error(Code::kCorrupt, fmt::format("rope settings are {}, expected an object", settings.dump()))
        .At("reading", path);
  for (const auto& [key, value] : settings.items())
    if (value.is_object())
      throw Unsupported(path, fmt::format("rope settings of their own for '{}', expected one for all layers", key));
  ConfigReader rope(settings, path);
  RefusePartialRotation(rope);
  std::string type = rope.String("rope_type", rope.String("type", "default"));
  if (type == "default") return nullptr;
  for (const RopeField& row : kRopeFields)
    if (row.type == type && rope.Positive(row.field, nullptr).is_null())
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
  Json full = WithDefaults(family, config);
  ConfigReader reader(full, path);
  Model model;
  model.family = &family;
  ReadSizes(reader, model);
  for (const Flag& flag : family.flags)
    if (flag.key.empty() || reader.Bool(flag.key, false)) model.flags.push_back(flag.flag);
  model.tied = reader.Bool("tie_word_embeddings", false);
  model.layers = LayerPlan(family, model.sizes['L'], full, path);
  HyperParameters& hyper = model.hyper;
  hyper.rms_norm_eps = reader.Positive("rms_norm_eps", nullptr);
  hyper.initializer_range = reader.Number("initializer_range", nullptr);
  hyper.max_position_embeddings = reader.RequiredSize("max_position_embeddings");
  RefusePartialRotation(reader);
  Rope rope = ReadRope(reader);
  hyper.rope_theta = rope.theta;
  hyper.rope_scaling = rope.scaling;
  hyper.hidden_act = reader.String("hidden_act", "");
  ReadWindow(family, reader, hyper, model.sizes['L']);
  if (hyper.hidden_act != "silu")
    throw Unsupported(path,
                      fmt::format("hidden_act '{}', expected 'silu' for {}", hyper.hidden_act, family.class_name));
  return model;
}

std::string HfConfigText(const Model& model, Dtype dtype) {
  const HyperParameters& hyper = model.hyper;
  Json config = Json::object();
  config["architectures"] = Json::array({model.family->class_name});
  config["model_type"] = model.family->name;
  config["vocab_size"] = model.sizes['V'];
  config["hidden_size"] = model.sizes['H'];
  config["intermediate_size"] = model.sizes['F'];
  config["num_hidden_layers"] = model.sizes['L'];
  config["num_attention_heads"] = model.sizes['A'];
  config["num_key_value_heads"] = model.sizes['G'];
  config["head_dim"] = model.sizes['D'];
  config["hidden_act"] = hyper.hidden_act;
  config["rms_norm_eps"] = hyper.rms_norm_eps;
  config["initializer_range"] = hyper.initializer_range;
  config["max_position_embeddings"] = hyper.max_position_embeddings;
  config["rope_theta"] = hyper.rope_theta;
  config["rope_scaling"] = hyper.rope_scaling;
  config["tie_word_embeddings"] = model.tied;
  config["attention_dropout"] = 0.0;
  config["use_cache"] = true;
  config["torch_dtype"] = Row(dtype).torch;
  for (const Flag& flag : model.family->flags)
    if (!flag.key.empty()) config[std::string(flag.key)] = model.Has(flag.flag);
  if (HasWindow(*model.family)) config["sliding_window"] = hyper.sliding_window;
  if (!model.family->window_switch.empty()) {
    config[std::string(model.family->window_switch)] = !hyper.sliding_window.is_null();
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
