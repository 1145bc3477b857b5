#include "launch/slurm.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "base/target_place.h"
#include "launch/job_script.h"

namespace reshard {
namespace {

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<unsigned> Number(const std::string& text) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != text.npos) return std::nullopt;
  return static_cast<unsigned>(std::stoul(text));
}

// What is known of a job, or of the task of an array, by its id and number.
using Known = std::map<std::pair<std::string, std::optional<unsigned>>, JobState>;

// "1234" or "1234_5".
std::pair<std::string, std::optional<unsigned>> KeyOf(const std::string& id) {
  const size_t bar = id.find('_');
  if (bar == id.npos) return {id, std::nullopt};
  return {id.substr(0, bar), Number(id.substr(bar + 1))};
}

// "ExitCode=3:0" or "0:9": the code, or 128 and the signal, as a shell has it.
std::optional<int> ExitOf(const std::string& text) {
  const std::vector<std::string> parts = Split(text, ':');
  const std::optional<unsigned> code = parts.empty() ? std::nullopt : Number(parts[0]);
  const std::optional<unsigned> signal = parts.size() > 1 ? Number(parts[1]) : std::nullopt;
  if (!code) return std::nullopt;
  return static_cast<int>(signal && *signal ? 128 + *signal : *code);
}

// Lines of "squeue|<job>|<task or N/A>|<state>".
void TakeSqueue(const std::vector<std::string>& fields, Known& known) {
  if (fields.size() < 4) return;
  known[{fields[1], Number(fields[2])}] = {PlainState(fields[3]), {}};
}

// The words "JobId=.. ArrayJobId=.. ArrayTaskId=.. JobState=.. ExitCode=.." of a line.
void TakeScontrol(const std::string& line, Known& known) {
  std::map<std::string, std::string> values;
  for (const std::string& word : Split(line, ' ')) {
    const size_t equals = word.find('=');
    if (equals != word.npos) values.emplace(word.substr(0, equals), word.substr(equals + 1));
  }
  const bool array = values.count("ArrayJobId") > 0;
  const std::string job = array ? values["ArrayJobId"] : values["JobId"];
  if (!job.empty())
    known[{job, array ? Number(values["ArrayTaskId"]) : std::nullopt}] = {PlainState(values["JobState"]),
                                                                          ExitOf(values["ExitCode"])};
}

// Lines of "sacct|<job>|<state>|<exit>"; of a job that was queued again the last counts.
void TakeSacct(const std::vector<std::string>& fields, Known& known) {
  if (fields.size() < 4 || fields[1].find('.') != std::string::npos) return;
  known[KeyOf(fields[1])] = {PlainState(fields[2]), ExitOf(fields[3])};
}

// What the jobs themselves have written: the file's name and its last line.
using OwnRecords = std::map<std::string, std::vector<std::string>>;

std::string OwnRecordsScript(const Experiment& experiment) {
  return fmt::format(
      "for f in {}/*.state; do\n  if [ -f \"$f\" ]; then printf 'own %s %s\\n' \"${{f##*/}}\" \"$(tail -n 1 \"$f\")\"; "
      "fi\ndone\n",
      ShellQuoted(experiment.folder));
}

// Slurm's silence says that a job has ended: it knows all that wait and run.
JobState FromOwn(const OwnRecords& own, const std::string& path, const JobState& before, bool slurm_answers) {
  const auto found = own.find(path.substr(path.rfind('/') + 1));
  if (found == own.end() || found->second.empty()) {
    if (!slurm_answers) return before;
    return {"CANCELLED", {}};  // it never began
  }
  const std::vector<std::string>& words = found->second;
  const std::optional<unsigned> code = words.size() > 1 ? Number(words[1]) : std::nullopt;
  if (words[0] == "RUNNING" || !code) return slurm_answers ? JobState{"FAILED", {}} : JobState{"RUNNING", {}};
  if (words[0] == "STOPPED") return {"CANCELLED", static_cast<int>(*code)};
  return {*code == 0 ? "COMPLETED" : "FAILED", static_cast<int>(*code)};
}

