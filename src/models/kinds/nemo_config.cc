#include "models/kinds/nemo_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/bytes.h"
#include "base/error.h"
#include "base/yaml.h"
#include "models/families/families.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/hf_config.h"
#include "models/kinds/nemo_base.h"
#include "models/kinds/template.h"

namespace reshard {
namespace {

constexpr std::string_view kTarget =
    "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel";
constexpr std::string_view kNemoVersion = "2.0.0rc1";

// The only factor of a llama3 scaling that NeMo 1 has (nemo/collections/common/parts/utils.py).
constexpr double kLlama3Factor = 8.0;

Error Mismatch(const std::string& path, std::string message) {
  Error error(Code::kMismatch, std::move(message));
  error.At("reading", path);
  return error;
}

// -- reading ----------------------------------------------------------------------------------------------------------

// What else changes the function that a model computes, and the one value (as JSON) that is handled; also that of a key
// which is not there.
struct Setting {
  std::string_view key, handled;
};
constexpr Setting kSettings[] = {
    {"transformer_block_type", "\"pre_ln\""},     {"headscale", "false"},
    {"moe_router_score_function", "\"softmax\""}, {"moe_router_enable_expert_bias", "false"},
    {"moe_router_topk_scaling_factor", "1.0"},    {"moe_apply_probs_on_input", "false"},
};

void RefuseUnsupported(const ConfigReader& reader) {
  RequireText(reader, "normalization", "layernorm", {"rmsnorm"});
  RequireText(reader, "position_embedding_type", "learned_absolute", {"rope"});
  auto refuse = [&](const std::string& what) { throw Error(Code::kUnsupported, what).At("reading", reader.path()); };
  for (const Setting& row : kSettings)
    if (const Json& value = reader.At(row.key); !value.is_null() && value != Json::parse(row.handled))
      refuse(fmt::format("{} {}, expected {}", row.key, value.dump(), row.handled));
}

const Activation& ReadActivation(const ConfigReader& reader) {
  const std::string name = reader.String("activation", "gelu");
  const bool openai_gelu = reader.Bool("openai_gelu", false);
  for (const Activation& row : Activations())
    if ((name == row.nemo || name == row.nemo_read) && openai_gelu == row.openai_gelu) return row;
  throw Error(Code::kUnsupported, fmt::format("activation '{}'{}, expected 'fast-swiglu', or 'fast-geglu' with "
                                              "openai_gelu",
                                              name, openai_gelu ? " with openai_gelu" : ""))
      .At("reading", reader.path());
}

std::set<std::string_view> FlagsOf(const ConfigReader& reader) {
  std::set<std::string_view> flags;
  if (reader.Bool("bias", false)) flags = {"qkv_bias", "o_bias", "mlp_bias"};
  if (reader.Bool("qkv_bias", false)) flags.insert("qkv_bias");
  if (reader.Bool("qk_layernorm", false)) flags.insert("qk_norm");
  return flags;
}

NemoTraits TraitsOf(const ConfigReader& reader, HyperParameters& hyper) {
  NemoTraits traits;
  traits.flags = FlagsOf(reader);
  traits.activation = &ReadActivation(reader);
  ReadRotation(reader, "rotary_percentage", hyper, traits);
  hyper.sliding_window = WindowOf(reader);
  traits.window = !hyper.sliding_window.is_null();
  return traits;
}

// Whether a config of the family can mean exactly these flags: all that one key switches are set, or none.
bool CanMean(const Family& family, const std::set<std::string_view>& flags) {
  size_t found = 0;
  for (const Flag& flag : family.flags) {
    bool set = flags.count(flag.flag) > 0;
    found += set;
    if (flag.key.empty() && !set) return false;
    for (const Flag& other : family.flags)
      if (other.key == flag.key && (flags.count(other.flag) > 0) != set) return false;
  }
  return found == flags.size();
}

// Why a config is of no model of a family: the first thing that does not fit, in words, and how many did before it.
struct Misfit {
  std::string what;  // empty: it is of one
  int fitting = 0;
};

Misfit MisfitOf(const Family& family, const ConfigReader& reader, const NemoTraits& traits, MegatronDialectOf dialect) {
  const bool checks[] = {
      CanMean(family, traits.flags),
      traits.activation == &ActivationOf(family),
      traits.local_rope == !family.rope_local_key.empty(),
      !traits.partial_rotation || family.partial_rotation,
      traits.rope_interleaved == family.rope_interleaved,
      !traits.window || HasWindow(family),
  };
  const std::string words[] = {
      "other biases and norms",
      fmt::format("the activation {}", traits.activation->hf),
      fmt::format("{} rotary_base", traits.local_rope ? "two numbers for" : "one number for"),
      fmt::format("a rotation of part of each head (rotary_percent{})",
                  dialect == MegatronDialectOf::kNemo ? "age" : ""),
      fmt::format("rotary_interleaved {}", traits.rope_interleaved),
      "a window (window_size)",
  };
  for (int i = 0; i < static_cast<int>(std::size(checks)); ++i)
    if (!checks[i]) return {words[i], i};
  return {MisfittingKey(family, reader, dialect), static_cast<int>(std::size(checks))};
}

void ReadSizes(const ConfigReader& reader, Model& model) {
  Sizes& sizes = model.sizes;
  sizes['H'] = reader.RequiredSize("hidden_size");
  sizes['F'] = reader.RequiredSize("ffn_hidden_size");
  sizes['L'] = reader.RequiredSize("num_layers");
  sizes['A'] = reader.RequiredSize("num_attention_heads");
  sizes['G'] = reader.Size("num_query_groups", sizes['A']);
  sizes['D'] = reader.Size("kv_channels", 0);
  CompleteSizes(model, "num_attention_heads", "num_query_groups", reader.path());
}

Json RopeScaling(const ConfigReader& reader) {
  Json factor = reader.Positive("seq_len_interpolation_factor", LinearFactor(reader));
  bool llama3 = reader.Bool("scale_positional_embedding", false);
  const Json& stored = reader.At("rope_scaling");
  if (int(!factor.is_null()) + int(llama3) + int(!stored.is_null()) > 1)
    throw Mismatch(reader.path(),
                   "more than one of seq_len_interpolation_factor, scale_positional_embedding and rope_scaling, "
                   "expected at most one");
  if (!stored.is_null()) {
    if (!stored.is_object() || !stored.contains("rope_type"))
      throw Error(Code::kCorrupt,
                  fmt::format("'rope_scaling' is {}, expected an object with a rope_type", stored.dump()))
          .At("reading", reader.path());
    return RopeScalingOf(stored, reader.path());
  }
  if (llama3) return Llama3Scaling(kLlama3Factor);
  return factor.is_null() ? Json(nullptr) : Json{{"factor", factor}, {"rope_type", "linear"}};
}

// A number of rows that are the vocabulary's, and who says so.
struct Claim {
  std::string_view by;
  uint64_t rows;
};

// -- writing ----------------------------------------------------------------------------------------------------------

[[noreturn]] void NoPlace(const std::string& what, const std::string& remedy) {
  throw Error(Code::kUnsupported, fmt::format("a NeMo 1 model has no place for {}; {}", what, remedy));
}

// One switch, `bias`, is all linear layers' at once; `qkv_bias` is q, k and v's alone.
void SetBiases(const Model& model, Json& config) {
  bool qkv = model.Has("qkv_bias"), o = model.Has("o_bias"), mlp = model.Has("mlp_bias");
  if (o != mlp || (mlp && !qkv))
    NoPlace(fmt::format("biases on {} only", o ? "attention" : "the MLP"),
            fmt::format("its switch `bias` gives all linear layers one; {}",
                        o ? "the kinds hf and trtllm have one" : "this model stays in the hf kind"));
  config["bias"] = mlp;
  if (qkv && !o) {
    config["qkv_bias"] = true;
  } else {
    config.erase("qkv_bias");
  }
}

void SetWindow(const Model& model, Json& config) {
  const Json& window = model.hyper.sliding_window;
  if (window.is_null()) return;
  config["window_size"] = model.family->rope_local_key.empty() ? Json::array({window, 0}) : window;
}

void SetRope(const Model& model, bool config_only, Json& config) {
  const Json& scaling = model.hyper.rope_scaling;
  config["rotary_base"] = RotaryBase(model.hyper);
  if (model.hyper.rotary_percent != 1.0) config["rotary_percentage"] = model.hyper.rotary_percent;
  if (model.family->rope_interleaved) config["rotary_interleaved"] = true;
  SetWindow(model, config);
  if (scaling.is_null()) return;
  if (scaling == Llama3Scaling(kLlama3Factor)) {
    config["scale_positional_embedding"] = true;
  } else if (scaling["rope_type"] == "linear" && scaling.contains("factor")) {
    config[std::string(LinearFactorKey(*model.family))] = scaling["factor"];
  } else if (config_only) {
    config["rope_scaling"] = scaling;
  } else {
    NoPlace(fmt::format("rope scaling {}", ScalingInWords(scaling)),
            "--allow_rope=config_only stores it for the way back, and NeMo will ignore it");
  }
}

void SetTokenizer(NemoBase base, const NemoConfigOptions& options, Json& config) {
  Json& tokenizer = config["tokenizer"];
  if (options.tokenizer_artifact.empty()) {
    tokenizer = Json{{"library", "huggingface"}, {"type", options.tokenizer_name}, {"use_fast", true}};
    return;
  }
  tokenizer["model"] = "nemo:" + options.tokenizer_artifact;
  if (base == NemoBase::kQwen) tokenizer["type"] = options.tokenizer_name;
}

Json Precision(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF16:
      return 16;
    case Dtype::kF32:
      return 32;
    default:
      return "bf16";
  }
}

// A copy of the text in which a top-level key has another scalar.
std::string WithNemoScalar(const std::string& text, std::string key, const std::string& value,
                           const std::string& path) {
  key += ":";
  size_t at = text.starts_with(key) ? 0 : text.find("\n" + key);
  if (at == std::string::npos)
    throw Error(Code::kUnsupported, fmt::format("there is no '{}' at the top, expected one to set to {}", key, value))
        .At("reading", path);
  size_t begin = text.find(':', at) + 1, end = std::min(text.find('\n', begin), text.size());
  return text.substr(0, begin) + " " + value + text.substr(end);
}

}  // namespace

