// The batch script of a job, as text.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace reshard {

struct JobSpec {
  enum class Shape {
    kSingle,      // one process, a step
    kArray,       // as many jobs as tasks, a process each
    kAllocation,  // one job, a step of as many processes
    kDirect,      // one process without a step: it starts steps itself
  };
  Shape shape = Shape::kSingle;
  unsigned tasks = 1, tasks_per_node = 1;
  // Options of sbatch, with a value or, flags, without.
  std::map<std::string, std::optional<std::string>> directives;
  std::vector<std::pair<std::string, std::string>> variables;  // to be exported
  std::string installation_command;                            // run once on every node before
  std::string program;                                         // the path of this one, where the job runs
  std::vector<std::string> arguments;                          // of its command convert
  std::string state;                                           // a file for what became of the job; see below
  std::string log_dir, log_name;                               // of the program's output; %j is the job's id
};

// A script that appends lines to the state file, of an array one a task ("x.state" is "x.3.state" then):
//   RUNNING <host> <unix time>, then EXITED <code> <unix time>, or STOPPED ... where the job itself was told to end.
// A program that was interrupted (75, 143) while the job was not is queued again, three times.
std::string SbatchScript(const JobSpec& job);

// The file of a task's state.
std::string StatePath(const std::string& state, const std::optional<unsigned>& task);

// A path for --output: a '%' in it means nothing.
std::string OutputPattern(const std::string& folder, const std::string& name);

}  // namespace reshard
