#include "models/kinds/nemo2_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/yaml.h"
#include "models/kinds/fiddle.h"
#include "models/kinds/nemo2_classes.h"

namespace reshard {
namespace {

constexpr std::string_view kModelYaml = "model.yaml", kIoJson = "io.json";
constexpr std::string_view kModels = "nemo.collections.llm.gpt.model.",
                           kTokenizer = "nemo.collections.common.tokenizers.huggingface.auto_tokenizer";

// -- reading ----------------------------------------------------------------------------------------------------------

void AddClass(const std::string& target, bool complete, Nemo2Context& context) {
  const Nemo2Class* known = FindNemo2Class(target);
  if (!known && !complete)
    throw Error(
        Code::kUnsupported,
        fmt::format("the config is a {}, whose defaults are not known, expected one of NeMo's classes for Llama, "
                    "Mistral or Qwen; a model.yaml beside it has every value",
                    target))
        .At("reading", context.path);
  if (!known) return;
  context.family = FamilyOfNemo2Class(*known);
  Json config = Nemo2Defaults(*known);
  config.update(context.config);
  context.config = std::move(config);
}

void ReadModelYaml(Nemo2Context& context) {
  Json model = YamlValue(ParseYaml(context.text, context.path));
  if (!model.is_object() || !model.contains("config") || !model["config"].is_object() ||
      !model["config"].contains("_target_") || !model["config"]["_target_"].is_string())
    throw Error(Code::kCorrupt, "no mapping 'config' with a '_target_', expected the dump of a model")
        .At("reading", context.path);
  context.config = std::move(model["config"]);
  const std::string target = context.config["_target_"];
  context.config.erase("_target_");
  ReplaceMcoreNames(context.config);
  AddClass(target, true, context);
}

void ReadIoJson(Nemo2Context& context) {
  FiddleConfig config = ReadFiddle(ParseJson(context.text, context.path), context.path, {"model", "config"});
  context.config = std::move(config.arguments);
  ReplaceMcoreNames(context.config);
  AddClass(config.target, false, context);
}

// -- writing ----------------------------------------------------------------------------------------------------------

Json TorchNameInYaml(std::string name) { return {{"_target_", std::move(name)}, {"_call_", false}}; }

FiddleValue ToFiddle(const Json& value) {
  return value.is_array() ? FiddleValue::List(value) : FiddleValue::Leaf(value);
}

// The class that a model's config is, and the values of its fields.
struct Fields {
  std::string_view class_name;
  Json values;
};

Fields FieldsOf(const Model& model) {
  const McoreDialect dialect = Nemo2Dialect(model.family);
  const MegatronClasses& classes = model.family->megatron;
  if (classes.config.empty()) NoPlaceIn(dialect, fmt::format("models of the family {}", model.family->name));
  Fields fields{classes.config, McoreConfigOf(model, dialect)};
  if (HasLlama3Rope(model)) {
    const Json& scaling = model.hyper.rope_scaling;
    if (classes.llama3_config.empty())
      NoPlaceIn(dialect, fmt::format("rope scaling {} of {}", scaling.dump(), model.family->name));
    fields.class_name = classes.llama3_config;
    fields.values["scale_factor"] = scaling["factor"];
    for (const char* key : {"low_freq_factor", "high_freq_factor"}) fields.values[key] = scaling[key];
    fields.values["old_context_len"] = scaling["original_max_position_embeddings"];
  }
  return fields;
}

}  // namespace

McoreDialect Nemo2Dialect(const Family* family) {
  return {.title = "a NeMo 2 model", .refuge = "the hf kind", .family = family};
}

Nemo2Context ReadNemo2Context(Io& io, const std::string& folder, const OpenOptions& options) {
  for (std::string_view name : {kModelYaml, kIoJson}) {
    if (!Exists(io, folder, name)) continue;
    Nemo2Context context;
    context.path = JoinPath(folder, std::string(name));
    context.text = ReadTreeText(io, context.path, options);
    if (name == kModelYaml) {
      ReadModelYaml(context);
    } else {
      ReadIoJson(context);
    }
    return context;
  }
  throw Error(Code::kCorrupt, "neither model.yaml nor io.json, expected one of them").At("reading", folder);
}

Nemo2ContextTexts Nemo2ContextOf(const Model& model, const Nemo2ConfigOptions& options) {
  const Fields fields = FieldsOf(model);
  const Json defaults = Nemo2Defaults(*FindNemo2Class(fields.class_name));
  Json values = fields.values;
  if (defaults.contains("max_position_embeddings")) values["max_position_embeddings"] = values["seq_length"];
  if (defaults.contains("window_size") && values["window_size"].is_null()) values["cp_comm_type"] = nullptr;
  SetMcorePrecision(options.dtype, values);

  const std::string module = fmt::format("{}{}", kModels, model.family->megatron.module);
  FiddleValue config = FiddleValue::Config(module, std::string(fields.class_name));
  for (const auto& [key, value] : values.items()) {
    auto usual = defaults.find(key);
    const bool is_usual = usual == defaults.end() ? value.is_null() && key != "cp_comm_type" : *usual == value;
    if (!is_usual) config.Add(key, ToFiddle(value));
  }
  config.Add("params_dtype", FiddleValue::Name("torch", std::string(Row(options.dtype).torch)));

  FiddleValue name = FiddleValue::Leaf(options.tokenizer);
  if (!options.tokenizer_is_kept)
    name = FiddleValue::Config("nemo.lightning.io.artifact.file", "DirOrStringArtifact")
               .Add("attr", FiddleValue::Leaf(options.tokenizer))
               .Add("skip", FiddleValue::Leaf(true));
  FiddleValue tokenizer =
      FiddleValue::Config(std::string(kTokenizer), "AutoTokenizer").Add("pretrained_model_name", name);
  FiddleValue built = FiddleValue::Config(module, std::string(model.family->megatron.model))
                          .Add("config", config)
                          .Add("tokenizer", tokenizer);
  FiddleValue context = FiddleValue::Config("nemo.lightning.io.pl", "TrainerContext")
                            .Add("model", built)
                            .Add("trainer", FiddleValue::Leaf(nullptr))
                            .Add("extra", FiddleValue::EmptyDict());

  Json full = defaults;
  full.update(values);
  full["activation_func"] = TorchNameInYaml("torch.nn.functional." + full["activation_func"].get<std::string>());
  full["params_dtype"] = TorchNameInYaml(TorchName(options.dtype));
  full["_target_"] = fmt::format("{}.{}", module, fields.class_name);
  Json yaml = {
      {"_target_", fmt::format("{}.{}", module, model.family->megatron.model)},
      {"config", full},
      {"tokenizer",
       {{"_target_", fmt::format("{}.AutoTokenizer", kTokenizer)}, {"pretrained_model_name", options.tokenizer}}}};
  return {PythonJson(FiddleDocument(context), false) + "\n", EmitYaml(yaml)};
}

}  // namespace reshard
