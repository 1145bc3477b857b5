#include "archive/layout.h"

namespace reshard {

void FileLayout::Append(std::string_view bytes) {
  if (bytes.empty()) return;
  const bool follows = !literals.empty() && literals.back().offset + literals.back().bytes.size() == size;
  if (!follows) literals.push_back({size, ""});
  literals.back().bytes += bytes;
  size += bytes.size();
}

FileLayout LiteralFile(std::string path, std::string bytes) {
  uint64_t size = bytes.size();
  return {std::move(path), size, {{0, std::move(bytes)}}};
}

}  // namespace reshard
