#include "launch/launch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <chrono>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "launch/shell.h"
#include "launch/slurm.h"

namespace reshard {
namespace {

using Shape = JobSpec::Shape;

constexpr uint64_t kCpus = 8;

std::string FirstOf(std::initializer_list<std::string> texts) {
  for (const std::string& text : texts)
    if (!text.empty()) return text;
  return "";
}

// The folder of all jobs, and that of an experiment's.
std::string JobDir(const LaunchRequest& request, const std::string& home) {
  if (request.config.ssh) return request.config.ssh->job_dir;
  return FirstOf({request.config.job_dir, home});
}

std::string JobFolder(const LaunchRequest& request, const std::string& home, const std::string& id) {
  const std::string top = JobDir(request, home);
  const std::string folder = request.config.ssh ? top : JoinPath(top, "experiments");
  return JoinPath(JoinPath(folder, request.options.expname), id);
}

std::string HashOf(Io& io, const std::string& path) {
  Sha256 hash;
  ReadInPieces(io, path, [&](std::string_view piece) { hash.Update(piece); });
  return hash.Hex();
}

std::string ProgramPath(Io& io, const LaunchRequest& request, const std::string& home) {
  return JoinPath(JobDir(request, home), fmt::format(".bin/{}/reshard", HashOf(io, request.program)));
}

// A value of --sbatch_kwargs as sbatch takes it.
std::string ArgumentText(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

void Override(const Json& arguments, JobSpec& spec) {
  for (const auto& [key, value] : arguments.items()) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', '-');
    if (value.is_null() || value == false) {
      spec.directives.erase(name);
    } else {
      spec.directives[name] = value == true ? std::nullopt : std::optional(ArgumentText(value));
    }
  }
}

// Nothing that may be a secret gets into a file.
bool IsSecret(std::string name) {
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  for (const char* word : {"TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"})
    if (name.find(word) != name.npos) return true;
  return false;
}

std::vector<std::pair<std::string, std::string>> Exported(const ClusterConfig& config) {
  std::vector<std::pair<std::string, std::string>> variables;
  for (const auto& [name, value] : config.variables)
    if (!IsSecret(name)) variables.emplace_back(name, value);
  return variables;
}

// What a job and its logs are called after: the experiment, or at first the direction.
std::string JobName(const LaunchRequest& request, const std::string& job) {
  const LaunchOptions& options = request.options;
  const std::string name = options.classic_log_names ? "conversion-" + request.direction : options.expname;
  return job == "convert" ? name : name + "-" + job;
}

std::vector<std::string> LogNames(const LaunchRequest& request, const std::string& job, bool array) {
  const LaunchOptions& options = request.options;
  const std::string name = JobName(request, job);
  const std::string id = options.classic_log_names ? "" : array ? "_%A_%a" : "_%j";
  return {fmt::format("main_{}{}_srun.log", name, id), options.classic_log_names
                                                           ? fmt::format("main_{}_sbatch.log", name)
                                                           : fmt::format("{}{}_sbatch.log", name, id)};
}

// What all jobs have in common.
PlannedJob CommonJob(const LaunchRequest& request, const std::string& folder, const std::string& program,
                     const std::string& name, const std::string& partition, Shape shape) {
  const LaunchOptions& options = request.options;
  const ClusterConfig& config = request.config;
  PlannedJob job;
  job.name = name;
  job.script = JoinPath(folder, (name == "convert" ? "nemo-run" : name) + "_sbatch.sh");
  job.logs = LogNames(request, name, shape == Shape::kArray);
  job.spec.shape = shape;
  job.spec.variables = Exported(config);
  job.spec.installation_command = options.installation_command;
  job.spec.program = program;
  job.spec.arguments = request.words;
  job.spec.state = JoinPath(folder, name + ".state");
  job.spec.log_dir = request.log_dir;
  job.spec.log_name = job.logs[0];
  auto& directives = job.spec.directives;
  auto set = [&](const char* directive, const std::string& value) {
    if (!value.empty()) directives[directive] = value;
  };
  set("account", config.account);
  set("job-name", config.job_name_prefix + JobName(request, name));
  set("mail-type", config.mail_type);
  set("mail-user", config.mail_user);
  set("nodes", "1");
  set("ntasks-per-node", "1");
  set("open-mode", "append");
  set("output", OutputPattern(request.log_dir, job.logs[1]));
  set("partition", partition);
  set("qos", options.qos);
  set("time", TimeLimit(config, partition));
  set("time-min", options.time_min);
  if (options.exclusive.value_or(false)) directives["exclusive"] = std::nullopt;
  return job;
}

// Of a job that converts: what it asks for does not depend on the model.
PlannedJob ConversionJob(const LaunchRequest& request, const std::string& folder, const std::string& program,
                         const std::string& name, Shape shape) {
  const LaunchOptions& options = request.options;
  const std::string partition =
      FirstOf({options.partition, options.request_gpus ? "" : request.config.cpu_partition, request.config.partition});
  PlannedJob job = CommonJob(request, folder, program, name, partition, shape);
  auto& directives = job.spec.directives;
  uint64_t on_a_node = 1;
  if (shape == Shape::kArray) directives["array"] = fmt::format("0-{}", request.tasks - 1);
  if (shape == Shape::kAllocation) {
    on_a_node = std::min(request.tasks, options.tasks_per_node);
    directives["nodes"] = std::to_string(CeilDiv(request.tasks, on_a_node));
    directives["ntasks"] = std::to_string(request.tasks);
    directives["ntasks-per-node"] = std::to_string(on_a_node);
  }
  job.spec.tasks = request.tasks;
  job.spec.tasks_per_node = static_cast<unsigned>(on_a_node);
  directives["cpus-per-task"] = std::to_string(kCpus);
  directives["mem"] =
      fmt::format("{}M", on_a_node * std::max<uint64_t>(4 * kKiB, CeilDiv(2 * request.max_memory, kMiB)));
  if (options.request_gpus && !request.config.disable_gpus_per_node)
    directives["gpus-per-node"] = std::to_string(request.gpus);
  if (directives.count("time")) directives["signal"] = "TERM@60";
  if (request.engine) job.spec.arguments.push_back("--prepare_only");
  Override(options.sbatch_arguments, job.spec);
  return job;
}

// What of the host the container sees: the mounts, and the folders at hand under their own names.
std::string ContainerMounts(const LaunchRequest& request) {
  std::vector<std::string> mounts;
  auto add = [&](const std::string& mount) {
    if (std::find(mounts.begin(), mounts.end(), mount) == mounts.end()) mounts.push_back(mount);
  };
  for (const Mount& mount : request.config.mounts)
    add(mount.source + ":" + mount.destination + (mount.flags.empty() ? "" : ":" + mount.flags));
  for (const std::string& path : {request.checkpoint, request.target}) add(ParentOf(path) + ":" + ParentOf(path));
  return fmt::format("{}", fmt::join(mounts, ","));
}

std::vector<std::string> ContainerCommand(const LaunchRequest& request, const std::string& image) {
  std::vector<std::string> words = {"srun",
                                    "--ntasks=1",
                                    "--nodes=1",
                                    "--kill-on-bad-exit=1",
                                    "--container-image=" + image,
                                    "--container-mounts=" + ContainerMounts(request),
                                    "--no-container-mount-home"};
  std::vector<std::string> names;
  for (const auto& [name, value] : Exported(request.config))
    if (!IsHubFolder(name)) names.push_back(name);
  if (!names.empty()) words.push_back(fmt::format("--container-env={}", fmt::join(names, ",")));
  words.push_back("trtllm-build");
  return words;
}

// The same command once more: it finds the checkpoint, and has the engine made of it.
PlannedJob BuildJob(const LaunchRequest& request, const std::string& folder, const std::string& program) {
  const std::string partition = FirstOf({request.options.partition, request.config.partition});
  PlannedJob job = CommonJob(request, folder, program, "build", partition, Shape::kDirect);
  if (!request.config.disable_gpus_per_node) job.spec.directives["gpus-per-node"] = std::to_string(request.gpus);
  std::vector<std::string>& arguments = job.spec.arguments;
  const auto image = request.config.containers.find("trtllm");
  const bool told = std::any_of(arguments.begin(), arguments.end(),
                                [](const std::string& word) { return word.starts_with("--trtllm_build="); });
  if (!told && image != request.config.containers.end() && !image->second.empty())
    arguments.push_back("--trtllm_build=" + Json(ContainerCommand(request, image->second)).dump());
  if (!request.build_words.empty()) {
    arguments.push_back("--");
    arguments.insert(arguments.end(), request.build_words.begin(), request.build_words.end());
  }
  Override(request.options.sbatch_arguments, job.spec);
  return job;
}

std::vector<std::string> Dependency(const std::string& type, const std::vector<std::string>& ids) {
  if (ids.empty()) return {};
  std::vector<std::string> words = {fmt::format("--dependency={}:{}", type, fmt::join(ids, ":"))};
  if (type == "afterok") words.push_back("--kill-on-invalid-dep=yes");  // else it would wait for ever
  return words;
}

// Those of the jobs that are still to be waited for, as far as Slurm says.
std::vector<std::string> Unfinished(const Shell& shell, const std::string& type, const std::vector<std::string>& ids,
                                    const std::string& name) {
  Experiment asked;
  asked.folder = "/nonexistent";
  for (const std::string& id : ids) asked.jobs.push_back({"", id, 0, "", "/nonexistent/x.state", {}, {}, {}});
  const bool answers = UpdateStates(shell, asked);
  std::vector<std::string> open;
  for (const JobRecord& job : asked.jobs) {
    if (!answers || !IsFinal(job.state.state)) open.push_back(job.id);
    if (answers && job.state.state == "FAILED" && type == "afterok")
      throw Error(Code::kMismatch,
                  fmt::format("its job {} has failed, expected it to wait for or to have succeeded; run "
                              "it again, or dependency_type: afterany",
                              job.id))
          .At("waiting for", name);
  }
  return open;
}

std::vector<std::string> Predecessors(Io& io, const LaunchRequest& request, const std::string& home, const Shell* shell,
                                      const std::function<void(const std::string&)>& note) {
  std::vector<std::string> all;
  for (const std::string& name : request.options.run_after) {
    std::vector<std::string> ids = JobsOf(io, home, name);
    if (ids.empty())
      note(fmt::format("--run_after={}: there is no such experiment in {}, nothing to wait for", name, home));
    if (shell && !ids.empty()) ids = Unfinished(*shell, request.config.dependency_type, ids, name);
    for (const std::string& id : ids)
      if (std::find(all.begin(), all.end(), id) == all.end()) all.push_back(id);
  }
  return all;
}

void TellSecrets(const ClusterConfig& config, const std::function<void(const std::string&)>& note) {
  for (const auto& [name, value] : config.variables)
    if (IsSecret(name)) note(fmt::format("{} looks like a secret and is not passed on: nothing here needs it", name));
}

// Makes the folders; returns whether the program is there already. The last folder must be new.
bool PrepareFolders(const Shell& shell, const LaunchRequest& request, const std::string& folder,
                    const std::string& program) {
  constexpr int kMissingMount = 9;
  std::string script = "set -e\n";
  for (const Mount& mount : ParseMounts(request.options.mount_paths, ProcessEnvironment()))
    script += fmt::format("mkdir -p {}\n", ShellQuoted(mount.source));
  if (request.options.check_mounted_paths)
    for (const Mount& mount : request.config.mounts)
      script += fmt::format("[ -e {0} ] || {{ echo {0} >&2; exit {1}; }}\n", ShellQuoted(mount.source), kMissingMount);
  script += fmt::format("mkdir -p {} {}\nmkdir {}\n[ -x {} ] || echo missing\n", ShellQuoted(ParentOf(folder)),
                        ShellQuoted(request.log_dir), ShellQuoted(folder), ShellQuoted(program));
  const Output output = shell.Run(script);
  if (output.exit == kMissingMount)
    throw Error(Code::kNotFound, "it is the source of a mount and is not there, expected a folder or a file")
        .At("checking", output.err.substr(0, output.err.find('\n')));
  if (output.exit != 0)
    throw Error(Code::kIo, fmt::format("{}, expected to make folders there; job_dir and --log_dir must be writable",
                                       output.err.substr(0, output.err.find_last_not_of('\n') + 1)))
        .At("preparing", (shell.host().empty() ? "" : shell.host() + ":") + folder);
  return output.out.find("missing") == std::string::npos;
}

void WriteScripts(const Shell& shell, const std::vector<PlannedJob>& jobs) {
  std::string script = "set -e\n";
  for (const PlannedJob& job : jobs)
    script += fmt::format("printf %s {} >{}\n", ShellQuoted(SbatchScript(job.spec)), ShellQuoted(job.script));
  shell.Must(script, "writing", ParentOf(jobs[0].script));
}

// A partition may be for jobs with GPUs only.
Error WithGpuRemedy(const Error& error, const LaunchRequest& request) {
  std::string text = error.message();
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  if (request.options.request_gpus || (text.find("gpu") == text.npos && text.find("gres") == text.npos)) return error;
  return Error(error.code(), error.message() + "; --request_gpus asks for GPUs where a partition demands them")
      .At("submitting", error.path());
}

void SubmitInOrder(const Shell& shell, const std::vector<std::string>& after, Experiment& experiment, size_t first) {
  std::vector<std::string> submitted, words = after;
  try {
    for (size_t i = first; i < experiment.jobs.size(); ++i) {
      experiment.jobs[i].id = Submit(shell, words, experiment.jobs[i].script);
      submitted.push_back(experiment.jobs[i].id);
      words = Dependency("afterok", {experiment.jobs[i].id});
    }
  } catch (const Error&) {
    try {
      CancelJobs(shell, submitted);
    } catch (const Error&) {  // the first failure is the one to tell
    }
    throw;
  }
}

Experiment RecordOf(const LaunchRequest& request, const std::string& id, const std::string& folder,
                    const std::vector<PlannedJob>& jobs) {
  Experiment experiment;
  experiment.title = request.options.expname;
  experiment.id = id;
  experiment.executor = request.config.executor;
  experiment.cluster = request.config.name;
  experiment.target = request.target;
  experiment.checkpoint = request.checkpoint;
  experiment.folder = folder;
  experiment.log_dir = request.log_dir;
  experiment.ssh = request.config.ssh;
  experiment.created = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
  for (const PlannedJob& job : jobs)
    experiment.jobs.push_back({job.name,
                               "",
                               job.spec.shape == Shape::kArray ? job.spec.tasks : 0,
                               job.script,
                               job.spec.state,
                               job.logs,
                               {},
                               {}});
  return experiment;
}

}  // namespace

std::vector<PlannedJob> PlanJobs(const LaunchRequest& request, const std::string& folder, const std::string& program) {
  const LaunchOptions& options = request.options;
  const Shape shape = request.tasks == 1            ? Shape::kSingle
                      : options.tasks_per_node == 0 ? Shape::kArray
                                                    : Shape::kAllocation;
  std::vector<PlannedJob> jobs = {ConversionJob(request, folder, program, "convert", shape)};
  if (request.tasks > 1) jobs.push_back(ConversionJob(request, folder, program, "commit", Shape::kSingle));
  if (request.engine) jobs.push_back(BuildJob(request, folder, program));
  // What must be made again is made again once.
  for (size_t i = 1; i < jobs.size(); ++i) {
    auto& arguments = jobs[i].spec.arguments;
    const auto again = std::find(arguments.begin(), arguments.end(), "--no_trt_reuse_tmp_engine");
    if (again != arguments.end()) *again = "--trt_reuse_tmp_engine";
  }
  return jobs;
}

std::string DryRun(Io& io, const LaunchRequest& request, const Environment& environment, uint64_t now) {
  const std::string home = NemoRunHome(environment);
  const std::string id = NewId(io, home, request.options.expname, now);
  const std::string folder = JobFolder(request, home, id);
  std::string text;
  std::vector<std::string> notes;
  std::vector<std::string> words =
      Dependency(request.config.dependency_type,
                 Predecessors(io, request, home, nullptr, [&](const std::string& note) { notes.push_back(note); }));
  for (const PlannedJob& job : PlanJobs(request, folder, ProgramPath(io, request, home))) {
    text += fmt::format("# {}\n{}\n", job.script, SbatchScript(job.spec));
    std::vector<std::string> all = {"sbatch", "--requeue", "--parsable"};
    all.insert(all.end(), words.begin(), words.end());
    all.push_back(job.script);
    text += fmt::format("# {}\n\n", ShellLine(all));
    words = Dependency("afterok", {"<" + job.name + ">"});
  }
  for (const std::string& note : notes) text += "# " + note + "\n";
  return text;
}

Experiment Launch(Io& io, const LaunchRequest& request, const Environment& environment, uint64_t now,
                  const std::function<void(const std::string&)>& note) {
  const std::string home = NemoRunHome(environment);
  const std::string id = NewId(io, home, request.options.expname, now);
  const std::string folder = JobFolder(request, home, id), program = ProgramPath(io, request, home);
  const Shell shell(request.config.ssh);
  TellSecrets(request.config, note);
  const std::vector<std::string> after = Predecessors(io, request, home, &shell, note);
  if (!PrepareFolders(shell, request, folder, program)) shell.Upload(request.program, program);
  const std::vector<PlannedJob> jobs = PlanJobs(request, folder, program);
  WriteScripts(shell, jobs);
  Experiment experiment = RecordOf(request, id, folder, jobs);
  try {
    SubmitInOrder(shell, Dependency(request.config.dependency_type, after), experiment, 0);
  } catch (const Error& error) {
    throw WithGpuRemedy(error, request);
  }
  SaveExperiment(io, home, experiment);
  ListJobs(io, home, experiment);
  return experiment;
}

void LaunchAgain(Io& io, const std::string& home, Experiment& experiment) {
  const auto publishes = [](const JobRecord& job) { return job.name == "commit"; };
  auto first = std::find_if(experiment.jobs.begin(), experiment.jobs.end(), publishes);
  if (first == experiment.jobs.end()) first = experiment.jobs.begin();
  SubmitInOrder(Shell(experiment.ssh), {}, experiment, static_cast<size_t>(first - experiment.jobs.begin()));
  for (; first != experiment.jobs.end(); ++first) {
    first->state = {};
    first->task_states.clear();
  }
  SaveExperiment(io, home, experiment);
  ListJobs(io, home, experiment);
}

}  // namespace reshard
