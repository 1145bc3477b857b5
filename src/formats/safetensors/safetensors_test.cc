#include "formats/safetensors/safetensors.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard::safetensors {
namespace {

using testing::HasSubstr;

const std::string kTest = R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})";

std::string FileBytes(const std::string& header, size_t data_size) {
  std::string bytes;
  AppendLittle<uint64_t>(bytes, header.size());
  return bytes + header + std::string(data_size, '\0');
}

std::string WithLength(uint64_t length, const std::string& rest) {
  std::string bytes;
  AppendLittle<uint64_t>(bytes, length);
  return bytes + rest;
}

std::vector<StoredTensor> Read(const std::string& bytes) { return ReadHeader(bytes, bytes.size(), "a.safetensors", 3); }

Error ErrorOf(const std::string& bytes) {
  try {
    Read(bytes);
  } catch (const Error& error) {
    return error;
  }
  return Error(Code::kInternal, "nothing was thrown");
}

struct Bad {
  std::string bytes;
  std::string message;  // a part of the expected one
  std::string tensor;
};

void ExpectCorrupt(const std::vector<Bad>& cases) {
  for (const Bad& bad : cases) {
    SCOPED_TRACE(bad.message);
    const Error error = ErrorOf(bad.bytes);
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_EQ(error.path(), "a.safetensors");
    EXPECT_EQ(error.tensor(), bad.tensor);
    EXPECT_THAT(error.what(), HasSubstr(bad.message));
  }
}

// The header of one tensor 't' with this entry, over `data_size` bytes.
std::string WithEntry(const std::string& entry, size_t data_size = 16) {
  return FileBytes(R"({"t":)" + entry + "}", data_size);
}
std::string WithOffsets(const std::string& offsets) {
  return WithEntry(R"({"dtype":"I32","shape":[2,2],"data_offsets":)" + offsets + "}");
}
std::string WithShape(const std::string& dtype, const std::string& shape, size_t data_size) {
  return WithEntry(fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":[0,{}]}})", dtype, shape, data_size),
                   data_size);
}
// One U8 tensor a range, named a, b, c, ...
std::string WithRanges(const std::vector<std::pair<uint64_t, uint64_t>>& ranges, size_t data_size) {
  std::string header;
  char name = 'a';
  for (const auto& [begin, end] : ranges)
    header += fmt::format(R"({}"{}":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}})", header.empty() ? "{" : ",",
                          name++, end - begin, begin, end);
  return FileBytes(header + "}", data_size);
}

TEST(SafetensorsReader, GivesOneChunkATensorInOrderOfTheData) {
  const std::string bytes = FileBytes(R"({"b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},)"
                                      R"("a":{"shape":[4],"data_offsets":[0,4],"dtype":"U8"}})",
                                      16);
  const std::vector<StoredTensor> tensors = Read(bytes);
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, Dtype::kF16);
  EXPECT_EQ(tensors[1].shape, (Dims{2, 3}));
  EXPECT_TRUE(tensors[1].grid.empty());
  ASSERT_EQ(tensors[1].chunks.size(), 1u);
  const Chunk& chunk = tensors[1].chunks[0];
  EXPECT_EQ(chunk.box, (Box{{0, 0}, {2, 3}}));
  EXPECT_EQ(chunk.strides, (Dims{3, 1}));
  EXPECT_EQ(chunk.file, 3u);
  EXPECT_EQ(chunk.offset, bytes.size() - 12);
}

