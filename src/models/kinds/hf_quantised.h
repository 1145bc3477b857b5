// Linear weights that a HuggingFace folder stores quantised: GPTQ int4 and FP8 with a scale a row
// (docs/formats/huggingface.md).
#pragma once

#include <string>

#include "models/kinds/kind.h"

namespace reshard {

// The config of the model as if its weights were plain, where their quantisation is one that is read.
Json WithoutQuantisation(Json config);

// Finds the quantised weights among the tensors of `checkpoint`, whose config, ranks and files are read, and fills in
// `quantised`. What says nothing more goes to `ignored`: the groups of GPTQ's columns, where they are in order, and
// biases of zeros that the model has no place for. Errors: kUnsupported (groups out of order, another number of bits),
// kMismatch (config and tensors disagree, a tensor is missing), kCorrupt.
void FindQuantised(Io& io, const OpenOptions& options, Checkpoint& checkpoint);

}  // namespace reshard
