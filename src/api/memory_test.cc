#include "api/memory.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace reshard {
namespace {

// What Linux says, by another way than the code's.
uint64_t Ram() {
  std::ifstream in("/proc/meminfo");
  std::string label;
  uint64_t kib = 0;
  in >> label >> kib;
  EXPECT_EQ(label, "MemTotal:");
  return kib << 10;
}

SourceFile Sized(uint64_t size) {
  SourceFile file;
  file.size = size;
  return file;
}

TEST(ExceedHalfOfRam, CountsAllFilesTogether) {
  const uint64_t ram = Ram();
  EXPECT_FALSE(ExceedHalfOfRam({}));
  EXPECT_FALSE(ExceedHalfOfRam({Sized(ram / 4), Sized(ram / 5)}));
  EXPECT_TRUE(ExceedHalfOfRam({Sized(ram / 4), Sized(ram / 3)}));
}

}  // namespace
}  // namespace reshard
