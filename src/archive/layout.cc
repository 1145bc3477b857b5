#include "archive/layout.h"

namespace reshard {

void SharedText::Append(std::string_view more) {
  if (text_.use_count() > 1) text_ = std::make_shared<std::string>(*text_);
  *text_ += more;
}

void LiteralPool::Share(Literal& literal) {
  const std::string& text = literal.bytes;
  literal.bytes = texts_.try_emplace(text, literal.bytes).first->second;
}

void FileLayout::Append(std::string_view bytes) {
  if (bytes.empty()) return;
  const bool follows = !literals.empty() && literals.back().offset + literals.back().bytes.size() == size;
  if (!follows) literals.push_back({size, ""});
  literals.back().bytes.Append(bytes);
  size += bytes.size();
}

FileLayout LiteralFile(std::string path, std::string bytes) {
  uint64_t size = bytes.size();
  return {std::move(path), size, {{0, std::move(bytes)}}};
}

}  // namespace reshard
