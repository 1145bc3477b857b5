// The second step to a TensorRT-LLM engine: trtllm-build, another program, makes it of a checkpoint. Its arguments are
// those of NeMo-Skills' `ns convert`.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "launch/cluster_config.h"

namespace reshard {

// An option of trtllm-build's own (0.12 to 0.15).
struct BuildOption {
  std::string_view name;
  bool takes_value = true;
};
std::span<const BuildOption> BuildOptions();

// The path of the trtllm-build on the PATH. Errors: kNotFound, which names --checkpoint_only.
std::string FindTrtllmBuild();

// The words that run the trtllm-build of a configuration's image in a container of Docker, which sees the mounts and
// the parents of `folders` under their own names; empty where there is one on the PATH, or no image, or no Docker.
std::vector<std::string> DockerBuilder(const ClusterConfig& config, uint64_t gpus,
                                       const std::vector<std::string>& folders);

struct EngineBuild {
  std::vector<std::string> program;  // the words that its own options are appended to
  std::string checkpoint, engine;
  std::vector<std::string> extra;           // words for trtllm-build, which override what is passed by default
  const std::atomic<bool>* stop = nullptr;  // when it turns true, the program is ended (SIGTERM); not owned
};

// What the program is called with; the checkpoint, which is there, says the dtype of the attention plugin.
std::vector<std::string> BuildArguments(const EngineBuild& build);

// Runs it to its end; what it prints goes to stderr. Errors: kIo where it fails, cannot be run, or has not written an
// engine for every rank, whatever it says; kCancelled.
void BuildEngine(const EngineBuild& build);

// Refuses an engine folder that is `input`, or holds anything but logs while not `replace`.
void CheckEngineFolder(const std::string& engine, const std::string& input, bool replace);

// Copies tokenizer* of a folder beside the engine; returns the names.
std::vector<std::string> CopyTokenizer(const std::string& from, const std::string& engine);

}  // namespace reshard
