#include "api/source_io.h"

#include <chrono>
#include <cstdlib>

#include "api/memory.h"
#include "api/target_path.h"
#include "archive/archive_io.h"
#include "execute/op_queue.h"

namespace reshard {
namespace {

// Tells a run how far the unpacking has come, and ends it where the run is stopped.
class Unpacking {
 public:
  Unpacking(const RunOptions& run, uint64_t& unpacked) : run_(run), unpacked_(unpacked) { stop_.stop = run.stop; }

  void operator()(uint64_t done, uint64_t total, uint64_t unpacked) {
    CheckStop(stop_);
    unpacked_ = unpacked;
    const Clock::time_point now = Clock::now();
    if (!run_.progress || (now < next_ && done < total)) return;
    next_ = now + std::chrono::milliseconds(100);
    run_.progress({"unpacking", done, total, std::chrono::duration<double>(now - start_).count()});
  }

 private:
  using Clock = std::chrono::steady_clock;
  const RunOptions& run_;
  uint64_t& unpacked_;
  ExecuteOptions stop_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_;
};

}  // namespace

SpoolPlace TemporaryFolder() {
  const char* folder = std::getenv("TMPDIR");
  return {folder && *folder ? folder : "/tmp", "TMPDIR names another folder"};
}

SpoolPlace BesideTarget(Io& io, const std::string& target_folder) {
  return {ExistingParent(io, ParentOf(target_folder)), "free some, or unpack the file elsewhere with gunzip"};
}

SourceIo::SourceIo(Io& base, const std::string& path, const RunOptions& run, unsigned checkpoints,
                   const SpoolPlace& spool)
    : base_(base) {
  const OpenOptions within = OpenWithin(run, checkpoints);
  const TarLimits limits{within.max_tensors, within.max_header};
  archive_ = OpenArchive(base, path, {limits, spool.folder, spool.remedy, Unpacking(run, unpacked_)});
}

}  // namespace reshard
