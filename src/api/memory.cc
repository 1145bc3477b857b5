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
    throw Error(Code::kInvalidArgument,
                fmt::format("--max_memory is {} MiB, expected at least {} MiB for this checkpoint and {} worker{}",
                            options.max_memory >> 20, (need(workers, kMinDenseBuffer) >> 20) + 1, workers,
                            workers == 1 ? "" : "s"));
  ExecuteOptions fitted;
  fitted.workers = workers;
  fitted.dense_buffer = kMaxDenseBuffer;
  while (!fits(workers, fitted.dense_buffer)) fitted.dense_buffer /= 2;
  fitted.stop = options.stop;
  return fitted;
}

uint64_t MaxHeader(const RunOptions& options) { return options.max_memory / 4; }

}  // namespace reshard