std::string ScalingInWords(const Json& scaling) {
  Json scalars = Json::object();
  for (const auto& [key, value] : scaling.items())
    if (!value.is_array()) scalars[key] = value;
  return scalars.dump();
}

Json Llama3Scaling(const Json& factor) {
  return {{"factor", factor},
          {"high_freq_factor", 4.0},
          {"low_freq_factor", 1.0},
          {"original_max_position_embeddings", 8192},
          {"rope_type", "llama3"}};
}

void RequireText(const ConfigReader& reader, std::string_view key, std::string_view otherwise,
                 std::initializer_list<std::string_view> handled) {
  std::string value = reader.String(key, std::string(otherwise));
  if (std::find(handled.begin(), handled.end(), value) == handled.end())
    throw Error(Code::kUnsupported, fmt::format("{} '{}', expected '{}'", key, value, *handled.begin()))
        .At("reading", reader.path());
}

const Family& NemoFamilyOf(const ConfigReader& reader, const NemoTraits& traits, MegatronDialectOf dialect,
                           const Family* likely, const NemoHints& hints) {
  if (hints.template_model) {
    const Family& family = *hints.template_model->family;
    const Misfit misfit = MisfitOf(family, reader, traits, dialect);
    if (misfit.what.empty()) return family;
    throw Mismatch(reader.path(), fmt::format("it has {}, and {}, which the template is, has not; give the right "
                                              "--hf_model_name",
                                              misfit.what, family.name));
  }
  std::vector<const Family*> families = {Families().begin(), Families().end()};
  if (likely) families.insert(families.begin(), likely);
  const std::string said = reader.String(kFamilyKey, "");
  std::stable_partition(families.begin(), families.end(), [&](const Family* family) { return family->name == said; });
  Misfit nearest;
  for (const Family* family : families) {
    if (!hints.model_type.empty() && family->group != hints.model_type && family->name != hints.model_type) continue;
    Misfit misfit = MisfitOf(*family, reader, traits, dialect);
    if (misfit.what.empty()) return *family;
    if (misfit.fitting > nearest.fitting || nearest.what.empty()) nearest = std::move(misfit);
  }
  const bool by_tensors = nearest.fitting == 0;
  throw Error(by_tensors ? Code::kMismatch : Code::kUnsupported,
              fmt::format("it has {}, expected what a {} family has; give --hf_model_name or another --model_type",
                          nearest.what, hints.model_type.empty() ? "known" : hints.model_type))
      .At("reading", reader.path());
}

