#include "formats/torch_dist/torch_dist.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/bytes.h"
#include "base/error.h"
#include "tests/fault/faulty_io.h"
#include "tests/fault/scratch_folder.h"

namespace reshard::torch_dist {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const torch_pickle::Limits kLimits{16 * kMiB, 1000};

bool All(std::string_view) { return true; }

// In one chunk.
StoredTensor TensorOf(std::string name, Dims shape) { return {std::move(name), Dtype::kBF16, shape, shape, {}}; }

std::vector<FileLayout> LaidOut(std::vector<StoredTensor>& tensors, const std::vector<std::string>& objects = {}) {
  std::vector<StoredTensor*> pointers;
  for (StoredTensor& tensor : tensors) pointers.push_back(&tensor);
  std::vector<FileLayout> files = {LiteralFile("before", "")};
  LayOut("weights", pointers, objects, files);
  return files;
}

// All but the tensors' bytes, which are holes.
void Write(const std::vector<FileLayout>& files, const ScratchFolder& folder) {
  for (const FileLayout& layout : files) {
    const std::string path = folder / layout.path;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    auto file = PosixIo().OpenWrite(path);
    for (const Literal& literal : layout.literals)
      file->WriteAt(literal.bytes.data(), literal.bytes.size(), literal.offset);
    file->Truncate(layout.size);
  }
}

TEST(TorchDist, BeginsAFileWhereAnItemWouldMakeOneTooLarge) {
  std::vector<StoredTensor> tensors = {TensorOf("a", {1 << 7, 1 << 20}), TensorOf("b", {1 << 7, 1 << 20}),
                                       TensorOf("c", {4 << 10, 1 << 20}), TensorOf("d", {8})};
  const std::vector<FileLayout> files = LaidOut(tensors);
  std::vector<std::string> paths;
  for (const FileLayout& file : files) paths.push_back(file.path);
  // Two of 256 MiB and their zips are more than 512 MiB; one of 8 GiB has a file of its own.
  EXPECT_THAT(paths, ElementsAre("before", "weights/__0_0.distcp", "weights/__0_1.distcp", "weights/__0_2.distcp",
                                 "weights/__0_3.distcp", "weights/.metadata"));
  EXPECT_EQ(tensors[3].chunks[0].file, 4u);
}

TEST(TorchDist, ReadsWhatItWrites) {
  ScratchFolder folder(ScratchFolder::InMemory());
  std::vector<StoredTensor> tensors = {TensorOf("a", {64, 1 << 10}), TensorOf("b", {3})};
  tensors[0].grid = {64, 1 << 9};
  Write(LaidOut(tensors, {"x._extra_state/shard_0_1"}), folder);
  const Contents contents = Read(PosixIo(), folder / "weights", kLimits, All);
  ASSERT_EQ(contents.tensors.size(), 2u);
  EXPECT_EQ(contents.tensors[0].grid, (Dims{64, 1 << 9}));
  for (size_t i = 0; i < 2; ++i)
    for (size_t j = 0; j < tensors[i].chunks.size(); ++j) {
      EXPECT_EQ(contents.tensors[i].chunks[j].offset, tensors[i].chunks[j].offset);
      EXPECT_EQ(contents.tensors[i].chunks[j].strides, tensors[i].chunks[j].strides);
    }
  EXPECT_THAT(contents.objects, ElementsAre("x._extra_state/shard_0_1"));
  ASSERT_EQ(contents.files.size(), 1u);
  EXPECT_EQ(contents.files[0].relative, "__0_0.distcp");
}

uint64_t CallsOf(const std::vector<Dims>& shapes) {
  ScratchFolder folder(ScratchFolder::InMemory());
  std::vector<StoredTensor> tensors;
  for (const Dims& shape : shapes) tensors.push_back(TensorOf(std::to_string(tensors.size()), shape));
  Write(LaidOut(tensors), folder);
  FaultyIo io(PosixIo());
  Read(io, folder / "weights", kLimits, All);
  return io.calls();
}

TEST(TorchDist, ReadsAnItemInTwoPiecesAndASmallOneInOne) {
  const Dims small = {8}, large = {1 << 10, 1 << 10};
  const uint64_t calls = CallsOf({large});
  EXPECT_EQ(CallsOf({large, large, large}), calls + 4);
  EXPECT_EQ(CallsOf({large, small, small}), calls + 2);
}

TEST(TorchDist, NamesTheFileAndTheTensorOfAnItemThatIsCutOff) {
  ScratchFolder folder(ScratchFolder::InMemory());
  std::vector<StoredTensor> tensors = {TensorOf("a", {8}), TensorOf("b", {8})};
  Write(LaidOut(tensors), folder);
  const std::string path = folder / "weights/__0_0.distcp";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  try {
    Read(PosixIo(), folder / "weights", kLimits, All);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_EQ(error.path(), path);
    EXPECT_EQ(error.tensor(), "b");
    EXPECT_THAT(error.what(), HasSubstr("cut off"));
  }
}

TEST(TorchDist, RefusesMetadataThatMemoryDoesNotBear) {
  ScratchFolder folder(ScratchFolder::InMemory());
  std::vector<StoredTensor> tensors = {TensorOf("a", {8})};
  Write(LaidOut(tensors), folder);
  try {
    Read(PosixIo(), folder / "weights", {100, 1000}, All);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("--max_memory"));
  }
}

}  // namespace
}  // namespace reshard::torch_dist
