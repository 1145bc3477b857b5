#include "models/kinds/megatron_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "archive/zip.h"
#include "base/error.h"
#include "base/yaml.h"
#include "formats/torch_pickle/pickle.h"
#include "models/families/families.h"

namespace reshard {
namespace {

constexpr std::string_view kRunConfig = "run_config.yaml", kCommon = "common.pt";

// -- reading run_config.yaml ------------------------------------------------------------------------------------------

// The family of a class that only one family's checkpoints name.
const Family* FamilyOfBridge(std::string_view target) {
  auto names = [&](const Family* family) { return family->megatron.bridge == target; };
  const auto families = Families();
  if (std::count_if(families.begin(), families.end(), names) != 1) return nullptr;
  return *std::find_if(families.begin(), families.end(), names);
}

// Since 0.6 the model is built from two mappings, of which one lies in the other.
Json Flat(const Json& model) {
  Json flat = Json::object();
  auto inner = model.find("transformer");
  if (inner != model.end() && inner->is_object()) flat = *inner;
  for (const auto& [key, value] : model.items())
    if (key != "transformer") flat[key] = value;
  return flat;
}

MegatronConfig ReadRunConfig(Io& io, std::string path, const OpenOptions& options) {
  MegatronConfig read;
  read.path = std::move(path);
  read.text = ReadTreeText(io, read.path, options);
  const Json run = YamlValue(ParseYaml(read.text, read.path));
  if (!run.is_object() || !run.contains("model") || !run["model"].is_object())
    throw Error(Code::kCorrupt, "no mapping 'model', expected one").At("reading", read.path);
  read.config = Flat(run["model"]);
  for (const char* key : {kFamilyKey, kStoredRope})
    if (run.contains(key)) read.config[key] = run[key];
  if (auto target = read.config.find("_target_"); target != read.config.end() && target->is_string())
    read.family = FamilyOfBridge(target->get<std::string>());
  ReplaceMcoreNames(read.config);
  return read;
}

// -- reading the arguments --------------------------------------------------------------------------------------------

// Simple values and lists of them; nothing for what is an object.
std::optional<Json> ValueOf(const pickle::Node& node, bool within_list = false) {
  using pickle::Type;
  switch (node.type) {
    case Type::kNone:
      return nullptr;
    case Type::kBool:
      return node.integer != 0;
    case Type::kInt:
      return node.integer < 0 ? Json(node.integer) : Json(static_cast<uint64_t>(node.integer));
    case Type::kFloat:
      return node.real;
    case Type::kText:
      return std::string(node.text);
    case Type::kList:
    case Type::kTuple: {
      if (within_list) return std::nullopt;
      Json list = Json::array();
      for (const pickle::Node* item : node.items)
        if (auto value = ValueOf(*item, true)) list.push_back(std::move(*value));
      return list;
    }
    default:
      return std::nullopt;
  }
}

// The arguments by name. Values that are objects say nothing of the model, and are left out.
Json ArgumentsOf(const pickle::Node& root, const std::string& path) {
  const pickle::Node* args = pickle::Find(root, "args");
  if (!args)
    throw Error(Code::kCorrupt,
                "no run_config.yaml beside it and no 'args' in it, expected one that says what the model is")
        .At("reading", path);
  if (pickle::ClassOf(args) != "Namespace" || !args->state || args->state->type != pickle::Type::kDict)
    throw Error(Code::kCorrupt, "'args' is no namespace of arguments, expected one").At("reading", path);
  Json arguments = Json::object();
  const auto& items = args->state->items;
  for (size_t i = 0; i + 1 < items.size(); i += 2)
    if (items[i]->type == pickle::Type::kText)
      if (auto value = ValueOf(*items[i + 1])) arguments[std::string(items[i]->text)] = std::move(*value);
  return arguments;
}

// An argument and the name that it has in megatron-core's configs.
struct Renamed {
  std::string_view argument, name;
};
constexpr Renamed kRenamed[] = {
    {"norm_epsilon", "layernorm_epsilon"}, {"apply_layernorm_1p", "layernorm_zero_centered_gamma"},
    {"num_experts", "num_moe_experts"},    {"rotary_seq_len_interpolation_factor", "seq_len_interpolation_factor"},
    {"use_rope_scaling", "rope_scaling"},  {"hybrid_override_pattern", "hybrid_layer_pattern"},
};

// As Megatron-LM makes its model's config of the arguments.
Json ConfigOfArguments(Json arguments) {
  auto is_true = [&](const char* key) { return arguments.value(key, Json()) == true; };
  for (const Renamed& row : kRenamed)
    if (auto found = arguments.find(row.argument); found != arguments.end())
      if (!arguments.contains(row.name) || arguments[std::string(row.name)].is_null())
        arguments[std::string(row.name)] = Json(*found);
  const bool silu = is_true("swiglu");
  arguments["gated_linear_unit"] = silu;
  arguments["activation_func"] = silu ? "silu" : is_true("squared_relu") ? "squared_relu" : "gelu";
  if (arguments.contains("group_query_attention") && !is_true("group_query_attention"))
    arguments["num_query_groups"] = nullptr;
  arguments["share_embeddings_and_output_weights"] = !is_true("untie_embeddings_and_output_weights");
  if (is_true("use_rotary_position_embeddings")) arguments["position_embedding_type"] = "rope";
  // A made-up tokenizer counts its end token besides.
  if (arguments.value("tokenizer_type", Json()) == "NullTokenizer") arguments.erase("vocab_size");
  return arguments;
}

std::string ReadDataPickle(File& file, const std::string& path, const OpenOptions& options) {
  const uint64_t max_header = options.max_header ? options.max_header : UINT64_MAX;
  for (const ZipMember& member : ReadZip(file, path, {0, file.Info().size}, options.max_tensors, max_header)) {
    if (!member.name.ends_with("/data.pkl")) continue;
    if (member.data.size > max_header)
      throw Error(Code::kUnsupported, fmt::format("a pickle of {} bytes, expected at most {} within the memory limit; "
                                                  "give a larger --max_memory",
                                                  member.data.size, max_header))
          .At("reading", path);
    std::string pickle(member.data.size, '\0');
    file.ReadAt(pickle.data(), pickle.size(), member.data.offset);
    return pickle;
  }
  throw Error(Code::kCorrupt, "no data.pkl, expected what torch.save writes").At("reading", path);
}

MegatronConfig ReadArguments(Io& io, std::string path, const OpenOptions& options) {
  MegatronConfig read;
  read.path = std::move(path);
  auto file = io.OpenRead(read.path);
  const std::string bytes = ReadDataPickle(*file, read.path, options);
  const uint64_t max_memory = options.max_header ? 4 * options.max_header : UINT64_MAX;
  const pickle::Tree tree(bytes, read.path, {.max_memory = max_memory});
  read.config = ConfigOfArguments(ArgumentsOf(tree.root(), read.path));
  return read;
}

// -- writing ----------------------------------------------------------------------------------------------------------

// A pickle of protocol 2, without memo.
class Pickler {
 public:
  Pickler() { bytes_ = "\x80\x02"; }

