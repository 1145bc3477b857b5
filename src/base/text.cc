#include "base/text.h"

#include <fmt/format.h>

#include <iterator>

namespace reshard {
namespace {

// Characters that show as nothing, or that change how the text around them shows: controls and bidi controls.
bool IsHidden(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0x61C || code == 0x200E || code == 0x200F ||
         (code >= 0x202A && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
}

}  // namespace

std::optional<char32_t> TakeCodePoint(std::string_view& text) {
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};  // by size; anything below is an overlong form
  const auto first = static_cast<unsigned char>(text[0]);
  const size_t size = first < 0x80 ? 1 : first < 0xC0 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF8 ? 4 : 0;
  if (size == 0 || size > text.size()) return std::nullopt;
  char32_t code = size == 1 ? first : first & (0x7F >> size);
  for (size_t i = 1; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if ((byte & 0xC0) != 0x80) return std::nullopt;
    code = code << 6 | (byte & 0x3F);
  }
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (code < kSmallest[size] || code > 0x10FFFF || surrogate) return std::nullopt;
  text.remove_prefix(size);
  return code;
}

bool IsUtf8(std::string_view text) {
  while (!text.empty())
    if (!TakeCodePoint(text)) return false;
  return true;
}

std::optional<char32_t> FirstHidden(std::string_view text) {
  while (!text.empty()) {
    const std::optional<char32_t> code = TakeCodePoint(text);
    if (!code || IsHidden(*code)) return code;
  }
  return std::nullopt;
}

std::string Visible(std::string_view text, size_t longest) {
  std::string shown;
  while (!text.empty()) {
    if (shown.size() > longest) return shown + "...";
    const std::string_view before = text;
    const std::optional<char32_t> code = TakeCodePoint(text);
    if (!code) {
      shown += fmt::format("<{:02X}>", static_cast<unsigned char>(text[0]));
      text.remove_prefix(1);
    } else if (IsHidden(*code)) {
      shown += fmt::format("<U+{:04X}>", static_cast<uint32_t>(*code));
    } else {
      shown += before.substr(0, before.size() - text.size());
    }
  }
  return shown;
}

std::string HumanBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return unit == 0 ? fmt::format("{} B", bytes)
                   : fmt::format("{:.{}f} {}", value,
                                 value < 9.995   ? 2
                                 : value < 99.95 ? 1
                                                 : 0,
                                 kUnits[unit]);
}

}  // namespace reshard
