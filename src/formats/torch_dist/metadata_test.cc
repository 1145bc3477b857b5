#include "formats/torch_dist/metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard::torch_dist {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const torch_pickle::Limits kLimits{16 * kMiB, 1000};

bool All(std::string_view) { return true; }

Chunk ChunkAt(Dims origin, Dims shape, uint32_t file = 0) { return {{origin, shape}, {}, file, 0}; }

// A tensor of [4, 6] in two chunks of two files, and one object.
Metadata Sample() {
  Metadata metadata;
  metadata.files = {"__0_0.distcp", "__1_0.distcp"};
  metadata.objects.push_back({"a._extra_state/shard_0_1", 0, {0, 1000}});
  Tensor tensor;
  tensor.stored = {"a.weight", Dtype::kBF16, {4, 6}, {}, {ChunkAt({0, 0}, {4, 3}), ChunkAt({0, 3}, {4, 3}, 1)}};
  tensor.items = {{1000, 1200}, {0, uint64_t{5} << 32}};
  metadata.tensors.push_back(tensor);
  return metadata;
}

Metadata Parsed(const Metadata& metadata, const std::function<bool(std::string_view)>& wanted = All) {
  return ParseMetadata(MetadataText(metadata), "folder/.metadata", kLimits, wanted);
}

void ExpectRefused(const Metadata& metadata, Code code, const std::string& message,
                   const std::string& tensor = "a.weight") {
  try {
    Parsed(metadata);
    FAIL() << "accepted, expected " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
    EXPECT_EQ(error.path(), "folder/.metadata");
    EXPECT_EQ(error.tensor(), tensor);
  }
}

TEST(TorchDistMetadata, ReadsBackWhatIsWritten) {
  const Metadata found = Parsed(Sample());
  EXPECT_THAT(found.files, ElementsAre("__0_0.distcp", "__1_0.distcp"));
  ASSERT_EQ(found.objects.size(), 1u);
  EXPECT_EQ(found.objects[0].key, "a._extra_state/shard_0_1");
  ASSERT_EQ(found.tensors.size(), 1u);
  const StoredTensor& tensor = found.tensors[0].stored;
  EXPECT_EQ(tensor.name, "a.weight");
  EXPECT_EQ(tensor.dtype, Dtype::kBF16);
  EXPECT_EQ(tensor.shape, (Dims{4, 6}));
  EXPECT_EQ(tensor.grid, (Dims{4, 3}));
  ASSERT_EQ(tensor.chunks.size(), 2u);
  EXPECT_EQ(tensor.chunks[1].box.origin, (Dims{0, 3}));
  EXPECT_EQ(tensor.chunks[1].file, 1u);
  EXPECT_EQ(found.tensors[0].items[0].offset, 1000u);
  EXPECT_EQ(found.tensors[0].items[1].size, uint64_t{5} << 32);
}

TEST(TorchDistMetadata, ReadsChunksThatAreNoGrid) {
  Metadata metadata = Sample();
  metadata.tensors[0].stored.chunks = {ChunkAt({0, 0}, {4, 2}), ChunkAt({0, 2}, {4, 4})};
  const Metadata found = Parsed(metadata);
  EXPECT_TRUE(found.tensors[0].stored.grid.empty());
  EXPECT_EQ(found.tensors[0].stored.chunks.size(), 2u);
}

TEST(TorchDistMetadata, LeavesOutEmptyChunks) {
  Metadata metadata = Sample();
  metadata.tensors[0].stored.chunks = {ChunkAt({0, 0}, {4, 6}), ChunkAt({4, 0}, {0, 6})};
  EXPECT_EQ(Parsed(metadata).tensors[0].stored.chunks.size(), 1u);
  metadata.tensors[0].stored.shape = {0, 6};
  metadata.tensors[0].stored.chunks = {ChunkAt({0, 0}, {0, 6})};
  metadata.tensors[0].items.resize(1);
  EXPECT_EQ(Parsed(metadata).tensors[0].stored.chunks.size(), 0u);
}

TEST(TorchDistMetadata, LooksAtNothingThatIsNotWanted) {
  Metadata metadata = Sample();
  metadata.tensors.push_back(metadata.tensors[0]);
  metadata.tensors[1].stored.name = "optimizer.a.weight";
  metadata.tensors[1].stored.chunks.pop_back();
  metadata.tensors[1].items.pop_back();
  ExpectRefused(metadata, Code::kCorrupt, "gap", "optimizer.a.weight");
  const Metadata found = Parsed(metadata, [](std::string_view key) { return key == "a.weight"; });
  EXPECT_EQ(found.tensors.size(), 1u);
  EXPECT_TRUE(found.objects.empty());
}

