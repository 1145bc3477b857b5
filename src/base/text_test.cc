#include "base/text.h"

#include <gtest/gtest.h>

#include <string>

namespace reshard {
namespace {

using namespace std::string_view_literals;

TEST(TakeCodePoint, TakesWhatIsUtf8) {
  struct Case {
    std::string_view text;
    char32_t code;
  };
  for (const Case& row : {Case{"a", 'a'},
                          {"\x7F", 0x7F},
                          {"\xC2\x80", 0x80},
                          {"\xDF\xBF", 0x7FF},
                          {"\xE0\xA0\x80", 0x800},
                          {"\xED\x9F\xBF", 0xD7FF},
                          {"\xEE\x80\x80", 0xE000},
                          {"\xEF\xBF\xBF", 0xFFFF},
                          {"\xF0\x90\x80\x80", 0x10000},
                          {"\xF4\x8F\xBF\xBF", 0x10FFFF},
                          {"\0"sv, 0}}) {
    std::string with_more = std::string(row.text) + "b";
    std::string_view rest = with_more;
    EXPECT_EQ(TakeCodePoint(rest), row.code);
    EXPECT_EQ(rest, "b");
  }
}

// Unicode 15, table 3-7: the first byte that no well-formed sequence has in its place.
TEST(TakeCodePoint, TakesNothingElse) {
  for (std::string_view text : {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2z", "\xE0\x9F\xBF", "\xE0\xA0",
                                "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF", "\xF0\x90\x80", "\xF4\x90\x80\x80",
                                "\xF5\x80\x80\x80", "\xF8\x80\x80\x80\x80", "\xFF"}) {
    std::string_view rest = text;
    EXPECT_EQ(TakeCodePoint(rest), std::nullopt);
    EXPECT_EQ(rest, text);
  }
}

TEST(Visible, NumbersWhatATerminalWouldObey) {
  EXPECT_EQ(Visible("\x1B[2J \xC2\x9B \xE2\x80\xAE \xC3\xA9\n"), "<U+001B>[2J <U+009B> <U+202E> \xC3\xA9<U+000A>");
  EXPECT_EQ(Visible("a\xFF\xC3"), "a<FF><C3>");
  EXPECT_EQ(FirstHidden("ab\tc"), U'\t');
  EXPECT_EQ(FirstHidden("ab c"), std::nullopt);
}

TEST(Visible, CutsLongText) {
  EXPECT_EQ(Visible(std::string(1000, 'n'), 10), std::string(11, 'n') + "...");
  EXPECT_EQ(Visible(std::string(1000, 'n'), std::string::npos), std::string(1000, 'n'));
}

TEST(HumanBytes, HasThreeDigitsAndPowersOfThousand) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1000), "1.00 kB");
  EXPECT_EQ(HumanBytes(12'340'000), "12.3 MB");
  EXPECT_EQ(HumanBytes(999'400'000), "999 MB");
  EXPECT_EQ(HumanBytes(999'600'000), "1.00 GB");
}

}  // namespace
}  // namespace reshard
