// Keeps the dirty pages of a run bounded: starts write-back behind the writers, and makes a writer wait for the file
// that has been dirty for longest when too much is.
#pragma once

#include <deque>
#include <mutex>
#include <vector>

#include "archive/layout.h"
#include "execute/open_files.h"

namespace reshard {

class WriteBehind {
 public:
  // File i of `layouts` is number `first` + i of `files`.
  WriteBehind(OpenFiles& files, size_t first, const std::vector<FileLayout>& layouts)
      : files_(files), first_(first), layouts_(layouts), states_(layouts.size()) {}

  // Bytes of a file were written. May wait for others to reach the disk.
  void Wrote(size_t file, uint64_t offset, uint64_t size);
  // Nobody will write or read the file again in this run: the page cache may forget it.
  void Completed(size_t file);
  // Lets the page cache forget what is left, after everything was synced.
  void ForgetRest();

 private:
  struct State {
    uint64_t low = UINT64_MAX, high = 0;  // what was written since write-back was last started lies in [low, high)
    uint64_t unstarted = 0;               // bytes of it
    uint64_t unwaited = 0;                // bytes written since the file was last waited for
    bool queued = false, completed = false;
  };

  void Enqueue(size_t file);
  void WaitForOldest(uint64_t most);
  void Start(size_t file, uint64_t low, uint64_t high);

  OpenFiles& files_;
  size_t first_;
  const std::vector<FileLayout>& layouts_;

  std::mutex mutex_;
  std::vector<State> states_;
  std::deque<size_t> queue_;  // files with unwaited bytes or to be forgotten, the longest dirty first
  uint64_t unwaited_ = 0;     // sum over the files
};

}  // namespace reshard
