// Which of several tasks writes which bytes of a plan's files.
//
// A file belongs to one task: the largest first, each to the task that has least so far. One that is larger than a fair
// share is cut at multiples of 64 MiB and its slices are dealt out in the same way, so that no two tasks write a page.
// The same files and the same number of tasks give the same shares, whoever asks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "archive/layout.h"

namespace reshard {

// Task `number` of `count`. One of one does everything.
struct TaskOf {
  uint32_t number = 0, count = 1;

  friend bool operator==(const TaskOf&, const TaskOf&) = default;
};

constexpr uint32_t kMaxTasks = 4096;

class Shares {
 public:
  Shares(const std::vector<FileLayout>& files, uint32_t tasks);

  uint32_t tasks() const { return tasks_; }
  // The only task that writes the file, or that it is cut.
  bool IsCut(size_t file) const { return first_[file + 1] - first_[file] > 1; }
  uint32_t OwnerOf(size_t file) const { return slices_[first_[file]].task; }  // of its first byte
  // Whether the task writes anything of the file, or has to make it because it is empty.
  bool Has(uint32_t task, size_t file) const;

  // Calls take(task, begin, end) for the slices of [begin, end) of a file, in order.
  template <typename Take>
  void ForEachSlice(size_t file, uint64_t begin, uint64_t end, Take take) const {
    for (size_t slice = first_[file]; begin < end; ++slice) {
      if (slices_[slice].end <= begin) continue;
      take(slices_[slice].task, begin, std::min(end, slices_[slice].end));
      begin = slices_[slice].end;
    }
  }

 private:
  struct Slice {
    uint64_t end;  // in the file; it begins where the one before it ends
    uint32_t task;
  };
  uint32_t tasks_;
  std::vector<size_t> first_;  // slice of each file, and where those of the last one end
  std::vector<Slice> slices_;
};

}  // namespace reshard
