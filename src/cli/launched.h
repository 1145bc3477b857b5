// Conversions that run elsewhere: the cluster configuration of a command line, jobs, and what became of them.
#pragma once

#include "cli/options.h"
#include "cli/report.h"
#include "launch/cluster_config.h"

namespace reshard::cli {

// The configuration that the options name; the paths of the options become those of the hosts. With the executors none
// and local its variables are set for this process.
ClusterConfig SettleCluster(Options& options, Log& log);

// The words of a command convert that does what the options say, but for what is about launching.
std::vector<std::string> WordsOf(const Options& options);

// Submits the conversion, or prints what would be.
int RunLaunch(const Options& options, const ClusterConfig& config, Log& log);

int RunStatus(const Options& options, Log& log);
int RunLogs(const Options& options, Log& log);
int RunCancel(const Options& options, Log& log);
int RunCommit(const Options& options, Log& log);

}  // namespace reshard::cli
