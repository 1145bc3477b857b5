#include "launch/job_script.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/io.h"
#include "launch/shell.h"

namespace reshard {
namespace {

using Shape = JobSpec::Shape;

std::string Replaced(std::string text, const std::string& what, const std::string& by) {
  for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
  return text;
}

std::string Directives(const JobSpec& job) {
  std::string text;
  for (const auto& [name, value] : job.directives)
    text += fmt::format("#SBATCH --{}{}\n", name, value ? "=" + ShellQuoted(*value) : "");
  return text;
}

// Values are quoted, and in nobody's log: nothing is traced.
std::string Exports(const JobSpec& job) {
  std::string text;
  for (const auto& [name, value] : job.variables) text += fmt::format("export {}={}\n", name, ShellQuoted(value));
  return text;
}

std::string StateFile(const JobSpec& job) {
  if (job.shape != Shape::kArray) return ShellQuoted(job.state);
  const size_t dot = job.state.rfind('.');
  return ShellQuoted(job.state.substr(0, dot)) + ".\"$SLURM_ARRAY_TASK_ID\"" + job.state.substr(dot);
}

std::string Installation(const JobSpec& job) {
  if (job.installation_command.empty()) return "";
  const std::string command = "bash -c " + ShellQuoted(job.installation_command);
  return "  " +
         (job.shape == Shape::kAllocation ? "srun --ntasks-per-node=1 --ntasks=\"$SLURM_NNODES\" " + command
                                          : command) +
         " || return\n";
}

std::string Srun(const JobSpec& job) {
  return fmt::format(
      "srun --output={} --open-mode=append --kill-on-bad-exit=0 ${{SLURM_CPUS_PER_TASK:+\"--cpus-per-task="
      "$SLURM_CPUS_PER_TASK\"}}",
      ShellQuoted(OutputPattern(job.log_dir, job.log_name)));
}

// The program's call; a task's number is known to the job alone.
std::string Call(const JobSpec& job) {
  const std::string program = ShellQuoted(job.program);
  const std::string arguments = job.arguments.empty() ? "" : " " + ShellLine(job.arguments);
  switch (job.shape) {
    case Shape::kSingle:
      return fmt::format("{} --ntasks=1 --nodes=1 {} convert{}", Srun(job), program, arguments);
    case Shape::kArray:
      return fmt::format(
          "{} --ntasks=1 --nodes=1 {} convert --convert_tasks={} --convert_task=\"$SLURM_ARRAY_TASK_ID\"{}", Srun(job),
          program, job.tasks, arguments);
    case Shape::kAllocation:
      return fmt::format(
          "{} --ntasks={} --ntasks-per-node={} bash -c \\\n"
          "    'exec \"$1\" convert --convert_tasks={} --convert_task=\"$SLURM_PROCID\" \"${{@:2}}\"' bash {}{}",
          Srun(job), job.tasks, job.tasks_per_node, job.tasks, program, arguments);
    case Shape::kDirect:
      break;
  }
  const size_t id = std::min(job.log_name.find("%j"), job.log_name.size());
  const std::string before = ShellQuoted(JoinPath(job.log_dir, job.log_name.substr(0, id)));
  const std::string behind =
      id == job.log_name.size() ? "" : "\"$SLURM_JOB_ID\"" + ShellQuoted(job.log_name.substr(id + 2));
  // What the builder had written before the job was queued again is no obstacle.
  return fmt::format(
      "set --\n  if [ \"${{SLURM_RESTART_COUNT:-0}}\" -gt 0 ]; then set -- --override; fi\n"
      "  {} convert \"$@\"{} >>{}{} 2>&1",
      program, arguments, before, behind);
}

}  // namespace

std::string OutputPattern(const std::string& folder, const std::string& name) {
  return JoinPath(Replaced(folder, "%", "%%"), name);
}

std::string StatePath(const std::string& state, const std::optional<unsigned>& task) {
  if (!task) return state;
  const size_t dot = state.rfind('.');
  return fmt::format("{}.{}{}", state.substr(0, dot), *task, state.substr(dot));
}

std::string SbatchScript(const JobSpec& job) {
  return "#!/bin/bash\n" + Directives(job) + "\nset -eu\nunset NEMO_SKILLS_CONFIG NEMO_SKILLS_CONFIG_DIR\n" +
         Exports(job) + "state=" + StateFile(job) + R"sh(
record() { echo "$* $(date +%s)" >>"$state"; }
stopped=
trap 'stopped=1' TERM

run() {
)sh" + Installation(job) +
         (job.shape == Shape::kAllocation ? "  # shellcheck disable=SC2016  # for the task's own shell\n" : "") + "  " +
         Call(job) + R"sh(
}

record RUNNING "$(hostname)"
code=0
run || code=$?
if [ -n "$stopped" ]; then
  record STOPPED "$code"
  exit "$code"
fi
record EXITED "$code"
case $code in
  75 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
)sh";
}

}  // namespace reshard
