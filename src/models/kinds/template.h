// A HuggingFace folder that vouches for what another kind's config cannot say.
#pragma once

#include <string>
#include <vector>

#include "models/kinds/kind.h"

namespace reshard {

// Reads the template of `options` into the fields that `checkpoint` has for it; returns the model that it is of.
Model ReadTemplate(Io& io, const OpenOptions& options, Checkpoint& checkpoint);

// A template may know more than a config, never something else. `unsaid` hyper-parameters are not compared. Errors:
// kMismatch with all differences, at `path`, the config that `model` is from.
void CheckTemplate(const Model& model, const Model& known, const std::vector<std::string>& unsaid,
                   const std::string& path);

}  // namespace reshard
