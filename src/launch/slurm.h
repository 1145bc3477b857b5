// Slurm's commands.
#pragma once

#include <string>
#include <vector>

#include "launch/experiment.h"
#include "launch/shell.h"

namespace reshard {

// Submits a script from its own folder; returns the job's id. Errors: kIo with what sbatch said.
std::string Submit(const Shell& shell, const std::vector<std::string>& words, const std::string& script);

// Ends jobs that have not ended. Errors: kIo.
void CancelJobs(const Shell& shell, const std::vector<std::string>& ids);

// The state that Slurm's own word for it means: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED.
std::string PlainState(const std::string& word);

// Fills in what has become of the jobs that have not ended: by squeue, scontrol, sacct, and the jobs' own records, the
// first that knows. False where Slurm does not answer; the states are then as last seen.
bool UpdateStates(const Shell& shell, Experiment& experiment);

// How far all tasks have come, of the files that they leave in the staging folder.
struct TaskProgress {
  uint64_t done = 0, total = 0;  // bytes
  double rate = 0;               // bytes a second
  double time = 0;               // when it was last written, Unix time
};
std::optional<TaskProgress> ReadProgress(const Shell& shell, const std::string& checkpoint);

}  // namespace reshard
