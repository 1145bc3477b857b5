#include "launch/trtllm_build.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/io.h"
#include "base/json.h"
#include "launch/process.h"

namespace reshard {
namespace {

constexpr std::string_view kProgram = "trtllm-build";
constexpr std::string_view kLogs = "conversion-logs";
constexpr uint64_t kMaxConfig = uint64_t{1} << 20;

constexpr BuildOption kOptions[] = {
    {"--model_config"},
    {"--build_config"},
    {"--model_cls_file"},
    {"--model_cls_name"},
    {"--input_timing_cache"},
    {"--output_timing_cache"},
    {"--log_level"},
    {"--profiling_verbosity"},
    {"--enable_debug_output", false},
    {"--visualize_network", false},
    {"--weight_sparsity", false},
    {"--weight_streaming", false},
    {"--fast_build", false},
    {"--strongly_typed", false},
    {"--max_batch_size"},
    {"--max_input_len"},
    {"--max_seq_len"},
    {"--max_beam_width"},
    {"--max_num_tokens"},
    {"--opt_num_tokens"},
    {"--max_prompt_embedding_table_size"},
    {"--max_multimodal_len"},
    {"--max_encoder_input_len"},
    {"--max_draft_len"},
    {"--speculative_decoding_mode"},
    {"--use_fused_mlp"},
    {"--gather_all_token_logits", false},
    {"--gather_context_logits", false},
    {"--gather_generation_logits", false},
    {"--builder_force_num_profiles"},
    {"--multiple_profiles"},
    {"--logits_dtype"},
    {"--lora_dir"},
    {"--lora_ckpt_source"},
    {"--lora_target_modules"},
    {"--max_lora_rank"},
    {"--auto_parallel"},
    {"--gpus_per_node"},
    {"--cluster_key"},
    {"--bert_attention_plugin"},
    {"--gpt_attention_plugin"},
    {"--gemm_plugin"},
    {"--gemm_swiglu_plugin"},
    {"--fp8_rowwise_gemm_plugin"},
    {"--low_latency_gemm_plugin"},
    {"--nccl_plugin"},
    {"--lookup_plugin"},
    {"--lora_plugin"},
    {"--moe_plugin"},
    {"--mamba_conv1d_plugin"},
    {"--context_fmha"},
    {"--context_fmha_fp32_acc"},
    {"--bert_context_fmha_fp32_acc"},
    {"--use_paged_context_fmha"},
    {"--use_fp8_context_fmha"},
    {"--paged_kv_cache"},
    {"--paged_state"},
    {"--remove_input_padding"},
    {"--use_custom_all_reduce"},
    {"--reduce_fusion"},
    {"--multi_block_mode"},
    {"--enable_xqa"},
    {"--attention_qk_half_accumulation"},
    {"--tokens_per_block"},
    {"--streamingllm"},
    {"--user_buffer"},
};

std::string InFolder(const std::string& folder, std::string_view name) {
  return JoinPath(folder.empty() ? "." : folder, std::string(name));
}

std::string FindOnPath(std::string_view name) {
  const char* variable = std::getenv("PATH");
  const std::string folders = variable ? variable : "";
  for (size_t begin = 0; begin < folders.size();) {
    const size_t end = std::min(folders.find(':', begin), folders.size());
    std::string path = InFolder(folders.substr(begin, end - begin), name);
    if (access(path.c_str(), X_OK) == 0 && !std::filesystem::is_directory(path)) return path;
    begin = end + 1;
  }
  return "";
}

Json CheckpointConfig(const EngineBuild& build) {
  const std::string path = JoinPath(build.checkpoint, "config.json");
  return ParseJson(ReadWholeFile(PosixIo(), path, kMaxConfig), path);
}

// What a build leaves, by name: an engine for each rank of the checkpoint, and a config. None where it is no file.
std::map<std::string, std::optional<FileInfo>> EngineFiles(const EngineBuild& build) {
  const uint64_t ranks = CheckpointConfig(build).at("mapping").at("world_size");
  std::map<std::string, std::optional<FileInfo>> files;
  auto add = [&](const std::string& name) {
    std::optional<FileInfo> info = PosixIo().Stat(JoinPath(build.engine, name));
    if (info && info->type != FileInfo::Type::kFile) info.reset();
    files[name] = info;
  };
  add("config.json");
  for (uint64_t rank = 0; rank < ranks; ++rank) add(fmt::format("rank{}.engine", rank));
  return files;
}

bool HoldsAnything(const std::string& engine) {
  const std::vector<std::string> entries = PosixIo().Stat(engine) ? PosixIo().List(engine) : std::vector<std::string>();
  return std::any_of(entries.begin(), entries.end(), [](const std::string& entry) { return entry != kLogs; });
}

Error NotBuilt(const EngineBuild& build, Code code, const std::string& found) {
  Error error(code, fmt::format("{}; the checkpoint stays in {} and is taken up again by the same command{}", found,
                                build.checkpoint, HoldsAnything(build.engine) ? " with --override" : ""));
  error.At("running", build.program[0]);
  return error;
}

Process Start(const EngineBuild& build) {
  std::vector<std::string> words = build.program;
  for (const std::string& word : BuildArguments(build)) words.push_back(word);
  try {
    return {words, {}};
  } catch (const Error& error) {
    throw NotBuilt(build, Code::kIo,
                   fmt::format("it cannot be started ({}), expected a program with its interpreter", error.message()));
  }
}

// Returns its exit code; it is ended too where we are asked to stop.
int Await(const EngineBuild& build, Process process) {
  constexpr std::chrono::milliseconds kBetweenLooks{20};  // a signal wakes us, but not if it comes just before
  bool told = false;
  for (;;) {
    if (const std::optional<int> exit = process.Poll()) return *exit;
    if (!told && build.stop && *build.stop) {
      process.Signal(SIGTERM);
      told = true;
    }
    std::this_thread::sleep_for(kBetweenLooks);
  }
}

}  // namespace

std::span<const BuildOption> BuildOptions() { return kOptions; }

std::string FindTrtllmBuild() {
  std::string path = FindOnPath(kProgram);
  if (!path.empty()) return path;
  throw Error(
      Code::kNotFound,
      "it is not on the PATH, expected it to build the engine; --checkpoint_only stops with the checkpoint in OUT")
      .At("looking for", std::string(kProgram));
}

std::vector<std::string> DockerBuilder(const ClusterConfig& config, uint64_t gpus,
                                       const std::vector<std::string>& folders) {
  const auto image = config.containers.find("trtllm");
  if (image == config.containers.end() || image->second.empty() || !FindOnPath(kProgram).empty()) return {};
  const std::string docker = FindOnPath("docker");
  if (docker.empty()) return {};
  std::vector<std::string> words = {docker,       "run",           "--rm", fmt::format("--gpus={}", gpus),
                                    "--ipc=host", "--network=host"};
  for (const Mount& mount : config.mounts)
    words.insert(words.end(),
                 {"-v", mount.source + ":" + mount.destination + (mount.flags.empty() ? "" : ":" + mount.flags)});
  std::set<std::string> parents;
  for (const std::string& folder : folders) parents.insert(ParentOf(folder));
  for (const std::string& parent : parents) words.insert(words.end(), {"-v", parent + ":" + parent});
  words.insert(words.end(), {image->second, std::string(kProgram)});
  return words;
}

std::vector<std::string> BuildArguments(const EngineBuild& build) {
  std::vector<std::string> words = {"--checkpoint_dir",
                                    build.checkpoint,
                                    "--output_dir",
                                    build.engine,
                                    "--gpt_attention_plugin",
                                    CheckpointConfig(build).at("dtype").get<std::string>(),
                                    "--use_paged_context_fmha",
                                    "enable",
                                    "--max_input_len",
                                    "4096",
                                    "--max_seq_len",
                                    "8192",
                                    "--max_num_tokens",
                                    "8192",
                                    "--max_batch_size",
                                    "128"};
  words.insert(words.end(), build.extra.begin(), build.extra.end());
  return words;
}

void BuildEngine(const EngineBuild& build) {
  const auto before = EngineFiles(build);
  const int exit = Await(build, Start(build));
  if (build.stop && *build.stop) throw NotBuilt(build, Code::kCancelled, "stopped by a signal, and it with us");
  if (exit != 0)
    throw NotBuilt(build, Code::kIo,
                   fmt::format("it ended with {} {}, expected exit code 0", exit > 128 ? "signal" : "exit code",
                               exit > 128 ? exit - 128 : exit));
  for (const auto& [name, info] : EngineFiles(build)) {
    const std::optional<FileInfo>& old = before.at(name);
    if (info && !(old && old->inode == info->inode && old->mtime_ns == info->mtime_ns)) continue;
    throw NotBuilt(
        build, Code::kIo,
        fmt::format(
            "it ended with exit code 0 and did not write {}, expected config.json and an engine for each of {} ranks",
            name, before.size() - 1));
  }
}

void CheckEngineFolder(const std::string& engine, const std::string& input, bool replace) {
  Io& io = PosixIo();
  const auto info = io.Stat(engine);
  if (!info) return;
  if (info->type != FileInfo::Type::kDirectory)
    throw Error(Code::kAlreadyExists, "this is no folder, expected one or nothing").At("making", engine);
  if (io.Stat(input) && io.Canonical(engine) == io.Canonical(input))
    throw Error(Code::kAlreadyExists, "this is the input, expected another folder").At("making", engine);
  for (const std::string& entry : io.List(engine))
    if (!replace && entry != kLogs)
      throw Error(Code::kAlreadyExists,
                  fmt::format("found {}, expected an empty folder or none; --override builds into it", entry))
          .At("making", engine);
}

std::vector<std::string> CopyTokenizer(const std::string& from, const std::string& engine) {
  Io& io = PosixIo();
  std::vector<std::string> names;
  for (const std::string& name : io.List(from)) {
    const std::string path = JoinPath(from, name);
    const auto info = io.Stat(path);
    if (!name.starts_with("tokenizer") || !info || info->type != FileInfo::Type::kFile) continue;
    WriteWholeFile(io, JoinPath(engine, name), ReadWholeFile(io, path, UINT64_MAX));
    names.push_back(name);
  }
  return names;
}

}  // namespace reshard