// Files of the official test suite, byte for byte.
TEST(SafetensorsReader, AcceptsTheOfficialVectors) {
  EXPECT_EQ(Read(std::string("\x08\0\0\0\0\0\0\0{}      ", 16)).size(), 0u);
  EXPECT_EQ(Read(FileBytes(R"({"__metadata__":{"framework":"pt"}}     )", 0)).size(), 0u);
  EXPECT_EQ(Read(WithLength(6, "{}\r \t\n")).size(), 0u);
  EXPECT_EQ(Read(WithLength(6, "\t\n{}\r ")).size(), 0u);

  auto tensors = Read(FileBytes(R"({"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}})", 24));
  EXPECT_EQ(tensors.at(0).shape, (Dims{1, 2, 3}));
  EXPECT_EQ(tensors.at(0).chunks.at(0).offset, 72u);
  tensors =
      Read(FileBytes(R"({"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}})" + std::string(7, ' '), 24));
  EXPECT_EQ(tensors.at(0).chunks.at(0).offset, 80u);
  tensors = Read(FileBytes(R"({"attn.0":{"dtype":"F4","shape":[1,2],"data_offsets":[0,1]}}    )", 1));
  EXPECT_EQ(tensors.at(0).dtype, Dtype::kF4);
  tensors = Read(FileBytes(R"({"test1":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]},)"
                           R"("test2":{"dtype":"F16","shape":[2,2],"data_offsets":[16,24]}}      )",
                           24));
  EXPECT_EQ(tensors.at(1).chunks.at(0).offset, 8u + 128 + 16);
  tensors = Read(FileBytes(R"({"test":{"dtype":"I32","shape":[],"data_offsets":[0,4]}})", 4));
  EXPECT_TRUE(tensors.at(0).shape.empty());
  tensors = Read(FileBytes(R"({"test":{"dtype":"I32","shape":[2,0],"data_offsets":[0, 0]}})", 0));
  EXPECT_EQ(tensors.at(0).shape, (Dims{2, 0}));
}

TEST(SafetensorsReader, AcceptsWhatIsOddButValid) {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  const auto name_of = [&](const std::string& json) {
    return Read(FileBytes("{" + json + ":" + entry + "}", 1)).at(0).name;
  };
  EXPECT_EQ(name_of(R"("../a/b")"), "../a/b");
  EXPECT_EQ(name_of(R"("\u00e9\ud83d\ude00")"), "\xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_EQ(name_of(R"("")"), "");
  const std::string long_name(1'000'000, 'n');
  EXPECT_EQ(name_of('"' + long_name + '"'), long_name);

  for (const std::string metadata : {"null", "{}", R"({"a":"\u0007"})", R"({"a":"b","a":"c"})"})
    EXPECT_EQ(Read(FileBytes(R"({"__metadata__":)" + metadata + R"(,"t":)" + entry + "}", 1)).size(), 1u) << metadata;
  EXPECT_EQ(Read(FileBytes(R"({"t":)" + entry + R"(,"__metadata__":{"format":"pt"}})", 1)).size(), 1u);
  EXPECT_EQ(
      Read(WithEntry(R"({"x":{"dtype":[1,-2.5e3,null,true,"s"]},"dtype":"U8","shape":[1],"data_offsets":[0,1]})", 1))
          .size(),
      1u);

  // Tensors without bytes may share a place; an extent of 0 hides those behind it, as in the official parser.
  EXPECT_EQ(Read(WithRanges({{0, 4}, {4, 4}, {4, 4}, {0, 0}, {4, 8}}, 8)).size(), 5u);
  EXPECT_EQ(Read(WithShape("I32", "[0,9223372036854775808,4]", 0)).size(), 1u);
  EXPECT_EQ(Read(WithShape("U8", "[1,1,1,1,1,3]", 3)).at(0).shape.size(), 6u);
}

TEST(SafetensorsReader, RefusesFilesThatAreNoneAtAll) {
  ExpectCorrupt({
      {"", "the file has 0 bytes, expected at least 8; the file may be cut off; download it again", ""},
      {"\1", "the file has 1 bytes, expected at least 8", ""},
      {"version", "the file has 7 bytes, expected at least 8", ""},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
       "git-lfs pointer, expected weights; run 'git lfs pull'", ""},
      {WithLength(0xFFFFFF000000003C, kTest),
       "a header length of 18446742974197923900 bytes, expected at most 100000000", ""},
      {WithLength(uint64_t{1} << 63, kTest), "a header length of 9223372036854775808 bytes", ""},
      {WithLength(~uint64_t{0}, kTest), "a header length of 18446744073709551615 bytes", ""},
      {WithLength(100'000'001, kTest), "a header length of 100000001 bytes, expected at most 100000000", ""},
      {WithLength(100'000'000, kTest), "a header of 100000000 bytes in a file of 68 bytes, expected at most 60", ""},
      {WithLength(60, ""), "a header of 60 bytes in a file of 8 bytes, expected at most 0; the file may be cut off",
       ""},
      {WithLength(1000, kTest), "a header of 1000 bytes in a file of 68 bytes", ""},
  });
}