bool IsTakenForAnother(const Model& model, const ConfigReader& reader, const NemoTraits& traits,
                       MegatronDialectOf dialect) {
  const auto families = Families();
  const auto first = std::find_if(families.begin(), families.end(), [&](const Family* family) {
    return MisfitOf(*family, reader, traits, dialect).what.empty();
  });
  return first != families.end() && *first != model.family;
}

void ReadRotation(const ConfigReader& reader, std::string_view percent, HyperParameters& hyper, NemoTraits& traits) {
  const Json& base = reader.At("rotary_base");
  traits.local_rope = base.is_array();
  if (traits.local_rope) {
    if (base.size() != 2 || !base[0].is_number() || !base[1].is_number())
      throw Error(Code::kCorrupt, fmt::format("'rotary_base' is {}, expected a number, or one of layers with a window "
                                              "and one of others",
                                              base.dump()))
          .At("reading", reader.path());
    hyper.rope_local_theta = base[0];
    hyper.rope_theta = base[1];
  } else {
    hyper.rope_theta = reader.Positive("rotary_base", 10000.0);
  }
  hyper.rotary_percent = reader.Positive(percent, 1.0);
  traits.partial_rotation = hyper.rotary_percent != 1.0;
  traits.rope_interleaved = reader.Bool("rotary_interleaved", false);
}