  void Global(std::string_view module, std::string_view name) { bytes_ += fmt::format("c{}\n{}\n", module, name); }

  void Value(const Json& value) {
    if (value.is_null()) {
      bytes_ += 'N';
    } else if (value.is_boolean()) {
      bytes_ += value.get<bool>() ? '\x88' : '\x89';
    } else if (value.is_number_integer()) {
      Integer(value.get<int64_t>());
    } else if (value.is_number()) {
      bytes_ += 'G';
      Number(std::bit_cast<uint64_t>(value.get<double>()), 8, true);
    } else if (value.is_string()) {
      Text(value.get<std::string>());
    } else {  // a list
      Open(']');
      for (const Json& item : value) Value(item);
      bytes_ += 'e';
    }
  }

  void Text(std::string_view text) {
    bytes_ += 'X';
    Number(text.size(), 4, false);
    bytes_ += text;
  }

  // An empty dict (}) or list (]), whose items follow up to what closes it.
  void Open(char opcode) {
    bytes_ += opcode;
    bytes_ += '(';
  }
  void Add(std::string_view opcodes) { bytes_ += opcodes; }
  std::string Take() { return std::move(bytes_); }

 private:
  void Integer(int64_t value) {
    const bool small = value >= INT32_MIN && value <= INT32_MAX;
    bytes_ += small ? "J" : "\x8a\x08";
    Number(static_cast<uint64_t>(value), small ? 4 : 8, false);
  }