TEST(SafetensorsReader, RefusesHeadersThatAreNotJson) {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  ExpectCorrupt({
      {FileBytes("\xFF", 0), "the header is not UTF-8 at its byte 0", ""},
      {FileBytes("{\"\xC0\xAF\":" + entry + "}", 1), "the header is not UTF-8 at its byte 2", ""},
      {FileBytes("{\"\xED\xA0\x80\":" + entry + "}", 1), "the header is not UTF-8 at its byte 2", ""},
      {FileBytes("{\"\xF4\x90\x80\x80\":" + entry + "}", 1), "the header is not UTF-8 at its byte 2", ""},
      {FileBytes("{\"\xE2\x82\":" + entry + "}", 1), "the header is not UTF-8 at its byte 2", ""},
      {FileBytes("{\"a\":\xE2\x82", 1), "the header is not UTF-8 at its byte 5", ""},
      {FileBytes("", 0), "the header is not JSON", ""},
      {FileBytes("{", 0), "the header is not JSON", ""},
      {FileBytes(std::string("{}\0\0", 4), 0), "the header has a zero byte at its byte 2", ""},
      {FileBytes("\xEF\xBB\xBF" + kTest, 16), "byte order mark", ""},
      {FileBytes(kTest + "x", 16), "the header is not JSON: '16]}}x' before its byte 61", ""},
      {FileBytes(kTest + kTest, 16), "the header is not JSON", ""},
      {FileBytes(R"({},"__metadata__":{"format":"pt"})", 0), "the header is not JSON: '{},' before its byte 3", ""},
      {FileBytes(R"({"\ud800":)" + entry + "}", 1), "the header is not JSON", ""},
      {FileBytes(R"({"t":)" + entry + ",}", 1), "the header is not JSON", ""},
      {FileBytes("{/**/}", 0), "the header is not JSON", ""},
      {FileBytes("[]", 0), "the header is an array, expected a JSON object", ""},
      {FileBytes("1", 0), "the header is the number 1, expected a JSON object", ""},
      {FileBytes("null", 0), "the header is null, expected a JSON object", ""},
      {FileBytes(R"("x")", 0), "the header is the string 'x', expected a JSON object", ""},
      {FileBytes(std::string(1'000'000, '['), 0), "the header is an array", ""},
  });
}

