// A conversion as jobs of a cluster: which there are, and how they get there.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/io.h"
#include "base/json.h"
#include "launch/cluster_config.h"
#include "launch/experiment.h"
#include "launch/job_script.h"

namespace reshard {

// What the command line says of where and how a conversion runs.
struct LaunchOptions {
  std::string cluster, config_dir, mount_paths;
  std::string expname = "conversion";
  std::string partition, log_dir, time_min, qos, installation_command;
  std::vector<std::string> run_after;      // titles and ids of experiments
  Json sbatch_arguments = Json::object();  // they override everything
  std::optional<bool> exclusive;
  bool check_mounted_paths = false, request_gpus = false, classic_log_names = false;
  unsigned tasks_per_node = 0;  // in one allocation; 0: an array
};

// All paths are those of the cluster's hosts.
struct LaunchRequest {
  ClusterConfig config;
  LaunchOptions options;
  std::string program;                   // the file of this program, here
  std::vector<std::string> words;        // the options of the conversion
  std::string direction;                 // "hf-nemo"
  std::vector<std::string> build_words;  // for trtllm-build
  std::string target, checkpoint;        // where the weights go: the target, or the checkpoint of an engine
  std::string log_dir;
  bool engine = false;  // the target is one
  unsigned tasks = 1;   // one conversion on so many
  uint64_t gpus = 1, max_memory = 0;
};

struct PlannedJob {
  std::string name;  // "convert", "commit", "build"
  JobSpec spec;
  std::string script;             // its path
  std::vector<std::string> logs;  // names; see JobRecord
};

// The jobs in their order, each after the one before it has succeeded. `program` is the path there.
std::vector<PlannedJob> PlanJobs(const LaunchRequest& request, const std::string& folder, const std::string& program);

// What is submitted with --dry_run: the scripts, and what sbatch would be called with. Touches nothing.
std::string DryRun(Io& io, const LaunchRequest& request, const Environment& environment, uint64_t now);

// Sends the program and submits the jobs; the record is saved. Notes are told as they come up. Errors: kIo where a
// command fails, kNotFound where a folder is missing; nothing stays submitted then.
Experiment Launch(Io& io, const LaunchRequest& request, const Environment& environment, uint64_t now,
                  const std::function<void(const std::string&)>& note);

// Submits the jobs again from the one that publishes on, without what they waited for.
void LaunchAgain(Io& io, const std::string& home, Experiment& experiment);

}  // namespace reshard
