#include "launch/experiment.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/bytes.h"
#include "base/error.h"
#include "base/json.h"

namespace reshard {
namespace {

constexpr uint64_t kMaxRecord = 16 * kMiB;
constexpr const char* kRecord = "reshard.json";

Json StateJson(const JobState& state) {
  return {{"state", state.state}, {"exit_code", state.exit ? Json(*state.exit) : Json(nullptr)}};
}

JobState StateFrom(const Json& json) {
  JobState state{json.at("state"), {}};
  if (!json.at("exit_code").is_null()) state.exit = json.at("exit_code").get<int>();
  return state;
}

Json JobJson(const JobRecord& job) {
  Json json = {{"name", job.name},        {"id", job.id},     {"tasks", job.tasks},          {"script", job.script},
               {"state", job.state_path}, {"logs", job.logs}, {"seen", StateJson(job.state)}};
  json["seen_tasks"] = Json::array();
  for (const JobState& state : job.task_states) json["seen_tasks"].push_back(StateJson(state));
  return json;
}

JobRecord JobFrom(const Json& json) {
  JobRecord job;
  job.name = json.at("name");
  job.id = json.at("id");
  job.tasks = json.at("tasks");
  job.script = json.at("script");
  job.state_path = json.at("state");
  job.logs = json.at("logs").get<std::vector<std::string>>();
  job.state = StateFrom(json.at("seen"));
  for (const Json& state : json.at("seen_tasks")) job.task_states.push_back(StateFrom(state));
  return job;
}

Json TunnelJson(const SshTunnel& ssh) {
  return {{"host", ssh.host},         {"user", ssh.user}, {"job_dir", ssh.job_dir},
          {"identity", ssh.identity}, {"port", ssh.port}, {"pre_command", ssh.pre_command}};
}

SshTunnel TunnelFrom(const Json& json) {
  SshTunnel ssh;
  ssh.host = json.at("host");
  ssh.user = json.at("user");
  ssh.job_dir = json.at("job_dir");
  ssh.identity = json.at("identity");
  ssh.port = json.at("port");
  ssh.pre_command = json.at("pre_command");
  return ssh;
}

Json ExperimentJson(const Experiment& experiment) {
  Json json = {{"title", experiment.title},
               {"id", experiment.id},
               {"executor", experiment.executor},
               {"cluster", experiment.cluster},
               {"target", experiment.target},
               {"checkpoint", experiment.checkpoint},
               {"folder", experiment.folder},
               {"log_dir", experiment.log_dir},
               {"created", experiment.created},
               {"ssh_tunnel", experiment.ssh ? TunnelJson(*experiment.ssh) : Json(nullptr)},
               {"jobs", Json::array()}};
  for (const JobRecord& job : experiment.jobs) json["jobs"].push_back(JobJson(job));
  return json;
}

Experiment ExperimentFrom(const Json& json) {
  Experiment experiment;
  for (auto [key, field] : {std::pair{"title", &experiment.title},
                            {"id", &experiment.id},
                            {"executor", &experiment.executor},
                            {"cluster", &experiment.cluster},
                            {"target", &experiment.target},
                            {"checkpoint", &experiment.checkpoint},
                            {"folder", &experiment.folder},
                            {"log_dir", &experiment.log_dir}})
    *field = json.at(key);
  experiment.created = json.at("created");
  if (!json.at("ssh_tunnel").is_null()) experiment.ssh = TunnelFrom(json.at("ssh_tunnel"));
  for (const Json& job : json.at("jobs")) experiment.jobs.push_back(JobFrom(job));
  return experiment;
}

std::string FolderOf(const std::string& home, const std::string& title, const std::string& id) {
  return JoinPath(JoinPath(JoinPath(home, "experiments"), title), id);
}

std::vector<std::string> Entries(Io& io, const std::string& folder) {
  const auto info = io.Stat(folder);
  return info && info->type == FileInfo::Type::kDirectory ? io.List(folder) : std::vector<std::string>();
}

std::string SlurmJobsPath(const std::string& home) { return JoinPath(home, ".slurm_jobs"); }

// "123 = <logs>,<folder>,..." of .slurm_jobs: the id and the folder's last two names.
struct ListedJob {
  std::string job, title, id;
};

std::vector<ListedJob> ListedJobs(Io& io, const std::string& home) {
  std::vector<ListedJob> jobs;
  if (!io.Stat(SlurmJobsPath(home))) return jobs;
  const std::string text = ReadWholeFile(io, SlurmJobsPath(home), UINT64_MAX);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t equals = line.find(" = "), marker = line.find("/experiments/");
    if (equals == line.npos || marker == line.npos) continue;
    const size_t title = marker + std::string("/experiments/").size(), slash = line.find('/', title);
    if (slash == line.npos) continue;
    const size_t id_end = std::min(line.find_first_of("/,", slash + 1), line.size());
    jobs.push_back(
        {line.substr(0, equals), line.substr(title, slash - title), line.substr(slash + 1, id_end - slash - 1)});
  }
  return jobs;
}

}  // namespace

bool IsFinal(const std::string& state) { return state != "PENDING" && state != "RUNNING"; }

std::string CommonState(const std::vector<std::string>& states) {
  for (const char* state : {"RUNNING", "FAILED", "CANCELLED", "PENDING"})
    if (std::find(states.begin(), states.end(), state) != states.end()) return state;
  return states.empty() ? "PENDING" : "COMPLETED";
}

