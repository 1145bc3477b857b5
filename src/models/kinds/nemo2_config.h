// The context/ of a NeMo 2 checkpoint: what it means, and one that NeMo 2 loads. Nothing in it is executed.
#pragma once

#include <string>

#include "base/io.h"
#include "base/json.h"
#include "models/kinds/kind.h"
#include "models/kinds/mcore_config.h"

namespace reshard {

struct Nemo2Context {
  std::string path, text;          // of the file that says it
  Json config;                     // in megatron-core's names, with the defaults of its class
  const Family* family = nullptr;  // by its class; null where that may be of any
};

// Reads model.yaml, which has every value, or else io.json. Errors: kCorrupt (neither is there, no config of a model),
// kUnsupported (an io.json whose class is not known; a pickle in place of the config), those of ReadFiddle.
Nemo2Context ReadNemo2Context(Io& io, const std::string& folder, const OpenOptions& options);

McoreDialect Nemo2Dialect(const Family* family);

struct Nemo2ConfigOptions {
  Dtype dtype = Dtype::kBF16;
  std::string tokenizer;           // a folder within context/, or a name of the hub
  bool tokenizer_is_kept = false;  // it is a folder within context/
};

// io.json and model.yaml of a model. Errors: kUnsupported for what a NeMo 2 model has no place for, named.
struct Nemo2ContextTexts {
  std::string io_json, model_yaml;
};
Nemo2ContextTexts Nemo2ContextOf(const Model& model, const Nemo2ConfigOptions& options);

}  // namespace reshard
