// One conversion by several processes of this machine.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

namespace reshard {

struct LocalTasks {
  std::string program;             // the file of this program
  std::vector<std::string> words;  // of its command convert
  unsigned tasks = 1;
  const std::atomic<bool>* stop = nullptr;  // when it turns true, all tasks are told to end; not owned
  std::function<void()> tick;               // called some times a second while they run
};

// Runs all tasks to their end: the same command with --convert_task=<k> each. Where one fails the others are told to
// end too, since what they have done is not lost. Returns 0, or the exit code of the first that failed. Errors: kIo
// where one cannot be started.
int RunTasks(const LocalTasks& run);

}  // namespace reshard
