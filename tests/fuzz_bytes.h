// The input of a fuzz target, taken from its front piece by piece; zeros where it has ended.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace reshard {

class FuzzBytes {
 public:
  FuzzBytes(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return rest_.empty(); }

  template <typename T>
  T Take() {
    T value = 0;
    const size_t size = std::min(sizeof value, rest_.size());
    std::memcpy(&value, rest_.data(), size);
    rest_.remove_prefix(size);
    return value;
  }
  // From 0 to `count` - 1.
  size_t Choose(size_t count) { return Take<uint8_t>() % count; }
  std::string Text(size_t size) {
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(text.size());
    return text;
  }
  std::string Rest() { return Text(rest_.size()); }

 private:
  std::string_view rest_;
};

// Overwrites some bytes, as the input says: damage to what was sound.
inline void Damage(std::string& bytes, FuzzBytes& in) {
  while (!in.empty() && !bytes.empty()) {
    const size_t at = in.Take<uint16_t>() % bytes.size();
    bytes[at] = in.Take<char>();
  }
}

}  // namespace reshard
