// Bytes in files, before any exist: what a writer decides and the executor fills.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reshard {

struct Literal {
  uint64_t offset = 0;
  std::string bytes;
};

// One file of a target. Its literals do not overlap; every byte that no literal gives is data, which chunks of the same
// target describe. `path` is relative to the target folder.
struct FileLayout {
  std::string path;
  uint64_t size = 0;
  std::vector<Literal> literals;
};

// A file that is one literal.
FileLayout LiteralFile(std::string path, std::string bytes);

}  // namespace reshard
