// Fills in the checksums of a file, which only its data can tell, while the file is read through once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "archive/layout.h"
#include "base/io.h"

namespace reshard {

class ChecksumFiller {
 public:
  // `checksums` must outlive it.
  explicit ChecksumFiller(const std::vector<Checksum>& checksums) : checksums_(checksums) {}

  // Takes the file's `count` bytes from `begin` on, which is where those of the call before ended. What of the places
  // lies in them is put right, here and in `file`.
  void Pass(uint64_t begin, std::byte* bytes, uint64_t count, File& file);

 private:
  void Sum(uint64_t begin, const std::byte* bytes, uint64_t end);

  const std::vector<Checksum>& checksums_;
  size_t next_ = 0;                     // that whose range has not ended
  uint32_t sum_ = 0;                    // of what of that range has passed
  std::map<uint64_t, uint32_t> known_;  // by the place, those that have not passed
};

}  // namespace reshard
