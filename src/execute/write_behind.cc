#include "execute/write_behind.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"

namespace reshard {
namespace {

constexpr uint64_t kStartEvery = 16 * kMiB;
constexpr uint64_t kMostDirty = 256 * kMiB;
// A complete file with less to write is left to the sync at the end, which writes many such files in one sweep.
constexpr uint64_t kStartComplete = 1 * kMiB;

}  // namespace

void WriteBehind::Enqueue(size_t file) {
  if (!states_[file].queued) queue_.push_back(file);
  states_[file].queued = true;
}

void WriteBehind::Start(size_t file, uint64_t low, uint64_t high) {
  if (low < high) files_.Get(first_ + file)->StartWriteBack(low, high - low);
}

void WriteBehind::Wrote(size_t file, uint64_t offset, uint64_t size) {
  uint64_t low = 0, high = 0;
  {
    std::lock_guard lock(mutex_);
    State& state = states_[file];
    state.low = std::min(state.low, offset);
    state.high = std::max(state.high, offset + size);
    state.unstarted += size;
    state.unwaited += size;
    unwaited_ += size;
    Enqueue(file);
    if (state.unstarted >= kStartEvery) {
      low = std::exchange(state.low, UINT64_MAX);
      high = std::exchange(state.high, 0);
      state.unstarted = 0;
    }
  }
  Start(file, low, high);
  WaitForOldest(kMostDirty);
}

void WriteBehind::Completed(size_t file) {
  uint64_t low = 0, high = 0;
  {
    std::lock_guard lock(mutex_);
    State& state = states_[file];
    state.completed = true;
    if (state.unstarted >= kStartComplete) {
      low = state.low;
      high = state.high;
    }
    Enqueue(file);
  }
  Start(file, low, high);
}

// Waits for files until at most `most` bytes are neither on the disk nor being waited for by another thread.
void WriteBehind::WaitForOldest(uint64_t most) {
  for (;;) {
    size_t file;
    bool completed;
    {
      std::lock_guard lock(mutex_);
      if (unwaited_ <= most || queue_.empty()) return;
      file = queue_.front();
      queue_.pop_front();
      State& state = states_[file];
      state.queued = false;
      completed = state.completed;
      unwaited_ -= std::exchange(state.unwaited, 0);
    }
    // A file that is not complete is still to be hashed: its pages stay in the cache.
    std::shared_ptr<File> open = files_.Get(first_ + file);
    if (completed)
      open->Forget(0, layouts_[file].size);
    else
      open->Sync();
  }
}

void WriteBehind::ForgetRest() {
  for (; !queue_.empty(); queue_.pop_front()) {
    size_t file = queue_.front();
    files_.Get(first_ + file)->Forget(0, layouts_[file].size);
  }
}

}  // namespace reshard
