// Comparing two opened checkpoints.
#pragma once

#include "models/kinds/kind.h"
#include "reshard/reshard.h"

namespace reshard {

struct VerifyScope {
  bool hyperparameters = true;
};

VerifyReport VerifyCheckpoints(Checkpoint a, Checkpoint b, const RunOptions& options, const VerifyScope& scope);

// XXH3 of a whole file. kCancelled when the run is stopped.
uint64_t HashOf(Io& io, const std::string& path, const RunOptions& options);

// The hyper-parameters of a model, in the order of print: names of config.json and their values.
std::vector<std::pair<std::string, Json>> HyperParametersOf(const Model& model);

}  // namespace reshard
