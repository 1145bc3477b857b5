// What the kinds NeMo 2 and Megatron do alike, besides their weights: a checkpoint is described from its config, and a
// tokenizer is kept in a folder within it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "models/kinds/dist_weights.h"
#include "models/kinds/kind.h"
#include "models/kinds/mcore_config.h"

namespace reshard {

// Fills in model, ranks, doubts and template of a checkpoint whose config and weights (of the folder `weights`) are
// read. Errors: those of ModelFromMcoreConfig and of ReadTemplate.
void DescribeMcore(Io& io, const std::string& weights, const McoreDialect& dialect, const OpenOptions& options,
                   Checkpoint& checkpoint);

// All files below a folder, by name from there on.
std::vector<std::string> NamesBelow(Io& io, const std::string& folder);

// Takes the tokenizer's files of `names` (of the folder `folder` within the checkpoint) for the checkpoint's own.
void AddTokenizerFiles(std::string_view folder, const std::vector<std::string>& names, Checkpoint& checkpoint);

// The tokenizer of a target: files to be kept in a folder of it, or a name.
struct KeptTokenizer {
  std::vector<FileCopy> files;
  std::string name;  // of the hub or a folder
};

// The files of the source, of its template or, where there are none, the name that --hf_model_name or the source's
// folder gives. Side files that do not come along go to `out.left`. Errors: kInvalidArgument where there is neither.
KeptTokenizer TokenizerToKeep(Io& io, const Checkpoint& source, const TargetOptions& options, LaidOut& out);

// Throws where it is not sure how many rows the vocabulary of a checkpoint of another kind has.
void RequireVocabulary(const Checkpoint& source, std::string_view kind);

// --nemo_weights.
DistFormat DistFormatOf(const TargetOptions& options);

}  // namespace reshard
