#include "archive/layout.h"

namespace reshard {

FileLayout LiteralFile(std::string path, std::string bytes) {
  uint64_t size = bytes.size();
  return {std::move(path), size, {{0, std::move(bytes)}}};
}

}  // namespace reshard
