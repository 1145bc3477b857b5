#include "formats/torch_pickle/torch_pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "tests/memory_file.h"

namespace reshard::torch_pickle {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

constexpr Limits kLimits{1 << 20, 1000};

std::string PathOf(const std::string& name) { return RESHARD_SOURCE_DIR "/src/formats/torch_pickle/testdata/" + name; }

// A file that torch.save wrote (testdata/generate.py).
std::string Golden(const std::string& name) {
  std::ifstream file(PathOf(name), std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  EXPECT_FALSE(bytes.empty()) << name;
  return bytes;
}

// The elements of a tensor of F32 in row-major order, taken from the file one by one.
std::vector<float> Elements(const std::string& bytes, const StoredTensor& tensor) {
  EXPECT_EQ(tensor.dtype, Dtype::kF32);
  const Chunk& chunk = tensor.chunks.at(0);
  std::vector<float> elements;
  const Dims plain = RowMajorStrides(tensor.shape);
  for (uint64_t i = 0; i < ElementCount(tensor.shape); ++i) {
    uint64_t at = 0;
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis)
      at += i / plain[axis] % tensor.shape[axis] * chunk.strides[axis];
    float value;
    std::memcpy(&value, bytes.data() + chunk.offset + at * sizeof value, sizeof value);
    elements.push_back(value);
  }
  return elements;
}

struct Read {
  std::string bytes;
  std::vector<StoredTensor> tensors;
  std::vector<std::string> ignored;

