#include "cli/launched.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <map>

#include "base/io.h"
#include "base/target_place.h"
#include "base/text.h"
#include "launch/experiment.h"
#include "launch/launch.h"
#include "launch/slurm.h"
#include "launch/trtllm_build.h"

namespace reshard::cli {
namespace {

constexpr const char* kSelf = "/proc/self/exe";
constexpr unsigned kFollowSeconds = 1;

uint64_t Now() { return static_cast<uint64_t>(std::time(nullptr)); }

std::string Home() { return NemoRunHome(ProcessEnvironment()); }

std::string Dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

std::string WithoutSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// Where the program lies, and above: an installation may have its configurations there.
std::vector<std::string> InstallFolders() {
  std::error_code error;
  const std::string program = std::filesystem::read_symlink(kSelf, error).string();
  return {ParentOf(program), ParentOf(ParentOf(program))};
}

// Turns the names of a container into those of the hosts.
class Translator {
 public:
  Translator(const ClusterConfig& config, bool takes_unmounted) : config_(config), takes_unmounted_(takes_unmounted) {}

  std::string operator()(const std::string& path) {
    if (takes_unmounted_ && path.starts_with("/") && !IsMounted(config_, path)) return path;
    return HostPath(config_, path, notes_);
  }
  // A name on the hub, or a path that is mounted or not.
  std::string IfMounted(const std::string& name) {
    return config_.executor != "none" && IsMounted(config_, name) ? HostPath(config_, name, notes_) : name;
  }
  std::vector<std::string> notes() const { return notes_; }

