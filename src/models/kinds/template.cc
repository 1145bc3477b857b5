#include "models/kinds/template.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "models/kinds/hf_config.h"

namespace reshard {

namespace {

// The layers without experts, as a list.
Json DenseLayers(const Model& model) {
  Json layers = Json::array();
  for (size_t layer = 0; layer < model.layers.size(); ++layer)
    if (model.layers[layer] == LayerKind::kDense) layers.push_back(layer);
  return layers;
}

}  // namespace

Model ReadTemplate(Io& io, const OpenOptions& options, Checkpoint& checkpoint) {
  const std::string& folder = options.template_path;
  const std::string path = JoinPath(folder, "config.json");
  if (!io.Stat(path))
    throw Error(Code::kNotFound,
                "there is no config.json, expected the template's; give the folder that has it as --hf_model_name, or "
                "download the model again")
        .At("reading", folder);
  checkpoint.template_path = folder;
  checkpoint.template_text = TextModelConfig(ReadTreeText(io, path, options), path);
  checkpoint.template_files = CarriedFiles(io, folder);
  return ModelFromHfConfig(ParseJson(checkpoint.template_text, path), path);
}

void CheckTemplate(const Model& model, const Model& known, const std::vector<std::string>& unsaid,
                   const std::string& path) {
  std::vector<std::string> problems;
  auto is_unsaid = [&](const std::string& name) {
    return std::find(unsaid.begin(), unsaid.end(), name) != unsaid.end();
  };
  auto compare = [&](const std::string& name, const Json& ours, const Json& theirs) {
    if (ours != theirs && !is_unsaid(name))
      problems.push_back(fmt::format("{}: {} in {}, {} in the template", name, ours.dump(), path, theirs.dump()));
  };
  compare("family", model.family->name, known.family->name);
  for (auto [name, symbol] :
       {std::pair{"vocabulary", 'V'}, std::pair{"hidden size", 'H'}, std::pair{"ffn hidden size", 'F'},
        std::pair{"layers", 'L'}, std::pair{"attention heads", 'A'}, std::pair{"query groups", 'G'},
        std::pair{"head size", 'D'}, std::pair{"experts", 'E'}, std::pair{"ffn hidden size of an expert", 'M'},
        std::pair{"ffn hidden size of the shared expert", 'S'}})
    compare(name, model.sizes[symbol], known.sizes[symbol]);
  compare("layers with experts", DenseLayers(model), DenseLayers(known));
  for (const Flag& flag : model.family->flags)
    compare(std::string(flag.flag), model.Has(flag.flag), known.Has(flag.flag));
  const HyperParameters &ours = model.hyper, &theirs = known.hyper;
  compare("rms_norm_eps", ours.rms_norm_eps, theirs.rms_norm_eps);
  compare("rope_theta", ours.rope_theta, theirs.rope_theta);
  compare("rope_scaling", ours.rope_scaling, theirs.rope_scaling);
  compare("rope_local_theta", ours.rope_local_theta, theirs.rope_local_theta);
  compare("partial_rotary_factor", ours.rotary_percent, theirs.rotary_percent);
  compare("sliding_window", ours.sliding_window, theirs.sliding_window);
  if (!is_unsaid("sliding_window")) compare("what only hf has a place for", ours.hf_only, theirs.hf_only);
  for (const ConfigKey& key : model.family->keys)
    if (!key.size && !key.of_training)
      compare(std::string(key.hf), ours.more.value(key.hf, Json()), theirs.more.value(key.hf, Json()));
  // A head of its own may be that of a tied model, stored twice: then reading compares the two.
  if (model.tied) compare("tie_word_embeddings", true, known.tied);
  if (problems.empty()) return;
  Error error(Code::kMismatch, "the template of --hf_model_name is of another model, expected one that agrees:");
  throw error.At("reading", path).Also(std::move(problems));
}

}  // namespace reshard
