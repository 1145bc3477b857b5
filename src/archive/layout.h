// Bytes in files, before any exist: what a writer decides and the executor fills.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace reshard {

// A text of which copies share one place in memory: a plan may have the same header for thousands of items.
class SharedText {
 public:
  SharedText(std::string text) : text_(std::make_shared<std::string>(std::move(text))) {}
  SharedText(const char* text) : SharedText(std::string(text)) {}

  operator const std::string&() const { return *text_; }
  const std::string& text() const { return *text_; }
  size_t size() const { return text_->size(); }
  const char* data() const { return text_->data(); }
  void Append(std::string_view more);  // to this copy alone

  friend bool operator==(const SharedText& text, std::string_view other) { return *text.text_ == other; }

 private:
  std::shared_ptr<std::string> text_;
};

struct Literal {
  uint64_t offset = 0;
  SharedText bytes;
};

// Makes equal literals share their text.
class LiteralPool {
 public:
  void Share(Literal& literal);

 private:
  std::unordered_map<std::string_view, SharedText> texts_;
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
