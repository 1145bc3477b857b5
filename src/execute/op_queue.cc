#include "execute/op_queue.h"

#include <system_error>
#include <thread>

#include "base/error.h"

namespace reshard {
namespace {

constexpr auto kTellInterval = std::chrono::milliseconds(100);

// Ends a worker whose op lies behind one that failed.
struct GivenUp {};

}  // namespace

void CheckStop(const ExecuteOptions& options) {
  if (options.stop && *options.stop) throw Error(Code::kCancelled, "stopped by a signal; run the same command again");
}

bool Turn::Next(Op& op) {
  std::lock_guard lock(queue_.mutex_);
  if (queue_.failed_ != UINT64_MAX || !queue_.cursor_.Next(op)) return false;
  op_ = queue_.taken_++;
  return true;
}

void Turn::Check() const {
  CheckStop(queue_.options_);
  if (queue_.failed_ < op_) throw GivenUp();
}

void Turn::Spared(uint64_t bytes) { queue_.bytes_total_ -= bytes; }

void Turn::Done(uint64_t bytes) {
  queue_.bytes_done_ += bytes;
  if (!queue_.options_.observer) return;
  std::unique_lock lock(queue_.observer_mutex_, std::try_to_lock);
  if (lock && std::chrono::steady_clock::now() - queue_.told_ >= kTellInterval) queue_.Tell();
}

OpQueue::OpQueue(const std::vector<Part>& parts, uint64_t bytes, const ExecuteOptions& options)
    : options_(options), bytes_total_(bytes), cursor_(parts) {}

void OpQueue::Tell() {
  options_.observer->OnProgress(bytes_done_, bytes_total_);
  told_ = std::chrono::steady_clock::now();
}

void OpQueue::RunOne(const std::function<void(Turn&)>& work) {
  Turn turn(*this);
  try {
    work(turn);
  } catch (const GivenUp&) {
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (turn.op_ >= failed_) return;
    failed_ = turn.op_;
    error_ = std::current_exception();
  }
}

void OpQueue::Run(unsigned workers, const std::function<void(Turn&)>& work) {
  std::vector<std::thread> threads;
  threads.reserve(workers);
  try {
    while (threads.size() < workers) threads.emplace_back([&] { RunOne(work); });
  } catch (const std::system_error& error) {
    // Fewer threads do the same work.
    if (threads.empty()) throw SystemError(error.code().value(), "starting", "a worker thread");
  }
  for (std::thread& thread : threads) thread.join();
  if (error_) std::rethrow_exception(error_);
  if (options_.observer) Tell();
}

uint64_t TargetBytes(const std::vector<Part>& parts) {
  uint64_t bytes = 0;
  for (const Part& part : parts)
    for (const Piece& piece : part.targets) bytes += ElementCount(piece.box.shape) * ItemSize(piece.dtype);
  return bytes;
}

}  // namespace reshard