 private:
  const ClusterConfig& config_;
  bool takes_unmounted_;
  std::vector<std::string> notes_;
};

void TranslateVariables(ClusterConfig& config, Translator& translate) {
  for (auto& [name, value] : config.variables)
    if (IsHubFolder(name)) value = translate.IfMounted(value);
}

void TranslatePaths(Options& options, Translator& translate) {
  ConvertOptions& convert = options.convert;
  LaunchOptions& launch = options.launch;
  const bool suffixed = options.target_folder != WithoutSlash(convert.output);
  convert.input = translate(convert.input);
  options.target_folder = translate(options.target_folder);
  convert.output = options.target_folder + (suffixed ? "-tmp" : "");
  if (!options.engine.empty()) options.engine = options.target_folder;
  const TargetPlace place = IsPacked(convert.to, options.target_folder) ? TargetPlace::File(options.target_folder)
                                                                        : TargetPlace::Folder(options.target_folder);
  launch.log_dir = launch.log_dir.empty() ? place.logs() : translate(launch.log_dir);
  convert.hf_model_name = translate.IfMounted(convert.hf_model_name);
  convert.trtllm.quant_ckpt_path = translate.IfMounted(convert.trtllm.quant_ckpt_path);
  for (Options::Given& given : options.given) {
    if (!given.is_path || !given.value) continue;
    const bool must = given.name == "--input_model" || given.name == "--output_model" || given.name == "--model_dir";
    given.value = must ? translate(*given.value) : translate.IfMounted(*given.value);
  }
}

LaunchRequest RequestOf(const Options& options, const ClusterConfig& config) {
  LaunchRequest request;
  request.config = config;
  request.options = options.launch;
  request.program = kSelf;
  request.words = WordsOf(options);
  const ConvertOptions& convert = options.convert;
  request.direction = convert.from.empty() ? convert.to : convert.from + "-" + convert.to;
  request.build_words = options.build;
  request.target = options.target_folder;
  request.checkpoint = options.convert.output;
  request.log_dir = options.launch.log_dir;
  request.engine = !options.engine.empty();
  request.tasks = options.convert.tasks;
  request.gpus = options.gpus;
  request.max_memory = options.convert.run.max_memory;
  return request;
}

// What cannot work is refused before it waits in a queue, where it can be known here and now.
void TryHere(const Options& options, const ClusterConfig& config) {
  if (config.ssh || !options.launch.run_after.empty() || !PosixIo().Stat(options.convert.input)) return;
  if (!options.engine.empty()) CheckEngineFolder(options.engine, options.convert.input, options.convert.replace);
  Conversion(options.convert).RefuseObstacles();
}

Json JobsJson(const Experiment& experiment) {
  Json jobs = Json::array();
  for (const JobRecord& job : experiment.jobs) {
    Json tasks = Json::array();
    for (size_t i = 0; i < job.task_states.size(); ++i)
      tasks.push_back({{"index", i}, {"state", job.task_states[i].state}});
    jobs.push_back({{"name", job.name},
                    {"id", job.id},
                    {"state", job.state.state},
                    {"exit_code", job.state.exit ? Json(*job.state.exit) : Json(nullptr)},
                    {"tasks", tasks},
                    {"log", LogPaths(experiment, job, job.logs.empty() ? "" : job.logs[0])[0]}});
  }
  return jobs;
}

Json ProgressJson(const std::optional<TaskProgress>& progress) {
  if (!progress) return nullptr;
  const double left = static_cast<double>(progress->total - std::min(progress->done, progress->total));
  return {{"done", progress->done},
          {"total", progress->total},
          {"rate", progress->rate},
          {"eta", progress->rate > 0 ? Json(left / progress->rate) : Json(nullptr)}};
}

struct Status {
  Experiment experiment;
  std::optional<TaskProgress> progress;
};

Json StatusJson(const Status& status) {
  const Experiment& experiment = status.experiment;
  return {{"title", experiment.title},       {"id", experiment.id},
          {"executor", experiment.executor}, {"cluster", experiment.cluster},
          {"target", experiment.target},     {"jobs", JobsJson(experiment)},
          {"state", StateOf(experiment)},    {"progress", ProgressJson(status.progress)}};
}

std::string ProgressText(const TaskProgress& progress) {
  std::string text = fmt::format("{} of {}", HumanBytes(progress.done), HumanBytes(progress.total));
  if (progress.rate <= 0) return text;
  const auto left = static_cast<uint64_t>(
      static_cast<double>(progress.total - std::min(progress.done, progress.total)) / progress.rate);
  return text +
         fmt::format(", {}/s, {}:{:02} left", HumanBytes(static_cast<uint64_t>(progress.rate)), left / 60, left % 60);
}

// "2 COMPLETED, 1 RUNNING" of the tasks of an array.
std::string TasksText(const JobRecord& job) {
  std::map<std::string, size_t> counts;
  for (const JobState& task : job.task_states) ++counts[task.state];
  std::vector<std::string> texts;
  for (const auto& [state, count] : counts) texts.push_back(fmt::format("{} {}", count, state));
  return fmt::format("  tasks: {}", fmt::join(texts, ", "));
}

std::string StatusText(const Status& status) {
  const Experiment& experiment = status.experiment;
  std::string text = fmt::format("{}  {}\n  {}\n", experiment.id.empty() ? "here" : experiment.id, StateOf(experiment),
                                 experiment.target);
  for (const JobRecord& job : experiment.jobs)
    text += fmt::format("  {:<8} {:<8} {}{}{}\n", job.name, job.id, job.state.state,
                        job.state.exit && *job.state.exit ? fmt::format(" (exit code {})", *job.state.exit) : "",
                        job.task_states.empty() ? "" : TasksText(job));
  if (status.progress) text += fmt::format("  {:<8} {}\n", "progress", ProgressText(*status.progress));
  return text;
}

// Asks for states, and keeps what is final.
bool Update(Experiment& experiment) {
  if (IsFinal(StateOf(experiment)) && std::all_of(experiment.jobs.begin(), experiment.jobs.end(),
                                                  [](const JobRecord& j) { return IsFinal(j.state.state); }))
    return true;
  const bool answers = UpdateStates(Shell(experiment.ssh), experiment);
  SaveExperiment(PosixIo(), Home(), experiment);
  return answers;
}

Error UnknownName(const std::string& name, const std::vector<Experiment>& all) {
  std::vector<std::string> known;
  for (const Experiment& experiment : all) known.insert(known.end(), {experiment.title, experiment.id});
  return Error(Code::kNotFound,
               fmt::format(
                   "it is no experiment, no job and no target of one{}`reshard status` lists all, expected one of them",
                   DidYouMean(Closest(name, known))))
      .At("looking for", name);
}

// The newest of that name; of an id, a job or a target there is hardly more than one.
Experiment NewestOf(const std::string& name) {
  const std::vector<Experiment> all = LoadExperiments(PosixIo(), Home());
  const std::vector<Experiment> found = FindExperiments(all, name);
  if (found.empty()) throw UnknownName(name, all);
  return found[0];
}

// Whether a target is there, or work on one.
bool IsTarget(const std::string& path) {
  return PosixIo().Stat(path) || PosixIo().Stat(TargetPlace::Existing(PosixIo(), path).root());
}

// A target that a conversion of here fills: it has left no record but its own progress.
Status StatusOfTarget(const TargetPlace& place) {
  constexpr double kSilence = 30;
  Status status;
  status.experiment.executor = "none";
  status.experiment.target = place.path();
  status.progress = ReadProgress(Shell(), place.path());
  JobRecord job;
  job.name = "convert";
  if (PosixIo().Stat(JoinPath(place.folder(), place.receipt())))
    job.state.state = "COMPLETED";
  else if (status.progress)
    job.state.state = static_cast<double>(Now()) - status.progress->time < kSilence ? "RUNNING" : "FAILED";
  status.experiment.jobs.push_back(job);
  return status;
}

std::vector<Status> StatusesOf(const std::vector<std::string>& names, Log& log) {
  const std::vector<Experiment> all = LoadExperiments(PosixIo(), Home());
  const std::vector<Experiment> found = names.empty() ? all : FindExperiments(all, names[0]);
  if (found.empty() && !names.empty()) {
    if (!IsTarget(names[0])) throw UnknownName(names[0], all);
    return {StatusOfTarget(TargetPlace::Existing(PosixIo(), names[0]))};
  }
  std::vector<Status> statuses;
  for (const Experiment& experiment : found) {
    Status status{experiment, {}};
    if (!Update(status.experiment))
      log.Note(fmt::format("Slurm does not answer: the state of {} is that of its own record", experiment.id));
    if (!IsFinal(StateOf(status.experiment)))
      status.progress = ReadProgress(Shell(experiment.ssh), experiment.checkpoint);
    statuses.push_back(status);
  }
  return statuses;
}

// What a log has and is not shown yet.
struct Tail {
  std::string path;
  size_t shown = 0;
};

// Shows what is new in the files; a heading where it goes on in another one.
void ShowNew(const Shell& shell, std::vector<Tail>& tails, std::string& shown_last) {
  std::string script;
  for (size_t i = 0; i < tails.size(); ++i)
    script += fmt::format(
        "if [ -f {0} ]; then s=$(($(wc -c <{0}))); if [ $s -gt {1} ]; then echo {2} $(($s - {1})); "
        "tail -c +{3} {0} | head -c $(($s - {1})); fi; fi\n",
        ShellQuoted(tails[i].path), tails[i].shown, i, tails[i].shown + 1);
  const std::string text = shell.Run(script + ":").out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    size_t index = 0, size = 0;
    if (end == text.npos || std::sscanf(text.c_str() + at, "%zu %zu", &index, &size) != 2 || index >= tails.size())
      return;
    Tail& tail = tails[index];
    if (tail.path != shown_last && tails.size() > 1) Print(fmt::format("==> {} <==\n", tail.path));
    shown_last = tail.path;
    Print(text.substr(end + 1, size));
    tail.shown += size;
    at = end + 1 + size;
  }
}

std::vector<Tail> TailsOf(const Experiment& experiment) {
  std::vector<Tail> tails;
  for (const JobRecord& job : experiment.jobs)
    for (const std::string& pattern : job.logs)
      for (const std::string& path : LogPaths(experiment, job, pattern)) tails.push_back({path});
  return tails;
}

std::string JobsText(const Experiment& experiment) {
  std::vector<std::string> texts;
  for (const JobRecord& job : experiment.jobs) texts.push_back(fmt::format("{} {}", job.name, job.id));
  return fmt::format("{}", fmt::join(texts, ", "));
}

void TellLaunched(const Options& options, const Experiment& experiment, Log& log) {
  log.Done(fmt::format("launched {}: {}; logs in {}; `reshard status {}`", experiment.id, JobsText(experiment),
                       experiment.log_dir, experiment.id),
           {{"event", "launched"}, {"id", experiment.id}, {"jobs", JobsJson(experiment)}});
  if (options.json) Print(Dump(StatusJson({experiment, {}})));
}

}  // namespace

