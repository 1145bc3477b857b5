// Linear weights that a HuggingFace folder stores quantised: GPTQ int4 and FP8 with a scale a row
// (docs/formats/huggingface.md).
#pragma once

#include <string>

#include "models/kinds/kind.h"

namespace reshard {

// The config of the model as if its weights were plain, where their quantisation is one that is read.
Json WithoutQuantisation(Json config);

// Finds the quantised weights among the tensors of `checkpoint`, whose config, ranks and files are read, and fills in
// `quantised`. Drops the tensors that say which group a column of GPTQ's is in, once they say that the columns are in
// order, and to `ignored` go biases of zeros that the model has no place for and bounds that the config has, too.
// Errors: kUnsupported (groups out of order, another number of bits), kMismatch (config and tensors disagree, a tensor
// is missing), kCorrupt.
void FindQuantised(Io& io, const OpenOptions& options, Checkpoint& checkpoint);

}  // namespace reshard
