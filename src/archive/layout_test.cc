#include "archive/layout.h"

#include <gtest/gtest.h>

namespace reshard {
namespace {

TEST(LiteralFile, IsOneLiteralOfTheWholeSize) {
  FileLayout file = LiteralFile("model/metadata.json", "{}\n");
  EXPECT_EQ(file.path, "model/metadata.json");
  EXPECT_EQ(file.size, 3u);
  ASSERT_EQ(file.literals.size(), 1u);
  EXPECT_EQ(file.literals[0].offset, 0u);
  EXPECT_EQ(file.literals[0].bytes, "{}\n");
}

TEST(FileLayout, AppendedBytesAreOneLiteralUntilDataComesBetween) {
  FileLayout file;
  file.Append("ab");
  file.Append("");
  file.Append("c");
  file.size += 5;
  file.Append("d");
  ASSERT_EQ(file.literals.size(), 2u);
  EXPECT_EQ(file.literals[0].bytes, "abc");
  EXPECT_EQ(file.literals[1].offset, 8u);
  EXPECT_EQ(file.size, 9u);
}

}  // namespace
}  // namespace reshard
