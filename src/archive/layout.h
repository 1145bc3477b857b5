// Bytes in files, before any exist: what a writer decides and the executor fills.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace reshard {

struct Literal {
  uint64_t offset = 0;
  std::string bytes;
};

// The CRC-32 of a range of bytes, which stands at two places behind it, little-endian: a zip has it behind each
// member's data and in its directory. Literals give zeros there, each place lying in one; those of a file with
// checksums are in order.
struct Checksum {
  uint64_t offset = 0, size = 0;
  std::array<uint64_t, 2> places{};
};

// One file of a target. Its literals do not overlap; every byte that no literal gives is data, which chunks of the same
// target describe. `path` is relative to the target folder.
struct FileLayout {
  std::string path;
  uint64_t size = 0;
  std::vector<Literal> literals;
  std::vector<Checksum> checksums = {};  // in the order of their ranges, which do not overlap

  // Puts bytes at the end; one literal with those before them.
  void Append(std::string_view bytes);
};

// A file that is one literal.
FileLayout LiteralFile(std::string path, std::string bytes);

}  // namespace reshard