TEST(SafetensorsReader, RefusesEntriesOfAnotherSchema) {
  const std::string numbers = "expected a whole number from 0 to 18446744073709551615";
  ExpectCorrupt({
      {WithOffsets("[-1,16]"), "one of data_offsets is the number -1, " + numbers, "t"},
      {WithOffsets("[-0,16]"), "one of data_offsets is the number -0, " + numbers, "t"},
      {WithOffsets("[0.0,16]"), "one of data_offsets is the number 0.0, " + numbers, "t"},
      {WithOffsets("[0,16e0]"), "one of data_offsets is the number 16e0, " + numbers, "t"},
      {WithOffsets("[0,18446744073709551616]"), "one of data_offsets is the number 18446744073709551616", "t"},
      {WithOffsets("[0,\"16\"]"), "one of data_offsets is the string '16'", "t"},
      {WithOffsets("[0,[16]]"), "one of data_offsets is an array", "t"},
      {WithOffsets("[]"), "data_offsets of 0 numbers, expected 2", "t"},
      {WithOffsets("[16]"), "data_offsets of 1 numbers, expected 2", "t"},
      {WithOffsets("[0,16,16]"), "data_offsets of 3 numbers, expected 2", "t"},
      {WithOffsets("16"), "data_offsets is the number 16, expected an array", "t"},
      {WithShape("I32", "null", 16), "shape is null, expected an array of whole numbers", "t"},
      {WithShape("I32", "{}", 16), "shape is an object, expected an array", "t"},
      {WithShape("I32", "[true]", 16), "an extent of the shape is true, " + numbers, "t"},
      {WithShape("I32", "[4.0]", 16), "an extent of the shape is the number 4.0, " + numbers, "t"},
      {WithShape("I32", "[-4]", 16), "an extent of the shape is the number -4, " + numbers, "t"},
      {WithShape("F128", "[1]", 16), "unknown dtype 'F128', expected one of BOOL, F4, ", "t"},
      {WithShape("i32", "[4]", 16), "unknown dtype 'i32'", "t"},
      {WithShape("\\u001b[2J", "[4]", 16), "unknown dtype '<U+001B>[2J'", "t"},
      {WithEntry(R"({"dtype":7,"shape":[4],"data_offsets":[0,16]})"), "dtype is the number 7, expected a string", "t"},
      {WithEntry(R"({"shape":[4],"data_offsets":[0,16]})"), "no 'dtype', expected dtype, shape and data_offsets", "t"},
      {WithEntry(R"({"dtype":"I32","data_offsets":[0,16]})"), "no 'shape'", "t"},
      {WithEntry(R"({"dtype":"I32","shape":[4]})"), "no 'data_offsets'", "t"},
      {WithEntry("{}"), "no 'dtype'", "t"},
      {WithEntry(R"({"dtype":"I32","dtype":"I32","shape":[4],"data_offsets":[0,16]})"), "'dtype' is there twice", "t"},
      {WithEntry(R"({"dtype":"I32","shape":[4],"shape":[4],"data_offsets":[0,16]})"), "'shape' is there twice", "t"},
      {WithEntry("null"), "the tensor's entry is null, expected an object with dtype, shape and data_offsets", "t"},
      {WithEntry(R"(["I32",[4],[0,16]])"), "the tensor's entry is an array, expected an object", "t"},
      {WithEntry(R"("x")"), "the tensor's entry is the string 'x', expected an object", "t"},
      {WithEntry(R"({"x":)" + std::string(1'000'000, '[')), "more than 125 levels of nested JSON", "t"},
      {WithEntry(R"({"x":)" + std::string(126, '[')), "more than 125 levels of nested JSON", "t"},
      {WithEntry(R"({"x":)" + std::string(125, '[')), "the header is not JSON", ""},
  });
}

TEST(SafetensorsReader, RefusesMetadataThatIsNotTextToText) {
  const auto with = [](const std::string& metadata) { return FileBytes(R"({"__metadata__":)" + metadata + "}", 0); };
  ExpectCorrupt({
      {with("1"), "__metadata__ is the number 1, expected an object or null", ""},
      {with("[]"), "__metadata__ is an array, expected an object or null", ""},
      {with("false"), "__metadata__ is false, expected an object or null", ""},
      {with(R"({"a":1})"), "a value of __metadata__ is the number 1, expected a string", ""},
      {with(R"({"a":["b"]})"), "a value of __metadata__ is an array, expected a string", ""},
      {with(R"({"a":{"b":"c"}})"), "a value of __metadata__ is an object, expected a string", ""},
      {with(R"({"a":null})"), "a value of __metadata__ is null, expected a string", ""},
      {with(R"({},"__metadata__":{})"), "__metadata__ is there twice, expected once", ""},
      {FileBytes(R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"__metadata__":{"a":1}})", 0),
       "a value of __metadata__ is the number 1", ""},
  });
}