  explicit Read(const std::string& name) : bytes(Golden(name)) {
    tensors = ReadStateDict(PosixIo(), PathOf(name), 3, kLimits, ignored);
  }
  const StoredTensor& operator[](const std::string& name) const {
    for (const StoredTensor& tensor : tensors)
      if (tensor.name == name) return tensor;
    throw std::out_of_range(name);
  }
  std::vector<float> Of(const std::string& name) const { return Elements(bytes, (*this)[name]); }
};

std::vector<float> Count(size_t size, float first = 0) {
  std::vector<float> values;
  for (size_t i = 0; i < size; ++i) values.push_back(first + static_cast<float>(i));
  return values;
}

class OddFile : public testing::TestWithParam<const char*> {};

// Both forms of the file hold views, wrappers, and objects beside the state dict.
TEST_P(OddFile, GivesTheTensorsOfItsStateDict) {
  const Read read(GetParam());
  EXPECT_EQ(read.Of("whole"), Count(24));
  EXPECT_EQ(read.Of("rows"), Count(8, 8));
  EXPECT_THAT(read.Of("columns"), ElementsAre(1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22));
  EXPECT_EQ(read["transposed"].shape, Dims({4, 6}));
  EXPECT_EQ(read["transposed"].chunks[0].strides, Dims({1, 4}));
  EXPECT_THAT(read.Of("expanded"), ElementsAre(0, 1, 2, 0, 1, 2));
  EXPECT_EQ(read.Of("parameter"), Count(4));
  const StoredTensor& float8 = read["float8"];
  EXPECT_EQ(float8.dtype, Dtype::kF8E5M2);
  EXPECT_EQ(read.bytes.substr(float8.chunks[0].offset, 2), "\x3c\x40");  // 1 and 2
  EXPECT_THAT(read.ignored, ElementsAre("layer._extra_state", "step", "nothing"));
  EXPECT_EQ(read.tensors.size(), 7u);
}
INSTANTIATE_TEST_SUITE_P(TorchPickle, OddFile, testing::Values("odd.ckpt", "odd-legacy.ckpt"));

TEST(TorchPickle, SharesStorages) {
  const Read read("odd.ckpt");
  EXPECT_EQ(read["whole"].chunks[0].offset, read["transposed"].chunks[0].offset);
  EXPECT_EQ(read["rows"].chunks[0].offset, read["whole"].chunks[0].offset + 8 * sizeof(float));
  EXPECT_EQ(read["whole"].chunks[0].file, 3u);
}

TEST(TorchPickle, FindsTheStoragesOfAStreamInTheOrderOfTheirKeys) {
  const Read read("legacy.bin");
  ASSERT_EQ(read.tensors.size(), 12u);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(read.Of("t" + std::to_string(i)), Count(i + 1, static_cast<float>(i)));
}

TEST(TorchPickle, ReadsABareTensor) {
  const std::string bytes = Golden("tensor.pt");
  MemoryFile file("before" + bytes + "behind");
  TorchFile torch(file, "x", {6, bytes.size()}, kLimits);
  const auto tensor = torch.TensorOf(torch.root(), 1);
  ASSERT_TRUE(tensor);
  EXPECT_EQ(tensor->shape, Dims({1, 2, 3}));
  EXPECT_EQ(Elements("before" + bytes, *tensor), Count(6));
}

// -- writing ----------------------------------------------------------------------------------------------------------

// A file of that layout whose data are those of `golden`, which has them at the same places.
std::string BytesOf(const FileLayout& layout, const std::string& golden) {
  std::string bytes = golden;
  bytes.resize(layout.size);
  for (const Literal& literal : layout.literals) bytes.replace(literal.offset, literal.bytes.size(), literal.bytes);
  for (const Checksum& sum : layout.checksums) {
    std::string crc;
    AppendLittle<uint32_t>(crc, Crc32(std::string_view(bytes).substr(sum.offset, sum.size)));
    for (uint64_t place : sum.places) bytes.replace(place, 4, crc);
  }
  return bytes;
}

// Without what torch makes of hashes: the serialization id, and its CRC at two places.
std::string WithoutId(std::string bytes) {
  const size_t header = bytes.find(".data/serialization_id");
  const size_t data = bytes.find_first_not_of('Z', header + 26);
  bytes.replace(data, 48, 48, '-');
  const size_t central = bytes.rfind(".data/serialization_id");
  const size_t begin = bytes.rfind("PK\1\2", central);
  bytes.replace(begin + 16, 4, 4, '-');
  return bytes;
}

StoredTensor Tensor(const std::string& name, Dtype dtype, Dims shape) {
  StoredTensor tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  tensor.shape = shape;
  return tensor;
}

std::string LaidOut(const std::string& name, std::vector<StoredTensor> tensors) {
  std::vector<StoredTensor*> pointers;
  for (StoredTensor& tensor : tensors) pointers.push_back(&tensor);
  return WithoutId(BytesOf(LayOut("a/b.c/" + name, pointers, 0), Golden(name)));
}

TEST(TorchPickleLayOut, IsTheFileOfTorch) {
  EXPECT_TRUE(LaidOut("plain.pt", {Tensor("model.embed.weight", Dtype::kBF16, {5, 3}),
                                   Tensor("scalar", Dtype::kF32, {}), Tensor("empty", Dtype::kF32, {0, 3}),
                                   Tensor("four", Dtype::kF16, {2, 1, 3, 2}), Tensor("float8", Dtype::kF8E4M3, {300}),
                                   Tensor("unsigned", Dtype::kU16, {7}), Tensor("flag", Dtype::kBool, {2}),
                                   Tensor("long", Dtype::kI64, {4, 4}), Tensor("again", Dtype::kBF16, {2, 2})}) ==
              WithoutId(Golden("plain.pt")));
}

TEST(TorchPickleLayOut, IsTheFileOfTorchForOneTensor) {
  EXPECT_TRUE(LaidOut("single.pt", {Tensor("one", Dtype::kF32, {3})}) == WithoutId(Golden("single.pt")));
}

TEST(TorchPickleLayOut, OfABareTensorIsTheFileOfTorch) {
  FileLayout layout;
  layout.Append("before");
  const uint64_t offset = AppendTensor(layout, Tensor("x", Dtype::kF32, {}), {1, 2, 3});
  const std::string bytes = BytesOf(layout, "before" + Golden("tensor.pt"));
  EXPECT_TRUE(WithoutId(bytes.substr(6)) == WithoutId(Golden("tensor.pt")));
  EXPECT_EQ(bytes.substr(offset, 8), "\0\0\0\0\0\0\x80\x3f"s);
}

TEST(TorchPickleLayOut, TellsTensorsTheirPlaces) {
  StoredTensor a = Tensor("a", Dtype::kF32, {2, 3}), b = Tensor("b", Dtype::kF16, {5});
  const FileLayout layout = LayOut("x.bin", {&a, &b}, 7);
  EXPECT_EQ(a.chunks[0].file, 7u);
  EXPECT_EQ(a.chunks[0].offset % 64 + b.chunks[0].offset % 64, 0u);
  EXPECT_EQ(a.chunks[0].strides, Dims({3, 1}));
  EXPECT_EQ(layout.checksums.size(), 2u);
}

TEST(TorchPickleLayOut, RefusesTypesBelowAByte) {
  StoredTensor tensor = Tensor("a", Dtype::kF4, {2});
  EXPECT_THROW(LayOut("x.bin", {&tensor}, 0), Error);
}

// -- bad files --------------------------------------------------------------------------------------------------------

std::string Zip(const std::string& pickle, const std::vector<std::pair<std::string, std::string>>& others,
                const std::string& version = "3\n") {
  FileLayout file;
  ZipLayout zip(file, "archive");
  if (!pickle.empty()) zip.Add("data.pkl", pickle);
  for (const auto& [name, content] : others) zip.Add(name, content);
  if (!version.empty()) zip.Add("version", version);
  zip.Finish();
  return file.literals[0].bytes;
}

void ExpectRefused(const std::string& bytes, Code code, const std::string& message) {
  MemoryFile file(bytes);
  try {
    TorchFile torch(file, "a.bin", {0, bytes.size()}, kLimits);
    torch.TensorOf(torch.root(), 0);
    FAIL() << "accepted, expected " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
    EXPECT_EQ(error.path(), "a.bin");
  }
}

// The pickle of a tensor of storage '0' with these opcodes for its class and numbers.
std::string Pickle(const std::string& storage, const std::string& offset, const std::string& shape,
                   const std::string& strides) {
  return "\x80\x02"
         "ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"s +
         storage + "tQ" + offset + shape + strides +
         "\x89"
         "Nt"
         "R.";
}
std::string Storage(const std::string& name = "ctorch\nFloatStorage\n", const std::string& elements = "K\x06") {
  return name +
         "X\x01\0\0\0"
         "0"
         "X\x03\0\0\0"
         "cpu"s +
         elements;
}
const std::string kData(24, '\0');

TEST(TorchPickle, TakesTheFormTheTestsBelowBreak) {
  const std::string bytes = Zip(Pickle(Storage(), "K\0"s, "K\x02K\x03\x86", "K\x03K\x01\x86"), {{"data/0", kData}});
  MemoryFile file(bytes);
  TorchFile torch(file, "a.bin", {0, bytes.size()}, kLimits);
  EXPECT_TRUE(torch.TensorOf(torch.root(), 0));
}

TEST(TorchPickle, RefusesTensorsThatLeaveTheirStorage) {
  const auto refuse = [](const std::string& storage, const std::string& offset, const std::string& shape,
                         const std::string& strides, Code code, const std::string& message) {
    ExpectRefused(Zip(Pickle(storage, offset, shape, strides), {{"data/0", kData}}), code, message);
  };
  const std::string zero = "K\0"s, shape = "K\x02K\x03\x86", strides = "K\x03K\x01\x86";
  refuse(Storage(), "K\x01", shape, strides, Code::kCorrupt, "from element 1 on, expected all within its storage");
  refuse(Storage(), zero, "K\x02K\x04\x86", strides, Code::kCorrupt, "expected all within its storage");
  refuse(Storage(), zero, shape, "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x01\x86", Code::kCorrupt, "expected all");
  refuse(Storage(), "J\xff\xff\xff\xff", shape, strides, Code::kCorrupt, "the offset in the storage is -1");
  refuse(Storage(), zero, "J\xff\xff\xff\xffK\x03\x86", strides, Code::kCorrupt, "is -1");
  refuse(Storage(), zero, shape, "J\xff\xff\xff\xffK\x01\x86", Code::kUnsupported, "negative strides");
  refuse(Storage(), zero, shape, "K\x01\x85", Code::kCorrupt, "1 strides of 2 axes");
  refuse(Storage(), zero, "\x8a\x08\0\0\0\0\0\0\0\x40K\x10\x86"s, "K\0K\0\x86"s, Code::kCorrupt, "fewer than 2^64");
  refuse(Storage(), zero, "(K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1t", Code::kUnsupported, "7 axes");
  refuse(Storage(), zero, "N", strides, Code::kCorrupt, "the shape is no tuple");
  refuse(Storage("ctorch\nFloatStorage\n", "K\x05"), zero, shape, strides, Code::kCorrupt, "24 bytes, expected 20");
  refuse(Storage("ctorch\nFloatStorage\n", "K\x07"), zero, shape, strides, Code::kCorrupt, "24 bytes, expected 28");
  refuse(Storage("ctorch\nFloatStorage\n", "\x8a\x08\0\0\0\0\0\0\0\x40"s), zero, shape, strides, Code::kCorrupt,
         "fewer than 2^64 bytes");
  refuse(Storage("ctorch\nQInt8Storage\n"), zero, shape, strides, Code::kUnsupported, "torch.QInt8Storage");
  refuse(Storage("ctorch\nComplexDoubleStorage\n"), zero, shape, strides, Code::kUnsupported, "ComplexDoubleStorage");
}

TEST(TorchPickle, RefusesStoragesThatAreNotThere) {
  const std::string pickle = Pickle(Storage(), "K\0"s, "K\x02K\x03\x86", "K\x03K\x01\x86");
  ExpectRefused(Zip(pickle, {}), Code::kCorrupt, "storage '0' is not in the file");
  ExpectRefused(Zip(pickle, {{"data/00", kData}}), Code::kCorrupt, "storage '0' is not in the file");
}

TEST(TorchPickle, RefusesOtherArchives) {
  const std::string pickle = "\x80\x02N.";
  ExpectRefused(Zip("", {}), Code::kCorrupt, "no 'archive/data.pkl'");
  ExpectRefused(Zip(pickle, {}, ""), Code::kCorrupt, "no 'archive/version'");
  ExpectRefused(Zip(pickle, {}, "abc"), Code::kCorrupt, "version 'abc'");
  ExpectRefused(Zip(pickle, {}, "0"), Code::kCorrupt, "version '0'");
  ExpectRefused(Zip(pickle, {}, "99\n"), Code::kUnsupported, "version 99");
  ExpectRefused(Zip(pickle, {{"byteorder", "big"}}), Code::kUnsupported, "big-endian");
  ExpectRefused(Zip(pickle, {{"byteorder", "middle"}}), Code::kCorrupt, "byteorder 'middle'");
  ExpectRefused(Zip(pickle, {{"constants.pkl", "x"}}), Code::kUnsupported, "TorchScript");
  ExpectRefused(Zip(std::string((1 << 20) + 1, 'N'), {}), Code::kUnsupported, "--max_memory");
  std::string damaged = Zip(pickle, {});
  damaged[64] = '\x81';
  ExpectRefused(damaged, Code::kCorrupt, "the CRC of 'data.pkl'");
}

TEST(TorchPickle, RefusesOtherFiles) {
  ExpectRefused("", Code::kCorrupt, "is empty");
  ExpectRefused("version https://git-lfs.github.com/spec/v1\n", Code::kCorrupt, "git lfs pull");
  ExpectRefused("PYTORCH1", Code::kUnsupported, "torch before 1.0");
  ExpectRefused("7z\xbc\xaf\x27\x1c", Code::kUnsupported, "compressed");
  ExpectRefused("\x1f\x8b\x08", Code::kUnsupported, "compressed");
  ExpectRefused(std::string(257, '\0') + "ustar", Code::kUnsupported, "torch 0.1");
  ExpectRefused("\x80\x02}.", Code::kUnsupported, "bare pickle");
  ExpectRefused("{\"a\": 1}", Code::kCorrupt, "begins with '{\"a\": 1}'");
}

TEST(TorchPickle, RefusesEveryPrefixOfAStream) {
  const std::string bytes = Golden("legacy.bin");
  for (size_t size = 0; size < bytes.size(); ++size) {
    MemoryFile file(bytes.substr(0, size));
    EXPECT_THROW(TorchFile(file, "a", {0, size}, kLimits), Error) << size;
  }
}

TEST(TorchPickle, RefusesStreamsOfOtherMachines) {
  std::string big = Golden("legacy.bin");
  const size_t at = big.find("little_endian");
  big[big.find('\x88', at)] = '\x89';
  ExpectRefused(big, Code::kUnsupported, "big-endian");
  std::string version = Golden("legacy.bin");
  version[version.find("\x4d\xe9\x03") + 1] = '\x01';
  ExpectRefused(version, Code::kCorrupt, "another version");
}

TEST(TorchPickle, RefusesTensorsThatAreNotDense) {
  for (const char* name : {"_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_wrapper_subclass"})
    ExpectRefused(Zip("\x80\x02"
                      "ctorch._utils\n"s +
                          name + "\n)R.",
                      {}),
                  Code::kUnsupported, name);
  ExpectRefused(Zip("\x80\x02"
                    "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncmine\nTensor\n)NtR.",
                    {}),
                Code::kUnsupported, "a tensor of class mine.Tensor");
}

// -- state dicts ------------------------------------------------------------------------------------------------------

void ExpectStateDictRefused(const std::string& pickle, Code code, const std::string& message) {
  const std::string path = testing::TempDir() + "/state_dict.bin";
  WriteWholeFile(PosixIo(), path, Zip(pickle, {{"data/0", kData}}));
  std::vector<std::string> ignored;
  try {
    ReadStateDict(PosixIo(), path, 0, kLimits, ignored);
    FAIL() << "accepted, expected " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
  }
}

// A tensor's opcodes without those that begin and end a pickle.
std::string TensorOpcodes() {
  const std::string pickle = Pickle(Storage(), "K\0"s, "K\x02K\x03\x86", "K\x03K\x01\x86");
  return pickle.substr(2, pickle.size() - 3);
}

TEST(TorchPickleStateDict, NamesTheCallThatWouldGiveATensor) {
  const std::string begin = "\x80\x02}(X\x01\0\0\0a"s;
  ExpectStateDictRefused(begin + "cos\nsystem\nX\x01\0\0\0x\x85Ru."s, Code::kUnsupported, "a call of os.system");
  ExpectStateDictRefused(begin + TensorOpcodes() + "X\x01\0\0\0bc__builtin__\neval\nX\x01\0\0\0x\x85Ru."s,
                         Code::kUnsupported, "a call of builtins.eval");
  ExpectStateDictRefused(
      "\x80\x02"
      "crunpy\n_run_code\n)R.",
      Code::kUnsupported, "a call of runpy._run_code");
}

TEST(TorchPickleStateDict, RefusesNamesThatAreThereTwice) {
  ExpectStateDictRefused("\x80\x02}(X\x01\0\0\0a"s + TensorOpcodes() + "X\x01\0\0\0a"s + TensorOpcodes() + "u.",
                         Code::kCorrupt, "there twice");
}

TEST(TorchPickleStateDict, RefusesADictWithoutTensors) {
  ExpectStateDictRefused("\x80\x02}X\x01\0\0\0aK\x01s."s, Code::kUnsupported, "there is no tensor in it");
  ExpectStateDictRefused(
      "\x80\x02]q\x01h\x01"
      "a."s,
      Code::kUnsupported, "there is no tensor in it");
}

TEST(TorchPickleStateDict, RefusesNamesThatDoNotShow) {
  ExpectStateDictRefused("\x80\x02}X\x01\0\0\0\x1b"s + TensorOpcodes() + "s.", Code::kCorrupt, "U+001B");
  ExpectStateDictRefused("\x80\x02}X\x03\0\0\0\xed\xa0\x80"s + TensorOpcodes() + "s.", Code::kCorrupt, "not UTF-8");
}

}  // namespace
}  // namespace reshard::torch_pickle
