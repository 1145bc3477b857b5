// --convert_tasks without a cluster: processes of this machine.
#pragma once

#include <atomic>

#include "cli/options.h"
#include "cli/report.h"

namespace reshard::cli {

// Runs the tasks of a conversion to their end, each as a process with this command's words. Returns 0, or the exit code
// of the first that failed, which has said why.
int RunLocalTasks(const Options& options, const PlanReport& plan, const std::atomic<bool>& stop, Log& log);

}  // namespace reshard::cli
