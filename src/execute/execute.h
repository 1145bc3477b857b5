// Moves the data of a plan: workers with fixed buffers, positioned reads and writes.
//
// Thread rule: one Execute at a time per staging folder; it starts and joins its own workers.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/io.h"
#include "execute/shares.h"
#include "plan/plan.h"

namespace reshard {

// Told of progress by whichever worker finished an op, one call at a time, at most ten a second and once at the end.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void OnProgress(uint64_t bytes_done, uint64_t bytes_total) = 0;
};

// What one worker allocates, once: a dense buffer for a box of a part, another of the same size only for plans in which
// sources overlap, and a buffer of kIoBuffer bytes for casting, gathering and scattering.
constexpr uint64_t kIoBuffer = uint64_t{1} << 20;
constexpr uint64_t kMinDenseBuffer = uint64_t{256} << 10;
constexpr uint64_t kMaxDenseBuffer = uint64_t{4} << 20;

struct ExecuteOptions {
  unsigned workers = 1;
  uint64_t dense_buffer = kMaxDenseBuffer;  // bytes; an op that is larger is done in slices
  const std::atomic<bool>* stop = nullptr;  // when it turns true, workers stop within a step and kCancelled is thrown
  Observer* observer = nullptr;
  bool drop_source_cache = false;  // posix_fadvise(DONTNEED) on source ranges once read
  std::string journal;  // a file that says what is done (execute/journals.h), and goes on saying it; empty: none
  TaskOf task;          // of several that fill the same staging folder, each its share (execute/shares.h)
};

// Finite values that a cast made infinite.
struct Overflow {
  std::string tensor;  // the source's name
  uint64_t count = 0;
};

struct ExecuteReport {
  uint64_t bytes_read = 0;          // of source data
  uint64_t bytes_written = 0;       // of target data and literals
  uint64_t bytes_staged = 0;        // of target data that was staged before
  std::vector<uint64_t> hashes;     // XXH3 of each of plan.files; of one of several tasks, of those it writes alone
  std::vector<Overflow> overflows;  // in plan order; publishing is for the caller to decide
};

// With a journal, goes on where an earlier run of the same plan was stopped, in the same staging folder. One of several
// tasks writes its share only; once all have ended, a run alone finds everything done and hashes what is left.
//
// Makes every file of the plan below `staging` (folders too): size, literals, data; hashes each when it is complete and
// syncs them all. Open files are a bounded cache that also works with `ulimit -n 64`. Write-back is started behind the
// cursor, so that dirty pages stay bounded. Source files are checked against what SourceFile says of them when they are
// opened and at the end. Errors: kMismatch (a source changed; overlapping sources differ: names both tensors, the first
// index and both values), kCorrupt, kIo, kNoSpace, kCancelled. After an error only a
// journal knows what the staging folder holds.
ExecuteReport Execute(const Plan& plan, const std::string& staging, Io& io, const ExecuteOptions& options);

// Bytes of target data that the journals of a plan say are staged: at most what a run with them need not write again.
uint64_t BytesStaged(const Plan& plan, Io& io, const std::string& journal);

// The bytes one worker needs beside its stack.
uint64_t WorkerBytes(const Plan& plan, uint64_t dense_buffer);

}  // namespace reshard
