// Cluster configurations of NeMo-Skills: which file, what is in it, and what a path inside the container is outside.
//
// Pure but for reading the file: the environment is given. Errors name the file and the key: kNotFound where the file,
// a variable that it demands or a mount is missing, kCorrupt where a key holds something else than it should.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/io.h"

namespace reshard {

// The value of an environment variable, or nothing.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment ProcessEnvironment();

struct Mount {
  std::string source, destination;  // absolute, without a slash at the end
  std::string flags;                // "", "ro", "rw"
};

struct SshTunnel {
  std::string host, user, job_dir, identity, pre_command;
  unsigned port = 0;  // 0: as ssh's own configuration says
};

struct ClusterConfig {
  std::string name, path;  // of --cluster, of the file; both empty without one
  std::string executor = "none";
  std::map<std::string, std::string> containers;
  std::vector<Mount> mounts;
  std::vector<std::pair<std::string, std::string>> variables;  // of env_vars and required_env_vars, set ones only
  std::string account, partition, cpu_partition, job_name_prefix, mail_type, mail_user;
  std::string dependency_type = "afterany";
  std::map<std::string, std::string> timeouts;  // partition -> a time as sbatch takes it
  std::string default_timeout;
  std::optional<SshTunnel> ssh;
  std::string job_dir;
  bool disable_gpus_per_node = false;
  std::vector<std::string> notes;  // where the original would have understood something else
};

struct ConfigSearch {
  std::string cluster, config_dir;           // of the command line
  std::vector<std::string> install_folders;  // that may hold a folder cluster_configs
};

// The file that --cluster and --config_dir, NEMO_SKILLS_CONFIG_DIR and NEMO_SKILLS_CONFIG say. Without --cluster and
// NEMO_SKILLS_CONFIG: the executor none.
ClusterConfig LoadClusterConfig(Io& io, const ConfigSearch& search, const Environment& environment);

ClusterConfig ParseClusterConfig(const std::string& text, const std::string& path, const Environment& environment);

// "SRC:DST,SRC:DST" of --mount_paths, or one entry of `mounts`. Errors: kInvalidArgument.
std::vector<Mount> ParseMounts(const std::string& list, const Environment& environment);

// The text as sbatch takes it, or nothing where it is no time. Four fields (D:H:M:S) are one too.
std::optional<std::string> SlurmTime(const std::string& text);

// --time of jobs in a partition; empty: what Slurm has for it.
std::string TimeLimit(const ClusterConfig& config, const std::string& partition);

// What the container calls `path` is called so here. The longest destination counts that ends at a slash, as the
// container would show it; a path below a source already is one of here. With the executor none every path is itself.
// Errors: kNotFound where it is under no mount. Appends to `notes` where the original would take another mount.
std::string HostPath(const ClusterConfig& config, const std::string& path, std::vector<std::string>& notes);
bool IsMounted(const ClusterConfig& config, const std::string& path);

// Whether a variable of this name says where models of the hub lie: a path, then.
bool IsHubFolder(const std::string& name);

}  // namespace reshard