Json RotaryBase(const HyperParameters& hyper) {
  return hyper.rope_local_theta.is_null() ? hyper.rope_theta : Json::array({hyper.rope_local_theta, hyper.rope_theta});
}

// rope_scaling_factor is llama3's elsewhere.
Json LinearFactor(const ConfigReader& reader) {
  if (!reader.At("rotary_base").is_array()) return nullptr;
  const Json factor = reader.Positive("rope_scaling_factor", 1.0);
  return factor == 1.0 ? Json() : factor;
}

std::string_view LinearFactorKey(const Family& family) {
  return family.rope_local_key.empty() ? "seq_len_interpolation_factor" : "rope_scaling_factor";
}

bool ReadsZeroCentred(const ConfigReader& reader) { return reader.Bool(kZeroCentred, false); }

bool WritesZeroCentred(const Family& family, MegatronDialectOf dialect) {
  return family.zero_centred && !(dialect == MegatronDialectOf::kNemo && family.nemo_adds_one);
}

// A number, or [tokens before, tokens after]; null or -1 before: all.
Json WindowOf(const ConfigReader& reader, bool* counts_itself) {
  const Json& window = reader.At("window_size");
  if (counts_itself) *counts_itself = window.is_number();
  if (window.is_null()) return nullptr;
  if (window.is_number()) return reader.Size("window_size", 0);
  auto is_count = [](const Json& end) { return end.is_number_integer() && end >= 0; };
  auto is_end = [&](const Json& end) { return end.is_null() || end == -1 || is_count(end); };
  if (!window.is_array() || window.size() != 2 || !is_end(window[0]) || !is_end(window[1]))
    throw Error(Code::kCorrupt, fmt::format("'window_size' is {}, expected a number, or two", window.dump()))
        .At("reading", reader.path());
  if (!is_count(window[0])) return nullptr;
  if (window[1] != 0)
    throw Error(Code::kUnsupported, fmt::format("window_size {}, expected no tokens after the present one, [{}, 0]",
                                                window.dump(), window[0].dump()))
        .At("reading", reader.path());
  return window[0];
}

