#include "launch/local_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include "launch/process.h"

namespace reshard {
namespace {

constexpr std::chrono::milliseconds kBetweenLooks{100};

}  // namespace

int RunTasks(const LocalTasks& run) {
  std::vector<Process> tasks;
  tasks.reserve(run.tasks);
  for (unsigned task = 0; task < run.tasks; ++task) {
    std::vector<std::string> words = {run.program, "convert", fmt::format("--convert_task={}", task)};
    words.insert(words.end(), run.words.begin(), run.words.end());
    tasks.emplace_back(words, Process::Streams());
  }
  int failed = 0;
  for (bool running = true, told = false; running;) {
    running = false;
    for (Process& task : tasks) {
      const int exit = task.Poll().value_or(-1);
      running = running || exit == -1;
      if (exit > 0 && failed == 0) failed = exit;
    }
    if (!told && (failed != 0 || (run.stop && *run.stop))) {
      for (const Process& task : tasks) task.Signal(SIGTERM);
      told = true;
    }
    if (!running) break;
    if (run.tick) run.tick();
    std::this_thread::sleep_for(kBetweenLooks);
  }
  return failed;
}

}  // namespace reshard