TEST(TorchDistMetadata, RefusesChunksThatOverlapOrLeaveAGap) {
  Metadata metadata = Sample();
  metadata.tensors[0].stored.chunks[1].box.origin = {0, 2};
  ExpectRefused(metadata, Code::kCorrupt, "overlap");
  metadata.tensors[0].stored.chunks.pop_back();
  metadata.tensors[0].items.pop_back();
  ExpectRefused(metadata, Code::kCorrupt, "12 of 24 elements");
}

TEST(TorchDistMetadata, RefusesChunksOutsideTheirTensor) {
  Metadata metadata = Sample();
  metadata.tensors[0].stored.chunks[1].box.shape = {4, 4};
  ExpectRefused(metadata, Code::kCorrupt, "expected it within [4, 6]");
  metadata.tensors[0].stored.chunks[1].box = {{0}, {4}};
  ExpectRefused(metadata, Code::kCorrupt, "expected as many axes as in [4, 6]");
}

TEST(TorchDistMetadata, RefusesAChunkThatIsStoredTwice) {
  Metadata metadata = Sample();
  metadata.tensors[0].stored.chunks.push_back(metadata.tensors[0].stored.chunks[0]);
  metadata.tensors[0].items.push_back({0, 1});
  ExpectRefused(metadata, Code::kCorrupt, "the chunk at [0, 0] is stored twice");
}

TEST(TorchDistMetadata, RefusesATensorThatIsThereTwice) {
  Metadata metadata = Sample();
  metadata.tensors.push_back(metadata.tensors[0]);
  ExpectRefused(metadata, Code::kCorrupt, "twice");
}

TEST(TorchDistMetadata, RefusesFilesOutsideTheFolder) {
  for (const char* name : {"../x", "/x", "a//b", "a/../b", "./x", ""}) {
    Metadata metadata = Sample();
    metadata.files[1] = name;
    ExpectRefused(metadata, Code::kCorrupt, *name ? "expected one below the folder" : "0 bytes");
  }
}

TEST(TorchDistMetadata, RefusesSizesThatNoFileHas) {
  Metadata metadata = Sample();
  metadata.tensors[0].stored.shape = {uint64_t{1} << 40, uint64_t{1} << 40};
  ExpectRefused(metadata, Code::kCorrupt, "2^62");
  metadata = Sample();
  metadata.tensors[0].items[0].offset = INT64_MAX;
  ExpectRefused(metadata, Code::kCorrupt, "2^62");
}

TEST(TorchDistMetadata, RefusesMoreTensorsThanTheLimitsAllow) {
  Metadata metadata;
  for (int i = 0; i < 1001; ++i) metadata.objects.push_back({std::to_string(i)});
  metadata.files = {"a"};
  ExpectRefused(metadata, Code::kUnsupported, "--max_memory", "1000");
}

TEST(TorchDistMetadata, RefusesWhatIsNoMetadata) {
  for (const std::string& bytes : {std::string("\x80\x04N."), std::string("\x80\x04}.")}) {
    try {
      ParseMetadata(bytes, "folder/.metadata", kLimits, All);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kCorrupt);
      EXPECT_THAT(error.what(), HasSubstr("no object of the class Metadata"));
    }
  }
}

// Every byte of a .metadata, one after the other, is another: an error, or chunks that fill their shapes.
TEST(TorchDistMetadata, SurvivesEveryDamagedByte) {
  const std::string whole = MetadataText(Sample());
  for (size_t i = 0; i < whole.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      try {
        for (const Tensor& tensor : ParseMetadata(damaged, "", kLimits, All).tensors) {
          uint64_t elements = 0;
          for (const Chunk& chunk : tensor.stored.chunks) elements += ElementCount(chunk.box.shape);
          EXPECT_EQ(elements, ElementCount(tensor.stored.shape));
        }
      } catch (const Error& error) {
        EXPECT_THAT(error.code(), testing::AnyOf(Code::kCorrupt, Code::kUnsupported)) << error.what();
      }
    }
}

}  // namespace
}  // namespace reshard::torch_dist
