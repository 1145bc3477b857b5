#include "cli/option_table.h"
#include "launch/cluster_config.h"

namespace reshard::cli {
namespace {

// A text of the launching options.
Store Text(std::string LaunchOptions::*field) {
  return [=](Options& o, const std::string& v) { o.launch.*field = v; };
}

// A switch of them, and what its opposite says.
Store Switch(bool LaunchOptions::*field, bool on) {
  return [=](Options& o, const std::string&) { o.launch.*field = on; };
}

// It names a folder, jobs and logs.
std::string Title(const std::string& value) {
  const bool hidden = std::any_of(value.begin(), value.end(), [](unsigned char c) { return c < ' ' || c == 127; });
  if (value.empty() || value[0] == '.' || value[0] == '-' || hidden || value.find('/') != value.npos)
    throw Usage("--expname is '" + value + "', expected a name for a folder");
  return value;
}

Json SbatchArguments(const std::string& value) {
  Json arguments = Json::parse(value, nullptr, false);
  auto plain = [](const Json& each) { return each.is_primitive() && !each.is_binary(); };
  if (arguments.is_object() && std::all_of(arguments.begin(), arguments.end(), plain)) return arguments;
  throw Usage("--sbatch_kwargs is '" + value +
              "', expected a JSON object of options of sbatch and their values, such as {\"mem\": \"64G\"}");
}

std::string MountPaths(const std::string& value) {
  ParseMounts(value, ProcessEnvironment());
  return value;
}

std::string Time(const std::string& value) {
  const std::optional<std::string> time = SlurmTime(value);
  if (!time) throw Usage("--time_min is '" + value + "', expected a time such as 04:00:00 or 1-12:00:00");
  return *time;
}

constexpr const char* kNoCode = "the program sends itself, no code is packed";

}  // namespace

std::vector<OptionRow> LaunchRows() {
  return {
      {"--cluster", "NAME", kConvert, "where to run: the cluster configuration NAME.yaml",
       Text(&LaunchOptions::cluster), "", "", kLaunch},
      {"--config_dir", "FOLDER", kConvert, "where that file is; by default ./cluster_configs",
       Text(&LaunchOptions::config_dir), "", "", kLaunch},
      {"--expname", "TITLE", kConvert, "what jobs, logs and `reshard status` call it, by default\nconversion",
       [](Options& o, const std::string& v) { o.launch.expname = Title(v); }, "", "", kLaunch},
      {"--dry_run", "", kConvert, "print the plan, or the scripts of the jobs, and stop",
       [](Options& o, const std::string&) { o.dry_run = true; }, "", "", kLaunch},
      {"--no_dry_run", "", kConvert, "", [](Options& o, const std::string&) { o.dry_run = false; }, "", "", kLaunch},
      {"--convert_tasks", "N", kConvert, "one conversion on N tasks, 1 by default",
       [](Options& o, const std::string& v) {
         o.convert.tasks = static_cast<uint32_t>(Count("--convert_tasks", v, 1, 4096));
       },
       "", "", kLaunch},
      {"--convert_tasks_per_node", "K", kConvert, "slurm: all tasks in one allocation, K a node; by default an array",
       [](Options& o, const std::string& v) {
         o.launch.tasks_per_node = static_cast<unsigned>(Count("--convert_tasks_per_node", v, 1, 1000));
       },
       "", "", kLaunch},
      {"--convert_task", "K", kConvert, "do share K, from 0, of --convert_tasks, and do not publish",
       [](Options& o, const std::string& v) {
         o.convert.task = static_cast<uint32_t>(Count("--convert_task", v, 0, 4095));
       },
       "", "", kLaunch},
      {"--mount_paths", "SRC:DST,...", kConvert, "more mounts than the configuration has",
       [](Options& o, const std::string& v) { o.launch.mount_paths = MountPaths(v); }, "", "", kLaunch},
      {"--check_mounted_paths", "", kConvert,
       "take paths under no mount as they are; look whether sources\nof mounts "
       "exist",
       Switch(&LaunchOptions::check_mounted_paths, true), "", "", kLaunch},
      {"--no_check_mounted_paths", "", kConvert, "", Switch(&LaunchOptions::check_mounted_paths, false), "", "",
       kLaunch},
      {"--log_dir", "FOLDER", kConvert,
       "slurm: where logs go, by default OUT/conversion-logs, or\nOUT-conversion-logs of a .nemo file",
       Text(&LaunchOptions::log_dir), "", "", kLaunch},
      {"--classic_log_names", "", kConvert, "slurm: jobs and logs named by the direction and without ids,\nas at first",
       Switch(&LaunchOptions::classic_log_names, true), "", "", kLaunch},
      {"--partition", "NAME", kConvert, "slurm: instead of the configuration's", Text(&LaunchOptions::partition), "",
       "", kLaunch},
      {"--qos", "NAME", kConvert, "slurm: quality of service", Text(&LaunchOptions::qos), "", "", kLaunch},
      {"--time_min", "TIME", kConvert, "slurm: the least time limit that will do",
       [](Options& o, const std::string& v) { o.launch.time_min = Time(v); }, "", "", kLaunch},
      {"--exclusive", "", kConvert, "slurm: whole nodes",
       [](Options& o, const std::string&) { o.launch.exclusive = true; }, "", "", kLaunch},
      {"--no_exclusive", "", kConvert, "", [](Options& o, const std::string&) { o.launch.exclusive = false; }, "", "",
       kLaunch},
      {"--request_gpus", "", kConvert,
       "slurm: conversion jobs ask for --num_gpus GPUs too, for\npartitions that demand "
       "them",
       Switch(&LaunchOptions::request_gpus, true), "", "", kLaunch},
      {"--run_after", "NAME", kConvert, "slurm: wait for the jobs of this experiment; may be repeated",
       [](Options& o, const std::string& v) { o.launch.run_after.push_back(v); }, "", "", kLaunch | kRepeats},
      {"--installation_command", "COMMAND", kConvert, "slurm: run by a shell on every node before the program",
       Text(&LaunchOptions::installation_command), "", "", kLaunch},
      {"--sbatch_kwargs,--sbatch_arguments", "JSON", kConvert, "slurm: options of sbatch, which override all others",
       [](Options& o, const std::string& v) { o.launch.sbatch_arguments = SbatchArguments(v); }, "", "", kLaunch},
      {"--reuse_code", "", kConvert, "", Needless("--reuse_code", kNoCode), "", "", kLaunch},
      {"--no_reuse_code", "", kConvert, "", Needless("--no_reuse_code", kNoCode), "", "", kLaunch},
      {"--reuse_code_exp", "NAME", kConvert, "", Needless("--reuse_code_exp", kNoCode), "", "", kLaunch},
      {"--skip_hf_home_check", "", kConvert, "", Needless("--skip_hf_home_check", "HF_HOME is not demanded"), "", "",
       kLaunch},
      {"--no_skip_hf_home_check", "", kConvert, "", Needless("--no_skip_hf_home_check", "HF_HOME is not demanded"), "",
       "", kLaunch},
      {"--follow", "", kLogs, "go on until the jobs have ended",
       [](Options& o, const std::string&) { o.follow = true; }},
  };
}

}  // namespace reshard::cli
