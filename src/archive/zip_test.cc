#include "archive/zip.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>

#include "archive/torch_zip.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "tests/memory_file.h"

namespace reshard {
namespace {

using testing::HasSubstr;
using namespace std::string_literals;

std::vector<ZipMember> Read(const std::string& bytes, uint64_t max_members = 1000, uint64_t max_header = 100'000) {
  MemoryFile file(bytes);
  return ReadZip(file, "a.pt", {0, bytes.size()}, max_members, max_header);
}

void ExpectRefused(const std::string& bytes, Code code, const std::string& message) {
  try {
    Read(bytes);
    FAIL() << "accepted, expected " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(message));
    EXPECT_EQ(error.path(), "a.pt");
  }
}

// The bytes of a layout whose data are `fill`.
std::string BytesOf(const FileLayout& layout, char fill = '\0') {
  std::string bytes(layout.size, fill);
  for (const Literal& literal : layout.literals) bytes.replace(literal.offset, literal.bytes.size(), literal.bytes);
  for (const Checksum& sum : layout.checksums) {
    std::string crc;
    AppendLittle<uint32_t>(crc, Crc32(std::string_view(bytes).substr(sum.offset, sum.size)));
    for (uint64_t place : sum.places) bytes.replace(place, 4, crc);
  }
  return bytes;
}

std::string TwoMembers() {
  FileLayout file;
  ZipLayout zip(file, "a");
  zip.Add("data.pkl", "pickle");
  zip.Add("data/0", "0123456789");
  zip.Finish();
  return BytesOf(file);
}

// The n-th header of the directory.
size_t CentralAt(const std::string& zip, int n) {
  size_t at = zip.find("PK\1\2");
  while (n-- > 0) at = zip.find("PK\1\2", at + 1);
  return at;
}

template <typename T>
std::string With(std::string bytes, size_t at, T value) {
  std::string field;
  AppendLittle<T>(field, value);
  return bytes.replace(at, field.size(), field);
}

TEST(ReadZip, FindsTheMembersOfAFileOfTorch) {
  std::ifstream file(RESHARD_SOURCE_DIR "/src/archive/testdata/common.pt", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto members = Read(bytes);
  std::vector<std::string> names, contents;
  for (const ZipMember& member : members) {
    names.push_back(member.name);
    contents.push_back(bytes.substr(member.data.offset, member.data.size));
    EXPECT_EQ(member.crc, Crc32(contents.back())) << member.name;
  }
  EXPECT_THAT(names, testing::ElementsAre("common/data.pkl", "common/.format_version", "common/.storage_alignment",
                                          "common/byteorder", "common/version", "common/.data/serialization_id"));
  EXPECT_EQ(contents[0], "\x80\x02}q\x00."s);
  EXPECT_EQ(contents[4], "3\n");
}

TEST(ReadZip, OfARangeOfAFileGivesOffsetsInTheFile) {
  const std::string zip = TwoMembers();
  MemoryFile file("before" + zip + "behind");
  const auto members = ReadZip(file, "a", {6, zip.size()}, 10, 1000);
  EXPECT_EQ(members[1].data.offset, 6 + zip.find("0123456789"));
  EXPECT_EQ(members[1].data.size, 10u);
}

TEST(ReadZip, TakesMoreThan65535Members) {
  FileLayout file;
  ZipLayout zip(file, "a");
  for (int i = 0; i < 70'000; ++i) zip.Add(fmt::format("data/{}", i), "");
  zip.Finish();
  EXPECT_EQ(Read(BytesOf(file), 70'000, UINT64_MAX).size(), 70'000u);
}

TEST(ReadZip, RefusesWhatHasNoEndRecord) {
  const std::string zip = TwoMembers();
  ExpectRefused("", Code::kCorrupt, "no end record");
  ExpectRefused(zip.substr(0, zip.size() - 22), Code::kCorrupt, "no end record");
  ExpectRefused(zip.substr(0, zip.size() - 1), Code::kCorrupt, "no end record");
  ExpectRefused(zip + "x", Code::kCorrupt, "has 1 bytes behind it, expected 0");
}

TEST(ReadZip, RefusesEveryPrefixOfAZip) {
  const std::string zip = TwoMembers();
  for (size_t size = 0; size < zip.size(); ++size) EXPECT_THROW(Read(zip.substr(0, size)), Error) << size;
}

TEST(ReadZip, RefusesEndRecordsThatLie) {
  const std::string zip = TwoMembers();
  const size_t end = zip.size() - 22, locator = end - 20, end64 = locator - 56;
  ExpectRefused(With<uint16_t>(zip, end + 10, 3), Code::kCorrupt, "give 3 and 2 members");
  ExpectRefused(With<uint32_t>(zip, end + 16, 1), Code::kCorrupt, "as the directory's offset");
  ExpectRefused(With<uint64_t>(zip, locator + 8, 1u << 30), Code::kCorrupt, "64-bit end record is said to be at");
  ExpectRefused(With<uint64_t>(zip, locator + 8, 3), Code::kCorrupt, "no 64-bit end record at offset 3");
  ExpectRefused(With<uint64_t>(zip, end64 + 4, 45), Code::kCorrupt, "no 64-bit end record");
  const std::string wide = With<uint32_t>(With<uint32_t>(zip, end + 12, UINT32_MAX), end + 16, UINT32_MAX);
  EXPECT_EQ(Read(wide).size(), 2u);
  ExpectRefused(With<uint64_t>(wide, end64 + 48, UINT64_MAX - 3), Code::kCorrupt, "of directory from offset");
  ExpectRefused(With<uint64_t>(wide, end64 + 40, 46), Code::kCorrupt, "of directory from offset");
  const std::string many = With<uint16_t>(With<uint16_t>(zip, end + 8, 0xFFFF), end + 10, 0xFFFF);
  ExpectRefused(With<uint64_t>(many, end64 + 32, 900), Code::kCorrupt, "900 members in a directory of");
  ExpectRefused(With<uint64_t>(many, end64 + 32, 1), Code::kCorrupt, "has 2 members and its end record says 1");
  ExpectRefused(With<uint16_t>(zip, end + 4, 1), Code::kUnsupported, "several parts");
}

TEST(ReadZip, RefusesLocalHeadersThatContradictTheDirectory) {
  const std::string zip = TwoMembers();
  ExpectRefused(With<char>(zip, 30, 'b'), Code::kCorrupt, "has another name");
  ExpectRefused(With<uint16_t>(zip, 6, 0x0800), Code::kCorrupt, "contradict");
  ExpectRefused(With<uint16_t>(zip, 8, 8), Code::kCorrupt, "contradict");
  ExpectRefused(With<uint32_t>(zip, 14, 1), Code::kCorrupt, "contradict");
  ExpectRefused(With<uint32_t>(zip, 18, 1), Code::kCorrupt, "contradict");
  ExpectRefused(With<char>(zip, 0, 'Q'), Code::kCorrupt, "no local header at offset 0");
  ExpectRefused(With<uint32_t>(zip, CentralAt(zip, 0) + 42, 1u << 20), Code::kCorrupt, "before");
  ExpectRefused(With<uint16_t>(zip, 28, 0xFFF0), Code::kCorrupt, "expected them to end before");
}

TEST(ReadZip, RefusesMembersBeyondTheDirectoryOrOverOneAnother) {
  const std::string zip = TwoMembers();
  const size_t first = CentralAt(zip, 0), second = CentralAt(zip, 1);
  const auto sized = [&](size_t at, uint32_t size) { return With(With(zip, at + 20, size), at + 24, size); };
  ExpectRefused(sized(second, 100'000), Code::kCorrupt, "100000 bytes from offset");
  ExpectRefused(sized(second, UINT32_MAX), Code::kCorrupt, "4294967295 bytes from offset");
  ExpectRefused(sized(first, 80), Code::kCorrupt, "within member 'a/data.pkl'");
  ExpectRefused(With<uint32_t>(zip, first + 20, 3), Code::kCorrupt, "6 bytes are stored as 3");
}

TEST(ReadZip, RefusesWhatIsNotPlain) {
  const std::string zip = TwoMembers();
  const size_t first = CentralAt(zip, 0);
  ExpectRefused(With<uint16_t>(zip, first + 8, 0x0809), Code::kUnsupported, "encrypted");
  ExpectRefused(With<uint16_t>(zip, first + 10, 8), Code::kUnsupported, "compressed (method 8)");
}

// A zip of empty members, which ZipLayout puts below `top`.
std::string Named(const std::vector<std::string>& names, const std::string& top = "a") {
  FileLayout file;
  ZipLayout zip(file, top);
  for (const std::string& name : names) zip.Add(name, "x");
  zip.Finish();
  return BytesOf(file);
}

TEST(ReadZip, RefusesBadNames) {
  ExpectRefused(Named({"data.pkl", "data/0", "data.pkl"}), Code::kCorrupt, "'a/data.pkl' is there twice");
  ExpectRefused(Named({"../x"}), Code::kCorrupt, "leaves the archive");
  ExpectRefused(Named({"x"}, ""), Code::kCorrupt, "is absolute");
  ExpectRefused(Named({"a\0b"s}), Code::kCorrupt, "zero byte");
  std::string other = Named({"x", "y"});
  for (size_t at = other.find("a/y"); at != other.npos; at = other.find("a/y", at)) other[at] = 'b';
  ExpectRefused(other, Code::kCorrupt, "member 'b/y' is not in the folder of 'a/x'");
  std::string flat = Named({"xyz"});
  for (size_t at = flat.find("a/xyz"); at != flat.npos; at = flat.find("a/xyz", at)) flat[at + 1] = '-';
  ExpectRefused(flat, Code::kCorrupt, "expected one top folder");
}

TEST(ReadZip, RefusesWhatTheLimitsDoNotBear) {
  const std::string zip = TwoMembers();
  EXPECT_EQ(Read(zip, 2, 150).size(), 2u);
  for (const auto& [members, header] : {std::pair(1, 1000), std::pair(2, 20)}) {
    try {
      Read(zip, members, header);
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kUnsupported);
      EXPECT_THAT(error.what(), HasSubstr("--max_memory"));
    }
  }
}

TEST(ZipLayout, GivesDataItsPlaceAndChecksums) {
  FileLayout file;
  file.Append("before");
  ZipLayout zip(file, "top");
  zip.Add("data.pkl", "pickle");
  const uint64_t offset = zip.AddData("data/0", 100), empty = zip.AddData("data/1", 0);
  const uint64_t size = zip.Finish();
  EXPECT_EQ(file.size, 6 + size);
  EXPECT_EQ((offset - 6) % 64, 0u);
  ASSERT_EQ(file.checksums.size(), 1u);
  const std::string bytes = BytesOf(file, 'd');
  MemoryFile read(bytes);
  const auto members = ReadZip(read, "a", {6, size}, 10, 10'000);
  EXPECT_EQ(members[1].data.offset, offset);
  EXPECT_EQ(members[1].crc, Crc32(std::string(100, 'd')));
  EXPECT_EQ(members[2].data.offset, empty);
  EXPECT_EQ(LoadLittle<uint32_t>(bytes.data() + offset + 100 + 4), members[1].crc);
}

// Sizes and offsets around 2^32 - 1, from which on the 64-bit field has them.
TEST(ZipLayout, UsesWideFieldsWhereNumbersNeedThem) {
  for (uint64_t size : {uint64_t{0xFFFFFFFE}, uint64_t{0xFFFFFFFF}, uint64_t{1} << 33}) {
    FileLayout file;
    ZipLayout zip(file, "a");
    const uint64_t first = zip.AddData("data/0", size), second = zip.AddData("data/1", 5);
    zip.Finish();
    EXPECT_EQ(first % 64 + second % 64, 0u);
    const bool is_wide = size >= 0xFFFFFFFF;
    // The local header has the size, and zeros for what it takes when it is stored, which torch does not know yet.
    std::string field = "\x01\x00\x10\x00"s;
    AppendLittle<uint64_t>(field, size);
    EXPECT_EQ(file.literals[0].bytes.text().find(field + std::string(8, '\0')) != std::string::npos, is_wide);
    const std::string& between = file.literals[1].bytes;  // descriptor, second local header
    EXPECT_EQ(between.find("PK\3\4"), is_wide ? 24u : 16u);
    EXPECT_EQ(file.literals.back().bytes.text().find("PK\1\2", 1) != std::string::npos, true);
    EXPECT_EQ(between.find("\x01\x00\x08\x00"s, 24 + 30) != std::string::npos, true);  // the second's offset
  }
}

}  // namespace
}  // namespace reshard
