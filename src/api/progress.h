// A RunOptions' callback as the executor's Observer.
#pragma once

#include "execute/execute.h"
#include "reshard/reshard.h"

namespace reshard {

class CallbackObserver : public Observer {
 public:
  explicit CallbackObserver(const RunOptions& options) : options_(options) {}
  void OnProgress(uint64_t done, uint64_t total) override {
    if (options_.progress) options_.progress(done, total);
  }

 private:
  const RunOptions& options_;
};

}  // namespace reshard