  void Number(uint64_t value, int size, bool big_endian) {
    for (int i = 0; i < size; ++i) bytes_ += static_cast<char>(value >> 8 * (big_endian ? size - 1 - i : i));
  }

  std::string bytes_;
};

// What Megatron-LM's --use-checkpoint-args reads, and its check of arguments when it loads.
Json ArgumentsFor(const Model& model, const Json& config, const MegatronConfigOptions& options) {
  Json arguments = Json::object();
  // Most have the names of megatron-core.
  arguments = config;
  arguments.erase("seq_len_interpolation_factor");
  arguments.erase("rope_scaling");
  arguments.erase("share_embeddings_and_output_weights");
  for (const Renamed& row : kRenamed) {
    if (!arguments.contains(row.name)) continue;
    arguments[std::string(row.argument)] = Json(arguments[std::string(row.name)]);
    arguments.erase(std::string(row.name));
  }
  arguments["max_position_embeddings"] = config["seq_length"];
  arguments["padded_vocab_size"] = config["vocab_size"];
  arguments["group_query_attention"] = model.sizes['G'] != model.sizes['A'];
  arguments["untie_embeddings_and_output_weights"] = !model.tied;
  arguments["swiglu"] = true;
  arguments["normalization"] = "RMSNorm";
  arguments["position_embedding_type"] = "rope";
  arguments["add_position_embedding"] = true;  // Megatron-LM's default, which it compares
  arguments["rotary_seq_len_interpolation_factor"] = config.value("seq_len_interpolation_factor", Json());
  arguments["use_rope_scaling"] = HasLlama3Rope(model);
  if (HasLlama3Rope(model)) arguments["rope_scaling_factor"] = config["rope_scaling_factor"];
  arguments["squared_relu"] = false;
  arguments["apply_query_key_layer_scaling"] = false;
  arguments["attention_dropout"] = 0.0;
  arguments["hidden_dropout"] = 0.0;
  if (!arguments.contains("num_experts")) arguments["num_experts"] = nullptr;
  arguments["multi_latent_attention"] = false;
  arguments["tokenizer_type"] = "HuggingFaceTokenizer";
  arguments["tokenizer_model"] = options.tokenizer.empty() ? Json() : Json(options.tokenizer);
  arguments["tensor_model_parallel_size"] = 1;
  arguments["pipeline_model_parallel_size"] = 1;
  arguments["expert_model_parallel_size"] = 1;
  arguments["ckpt_format"] = "torch_dist";
  arguments["no_save_optim"] = true;
  arguments["no_save_rng"] = true;
  arguments["iteration"] = options.iteration;
  arguments["consumed_train_samples"] = 0;
  arguments["consumed_valid_samples"] = 0;
  return arguments;
}

void AddArguments(const Json& arguments, const MegatronConfigOptions& options, Pickler& pickler) {
  pickler.Text("args");
  pickler.Global("argparse", "Namespace");
  pickler.Add(")\x81");  // made of no arguments, and given a state
  pickler.Open('}');
  for (const auto& [key, value] : arguments.items()) {
    pickler.Text(key);
    pickler.Value(value);
  }
  pickler.Text("params_dtype");
  pickler.Global("torch", Row(options.dtype).torch);
  pickler.Add("ub");
}

// Without arguments where they cannot say what the model computes: then Megatron-LM's own trainer must be told, and not
// take half of it for all.
std::string CommonPickle(const Model& model, const Json& config, const MegatronConfigOptions& options) {
  Pickler pickler;
  pickler.Open('}');
  if (model.family->megatron.arguments && config.value("softmax_scale", Json()).is_null() && HasMcoreRope(model))
    AddArguments(ArgumentsFor(model, config, options), options, pickler);
  pickler.Text("checkpoint_version");
  pickler.Value(3.0);
  pickler.Text("iteration");
  pickler.Value(options.iteration);
  pickler.Add("u.");
  return pickler.Take();
}

Json NameInYaml(std::string name) { return {{"_target_", std::move(name)}, {"_call_", false}}; }

// With the keys by which every reader, ours too, tells the function that a model computes.
Json CompleteConfig(const Model& model, Json config) {
  config["normalization"] = "RMSNorm";
  config["activation_func"] = ActivationOf(*model.family).mcore;
  config["gated_linear_unit"] = true;
  config["position_embedding_type"] = "rope";
  return config;
}

std::string RunConfigText(const Model& model, const Json& config, const Json& family,
                          const MegatronConfigOptions& options) {
  Json provider = {{"_target_", model.family->megatron.bridge}};
  provider.update(CompleteConfig(model, config));
  provider["activation_func"] = NameInYaml(provider["activation_func"]);
  provider["attention_dropout"] = 0.0;
  provider["hidden_dropout"] = 0.0;
  provider["should_pad_vocab"] = false;
  provider["params_dtype"] = NameInYaml(TorchName(options.dtype));
  provider["tensor_model_parallel_size"] = 1;
  provider["pipeline_model_parallel_size"] = 1;
  if (!options.tokenizer.empty()) provider["hf_model_id"] = options.tokenizer;
  Json tokenizer = {{"_target_", "megatron.bridge.training.tokenizers.config.TokenizerConfig"},
                    {"tokenizer_type", "HuggingFaceTokenizer"}};
  tokenizer["tokenizer_model"] = options.tokenizer.empty() ? Json() : Json(options.tokenizer);
  Json run = {{"model", provider},
              {"tokenizer", tokenizer},
              {"checkpoint",
               {{"_target_", "megatron.bridge.training.config.CheckpointConfig"},
                {"ckpt_format", "torch_dist"},
                {"save_optim", false},
                {"save_rng", false},
                {"fully_parallel_save", false}}}};
  if (!family.is_null()) run[kFamilyKey] = family;
  if (!HasMcoreRope(model)) run[kStoredRope] = model.hyper.rope_scaling;
  return EmitYaml(run);
}

}  // namespace

McoreDialect MegatronDialect(const Family* family) {
  return {.title = "a Megatron model", .refuge = "the hf kind", .beside_window = 1, .family = family};
}

MegatronConfig ReadMegatronConfig(Io& io, const std::string& folder, const OpenOptions& options) {
  const std::string run_config = JoinPath(folder, std::string(kRunConfig)),
                    common = JoinPath(folder, std::string(kCommon));
  if (io.Stat(run_config)) return ReadRunConfig(io, run_config, options);
  if (io.Stat(common)) return ReadArguments(io, common, options);
  throw Error(Code::kCorrupt, "neither run_config.yaml nor common.pt, expected one that says what the model is")
      .At("reading", folder);
}

MegatronConfigTexts MegatronConfigOf(const Model& model, const MegatronConfigOptions& options) {
  McoreDialect dialect = MegatronDialect(model.family);
  if (!HasMcoreRope(model)) dialect.refuge = "the hf kind; or --allow_rope=config_only stores it for the way back";
  Json config = McoreConfigOf(model, dialect, options.rope_config_only);
  if (HasLlama3Rope(model)) {
    const Json& scaling = model.hyper.rope_scaling;
    if (scaling != Llama3Scaling(scaling["factor"])) NoPlaceIn(dialect, fmt::format("rope scaling {}", scaling.dump()));
    config["rope_scaling"] = true;
    config["rope_scaling_factor"] = scaling["factor"];
  }
  SetMcorePrecision(options.dtype, config);
  // Classes of a family's own tell it.
  const bool told = FamilyOfBridge(std::string(model.family->megatron.bridge)) != nullptr;
  const Json family = told ? Json() : FamilyToTell(model, CompleteConfig(model, config));
  std::string run_config = RunConfigText(model, config, family, options);
  if (!family.is_null()) config[kFamilyKey] = family;
  return {std::move(run_config), CommonPickle(model, config, options)};
}

}  // namespace reshard