uint64_t VocabularyOf(const ConfigReader& reader, std::string_view key, const NemoEmbedding& embedding,
                      const NemoHints& hints, NemoDoubts& doubts) {
  const uint64_t stored_rows = embedding.rows;
  const uint64_t divisor = reader.Size("make_vocab_size_divisible_by", 128);
  const uint64_t ranks = reader.Size("tensor_model_parallel_size", 1);
  const uint64_t multiple = divisor * std::max(ranks, embedding.ranks);  // at most: a config may lag behind its arrays
  std::vector<Claim> claims;
  if (hints.template_model) claims.push_back({"the template", hints.template_model->sizes['V']});
  if (hints.vocab_size) claims.push_back({"--vocab_size", *hints.vocab_size});
  if (uint64_t rows = reader.Size(key, 0)) claims.push_back({key, rows});
  if (claims.empty()) {
    if (multiple > 1)
      doubts.vocabulary = fmt::format(
          "embedding.word_embeddings.weight has {} rows, of which up to {} may be padding, expected to be told how "
          "many are the vocabulary's; give --vocab_size or --hf_model_name",
          stored_rows, multiple - 1);
    return stored_rows;
  }
  const Claim& first = claims.front();
  for (const Claim& claim : claims) {
    bool padded = claim.by == key &&
                  (claim.rows == RoundUp(first.rows, divisor * ranks) || claim.rows == RoundUp(first.rows, multiple));
    if (claim.rows != first.rows && !padded)
      throw Mismatch(reader.path(), fmt::format("the vocabulary has {} rows by {} and {} by {}, expected one number",
                                                first.rows, first.by, claim.rows, claim.by));
  }
  if (first.rows > stored_rows)
    throw Mismatch(reader.path(),
                   fmt::format("embedding.word_embeddings.weight has {} rows, expected at least {} for the vocabulary",
                               stored_rows, first.rows));
  if (const uint64_t padded = RoundUp(first.rows, multiple); stored_rows > padded)
    doubts.padding = fmt::format(
        "{} rows by {}, which make_vocab_size_divisible_by and tensor_model_parallel_size pad to {}, not to the {} of "
        "the array; give the vocabulary that the weights have, or correct {}",
        first.rows, first.by, padded, stored_rows, reader.path().substr(reader.path().rfind('/') + 1));
  return first.rows;
}

uint64_t VocabularyDivisor(uint64_t vocabulary) {
  uint64_t divisor = 128;
  while (vocabulary % divisor != 0) divisor /= 2;
  return divisor;
}

Model ModelFromNemoConfig(const Json& config, const std::string& path, const NemoEmbedding& embedding,
                          const NemoHints& hints, NemoDoubts& doubts) {
  ConfigReader reader(config, path);
  Model model;
  ReadSizes(reader, model);
  RefuseUnsupported(reader);
  HyperParameters& hyper = model.hyper;
  hyper.rms_norm_eps = reader.Positive("layernorm_epsilon", 1e-5);
  hyper.initializer_range = reader.Number("init_method_std", 0.02);
  hyper.max_position_embeddings = reader.Size("max_position_embeddings", reader.Size("encoder_seq_length", 2048));
  hyper.rope_scaling = RopeScaling(reader);
  const NemoTraits traits = TraitsOf(reader, hyper);
  hyper.hidden_act = traits.activation->hf;
  model.family = &NemoFamilyOf(reader, traits, MegatronDialectOf::kNemo, nullptr, hints);
  for (const Flag& flag : model.family->flags)
    if (traits.flags.count(flag.flag)) model.flags.push_back(flag.flag);
  model.tied = reader.Bool(kShareEmbeddings, false);
  ReadKeys(reader, MegatronDialectOf::kNemo, model);
  model.sizes['V'] = VocabularyOf(reader, "override_vocab_size", embedding, hints, doubts);
  if (hints.template_model) {
    CheckTemplate(model, *hints.template_model, {}, path);
    model.tied = hints.template_model->tied;
  }
  return model;
}

