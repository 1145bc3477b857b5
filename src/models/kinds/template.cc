#include "models/kinds/template.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace reshard {

void CheckTemplate(const Model& model, const Model& known, const std::vector<std::string>& unsaid,
                   const std::string& path) {
  std::vector<std::string> problems;
  auto compare = [&](const std::string& name, const Json& ours, const Json& theirs) {
    if (ours != theirs && std::find(unsaid.begin(), unsaid.end(), name) == unsaid.end())
      problems.push_back(fmt::format("{}: {} in {}, {} in the template", name, ours.dump(), path, theirs.dump()));
  };
  compare("family", model.family->name, known.family->name);
  for (auto [name, symbol] :
       {std::pair{"vocabulary", 'V'}, std::pair{"hidden size", 'H'}, std::pair{"ffn hidden size", 'F'},
        std::pair{"layers", 'L'}, std::pair{"attention heads", 'A'}, std::pair{"query groups", 'G'},
        std::pair{"head size", 'D'}})
    compare(name, model.sizes[symbol], known.sizes[symbol]);
  const HyperParameters &ours = model.hyper, &theirs = known.hyper;
  compare("rms_norm_eps", ours.rms_norm_eps, theirs.rms_norm_eps);
  compare("rope_theta", ours.rope_theta, theirs.rope_theta);
  compare("rope_scaling", ours.rope_scaling, theirs.rope_scaling);
  compare("sliding_window", ours.sliding_window, theirs.sliding_window);
  compare("tie_word_embeddings", model.tied, known.tied);
  if (problems.empty()) return;
  Error error(Code::kMismatch, "the template of --hf_model_name is of another model, expected one that agrees:");
  throw error.At("reading", path).Also(std::move(problems));
}

}  // namespace reshard