// The exit code is in the job's own record even where Slurm has told the state.
void AddOwnExit(const OwnRecords& own, const std::string& path, JobState& state) {
  if (!IsFinal(state.state) || state.exit) return;
  const auto found = own.find(path.substr(path.rfind('/') + 1));
  if (found == own.end() || found->second.size() < 2 || found->second[0] == "RUNNING") return;
  if (const auto code = Number(found->second[1])) state.exit = static_cast<int>(*code);
}

struct Answers {
  Known known;
  OwnRecords own;
  bool slurm = false;  // it answers
};

void TakeLines(const std::string& text, Answers& answers) {
  for (const std::string& line : Split(text, '\n')) {
    if (line.starts_with("squeue|")) TakeSqueue(Split(line, '|'), answers.known);
    if (line.starts_with("sacct|")) TakeSacct(Split(line, '|'), answers.known);
    if (line.starts_with("JobId=")) TakeScontrol(line, answers.known);
    if (line == "slurm answers") answers.slurm = true;
    if (!line.starts_with("own ")) continue;
    std::vector<std::string> words = Split(line.substr(4), ' ');
    const std::string name = words.empty() ? "" : words[0];
    if (!words.empty()) words.erase(words.begin());
    answers.own[name] = words;
  }
}

JobState StateOfPart(const Answers& answers, const JobRecord& job, std::optional<unsigned> task,
                     const JobState& before) {
  const std::string path = StatePath(job.state_path, task);
  const auto found = answers.known.find({job.id, task});
  JobState state = found != answers.known.end() ? found->second : FromOwn(answers.own, path, before, answers.slurm);
  AddOwnExit(answers.own, path, state);
  return state;
}

// Where a state is not told yet by Slurm and the job's own record is no end that is final for certain.
bool AsksFurther(const Answers& answers, const JobRecord& job) {
  for (unsigned task = 0; task < std::max(job.tasks, 1U); ++task) {
    const std::optional<unsigned> number = job.tasks ? std::optional(task) : std::nullopt;
    if (answers.known.count({job.id, number})) continue;
    const auto own = answers.own.find(StatePath(job.state_path, number).substr(job.state_path.rfind('/') + 1));
    const bool ended = own != answers.own.end() && own->second.size() > 1 && own->second[0] == "EXITED" &&
                       own->second[1] != "75" && own->second[1] != "143";
    if (!ended) return true;
  }
  return false;
}

std::string FurtherScript(const std::vector<std::string>& ids) {
  std::string script;
  for (const std::string& id : ids) script += fmt::format("scontrol -o show job {} 2>/dev/null\n", ShellQuoted(id));
  const std::string list = ShellQuoted(fmt::format("{}", fmt::join(ids, ",")));
  // Without a database the second asks the log of finished jobs, where there is one.
  script += fmt::format(
      "for c in '' -c; do sacct $c -n -P -j {} -o JobID,State,ExitCode 2>/dev/null | sed 's/^/sacct|/'; done\n:\n",
      list);
  return script;
}

}  // namespace

std::string PlainState(const std::string& word) {
  auto is = [&](std::initializer_list<const char*> states) {
    return std::any_of(states.begin(), states.end(), [&](const char* state) { return word.starts_with(state); });
  };
  if (is({"PENDING", "REQUEUE", "RESIZING", "SUSPENDED", "CONFIGURING", "SPECIAL_EXIT", "RESV_DEL_HOLD"}))
    return "PENDING";
  if (is({"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED"})) return "RUNNING";
  if (is({"COMPLETED"})) return "COMPLETED";
  if (is({"CANCELLED"})) return "CANCELLED";
  return "FAILED";
}

std::string Submit(const Shell& shell, const std::vector<std::string>& words, const std::string& script) {
  std::vector<std::string> all = {"sbatch", "--requeue", "--parsable"};
  all.insert(all.end(), words.begin(), words.end());
  all.push_back(script);
  const std::string out =
      shell.Must("cd " + ShellQuoted(ParentOf(script)) + " && " + ShellLine(all), "submitting", script);
  std::string id =
      out.substr(out.find_last_of('\n', out.size() - 2) + 1);  // what a site's own sbatch says comes before
  id = id.substr(0, id.find_first_of(";\n"));                  // "id;cluster" where there are several
  if (!Number(id))
    throw Error(Code::kIo, fmt::format("sbatch answered '{}', expected the id of a job", id)).At("submitting", script);
  return id;
}

