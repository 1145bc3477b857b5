#include "launch/trtllm_build.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/io.h"
#include "base/json.h"

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
  error.At("running", build.program);
  return error;
}

pid_t Start(const EngineBuild& build) {
  std::vector<std::string> words = BuildArguments(build);
  words.insert(words.begin(), build.program);
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  posix_spawnattr_t attributes;  // signals that we ignore, it must not
  posix_spawnattr_init(&attributes);
  sigset_t defaults;
  sigemptyset(&defaults);
  for (int number : {SIGPIPE, SIGXFSZ}) sigaddset(&defaults, number);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
  pid_t child = 0;
  const int failed = posix_spawn(&child, build.program.c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed)
    throw NotBuilt(build, Code::kIo,
                   fmt::format("it cannot be started ({}), expected a program with its interpreter",
                               std::generic_category().message(failed)));
  return child;
}

// Returns the status of the program, which is ended too where we are asked to stop.
int Await(const EngineBuild& build, pid_t child) {
  constexpr std::chrono::milliseconds kBetweenLooks{20};  // a signal wakes us, but not if it comes just before
  int status = 0;
  bool told = false;
  for (;;) {
    const pid_t ended = waitpid(child, &status, WNOHANG);
    if (ended == child) return status;
    if (ended == -1) throw SystemError(errno, "waiting for", build.program);
    if (!told && build.stop && *build.stop) told = kill(child, SIGTERM) == 0;
    std::this_thread::sleep_for(kBetweenLooks);
  }
}

}  // namespace

std::span<const BuildOption> BuildOptions() { return kOptions; }

std::string FindTrtllmBuild() {
  const char* variable = std::getenv("PATH");
  const std::string folders = variable ? variable : "";
  for (size_t begin = 0; begin < folders.size();) {
    const size_t end = std::min(folders.find(':', begin), folders.size());
    std::string path = InFolder(folders.substr(begin, end - begin), kProgram);
    if (access(path.c_str(), X_OK) == 0 && !std::filesystem::is_directory(path)) return path;
    begin = end + 1;
  }
  throw Error(
      Code::kNotFound,
      "it is not on the PATH, expected it to build the engine; --checkpoint_only stops with the checkpoint in OUT")
      .At("looking for", std::string(kProgram));
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
  const int status = Await(build, Start(build));
  if (build.stop && *build.stop) throw NotBuilt(build, Code::kCancelled, "stopped by a signal, and it with us");
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw NotBuilt(build, Code::kIo,
                   fmt::format("it ended with {} {}, expected exit code 0", WIFEXITED(status) ? "exit code" : "signal",
                               WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status)));
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
