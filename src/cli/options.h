// The option table (cli/option_table.h): every option of every command, one row each. Parsing, help and "did you mean"
// read the same rows.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/launch.h"
#include "reshard/reshard.h"

namespace reshard::cli {

struct Options {
  std::vector<std::string> paths;  // words that are no options
  ConvertOptions convert;
  LaunchOptions launch;
  bool dry_run = false, json = false, quiet = false, help = false, follow = false;
  std::string log_format = "text";
  std::vector<std::string> trtllm;  // options given that mean something for a trtllm target only
  std::string tp_by, pp_by;         // the options that gave the sizes
  uint64_t gpus = 1;                // that a job has where it needs some: one a tensor rank
  bool use_weight_only = false, use_fp8_rowwise = false, checkpoint_only = false, prepare_only = false;
  std::string weight_only_precision;
  std::string target_folder;       // OUT: convert.output, unless that is the checkpoint beside it
  std::string engine;              // the folder of the engine that a checkpoint is the first step to; empty: no engine
  bool reuse_checkpoint = true;    // one that is there and answers the same request
  std::vector<std::string> build;  // words for trtllm-build
  std::vector<std::string> builder;  // what to call for it; empty: the one on the PATH
  std::vector<std::string> notes;    // options that were accepted and change nothing, a line each
  // Options that were given and mean something only where the source or the target is of some kinds.
  struct Conditional {
    std::string name, sources, targets;  // kinds, apart by blanks
  };
  std::vector<Conditional> conditional;
  // What was given and is not about launching, in order: the same conversion elsewhere is told the same.
  struct Given {
    std::string name;
    std::optional<std::string> value;  // nothing of a flag
    bool is_path;
  };
  std::vector<Given> given;
};

// The words behind the command's name. `called_ns`: the program was called by the name of NeMo-Skills' own, whose
// defaults then hold. Errors: kInvalidArgument (unknown words: "did you mean ..."), kUnsupported (an option of a later
// version, named).
Options ParseOptions(const std::string& command, std::vector<std::string> words, bool called_ns);

// Notes on given options that mean nothing between two kinds.
std::vector<std::string> NeedlessBetween(const Options& options, const std::string& source, const std::string& target);

// The same where checkpoints of these kinds are looked at.
std::vector<std::string> NeedlessFor(const Options& options, const std::vector<std::string>& kinds);

std::string HelpText(const std::string& command);  // of one command; of the program where it is empty

// The closest of `known`, if it is close to `word`; else empty.
std::string Closest(const std::string& word, const std::vector<std::string>& known);

// What goes behind "... is not known" and before a remedy: "; did you mean --dtype? ", or "; ".
std::string DidYouMean(const std::string& closest);

// The commands, in the order of the help.
std::vector<std::string> Commands();

}  // namespace reshard::cli
