#include "archive/torch_zip.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

namespace reshard {
namespace {

// A file that torch.save wrote (testdata/generate.py).
std::string Golden(const std::string& name) {
  std::ifstream file(RESHARD_SOURCE_DIR "/src/archive/testdata/" + name, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  EXPECT_FALSE(bytes.empty()) << name;
  return bytes;
}

TEST(TorchZip, OfAnEmptyDictIsTheFileOfTorch) {
  EXPECT_TRUE(TorchZip("common", kPickledEmptyDict) == Golden("common.pt"));
}

TEST(TorchZip, OfNoneIsTheFileOfTorchForStemsOfDifferentLengths) {
  EXPECT_TRUE(TorchZip("shard_0_2", kPickledNone) == Golden("shard_0_2.pt"));
  EXPECT_TRUE(TorchZip("shard_10_126", kPickledNone) == Golden("shard_10_126.pt"));
}

TEST(TorchZip, AlignsEachMemberForAnyStem) {
  for (size_t length = 1; length <= 200; ++length) {
    std::string zip = TorchZip(std::string(length, 's'), kPickledNone);
    for (std::string_view data : {"\x80\x02N.PK", "little", "3\nPK"}) EXPECT_EQ(zip.find(data) % 64, 0u) << length;
  }
}

TEST(TorchZip, IdFollowsTheContentAndNotTheStem) {
  auto id = [](const std::string& zip) { return zip.substr(zip.find("02908468677762923104"), 40); };
  EXPECT_EQ(id(TorchZip("a", kPickledNone)), id(TorchZip("bcd", kPickledNone)));
  EXPECT_NE(id(TorchZip("a", kPickledNone)), id(TorchZip("a", kPickledEmptyDict)));
}

}  // namespace
}  // namespace reshard