std::vector<std::string> WordsOf(const Options& options) {
  std::vector<std::string> words;
  for (const Options::Given& given : options.given)
    words.push_back(given.name + (given.value ? "=" + *given.value : ""));
  return words;
}

ClusterConfig SettleCluster(Options& options, Log& log) {
  const LaunchOptions& launch = options.launch;
  const Environment environment = ProcessEnvironment();
  ClusterConfig config =
      LoadClusterConfig(PosixIo(), {launch.cluster, launch.config_dir, InstallFolders()}, environment);
  for (const Mount& mount : ParseMounts(launch.mount_paths, environment)) config.mounts.push_back(mount);
  Translator translate(config, launch.check_mounted_paths);
  TranslateVariables(config, translate);
  if (config.executor != "none") TranslatePaths(options, translate);
  for (const std::string& note : translate.notes()) config.notes.push_back(note);
  for (const std::string& note : config.notes) log.Note(note);
  // A plan before submission looks for templates where the job will.
  for (const auto& [name, value] : config.variables)
    if (config.executor != "slurm" || IsHubFolder(name)) setenv(name.c_str(), value.c_str(), 1);
  if (config.executor != "slurm") {
    if (!launch.run_after.empty()) log.Note("--run_after is not needed: only jobs of Slurm wait for one another");
  }
  if (config.executor == "local" && !options.engine.empty() && options.builder.empty())
    options.builder = DockerBuilder(config, options.gpus, {options.convert.output, options.engine});
  return config;
}

