#include "api/memory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>

namespace reshard {
namespace {

// What a run allocates besides buffers: stacks, open files, journals of write-back, messages.
constexpr uint64_t kSlack = 8 * (uint64_t{1} << 20);
constexpr uint64_t kPerWorker = uint64_t{256} << 10;
// An open tensor, its name, chunk and spec, and their share of an index and a report: 1 KiB and less, measured.
constexpr uint64_t kPerTensor = 2 << 10;
// What a byte of a config may take once it is a tree, and copied: 71 measured, of empty texts; a template is one more.
constexpr uint64_t kPerConfigByte = 256;
// The most that making a plan adds to an open source, measured.
constexpr uint64_t kPlanPerPiece = 1350, kPlanPerFile = 1300;

unsigned DefaultWorkers() { return std::clamp(std::thread::hardware_concurrency(), 2u, 8u); }

}  // namespace

uint64_t ResidentMemory() {
  uint64_t pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    unsigned long long a = 0, b = 0;
    if (std::fscanf(file, "%llu %llu", &a, &b) == 2) pages = a, resident = b;
    std::fclose(file);
  }
  return pages ? resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

bool ExceedHalfOfRam(const std::vector<SourceFile>& files) {
  uint64_t bytes = 0;
  for (const SourceFile& file : files) bytes += file.size;
  return bytes / static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) > static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) / 2;
}

ExecuteOptions FitWorkers(const RunOptions& options, const std::function<uint64_t(uint64_t)>& worker_bytes) {
  uint64_t taken = ResidentMemory() + kSlack;
  unsigned workers = options.workers ? options.workers : DefaultWorkers();
  auto need = [&](unsigned count, uint64_t dense) { return taken + count * (worker_bytes(dense) + kPerWorker); };
  auto fits = [&](unsigned count, uint64_t dense) { return need(count, dense) <= options.max_memory; };
  unsigned least = options.workers ? workers : 1;
  while (workers > least && !fits(workers, kMinDenseBuffer)) --workers;
  if (!fits(workers, kMinDenseBuffer))
    throw Error(
        Code::kInvalidArgument,
        fmt::format("--max_memory is {} bytes, expected at least {}MiB for this checkpoint and {} worker{}",
                    options.max_memory, (need(workers, kMinDenseBuffer) >> 20) + 1, workers, workers == 1 ? "" : "s"));
  ExecuteOptions fitted;
  fitted.workers = workers;
  fitted.dense_buffer = kMaxDenseBuffer;
  while (!fits(workers, fitted.dense_buffer)) fitted.dense_buffer /= 2;
  fitted.stop = options.stop;
  return fitted;
}

void CheckPlanFits(const RunOptions& options, uint64_t pieces, uint64_t files) {
  const uint64_t need = ResidentMemory() + pieces * kPlanPerPiece + files * kPlanPerFile;
  if (need > options.max_memory)
    throw Error(Code::kInvalidArgument,
                fmt::format("--max_memory is {} bytes, expected at least {}MiB for a plan of {} pieces",
                            options.max_memory, (need >> 20) + 1, pieces));
}

OpenOptions OpenWithin(const RunOptions& options, unsigned checkpoints) {
  OpenOptions open;
  open.max_header = options.max_memory / 4 / checkpoints;
  open.max_tree = std::min(kMaxTreeBytes, options.max_memory / kPerConfigByte / checkpoints);
  open.max_tensors = options.max_memory / kPerTensor / checkpoints;
  return open;
}

}  // namespace reshard