std::string NemoConfigText(const Model& model, const NemoConfigOptions& options) {
  NemoBase base = model.family->nemo_base;
  Json config =
      YamlValue(ParseYaml(base == NemoBase::kQwen ? kNemoBaseQwen : kNemoBaseLlama, "the base of model_config.yaml"));
  const Sizes& sizes = model.sizes;
  const HyperParameters& hyper = model.hyper;
  if (!hyper.hf_only.empty()) NoPlace(hyper.hf_only, "this model stays in the hf kind");
  for (const char* key : {"encoder_seq_length", "max_position_embeddings"}) config[key] = hyper.max_position_embeddings;
  config["data"]["seq_length"] = hyper.max_position_embeddings;
  config["num_layers"] = sizes['L'];
  config["hidden_size"] = sizes['H'];
  config["ffn_hidden_size"] = sizes['F'];
  config["num_attention_heads"] = sizes['A'];
  config["num_query_groups"] = sizes['G'];
  config["kv_channels"] = sizes['A'] * sizes['D'] == sizes['H'] ? Json(nullptr) : Json(sizes['D']);
  config["init_method_std"] = hyper.initializer_range;
  config["layernorm_epsilon"] = hyper.rms_norm_eps;
  config["make_vocab_size_divisible_by"] = VocabularyDivisor(sizes['V']);
  config[std::string(kShareEmbeddings)] = model.tied;
  const Activation& activation = ActivationOf(*model.family);
  config["activation"] = activation.nemo;
  if (activation.openai_gelu) config["openai_gelu"] = true;
  if (WritesZeroCentred(*model.family, MegatronDialectOf::kNemo)) config[kZeroCentred] = true;
  SetKeys(
      model, MegatronDialectOf::kNemo,
      [](const std::string& what) { NoPlace(what, "this model stays in the hf kind"); }, config);
  if (base == NemoBase::kQwen || options.exact_vocabulary) config["override_vocab_size"] = sizes['V'];
  SetBiases(model, config);
  SetTokenizer(base, options, config);
  SetRope(model, options.rope_config_only, config);
  if (model.Has("qk_norm")) config["qk_layernorm"] = true;
  // The layers' modules: those that heed norms of q and k and plans of layers.
  if ((model.Has("qk_norm") || !model.IsUniform()) && !config.contains("name")) config["name"] = "decoder_block_gpt";
  HyperParameters read_back;
  const ConfigReader reader(config, "model_config.yaml");
  if (IsTakenForAnother(model, reader, TraitsOf(reader, read_back), MegatronDialectOf::kNemo))
    config[kFamilyKey] = model.family->name;
  config[std::string(kDistFormat)] = options.dist_format;
  config["tensor_model_parallel_size"] = options.tp;
  config["pipeline_model_parallel_size"] = options.pp;
  config["precision"] = Precision(options.dtype);
  config["target"] = kTarget;
  config["nemo_version"] = kNemoVersion;
  return EmitYaml(config);
}

std::string WithNemoPrecision(const std::string& text, Dtype dtype, const std::string& path) {
  Json precision = Precision(dtype);
  return WithNemoScalar(text, "precision", precision.is_string() ? precision.get<std::string>() : precision.dump(),
                        path);
}

std::string WithNemoDistFormat(const std::string& text, std::string_view format, const std::string& path) {
  return WithNemoScalar(text, std::string(kDistFormat), std::string(format), path);
}

std::string WithNemoRanks(const std::string& text, uint64_t tp, uint64_t pp, const std::string& path) {
  const std::string cut = WithNemoScalar(text, "tensor_model_parallel_size", std::to_string(tp), path);
  return WithNemoScalar(cut, "pipeline_model_parallel_size", std::to_string(pp), path);
}

std::string WithNemoUntied(const std::string& text, const std::string& path) {
  return WithNemoScalar(text, std::string(kShareEmbeddings), "false", path);
}

}  // namespace reshard
