// Configs of Megatron-LM (the arguments in common.pt) and of Megatron-Bridge (run_config.yaml): what they mean, and
// both as their own tools read them. Nothing in them is executed.
#pragma once

#include <string>

#include "base/io.h"
#include "base/json.h"
#include "models/kinds/kind.h"
#include "models/kinds/mcore_config.h"

namespace reshard {

struct MegatronConfig {
  std::string path, text;          // text: of run_config.yaml
  Json config;                     // in megatron-core's names
  const Family* family = nullptr;  // by its class; null where that may be of any
};

// Reads run_config.yaml of an iteration's folder or, where there is none, the arguments in common.pt. Errors:
// kCorrupt (neither is there, no model or no arguments in it), those of ReadZip and of pickle::Tree.
MegatronConfig ReadMegatronConfig(Io& io, const std::string& folder, const OpenOptions& options);

McoreDialect MegatronDialect(const Family* family);

struct MegatronConfigOptions {
  Dtype dtype = Dtype::kBF16;
  std::string tokenizer;  // and the model that it is of: a folder, or a name of the hub; empty: nobody says
  uint64_t iteration = 1;
  bool rope_config_only = false;  // store rope settings that no Megatron model reads, for the way back
};

// run_config.yaml, and the pickle (protocol 2) of common.pt: arguments, version and iteration. Errors: kUnsupported
// for what a Megatron model has no place for, named.
struct MegatronConfigTexts {
  std::string run_config, common_pickle;
};
MegatronConfigTexts MegatronConfigOf(const Model& model, const MegatronConfigOptions& options);

}  // namespace reshard
