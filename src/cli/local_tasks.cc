#include "cli/local_tasks.h"

#include <fmt/format.h>

#include <chrono>

#include "cli/launched.h"
#include "launch/local_tasks.h"
#include "launch/slurm.h"

namespace reshard::cli {
namespace {

using Clock = std::chrono::steady_clock;

// The words of a task of the conversion.
std::vector<std::string> TaskWords(const Options& options) {
  std::vector<std::string> words = WordsOf(options);
  words.push_back(fmt::format("--convert_tasks={}", options.convert.tasks));
  words.push_back("--quiet");
  if (!options.engine.empty()) words.push_back("--prepare_only");
  return words;
}

// Looks how far all tasks are, once a second.
class Watch {
 public:
  Watch(const std::string& target, Log& log) : target_(target), log_(log) {}

  void Look() {
    const Clock::time_point now = Clock::now();
    if (now - looked_ < std::chrono::seconds(1)) return;
    looked_ = now;
    if (const std::optional<TaskProgress> progress = ReadProgress(Shell(), target_))
      log_.Tell({"converting", progress->done, progress->total, std::chrono::duration<double>(now - start_).count()});
  }

 private:
  const std::string target_;
  Log& log_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point looked_ = start_;
};

}  // namespace

int RunLocalTasks(const Options& options, const PlanReport& plan, const std::atomic<bool>& stop, Log& log) {
  Watch watch(plan.target, log);
  const int exit =
      RunTasks({"/proc/self/exe", TaskWords(options), options.convert.tasks, &stop, [&] { watch.Look(); }});
  log.ProgressDone();
  return exit;
}

}  // namespace reshard::cli