int RunLaunch(const Options& options, const ClusterConfig& config, Log& log) {
  for (const std::string& note : options.notes) log.Note(note);
  const LaunchRequest request = RequestOf(options, config);
  TryHere(options, config);
  if (options.dry_run) {
    Print(DryRun(PosixIo(), request, ProcessEnvironment(), Now()));
    return 0;
  }
  TellLaunched(
      options,
      Launch(PosixIo(), request, ProcessEnvironment(), Now(), [&](const std::string& note) { log.Note(note); }), log);
  return 0;
}

int RunStatus(const Options& options, Log& log) {
  const std::vector<Status> statuses = StatusesOf(options.paths, log);
  if (statuses.empty()) log.Note(fmt::format("no experiments in {}", JoinPath(Home(), "experiments")));
  Json json = Json::array();
  std::string text;
  for (const Status& status : statuses) {
    json.push_back(StatusJson(status));
    text += StatusText(status);
  }
  Print(options.json ? Dump({{"experiments", json}}) : text);
  return 0;
}

int RunLogs(const Options& options, Log&) {
  Experiment experiment = NewestOf(options.paths[0]);
  const Shell shell(experiment.ssh);
  std::vector<Tail> tails = TailsOf(experiment);
  std::string shown_last;
  for (;;) {
    Update(experiment);
    const bool ended = !options.follow || std::all_of(experiment.jobs.begin(), experiment.jobs.end(),
                                                      [](const JobRecord& job) { return IsFinal(job.state.state); });
    ShowNew(shell, tails, shown_last);
    if (ended) return 0;
    sleep(kFollowSeconds);
  }
}

int RunCancel(const Options& options, Log& log) {
  Experiment experiment = NewestOf(options.paths[0]);
  Update(experiment);
  std::vector<std::string> ids;
  for (const JobRecord& job : experiment.jobs)
    if (!IsFinal(job.state.state)) ids.push_back(job.id);
  CancelJobs(Shell(experiment.ssh), ids);
  log.Done(ids.empty() ? fmt::format("{} has ended already", experiment.id)
                       : fmt::format("cancelled {}: job {}; the same command again goes on", experiment.id,
                                     fmt::join(ids, ", ")),
           {{"event", "cancelled"}, {"id", experiment.id}, {"jobs", ids}});
  return 0;
}

int RunCommit(const Options& options, Log& log) {
  const std::string& name = options.paths[0];
  const std::vector<Experiment> all = LoadExperiments(PosixIo(), Home());
  std::vector<Experiment> found = FindExperiments(all, name);
  if (IsTarget(name)) {
    const bool begun = Commit(name);
    log.Done(begun ? fmt::format("{} is published", name) : fmt::format("no publication was begun in {}", name),
             {{"event", "committed"}, {"target", name}, {"begun", begun}});
    return 0;
  }
  if (found.empty()) throw UnknownName(name, all);
  LaunchAgain(PosixIo(), Home(), found[0]);
  TellLaunched(options, found[0], log);
  return 0;
}

}  // namespace reshard::cli
