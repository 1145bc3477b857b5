#include "models/kinds/hf_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

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
    throw Error(Code::kCorrupt, "neither 'architectures' nor 'model_type', expected one of them")
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

// One object for all the spellings: {"rope_type": ..., fields of the type}, or null where positions are not scaled.
Json RopeScaling(const ConfigReader& reader, Json& theta) {
  const Json& modern = reader.At("rope_parameters");
  const Json& classic = reader.At("rope_scaling");
  const Json& given = modern.is_null() ? classic : modern;
  if (given.is_null()) return nullptr;
  if (!given.is_object())
    throw Error(Code::kCorrupt, fmt::format("rope settings are {}, expected an object", given.dump()))
        .At("reading", reader.path());
  ConfigReader rope(given, reader.path());
  theta = rope.Number("rope_theta", theta);
  std::string type = rope.String("rope_type", rope.String("type", "default"));
  if (type == "default") return nullptr;
  for (const RopeField& row : kRopeFields)
    if (row.type == type && rope.Number(row.field, nullptr).is_null())
      throw Error(Code::kCorrupt, fmt::format("rope scaling '{}' has no '{}', expected one", type, row.field))
          .At("reading", reader.path());
  if (type == "linear") return Json{{"factor", given["factor"]}, {"rope_type", type}};  // the only field that it reads
  std::vector<std::string> keys;
  for (const auto& [key, value] : given.items())
    if (key != "rope_theta" && key != "type" && key != "rope_type") keys.push_back(key);
  keys.push_back("rope_type");
  std::sort(keys.begin(), keys.end());
  Json scaling = Json::object();
  for (const std::string& key : keys) scaling[key] = key == "rope_type" ? Json(type) : given[key];
  return scaling;
}

// The window that every layer has, or null; what differs between layers is put into words.
void ReadWindow(const Family& family, const ConfigReader& reader, HyperParameters& hyper, uint64_t layers) {
  Json window = reader.At("sliding_window");
  if (!window.is_null()) window = reader.Size("sliding_window", 0);
  if (!family.window_switch.empty() && !reader.Bool(family.window_switch, false)) window = nullptr;
  hyper.sliding_window = window;
  if (window.is_null() || family.window_switch.empty()) return;
  const Json& first = reader.At("max_window_layers");  // layers before it have no window
  uint64_t full = first.is_number_unsigned() ? first.get<uint64_t>() : 0;
  if (full >= layers) {
    hyper.sliding_window = nullptr;
  } else if (full > 0) {
    hyper.layered_window = fmt::format("a sliding window of {} from layer {} on only", window.dump(), full);
  }
}

// `config` with the family's defaults for keys that are not there.
Json WithDefaults(const Family& family, const Json& config) {
  Json full = config;
  for (const ConfigDefault& row : family.defaults)
    if (!full.contains(row.key)) full[std::string(row.key)] = Json::parse(row.value);
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
  hyper.rms_norm_eps = reader.Number("rms_norm_eps", nullptr);
  hyper.initializer_range = reader.Number("initializer_range", nullptr);
  hyper.max_position_embeddings = reader.RequiredSize("max_position_embeddings");
  hyper.rope_theta = reader.Number("rope_theta", nullptr);
  hyper.rope_scaling = RopeScaling(reader, hyper.rope_theta);
  hyper.hidden_act = reader.String("hidden_act", "");
  ReadWindow(family, reader, hyper, model.sizes['L']);
  if (hyper.hidden_act != "silu")
    throw Unsupported(path,
                      fmt::format("hidden_act '{}', expected 'silu' for {}", hyper.hidden_act, family.class_name));
  Json partial = reader.Number("partial_rotary_factor", 1.0);
  if (partial.get<double>() != 1.0)
    throw Unsupported(path,
                      fmt::format("partial_rotary_factor {}, expected 1.0 for {}", partial.dump(), family.class_name));
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
  bool has_window_key = std::any_of(model.family->defaults.begin(), model.family->defaults.end(),
                                    [](const ConfigDefault& row) { return row.key == "sliding_window"; });
  if (has_window_key) config["sliding_window"] = hyper.sliding_window;
  if (!model.family->window_switch.empty()) {
    config[std::string(model.family->window_switch)] = !hyper.sliding_window.is_null();
    config["max_window_layers"] = hyper.sliding_window.is_null() ? model.sizes['L'] : 0;
  }
  return PythonJson(config, true) + "\n";
}

std::string WithHfDtype(const std::string& text, Dtype dtype) {
  std::string value = fmt::format("\"{}\"", Row(dtype).torch);
  std::string changed = text;
  for (const char* key : {"torch_dtype", "dtype"})
    if (auto with = ReplaceTopLevelValue(changed, key, value)) changed = *with;
  return changed;
}

}  // namespace reshard
