// Comparing two opened checkpoints.
#pragma once

#include "models/kinds/kind.h"
#include "reshard/reshard.h"

namespace reshard {

struct VerifyScope {
  bool hyperparameters = true;
};

// Both are read through `io`.
VerifyReport VerifyCheckpoints(Io& io, Checkpoint a, Checkpoint b, const RunOptions& options, const VerifyScope& scope);

// XXH3 of whole files of these sizes, in their order; as many are read at a time as there are workers. Errors: those of
// reading, of the first file that has any; kCancelled when the run is stopped.
std::vector<uint64_t> HashFiles(Io& io, const std::vector<NamedSize>& files, const RunOptions& options);

// The hyper-parameters of a model, in the order of print: names of config.json and their values.
std::vector<std::pair<std::string, Json>> HyperParametersOf(const Model& model);

}  // namespace reshard
