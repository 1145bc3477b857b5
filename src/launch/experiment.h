// What was launched, as a later command finds it again: a folder an experiment, as NeMo-Run has them.
//
//   $NEMORUN_HOME/experiments/<title>/<id>/reshard.json
//   $NEMORUN_HOME/.slurm_jobs    a line a job, for those who read NeMo-Run's
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/io.h"
#include "launch/cluster_config.h"

namespace reshard {

// What has become of a job or of a task of it: PENDING, RUNNING, COMPLETED, FAILED or CANCELLED.
struct JobState {
  std::string state = "PENDING";
  std::optional<int> exit;
};

struct JobRecord {
  std::string name;               // "convert", "commit", "build"
  std::string id;                 // Slurm's; empty before it is submitted
  unsigned tasks = 0;             // of an array; 0: it is none
  std::string script;             // the path of its batch script
  std::string state_path;         // see launch/job_script.h
  std::vector<std::string> logs;  // names in the folder, the program's own first; with %j, %A and %a
  JobState state;                 // as last seen
  std::vector<JobState> task_states;
};

struct Experiment {
  std::string title, id, executor, cluster;
  std::string target;      // the folder that is made
  std::string checkpoint;  // where the weights go: the target, or the checkpoint of an engine
  std::string folder;      // of the jobs' scripts and states
  std::string log_dir;
  std::optional<SshTunnel> ssh;
  uint64_t created = 0;  // microseconds since 1970
  std::vector<JobRecord> jobs;
};

bool IsFinal(const std::string& state);
// Of all parts together.
std::string CommonState(const std::vector<std::string>& states);
std::string StateOf(const Experiment& experiment);

std::string NemoRunHome(const Environment& environment);

// An id that is not taken in this home: "<title>_<unix seconds>", or with a counter behind it.
std::string NewId(Io& io, const std::string& home, const std::string& title, uint64_t now);

void SaveExperiment(Io& io, const std::string& home, const Experiment& experiment);

// Appends the lines of jobs to .slurm_jobs.
void ListJobs(Io& io, const std::string& home, const Experiment& experiment);

// All, newest first. A record that cannot be read is left out.
std::vector<Experiment> LoadExperiments(Io& io, const std::string& home);

// Of a title (all of it), an id, a job's id, or a target folder.
std::vector<Experiment> FindExperiments(const std::vector<Experiment>& all, const std::string& name);

// Ids of the jobs of the newest experiment of that title, or of that id; those of other programs in .slurm_jobs too.
std::vector<std::string> JobsOf(Io& io, const std::string& home, const std::string& name);

// The files that a log's pattern stands for.
std::vector<std::string> LogPaths(const Experiment& experiment, const JobRecord& job, const std::string& pattern);

}  // namespace reshard
