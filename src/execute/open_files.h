// A bounded cache of open files, so that a plan of thousands of them works with `ulimit -n 64`.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "base/io.h"
#include "plan/plan.h"

namespace reshard {

// How many files a run may hold open at once, and how many workers can share them: each holds up to two in use beside
// what the cache keeps, and one more while it hashes.
struct OpenFileLimit {
  unsigned workers = 1;
  size_t cached = 1;
};
OpenFileLimit LimitOpenFiles(unsigned workers);

// Files are numbered. Any thread may call Get; the file is open for as long as someone holds it, and closed some time
// after it was last got.
class OpenFiles {
 public:
  using Open = std::function<std::unique_ptr<File>(size_t number)>;

  OpenFiles(size_t capacity, size_t files, Open open) : capacity_(capacity), open_(std::move(open)), slots_(files) {}

  std::shared_ptr<File> Get(size_t number);

 private:
  struct Slot {
    std::shared_ptr<File> file;
    std::list<size_t>::iterator place;  // in recent_, if file
  };

  size_t capacity_;
  Open open_;
  std::mutex mutex_;
  std::vector<Slot> slots_;
  std::list<size_t> recent_;  // most recently used first
};

// kMismatch where a file is not any more what it was when it was planned with: after all of it has been read, what was
// read is of one state.
void CheckUnchanged(Io& io, const std::vector<SourceFile>& sources);

// Opens a source for reading. kMismatch where it is not the file that was planned with.
std::unique_ptr<File> OpenSource(Io& io, const SourceFile& source);

}  // namespace reshard