void CancelJobs(const Shell& shell, const std::vector<std::string>& ids) {
  if (!ids.empty()) shell.Must("scancel " + ShellLine(ids), "cancelling", fmt::format("job {}", fmt::join(ids, ", ")));
}

bool UpdateStates(const Shell& shell, Experiment& experiment) {
  std::vector<JobRecord*> open;
  for (JobRecord& job : experiment.jobs)
    if (!IsFinal(job.state.state)) open.push_back(&job);
  if (open.empty()) return true;
  Answers answers;
  TakeLines(shell
                .Run("squeue -h -r -t all --me -o 'squeue|%F|%K|%T' 2>/dev/null && echo 'slurm answers'\n" +
                     OwnRecordsScript(experiment) + ":\n")
                .out,
            answers);
  std::vector<std::string> unknown;
  for (const JobRecord* job : open)
    if (AsksFurther(answers, *job)) unknown.push_back(job->id);
  if (!unknown.empty() && answers.slurm) TakeLines(shell.Run(FurtherScript(unknown)).out, answers);
  for (JobRecord* job : open) {
    job->task_states.resize(job->tasks);
    std::vector<std::string> states;
    for (unsigned task = 0; task < job->tasks; ++task) {
      job->task_states[task] = StateOfPart(answers, *job, task, job->task_states[task]);
      states.push_back(job->task_states[task].state);
    }
    job->state = job->tasks ? JobState{CommonState(states), {}} : StateOfPart(answers, *job, {}, job->state);
    for (const JobState& task : job->task_states)  // the worst, as sbatch --wait has it
      if (task.exit) job->state.exit = std::max(job->state.exit.value_or(0), *task.exit);
  }
  return answers.slurm;
}

std::optional<TaskProgress> ReadProgress(const Shell& shell, const std::string& checkpoint) {
  const std::string text =
      shell
          .Run(fmt::format(
              "for f in {}/*/progress.* {}/*/progress.*; do\n  if [ -f \"$f\" ]; then printf '%s ' \"${{f##*/}}\"; "
              "tr -d '\\n' <\"$f\"; echo; fi\ndone\n",
              ShellQuoted(TargetPlace::Folder(checkpoint).root()), ShellQuoted(TargetPlace::File(checkpoint).root())))
          .out;
  struct Sum : TaskProgress {
    uint64_t all = 0;
  };
  // Those of an earlier run on another number of tasks do not count: "progress.<k>-of-<n>".
  std::map<std::string, Sum> by_count;
  for (const std::string& line : Split(text, '\n')) {
    const size_t blank = line.find(' '), of = line.find("-of-");
    if (blank == line.npos || of == line.npos || of > blank) continue;
    const Json json = Json::parse(line.substr(blank + 1), nullptr, false);
    if (!json.is_object()) continue;  // it is just being written
    const uint64_t done = json.value("done", uint64_t{0}), spared = json.value("spared", uint64_t{0});
    const double seconds = json.value("seconds", 0.0);
    Sum& sum = by_count[line.substr(of, blank - of)];
    sum.done += done;
    sum.total += json.value("total", uint64_t{0});
    sum.all = std::max(sum.all, json.value("all", uint64_t{0}));
    if (seconds > 0) sum.rate += static_cast<double>(done - std::min(done, spared)) / seconds;
    sum.time = std::max(sum.time, json.value("time", 0.0));
  }
  std::optional<TaskProgress> newest;
  for (auto& [count, sum] : by_count) {
    sum.total = std::max(sum.total, sum.all);  // of tasks that have not begun, too
    if (!newest || sum.time > newest->time) newest = sum;
  }
  return newest;
}

}  // namespace reshard