TEST(SafetensorsReader, RefusesNamesThatHideSomething) {
  const auto named = [](const std::string& name) {
    return FileBytes("{\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  };
  ExpectCorrupt({
      {named("a\\u0000b"), "the tensor name 'a<U+0000>b' holds U+0000, expected no control and no bidi characters", ""},
      {named("a\\n"), "the tensor name 'a<U+000A>' holds U+000A", ""},
      {named("\\u001b[31m"), "the tensor name '<U+001B>[31m' holds U+001B", ""},
      {named("\x7F"), "holds U+007F", ""},
      {named("\\u009b"), "holds U+009B", ""},
      {named("\xE2\x80\xAEx"), "the tensor name '<U+202E>x' holds U+202E", ""},
      {named("\\u2066"), "holds U+2066", ""},
      {named("\\u200f"), "holds U+200F", ""},
      {named("\\u061c"), "holds U+061C", ""},
      {named(std::string(1'000'000, 'n') + "\\u0000"), std::string(80, 'n') + "n...' holds U+0000", ""},
  });
}

TEST(SafetensorsReader, RefusesANameThatIsThereTwice) {
  const std::string a = R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  ExpectCorrupt({
      {FileBytes("{" + a + "," + a + "}", 4), "the name is there twice, expected each name once", "a"},
      {FileBytes("{" + a + R"(,"\u0061":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 8), "there twice", "a"},
  });
}

TEST(SafetensorsReader, RefusesShapesThatAreNotTheDataOffsets) {
  ExpectCorrupt({
      {FileBytes(R"({"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,4]}})", 16),
       "data_offsets give 4 bytes, expected 16 for I32 [2, 2]", "test"},
      {WithShape("I32", "[2,18446744073709551614]", 16),
       "the size of I32 [2, 18446744073709551614] overflows, expected less than 2^64 bits", "t"},
      {WithShape("I32", "[2,9223372036854775807]", 16), "the size of I32 [2, 9223372036854775807] overflows", "t"},
      {WithShape("I32", "[9223372036854775808,4,0]", 0), "overflows", "t"},
      {WithShape("U8", "[2305843009213693952]", 16), "overflows", "t"},
      {WithShape("F4", "[1,3]", 1), "F4 [1, 3] is 12 bits, expected whole bytes", "t"},
      {WithShape("F4", "[1,2]", 2), "data_offsets give 2 bytes, expected 1 for F4 [1, 2]", "t"},
      {WithShape("F6_E2M3", "[2]", 1), "F6_E2M3 [2] is 12 bits, expected whole bytes", "t"},
      {WithShape("BF16", "[]", 4), "data_offsets give 4 bytes, expected 2 for BF16 []", "t"},
  });
  const Error error = ErrorOf(WithShape("U8", "[1,1,1,1,1,1,1]", 1));
  EXPECT_EQ(error.code(), Code::kUnsupported);
  EXPECT_STREQ(error.what(), "reading a.safetensors, tensor 't': more than 6 axes, expected at most 6");
}

TEST(SafetensorsReader, RefusesHolesOverlapsAndOtherSizesOfTheFile) {
  std::string ten;
  for (char name = 'a'; name <= 'j'; ++name)
    ten +=
        fmt::format(R"({}"{}":{{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", ten.empty() ? "{" : ",", name);
  ExpectCorrupt({
      {FileBytes(ten + "}", 16), "data_offsets begin at 0, expected 16, where tensor 'a' ends; the tensors overlap",
       "b"},
      {WithRanges({{0, 8}, {7, 12}}, 12),
       "data_offsets begin at 7, expected 8, where tensor 'a' ends; the tensors overlap", "b"},
      {WithRanges({{0, 8}, {9, 12}}, 12),
       "data_offsets begin at 9, expected 8, where tensor 'a' ends; 1 bytes belong to no tensor", "b"},
      {WithRanges({{4, 8}}, 8),
       "data_offsets begin at 4, expected 0, where the data begins; 4 bytes belong to no tensor", "a"},
      {WithRanges({{0, 8}, {4, 4}}, 8), "the tensors overlap", "b"},
      {WithOffsets("[16,0]"), "data_offsets begin at 16, expected 0", "t"},
      {FileBytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})",
                 8),
       "data_offsets end at 0, expected at least 4, where they begin", "b"},
      {FileBytes(kTest, 14), "14 bytes of data, expected 16; the file may be cut off; download it again", ""},
      {FileBytes(kTest, 0), "0 bytes of data, expected 16; the file may be cut off", ""},
      {WithRanges({{0, 4}, {4, 1'000'000'000'000}}, 8),
       "8 bytes of data, expected 1000000000000; the file may be cut off", ""},
      {FileBytes(kTest, 16) + "extra_bogus_data_for_polyglot_file",
       "50 bytes of data, expected 16; 34 bytes behind the last tensor belong to none", ""},
      {FileBytes("{}", 1), "1 bytes of data, expected 0; 1 bytes behind the last tensor", ""},
  });
}

