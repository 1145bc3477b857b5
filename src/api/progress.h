// A RunOptions' callback as the executor's Observer of one pass.
#pragma once

#include <chrono>

#include "base/io.h"
#include "execute/execute.h"
#include "reshard/reshard.h"

namespace reshard {

class CallbackObserver : public Observer {
 public:
  CallbackObserver(const RunOptions& options, const char* doing) : options_(options), doing_(doing) {}
  void OnProgress(uint64_t done, uint64_t total) override {
    if (options_.progress)
      options_.progress({doing_, done, total, std::chrono::duration<double>(Clock::now() - start_).count()});
  }

 private:
  using Clock = std::chrono::steady_clock;
  const RunOptions& options_;
  const char* doing_;
  Clock::time_point start_ = Clock::now();
};

// Passes on what it is told, and writes it into a file every two seconds and at the end, for `reshard status`: JSON
// with "task" and "tasks", "done" of "total" bytes of its share, "spared" bytes of it that were there before, "all"
// bytes of all shares, "seconds" since the pass began, and "time", when it was written (Unix time). A file that cannot
// be written is no reason to stop.
class ProgressFile : public Observer {
 public:
  ProgressFile(Observer& next, Io& io, std::string path, const Plan& plan, TaskOf task);
  void OnProgress(uint64_t done, uint64_t total) override;

 private:
  using Clock = std::chrono::steady_clock;
  Observer& next_;
  Io& io_;
  const std::string path_;
  const TaskOf task_;
  uint64_t share_ = 0, all_ = 0;  // bytes of targets
  const Clock::time_point start_ = Clock::now();
  Clock::time_point written_ = start_;
};

}  // namespace reshard
