// config.json of transformers: what it means, and one that transformers loads.
#pragma once

#include <string>

#include <vector>

#include "base/io.h"
#include "base/json.h"
#include "models/kinds/kind.h"
#include "models/model.h"

namespace reshard {

// The model of a config.json, of transformers 4 or 5. Keys that are absent have the class's default, and so have those
// that are null where null means nothing to the class. Errors: kUnsupported (a class, an activation, a quantisation or
// rope settings that are not handled, named), kMismatch (keys that contradict one another, heads that do not divide),
// kCorrupt (a key of a wrong type or size).
Model ModelFromHfConfig(const Json& config, const std::string& path);

// The text of a config.json, or of one that it holds where its class holds a text model beside others: then that of the
// text model, with what of the whole is also the model's. Errors: kCorrupt where there is none in such a one.
std::string TextModelConfig(const std::string& text, const std::string& path);

// A complete config.json of the 4.x style, which both 4.x and 5.x load, as save_pretrained prints it.
std::string HfConfigText(const Model& model, Dtype dtype);

// Whether the family's config.json has a sliding window; in others the key means nothing.
bool HasWindow(const Family& family);

// `settings` as {"rope_type": ..., fields of the type}, keys sorted; null where positions are not scaled. Errors:
// kCorrupt (no object, a field that the type needs), kUnsupported (settings that differ from layer to layer, a part of
// the head rotated).
Json RopeScalingOf(const Json& settings, const std::string& path);

// A copy of a config.json's text in which only the dtype key, whichever of the two it has, says `dtype`; torch_dtype,
// which every transformers reads, is added where it has none.
std::string WithHfDtype(const std::string& text, Dtype dtype);

// The tokenizer, licence and readme files of a HuggingFace folder: what goes wherever the model goes.
std::vector<FileCopy> CarriedFiles(Io& io, const std::string& folder);

}  // namespace reshard