TEST(SafetensorsReader, RefusesAHundredThousandOverlappingTensors) {
  std::string header;
  for (int i = 0; i < 100'000; ++i)
    header += fmt::format(R"({}"weight_{}":{{"dtype":"F32","shape":[200,200],"data_offsets":[0,160000]}})",
                          i == 0 ? "{" : ",", i);
  EXPECT_THAT(ErrorOf(FileBytes(header + "}", 160'000)).what(), HasSubstr("the tensors overlap"));
}

TEST(SafetensorsReader, SurvivesAHeaderCutAtAnyByteAndAnyByteChanged) {
  const std::string good =
      FileBytes(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],)"
                R"("data_offsets":[0,12]},"b\u00e9":{"dtype":"U8","shape":[],"data_offsets":[12,13]}})",
                13);
  ASSERT_EQ(Read(good).size(), 2u);
  for (size_t size = 0; size < good.size(); ++size)
    EXPECT_EQ(ErrorOf(good.substr(0, size)).code(), Code::kCorrupt) << size;
  for (size_t i = 0; i < good.size() - 13; ++i)
    for (int byte = 0; byte < 256; ++byte) {
      std::string changed = good;
      changed[i] = static_cast<char>(byte);
      try {
        Read(changed);
      } catch (const Error& error) {
        EXPECT_NE(error.code(), Code::kInternal);
      }
    }
}

class SafetensorsFile : public testing::Test {
 protected:
  ~SafetensorsFile() override { PosixIo().RemoveAll(path_); }

  const std::string path_ = testing::TempDir() + fmt::format("safetensors_test_{}.safetensors", getpid());
};

// 2^40 bytes of data: reading them would take minutes.
TEST_F(SafetensorsFile, IsReadWithoutItsData) {
  const uint64_t data_size = uint64_t{1} << 40;
  const std::string start = FileBytes(
      fmt::format(R"({{"big":{{"dtype":"U8","shape":[{}],"data_offsets":[0,{}]}}}})", data_size, data_size), 0);
  WriteWholeFile(PosixIo(), path_, start);
  PosixIo().OpenWrite(path_)->Truncate(start.size() + data_size);
  const auto tensors = ReadFile(PosixIo(), path_, 1, start.size() - 8, 1);
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].chunks[0].offset, start.size());
  EXPECT_EQ(tensors[0].chunks[0].file, 1u);
}

TEST_F(SafetensorsFile, IsRefusedByPathForItsContent) {
  const auto error_of = [&](const std::string& bytes, uint64_t max_header, uint64_t max_tensors = 2) {
    WriteWholeFile(PosixIo(), path_, bytes);
    try {
      ReadFile(PosixIo(), path_, 0, max_header, max_tensors);
    } catch (const Error& error) {
      return error;
    }
    return Error(Code::kInternal, "nothing was thrown");
  };
  const Error too_long = error_of(FileBytes(kTest, 16), 59);
  EXPECT_EQ(too_long.code(), Code::kUnsupported);
  EXPECT_EQ(too_long.what(), "reading " + path_ +
                                 ": a header of 60 bytes, expected at most 59 within the memory limit; "
                                 "give a larger --max_memory");
  const Error too_many = error_of(FileBytes(kTest, 16), 60, 0);
  EXPECT_EQ(too_many.code(), Code::kUnsupported);
  EXPECT_EQ(too_many.what(), "reading " + path_ +
                                 ": more than 0 tensors, expected at most so many within the memory limit; give a "
                                 "larger --max_memory");
  EXPECT_EQ(error_of("", 100).what(), "reading " + path_ +
                                          ": the file has 0 bytes, expected at least 8; the file may be "
                                          "cut off; download it again");
  EXPECT_EQ(error_of(FileBytes(kTest, 15), 100).path(), path_);
}

StoredTensor Tensor(std::string name, Dtype dtype, Dims shape) {
  StoredTensor tensor;
  tensor.name = std::move(name);
  tensor.dtype = dtype;
  tensor.shape = shape;
  return tensor;
}

FileLayout LayOutAll(std::vector<StoredTensor>& tensors) {
  std::vector<StoredTensor*> pointers;
  for (StoredTensor& tensor : tensors) pointers.push_back(&tensor);
  return LayOut("model.safetensors", pointers, 5);
}

// The header's JSON, after its padding, its length and the place of the data were checked.
std::string HeaderText(const FileLayout& layout) {
  EXPECT_EQ(layout.literals.size(), 1u);
  const std::string& bytes = layout.literals.at(0).bytes;
  EXPECT_EQ(layout.literals[0].offset, 0u);
  EXPECT_EQ(LoadLittle<uint64_t>(bytes.data()), bytes.size() - 8);
  EXPECT_EQ(bytes.size() % 4096, 0u);
  const size_t json_end = bytes.find_last_not_of(' ') + 1;
  EXPECT_LT(bytes.size() - json_end, 4096u);
  return bytes.substr(8, json_end - 8);
}

