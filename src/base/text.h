// Text of untrusted files: UTF-8, and how a message may show it; numbers as people read them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace reshard {

// Takes one code point off the front of `text`, which is not empty; nothing, and nothing taken, where the front is not
// UTF-8 (an overlong form, a surrogate, a cut sequence).
std::optional<char32_t> TakeCodePoint(std::string_view& text);

bool IsUtf8(std::string_view text);

// The first of the characters that show as nothing or change how the text around them shows (controls, bidi controls),
// in a text that is UTF-8.
std::optional<char32_t> FirstHidden(std::string_view text);

// The text with nothing in it that a terminal would obey: hidden characters as <U+001B>, bytes that are no UTF-8 as
// <FF>; cut behind about `longest` bytes.
std::string Visible(std::string_view text, size_t longest = 80);

std::string HumanBytes(uint64_t bytes);  // "1.23 GB", powers of 1000

}  // namespace reshard
