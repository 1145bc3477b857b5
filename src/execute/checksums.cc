#include "execute/checksums.h"

#include <algorithm>
#include <cstring>

#include "base/hash.h"

namespace reshard {

void ChecksumFiller::Sum(uint64_t begin, const std::byte* bytes, uint64_t end) {
  for (; next_ < checksums_.size(); ++next_) {
    const Checksum& checksum = checksums_[next_];
    const uint64_t range_end = checksum.offset + checksum.size;
    const uint64_t from = std::max(begin, checksum.offset), to = std::min(end, range_end);
    if (from < to) sum_ = Crc32(bytes + (from - begin), to - from, sum_);
    if (range_end > end) return;
    for (uint64_t place : checksum.places) known_[place] = sum_;
    sum_ = 0;
  }
}

void ChecksumFiller::Pass(uint64_t begin, std::byte* bytes, uint64_t count, File& file) {
  const uint64_t end = begin + count;
  Sum(begin, bytes, end);
  while (!known_.empty() && known_.begin()->first < end) {
    const auto [place, sum] = *known_.begin();
    const uint64_t from = std::max(begin, place), to = std::min(end, place + sizeof sum);
    std::byte* there = bytes + (from - begin);
    std::memcpy(there, reinterpret_cast<const std::byte*>(&sum) + (from - place), to - from);
    file.WriteAt(there, to - from, from);
    if (place + sizeof sum > end) return;  // the rest of it comes
    known_.erase(known_.begin());
  }
}

}  // namespace reshard