std::string LaidOutHeader(std::vector<StoredTensor> tensors) { return HeaderText(LayOutAll(tensors)); }

// The official test suite's vectors with the metadata that we always write.
TEST(SafetensorsWriter, GivesTheOfficialHeaders) {
  const std::string metadata = R"({"__metadata__":{"format":"pt"})";
  EXPECT_EQ(LaidOutHeader({}), metadata + "}");
  EXPECT_EQ(LaidOutHeader({Tensor("attn.0", Dtype::kF32, {1, 2, 3})}),
            metadata + R"(,"attn.0":{"dtype":"F32","shape":[1,2,3],"data_offsets":[0,24]}})");
  EXPECT_EQ(LaidOutHeader({Tensor("attn0", Dtype::kF32, {1, 1, 2, 3})}),
            metadata + R"(,"attn0":{"dtype":"F32","shape":[1,1,2,3],"data_offsets":[0,24]}})");
  EXPECT_EQ(LaidOutHeader({Tensor("attn.0", Dtype::kF4, {1, 2})}),
            metadata + R"(,"attn.0":{"dtype":"F4","shape":[1,2],"data_offsets":[0,1]}})");
  EXPECT_EQ(LaidOutHeader({Tensor("test", Dtype::kI32, {2, 2})}),
            metadata + R"(,"test":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})");
  const std::string two = metadata + R"(,"test1":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]},)"
                                     R"("test2":{"dtype":"F16","shape":[2,2],"data_offsets":[16,24]}})";
  EXPECT_EQ(LaidOutHeader({Tensor("test1", Dtype::kI32, {2, 2}), Tensor("test2", Dtype::kF16, {2, 2})}), two);
  EXPECT_EQ(LaidOutHeader({Tensor("test2", Dtype::kF16, {2, 2}), Tensor("test1", Dtype::kI32, {2, 2})}), two);
}

// Written by safetensors 0.8.0 for the same tensors.
TEST(SafetensorsWriter, SortsByDtypeAndNameAndEscapesAsTheOfficialOne) {
  EXPECT_EQ(
      LaidOutHeader({Tensor("b", Dtype::kF32, {2}), Tensor("a.10", Dtype::kBF16, {2, 3}),
                     Tensor("a.2", Dtype::kBF16, {1}), Tensor("q\"\\\t\xC3\xA9/\xE6\x97\xA5", Dtype::kI64, {}),
                     Tensor("e", Dtype::kF16, {0, 4}), Tensor("u", Dtype::kU8, {3}),
                     Tensor("c", Dtype::kF32, {1, 1, 2}), Tensor("fl", Dtype::kF8E4M3, {2}),
                     Tensor("x", Dtype::kC64, {1}), Tensor("ok", Dtype::kBool, {2}), Tensor("i", Dtype::kI8, {1}),
                     Tensor("w", Dtype::kU64, {1}), Tensor("d", Dtype::kF64, {1})}),
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"U64","shape":[1],"data_offsets":[0,8]},)"
      "\"q\\\"\\\\\\t\xC3\xA9/\xE6\x97\xA5\""
      R"(:{"dtype":"I64","shape":[],"data_offsets":[8,16]},"d":{"dtype":"F64","shape":[1],"data_offsets":[16,24]},)"
      R"("x":{"dtype":"C64","shape":[1],"data_offsets":[24,32]},)"
      R"("b":{"dtype":"F32","shape":[2],"data_offsets":[32,40]},)"
      R"("c":{"dtype":"F32","shape":[1,1,2],"data_offsets":[40,48]},)"
      R"("a.10":{"dtype":"BF16","shape":[2,3],"data_offsets":[48,60]},)"
      R"("a.2":{"dtype":"BF16","shape":[1],"data_offsets":[60,62]},)"
      R"("e":{"dtype":"F16","shape":[0,4],"data_offsets":[62,62]},)"
      R"("fl":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[62,64]},)"
      R"("i":{"dtype":"I8","shape":[1],"data_offsets":[64,65]},)"
      R"("u":{"dtype":"U8","shape":[3],"data_offsets":[65,68]},)"
      R"("ok":{"dtype":"BOOL","shape":[2],"data_offsets":[68,70]}})");
}

