#include "execute/shares.h"

#include <numeric>
#include <queue>
#include <utility>

#include "base/bytes.h"

namespace reshard {
namespace {

constexpr uint64_t kCutAt = 64 * kMiB;

// Bytes of the slices of a file, but for its last one.
uint64_t SliceBytes(uint64_t size, uint64_t fair) {
  return size <= fair ? size : std::max(fair / kCutAt * kCutAt, kCutAt);
}

}  // namespace

Shares::Shares(const std::vector<FileLayout>& files, uint32_t tasks) : tasks_(tasks) {
  uint64_t total = 0;
  for (const FileLayout& file : files) total += file.size;
  std::vector<uint64_t> sizes;  // of the slices
  for (const FileLayout& file : files) {
    first_.push_back(slices_.size());
    const uint64_t bytes = SliceBytes(file.size, CeilDiv(total, tasks));
    uint64_t begin = 0;
    do {
      const uint64_t end = std::min(file.size, begin + bytes);
      slices_.push_back({end, 0});
      sizes.push_back(end - begin);
      begin = end;
    } while (begin < file.size);
  }
  first_.push_back(slices_.size());
  std::vector<size_t> order(slices_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sizes[a] > sizes[b]; });
  std::priority_queue<std::pair<uint64_t, uint32_t>, std::vector<std::pair<uint64_t, uint32_t>>, std::greater<>> load;
  for (uint32_t task = 0; task < tasks; ++task) load.emplace(0, task);
  for (size_t slice : order) {
    auto [bytes, task] = load.top();
    load.pop();
    slices_[slice].task = task;
    load.emplace(bytes + sizes[slice], task);
  }
}

bool Shares::Has(uint32_t task, size_t file) const {
  return std::any_of(slices_.begin() + static_cast<std::ptrdiff_t>(first_[file]),
                     slices_.begin() + static_cast<std::ptrdiff_t>(first_[file + 1]),
                     [&](const Slice& slice) { return slice.task == task; });
}

}  // namespace reshard
