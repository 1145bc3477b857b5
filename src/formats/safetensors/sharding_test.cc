#include "formats/safetensors/sharding.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"

namespace reshard::safetensors {
namespace {

using testing::HasSubstr;
using Shards = std::vector<std::vector<size_t>>;
using Pairs = std::vector<std::pair<std::string, std::string>>;

Error ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return Error(Code::kInternal, "nothing was thrown");
}

// Expected values: huggingface_hub's split_state_dict_into_shards_factory.
TEST(SplitIntoShards, FillsAShardUpToTheLimit) {
  EXPECT_EQ(SplitIntoShards({6, 6, 2, 6, 2, 2}, 10), (Shards{{0}, {1, 2}, {3, 4, 5}}));
  EXPECT_EQ(SplitIntoShards({4, 6, 1}, 10), (Shards{{0, 1}, {2}}));
  EXPECT_EQ(SplitIntoShards({10, 10}, 10), (Shards{{0}, {1}}));
  EXPECT_EQ(SplitIntoShards({0, 0, 10, 0}, 10), (Shards{{0, 1, 2, 3}}));
  EXPECT_EQ(SplitIntoShards({1, 2, 3}, 100), (Shards{{0, 1, 2}}));
  EXPECT_EQ(SplitIntoShards({}, 10), Shards());
}

TEST(SplitIntoShards, PutsAnOversizedTensorBeforeTheOpenShard) {
  EXPECT_EQ(SplitIntoShards({12, 3, 4}, 10), (Shards{{0}, {1, 2}}));
  EXPECT_EQ(SplitIntoShards({3, 12, 4, 5}, 10), (Shards{{1}, {0, 2}, {3}}));
  EXPECT_EQ(SplitIntoShards({3, 4, 12}, 10), (Shards{{2}, {0, 1}}));
  EXPECT_EQ(SplitIntoShards({11, 12, 13}, 10), (Shards{{0}, {1}, {2}}));
}

TEST(SplitIntoShards, DoesNotOverflow) {
  const uint64_t max = ~uint64_t{0};
  EXPECT_EQ(SplitIntoShards({max, max, 1}, max), (Shards{{0}, {1}, {2}}));
  EXPECT_EQ(SplitIntoShards({1, max - 1, max}, max - 1), (Shards{{0}, {2}, {1}}));
}

TEST(ShardName, CountsWithFiveDigitsOrMore) {
  EXPECT_EQ(ShardName("model", ".safetensors", 1, 1), "model.safetensors");
  EXPECT_EQ(ShardName("pytorch_model", ".bin", 2, 3), "pytorch_model-00002-of-00003.bin");
  EXPECT_EQ(ShardName("model", ".safetensors", 1, 3), "model-00001-of-00003.safetensors");
  EXPECT_EQ(ShardName("model", ".safetensors", 12, 99999), "model-00012-of-99999.safetensors");
  EXPECT_EQ(ShardName("model", ".safetensors", 1, 100000), "model-00001-of-100000.safetensors");
  EXPECT_EQ(ShardName("model", ".safetensors", 100000, 100000), "model-100000-of-100000.safetensors");
  EXPECT_EQ(SplitIntoShards(std::vector<uint64_t>(100000, 1), 1).size(), 100000u);
}

TEST(ParseSize, UnderstandsDecimalAndBinaryUnits) {
  EXPECT_EQ(ParseSize("10GB", "--x"), 10'000'000'000u);
  EXPECT_EQ(ParseSize("1.5gb", "--x"), 1'500'000'000u);
  EXPECT_EQ(ParseSize(" 5 GB ", "--x"), 5'000'000'000u);
  EXPECT_EQ(ParseSize("7KB", "--x"), 7'000u);
  EXPECT_EQ(ParseSize("7Mb", "--x"), 7'000'000u);
  EXPECT_EQ(ParseSize("2.7TB", "--x"), 2'700'000'000'000u);
  EXPECT_EQ(ParseSize("4.35KB", "--x"), 4'350u);
  EXPECT_EQ(ParseSize("0.29GB", "--x"), 290'000'000u);
  EXPECT_EQ(ParseSize("3KiB", "--x"), 3072u);
  EXPECT_EQ(ParseSize("256MiB", "--x"), 268'435'456u);
  EXPECT_EQ(ParseSize("1.5GiB", "--x"), 1'610'612'736u);
  EXPECT_EQ(ParseSize("1TiB", "--x"), 1'099'511'627'776u);
  EXPECT_EQ(ParseSize("123456789", "--x"), 123'456'789u);
  EXPECT_EQ(ParseSize("18446744073709551615", "--x"), ~uint64_t{0});
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"",
                           " ",
                           "0",
                           "0GB",
                           "0.0001KB",
                           "GB",
                           "10G",
                           "10B",
                           "10XB",
                           "-1GB",
                           "+1GB",
                           "1e3KB",
                           "inf",
                           "nanGB",
                           "1.5",
                           "1.2.3GB",
                           "10GBGB",
                           "18446744073709551616",
                           "18446744073709552KB",
                           "99999999999999999999TB",
                           "0x10",
                           "10 000"}) {
    const Error error = ErrorOf([&] { ParseSize(text, "--max_shard_size"); });
    EXPECT_EQ(error.code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("--max_shard_size is '{}', expected a size above zero", text)));
  }
}

// Expected text: Python's json.dumps(index, indent=2, sort_keys=True) + "\n".
TEST(IndexText, IsWhatSavePretrainedWrites) {
  EXPECT_EQ(IndexText({{"model.layers.2.w", "model-00002-of-00002.safetensors"},
                       {"model.layers.10.w", "model-00001-of-00002.safetensors"},
                       {"lm_head.weight", "model-00002-of-00002.safetensors"},
                       {"caf\xC3\xA9", "model-00001-of-00002.safetensors"}},
                      8030261248, 16060522496),
            R"({
  "metadata": {
    "total_parameters": 8030261248,
    "total_size": 16060522496
  },
  "weight_map": {
    "caf\u00e9": "model-00001-of-00002.safetensors",
    "lm_head.weight": "model-00002-of-00002.safetensors",
    "model.layers.10.w": "model-00001-of-00002.safetensors",
    "model.layers.2.w": "model-00002-of-00002.safetensors"
  }
}
)");
}

Pairs PairsOf(const Index& index) {
  Pairs pairs;
  for (const Index::Entry& entry : index.entries) pairs.emplace_back(entry.tensor, index.shards[entry.shard]);
  return pairs;
}

TEST(IndexText, IsReadBackForAHundredThousandTensors) {
  Pairs weight_map;
  for (int i = 0; i < 100'000; ++i)
    weight_map.emplace_back(fmt::format("t{:06}", i), ShardName("model", ".safetensors", i + 1, 100'000));
  EXPECT_EQ(PairsOf(ParseIndex(IndexText(weight_map, 1, 2), "index.json", 100'000)), weight_map);
}

TEST(ParseIndex, SortsTensorsAndShards) {
  const Pairs expected = {{"a", "sub/..y.safetensors"}, {"b", "x.safetensors"}, {"c", "sub/..y.safetensors"}};
  const std::string map = R"("weight_map":{"b":"x.safetensors","c":"sub/..y.safetensors","a":"sub/..y.safetensors"})";
  for (const std::string before : {"", R"("metadata":null,)", R"("metadata":{"total_size":16060522496.0},)",
                                   R"("metadata":{"weight_map":[{"weight_map":1}]},)"}) {
    const Index index = ParseIndex("{" + before + map + R"(,"more":[[1]]})", "i.json", 3);
    EXPECT_EQ(PairsOf(index), expected);
    EXPECT_EQ(index.shards, (std::vector<std::string>{"sub/..y.safetensors", "x.safetensors"}));
  }
  EXPECT_EQ(PairsOf(ParseIndex(R"({"weight_map":{}})", "i.json", 0)), Pairs());
}

TEST(ParseIndex, RefusesMoreTensorsThanMemoryBears) {
  const Error error = ErrorOf([] { ParseIndex(R"({"weight_map":{"a":"x","b":"x"}})", "i.json", 1); });
  EXPECT_EQ(error.code(), Code::kUnsupported);
  EXPECT_STREQ(error.what(),
               "reading i.json: more than 1 tensors, expected at most so many within the memory limit; give a larger "
               "--max_memory");
}

TEST(ParseIndex, RefusesWhatIsNoIndex) {
  struct Bad {
    std::string text, message, tensor;
  };
  const auto with = [](const std::string& shard) { return R"({"weight_map":{"t":)" + shard + "}}"; };
  for (const Bad& bad : std::vector<Bad>{
           {"", "", ""},
           {"[]", "no weight_map, expected an object of tensor names and file names", ""},
           {"{}", "no weight_map", ""},
           {R"({"weight_map":[]})", "no weight_map", ""},
           {R"({"weight_map":null})", "no weight_map", ""},
           {with("1"), "weight_map gives number, expected a string, a file name", "t"},
           {with("null"), "weight_map gives null, expected a string, a file name", "t"},
           {with("{}"), "weight_map gives object, expected a string, a file name", "t"},
           {with(R"("")"), R"(the file name "" is empty, expected a file within the folder)", "t"},
           {with(R"("/etc/passwd")"), R"(the file name "/etc/passwd" is an absolute path)", "t"},
           {with(R"("../a.safetensors")"), R"(the file name "../a.safetensors" leaves the folder)", "t"},
           {with(R"("a/../../b")"), R"(the file name "a/../../b" leaves the folder)", "t"},
           {with(R"("a/..")"), R"(the file name "a/.." leaves the folder)", "t"},
           {with(R"("..")"), R"(the file name ".." leaves the folder)", "t"},
           {with(R"("a\u0000b")"), R"(the file name "a\u0000b" holds a zero byte)", "t"},
           {R"({"weight_map":{"t":"a","t":"b"}})", "it is there twice, expected once", "t"},
           {R"({"weight_map":{"t":"a"},"weight_map":{"u":"a"}})", "weight_map is there twice", ""},
           {R"({"weight_map":{"t":"a"},"weight_map":1})", "no weight_map", ""},
           {"1", "no weight_map", ""},
           {"version https://git-lfs.github.com/spec/v1\n", "", ""},
       }) {
    SCOPED_TRACE(bad.text);
    const Error error = ErrorOf([&] { ParseIndex(bad.text, "i.json", 10); });
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_EQ(error.path(), "i.json");
    EXPECT_EQ(error.tensor(), bad.tensor);
    EXPECT_THAT(error.what(), HasSubstr(bad.message));
  }
}

}  // namespace
}  // namespace reshard::safetensors