TEST(SafetensorsWriter, PadsToFullPagesAroundTheirEnd) {
  // The JSON of one tensor with a name of n bytes is `fixed` + n bytes long.
  const size_t fixed = LaidOutHeader({Tensor("", Dtype::kU8, {1})}).size();
  for (const auto& [json_size, start] : {std::pair<size_t, uint64_t>{4087, 4096}, {4088, 4096}, {4089, 8192}}) {
    std::vector<StoredTensor> tensors = {Tensor(std::string(json_size - fixed, 'n'), Dtype::kU8, {1})};
    const FileLayout layout = LayOutAll(tensors);
    EXPECT_EQ(HeaderText(layout).size(), json_size);
    EXPECT_EQ(layout.literals[0].bytes.size(), start);
    EXPECT_EQ(layout.size, start + 1);
    EXPECT_EQ(tensors[0].chunks.at(0).offset, start);
  }
}

TEST(SafetensorsWriter, RefusesAHeaderThatReadersRefuse) {
  try {
    LaidOutHeader({Tensor(std::string(100'000'000, 'n'), Dtype::kU8, {1})});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUnsupported);
    EXPECT_EQ(error.path(), "model.safetensors");
    EXPECT_THAT(error.what(), HasSubstr("expected at most 100000000; give a smaller --max_shard_size"));
  }
}

// Between `low` and `high`, both included. Not a standard distribution: those differ between libraries.
uint64_t Draw(std::mt19937_64& random, uint64_t low, uint64_t high) { return low + random() % (high - low + 1); }

std::vector<StoredTensor> RandomTensors(std::mt19937_64& random) {
  std::map<std::string, StoredTensor> tensors;
  const uint64_t count = Draw(random, 0, 20);
  for (uint64_t i = 0; i < count; ++i) {
    const DtypeRow& row = Dtypes()[Draw(random, 0, Dtypes().size() - 1)];
    Dims shape;
    for (uint64_t axes = Draw(random, 0, 6); axes > 0; --axes) shape.push_back(Draw(random, 0, 7));
    if (row.bits < 8) shape = Dims{Draw(random, 0, 3), 4};
    const std::string name = fmt::format("layers.{}.\"\\\xC3\xA9{}", Draw(random, 0, 30), Draw(random, 0, 3));
    tensors[name] = Tensor(name, row.dtype, shape);
    tensors[name].grid = shape;  // of where it came from
    tensors[name].chunks.resize(2);
  }
  std::vector<StoredTensor> list;
  for (auto& [name, tensor] : tensors) list.push_back(tensor);
  std::shuffle(list.begin(), list.end(), random);
  return list;
}

TEST(SafetensorsWriter, IsReadBackAsTheSameTensorsAtTheSamePlaces) {
  std::mt19937_64 random(20);
  for (int round = 0; round < 300; ++round) {
    std::vector<StoredTensor> written = RandomTensors(random);
    const FileLayout layout = LayOutAll(written);
    ASSERT_EQ(layout.path, "model.safetensors");
    const auto read = ReadHeader(layout.literals.at(0).bytes, layout.size, "model.safetensors", 5);
    ASSERT_EQ(read.size(), written.size());
    for (const StoredTensor& expected : written) {
      const auto found = std::find_if(read.begin(), read.end(), [&](const auto& t) { return t.name == expected.name; });
      ASSERT_NE(found, read.end()) << expected.name;
      EXPECT_EQ(found->dtype, expected.dtype);
      EXPECT_EQ(found->shape, expected.shape);
      EXPECT_TRUE(expected.grid.empty());
      ASSERT_EQ(expected.chunks.size(), 1u);
      EXPECT_EQ(found->chunks[0].box, expected.chunks[0].box);
      EXPECT_EQ(found->chunks[0].strides, expected.chunks[0].strides);
      EXPECT_EQ(found->chunks[0].offset, expected.chunks[0].offset);
      EXPECT_EQ(expected.chunks[0].file, 5u);
    }
  }
}

}  // namespace
}  // namespace reshard::safetensors
