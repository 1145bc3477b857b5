// config.json of transformers: what it means, and one that transformers loads.
#pragma once

#include <string>

#include <vector>

#include "base/io.h"
#include "base/json.h"
#include "models/kinds/kind.h"
#include "models/model.h"

namespace reshard {

// The model of a config.json, of transformers 4 or 5. Keys that are absent or null have the class's default.
// Errors: kUnsupported (a class, a head, an activation or a quantisation that is not handled, named), kMismatch
// (architectures and model_type disagree, heads do not divide), kCorrupt (a key of a wrong type or size).
Model ModelFromHfConfig(const Json& config, const std::string& path);

// A complete config.json of the 4.x style, which both 4.x and 5.x load, as save_pretrained prints it.
std::string HfConfigText(const Model& model, Dtype dtype);

// A copy of a config.json's text in which only the dtype key, whichever of the two it has, says `dtype`.
std::string WithHfDtype(const std::string& text, Dtype dtype);

// The tokenizer, licence and readme files of a HuggingFace folder: what goes wherever the model goes.
std::vector<FileCopy> CarriedFiles(Io& io, const std::string& folder);

}  // namespace reshard
