// A RunOptions' callback as the executor's Observer of one pass.
#pragma once

#include <chrono>

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

}  // namespace reshard