std::string StateOf(const Experiment& experiment) {
  // The last job makes sure of all that the others should have done.
  if (!experiment.jobs.empty() && experiment.jobs.back().state.state == "COMPLETED") return "COMPLETED";
  std::vector<std::string> states;
  for (const JobRecord& job : experiment.jobs) states.push_back(job.state.state);
  return CommonState(states);
}

std::string NemoRunHome(const Environment& environment) {
  const std::string home = environment("NEMORUN_HOME").value_or("");
  return home.empty() ? JoinPath(environment("HOME").value_or("/"), ".nemo_run") : home;
}

std::string NewId(Io& io, const std::string& home, const std::string& title, uint64_t now) {
  const std::string id = fmt::format("{}_{}", title, now);
  for (unsigned counter = 1;; ++counter) {
    const std::string tried = counter == 1 ? id : fmt::format("{}_{}", id, counter);
    if (!io.Stat(FolderOf(home, title, tried))) return tried;
  }
}

void SaveExperiment(Io& io, const std::string& home, const Experiment& experiment) {
  const std::string folder = FolderOf(home, experiment.title, experiment.id);
  io.MakeDirectories(folder);
  const std::string path = JoinPath(folder, kRecord), part = path + ".part";
  WriteWholeFile(io, part, ExperimentJson(experiment).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  io.Rename(part, path);
}

void ListJobs(Io& io, const std::string& home, const Experiment& experiment) {
  const auto info = io.Stat(SlurmJobsPath(home));
  std::string lines;
  for (const JobRecord& job : experiment.jobs) {
    const Json tunnel = experiment.ssh ? Json({{"job_dir", experiment.ssh->job_dir},
                                               {"host", experiment.ssh->host},
                                               {"user", experiment.ssh->user},
                                               {"identity", experiment.ssh->identity}})
                                       : Json({{"job_dir", ParentOf(ParentOf(experiment.folder))}});
    lines += fmt::format("{} = {}/*{}_srun.log,{},{},{}\n", job.id, experiment.log_dir, job.id,
                         JoinPath(FolderOf(home, experiment.title, experiment.id), "nemo-run"),
                         experiment.ssh ? "SSHTunnel" : "LocalTunnel",
                         tunnel.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  io.OpenWrite(SlurmJobsPath(home))->WriteAt(lines.data(), lines.size(), info ? info->size : 0);
}

std::vector<Experiment> LoadExperiments(Io& io, const std::string& home) {
  std::vector<Experiment> all;
  const std::string titles = JoinPath(home, "experiments");
  for (const std::string& title : Entries(io, titles))
    for (const std::string& id : Entries(io, JoinPath(titles, title))) {
      const std::string path = JoinPath(FolderOf(home, title, id), kRecord);
      if (!io.Stat(path)) continue;
      try {
        all.push_back(ExperimentFrom(ParseJson(ReadWholeFile(io, path, kMaxRecord), path)));
      } catch (const Error&) {
      } catch (const Json::exception&) {
      }
    }
  std::stable_sort(all.begin(), all.end(),
                   [](const Experiment& a, const Experiment& b) { return a.created > b.created; });
  return all;
}

std::vector<Experiment> FindExperiments(const std::vector<Experiment>& all, const std::string& name) {
  std::string folder = std::filesystem::absolute(name).lexically_normal().string();
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  std::vector<Experiment> found;
  for (const Experiment& experiment : all) {
    const bool has_job = std::any_of(experiment.jobs.begin(), experiment.jobs.end(),
                                     [&](const JobRecord& job) { return job.id == name; });
    if (experiment.title == name || experiment.id == name || has_job || experiment.target == folder ||
        experiment.checkpoint == folder)
      found.push_back(experiment);
  }
  return found;
}

std::vector<std::string> JobsOf(Io& io, const std::string& home, const std::string& name) {
  std::vector<ListedJob> jobs = ListedJobs(io, home);
  for (const Experiment& experiment : LoadExperiments(io, home))
    for (const JobRecord& job : experiment.jobs) jobs.push_back({job.id, experiment.title, experiment.id});
  // Of a title the newest: the seconds are in its id.
  std::string newest;
  for (const ListedJob& job : jobs)
    if (job.title == name && (job.id.size() > newest.size() || (job.id.size() == newest.size() && job.id > newest)))
      newest = job.id;
  std::vector<std::string> ids;
  for (const ListedJob& job : jobs)
    if (job.id == (newest.empty() ? name : newest) && !job.job.empty() &&
        std::find(ids.begin(), ids.end(), job.job) == ids.end())
      ids.push_back(job.job);
  return ids;
}

std::vector<std::string> LogPaths(const Experiment& experiment, const JobRecord& job, const std::string& pattern) {
  auto with = [](std::string text, const char* what, const std::string& by) {
    const size_t at = text.find(what);
    return at == text.npos ? text : text.replace(at, 2, by);
  };
  const std::string path = JoinPath(experiment.log_dir, with(with(pattern, "%j", job.id), "%A", job.id));
  if (pattern.find("%a") == pattern.npos) return {path};
  std::vector<std::string> paths;
  for (unsigned task = 0; task < job.tasks; ++task) paths.push_back(with(path, "%a", std::to_string(task)));
  return paths;
}

}  // namespace reshard
