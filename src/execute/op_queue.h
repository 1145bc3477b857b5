// Hands the ops of a plan to workers: in plan order, with one rule for stopping, failing and telling of progress.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <mutex>

#include "execute/execute.h"

namespace reshard {

class OpQueue;

// Throws kCancelled once the stop flag is set.
void CheckStop(const ExecuteOptions& options);

// One worker's view of the queue.
class Turn {
 public:
  explicit Turn(OpQueue& queue) : queue_(queue) {}

  // The next op, or false when there is none or another worker has failed.
  bool Next(Op& op);
  // To be called at every step. CheckStop, and ends the worker if an earlier op failed.
  void Check() const;
  // The number of the op that was taken last, counted in plan order.
  uint64_t op() const { return op_; }
  // So many bytes of targets are done; or need not be, because an earlier run did them.
  void Done(uint64_t bytes);
  void Spared(uint64_t bytes);

 private:
  friend class OpQueue;
  OpQueue& queue_;
  uint64_t op_ = 0;
};

class OpQueue {
 public:
  // `bytes` of targets are to be done.
  OpQueue(const std::vector<Part>& parts, uint64_t bytes, const ExecuteOptions& options);

  // Calls `work` on as many threads; it takes ops until there are none left. Where several ops fail, the error of the
  // first in plan order is thrown, whatever the number of workers: those before it are finished, those behind it given
  // up.
  void Run(unsigned workers, const std::function<void(Turn&)>& work);

 private:
  friend class Turn;

  void RunOne(const std::function<void(Turn&)>& work);
  void Tell();

  const ExecuteOptions& options_;
  std::atomic<uint64_t> bytes_total_;  // that this run has to do

  std::mutex mutex_;  // of the four below
  OpCursor cursor_;
  uint64_t taken_ = 0;
  std::exception_ptr error_;
  std::atomic<uint64_t> failed_{UINT64_MAX};  // the lowest number of an op that failed; written under the mutex

  std::atomic<uint64_t> bytes_done_{0};
  std::mutex observer_mutex_;
  std::chrono::steady_clock::time_point told_;
};

// Bytes of all target pieces.
uint64_t TargetBytes(const std::vector<Part>& parts);

}  // namespace reshard
