#include "archive/tar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard {
namespace {

using testing::HasSubstr;

// A tar of Python's tarfile (testdata/generate_tar.py).
std::string Golden(const std::string& name) {
  std::ifstream file(RESHARD_SOURCE_DIR "/src/archive/testdata/" + name, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  EXPECT_FALSE(bytes.empty()) << name;
  return bytes;
}

// Bytes in memory, and zeros behind them up to a size.
class MemoryFile : public File {
 public:
  MemoryFile(std::string bytes, uint64_t size) : bytes_(std::move(bytes)), size_(size) {}
  void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
    ASSERT_LE(offset + size, size_);
    std::memset(buffer, 0, size);
    if (offset < bytes_.size()) bytes_.copy(static_cast<char*>(buffer), size, offset);
    read += size;
  }
  void WriteAt(const void*, uint64_t, uint64_t) override {}
  void Truncate(uint64_t) override {}
  void Sync() override {}
  void StartWriteBack(uint64_t, uint64_t) override {}
  void Forget(uint64_t, uint64_t) override {}
  FileInfo Info() override { return {FileInfo::Type::kFile, size_}; }

  uint64_t read = 0;

 private:
  std::string bytes_;
  uint64_t size_;
};

constexpr TarLimits kLimits{1000, 1 << 20};

std::vector<TarMember> Read(const std::string& tar, const TarLimits& limits = kLimits) {
  MemoryFile file(tar, tar.size());
  return ReadTar(file, "m.nemo", tar.size(), limits);
}

// The error of reading, "corrupt: message", or "" where there is none.
std::string Problem(const std::string& tar, const TarLimits& limits = kLimits) {
  try {
    Read(tar, limits);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.path(), "m.nemo");
    return std::string(CodeName(error.code())) + ": " + error.message();
  }
}

std::string WithSum(std::string header) {
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (char byte : header) sum += static_cast<uint8_t>(byte);
  char text[9];
  std::snprintf(text, sizeof text, "%06o", sum);
  return header.replace(148, 7, text, 7);
}

// A member by the POSIX page of pax(1), its data padded.
std::string Member(const std::string& name, const std::string& data, char type = '0') {
  std::string header(512, '\0');
  char size[13];
  std::snprintf(size, sizeof size, "%011zo", data.size());
  header.replace(0, name.size(), name).replace(100, 7, "0000644").replace(124, 11, size);
  header.replace(257, 8, "ustar\00000", 8);
  header[156] = type;
  return WithSum(header) + data + std::string((512 - data.size() % 512) % 512, '\0');
}

// Every header with one field set anew.
std::string With(std::string member, size_t at, const std::string& bytes) {
  member.replace(at, bytes.size(), bytes);
  return member.replace(0, 512, WithSum(member.substr(0, 512)));
}

std::string Record(const std::string& text) { return std::to_string(text.size() + 4) + " " + text + "\n"; }

const std::string kEnd(1024, '\0');
const std::string kA = Member("a", "one");

std::string Long(const std::string& name) { return Member("././@LongLink", name + '\0', 'L'); }
std::string Pax(const std::string& records, char type = 'x') { return Member("././@PaxHeader", records, type); }

// -- reading ----------------------------------------------------------------------------------------------------------

TEST(ReadTar, GivesTheMembersOfPythonInEachOfItsFormats) {
  for (const char* name : {"pax.tar", "gnu.tar", "ustar.tar"}) {
    const std::string tar = Golden(name);
    const std::vector<TarMember> members = Read(tar);
    const bool ustar = std::string(name) == "ustar.tar";
    ASSERT_EQ(members.size(), ustar ? 4u : 6u) << name;
    auto data = [&](size_t i) { return tar.substr(members[i].data.offset, members[i].data.size); };
    EXPECT_EQ(members[0].name, "model_config.yaml");
    EXPECT_EQ(data(0), "a: 1\n");
    EXPECT_EQ(members[1].name, "model_weights");
    EXPECT_TRUE(members[1].folder);
    std::string folder;
    for (int i = 0; i < 12; ++i) folder += "folder_";
    EXPECT_EQ(members[2].name, "model_weights/" + folder + "/" + std::string(40, 'x'));
    EXPECT_EQ(data(2), std::string(600, 'y'));
    EXPECT_EQ(members[3].name, "empty");
    EXPECT_EQ(members[3].data.size, 0u);
    if (ustar) continue;
    EXPECT_EQ(members[4].name.size(), 124u);
    EXPECT_EQ(members[5].name, "tokenizer_\u00e9.model");
    EXPECT_EQ(data(5), std::string(512, 't'));
  }
}

TEST(ReadTar, ReadsHeadersOnlyOfFilesOf8GiBAndMore) {
  for (const char* name : {"big_header.tar", "big_header_gnu.tar"}) {
    const std::string header = Golden(name);
    const uint64_t size = header.size() + 9 * kGiB + kEnd.size();
    MemoryFile file(header, size);
    const std::vector<TarMember> members = ReadTar(file, "m.nemo", size, kLimits);
    ASSERT_EQ(members.size(), 1u) << name;
    EXPECT_EQ(members[0].name, "big");
    EXPECT_EQ(members[0].data.offset, header.size());
    EXPECT_EQ(members[0].data.size, 9 * kGiB);
    EXPECT_LT(file.read, 16 * kKiB);
  }
}

TEST(ReadTar, TakesNamesWithAndWithoutADotAndHeadersOfOldTars) {
  const std::vector<TarMember> members =
      Read(Member("./", "", '5') + Member("./a", "1") + With(Member("b", "2", '\0'), 257, std::string(8, '\0')) +
           Member("c/", "", '\0') + With(Member("d", "4"), 124, "         4 \0\0") + kEnd);
  ASSERT_EQ(members.size(), 4u);
  EXPECT_EQ(members[0].name, "a");
  EXPECT_EQ(members[1].name, "b");
  EXPECT_TRUE(members[2].folder);
  EXPECT_EQ(members[2].name, "c");
}

TEST(ReadTar, APaxHeaderSpeaksOfItsMemberAndAGlobalOneOfAllThatFollow) {
  const std::vector<TarMember> members =
      Read(Pax(Record("size=512"), 'g') + Pax(Record("path=new") + Record("mtime=1.5")) +
           Member("a", std::string(512, 'a')).replace(124, 11, "00000001000") + Pax(Record("size=3")) + kA + kEnd);
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].name, "new");
  EXPECT_EQ(members[0].data.size, 512u);
  EXPECT_EQ(members[1].name, "a");
  EXPECT_EQ(members[1].data.size, 3u);
}

TEST(ReadTar, RefusesDamagedHeadersAndEnds) {
  EXPECT_EQ(Problem(kA + kEnd), "");
  EXPECT_THAT(Problem(std::string(kA).replace(0, 1, "b") + kEnd),
              HasSubstr("corrupt: member 'b': the header at byte 0"));
  EXPECT_THAT(Problem(kA), HasSubstr("corrupt: it ends at byte 1024"));
  EXPECT_THAT(Problem(kA + std::string(512, '\0')), HasSubstr("corrupt: it ends with one block of zeros"));
  EXPECT_THAT(Problem(kA + kEnd + std::string(511, '\0')), HasSubstr("corrupt: its 2559 bytes are no whole number"));
  EXPECT_THAT(Problem(kA.substr(0, 600)), HasSubstr("corrupt: member 'a': 3 bytes from byte 512 on in a file of 600"));
  EXPECT_THAT(Problem(kA + kEnd + std::string(512, 'x')), HasSubstr("corrupt: other bytes than zeros"));
  EXPECT_THAT(Problem(kA + kEnd + std::string(2 << 20, '\0')), HasSubstr("corrupt: 2097664 bytes lie behind the end"));
  EXPECT_THAT(Problem(Pax(Record("path=b")) + kEnd), HasSubstr("corrupt: an extended header stands before no member"));
}

TEST(ReadTar, RefusesSizesThatAreNone) {
  EXPECT_THAT(Problem(With(kA, 124, "-0000000001") + kEnd),
              HasSubstr("corrupt: member 'a': the size in the header at byte 0 is negative"));
  EXPECT_THAT(Problem(With(kA, 124, std::string(12, '\xff')) + kEnd), HasSubstr("is negative"));
  EXPECT_THAT(Problem(With(kA, 124, "\x80" + std::string(11, '\xff')) + kEnd), HasSubstr("is no such number"));
  EXPECT_THAT(Problem(With(kA, 124, "9") + kEnd), HasSubstr("is no such number"));
  EXPECT_THAT(Problem(With(kA, 124, "77777777777") + kEnd), HasSubstr("corrupt: member 'a': 8589934591 bytes"));
  EXPECT_THAT(Problem(With(kA, 124, std::string("\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 12)) + kEnd),
              HasSubstr("corrupt: member 'a': 9223372036854775807 bytes"));
  EXPECT_THAT(Problem(Pax(Record("size=-1")) + kA + kEnd),
              HasSubstr("corrupt: member '././@PaxHeader': the size '-1'"));
}

TEST(ReadTar, RefusesNamesThatLeadOutAndNamesThatAreNone) {
  for (const char* name : {"/a", "../a", "b/../a", "./..", "b//a", "b/./a", ".//a", "a/", "", ".", "./"})
    EXPECT_THAT(Problem(Member(name, "one") + kEnd), HasSubstr("corrupt: ")) << name;
  EXPECT_THAT(Problem(Pax(Record("path=../../b")) + kA + kEnd),
              HasSubstr("corrupt: member '../../b': its name has '..'"));
  EXPECT_THAT(Problem(Long("/etc/b") + kA + kEnd), HasSubstr("corrupt: member '/etc/b': its name is absolute"));
  EXPECT_THAT(Problem(Member("b\xff", "one") + kEnd), HasSubstr("not UTF-8"));
  EXPECT_THAT(Problem(Pax(Record(std::string("path=b\0c", 8))) + kA + kEnd), HasSubstr("NUL"));
  EXPECT_THAT(Problem(Member("e\u0301", "one") + kEnd),
              HasSubstr("unsupported: member 'e\u0301': its name holds a combining mark"));
}

TEST(ReadTar, RefusesNamesThatAreThereTwice) {
  EXPECT_THAT(Problem(kA + kA + kEnd), HasSubstr("corrupt: member 'a': it is a duplicate"));
  EXPECT_THAT(Problem(kA + Member("./a", "two") + kEnd), HasSubstr("corrupt: member './a': it is a duplicate"));
  EXPECT_THAT(Problem(kA + Member("A", "two") + kEnd), HasSubstr("corrupt: member 'A': it is also there as 'a'"));
  EXPECT_THAT(Problem(Member("b/x", "") + Member("B/y", "") + kEnd), HasSubstr("it is also there as 'b'"));
  EXPECT_THAT(Problem(kA + Member("a/b", "two") + kEnd), HasSubstr("it lies in 'a', which is a file"));
  EXPECT_THAT(Problem(Member("a/b", "two") + kA + kEnd), HasSubstr("it is a duplicate"));
  EXPECT_THAT(Problem(Member("d/", "", '5') + Member("d", "", '5') + kEnd), HasSubstr("it is a duplicate"));
  EXPECT_THAT(Problem(Member("./", "", '5') + Member(".", "", '5') + kEnd), HasSubstr("root is there twice"));
  EXPECT_EQ(Problem(Member("d/b", "") + Member("d", "", '5') + kEnd), "");
}

TEST(ReadTar, RefusesMembersThatAreNoFiles) {
  EXPECT_THAT(Problem(Member("a", "", '1') + kEnd), HasSubstr("unsupported: member 'a': it is a hard link"));
  EXPECT_THAT(Problem(Member("a", "", '2') + kEnd), HasSubstr("unsupported: member 'a': it is a symbolic link"));
  for (char device : {'3', '4'})
    EXPECT_THAT(Problem(Member("a", "", device) + kEnd), HasSubstr("corrupt: member 'a': it is a device"));
  EXPECT_THAT(Problem(Member("a", "", '6') + kEnd), HasSubstr("corrupt: member 'a': it is a FIFO"));
  EXPECT_THAT(Problem(Member("a", "", 'S') + kEnd), HasSubstr("unsupported: member 'a': it is a sparse file"));
  EXPECT_THAT(Problem(Pax(Record("GNU.sparse.map=0,1")) + kA + kEnd), HasSubstr("sparse file"));
  EXPECT_THAT(Problem(Member("a", "", 'V') + kEnd), HasSubstr("unsupported: member 'a': it is of the type 'V'"));
  EXPECT_THAT(Problem(Member("a", "one", '5') + kEnd), HasSubstr("corrupt: member 'a': a folder of 3 bytes"));
  EXPECT_THAT(Problem(With(With(kA, 257, "ustar  "), 345, "12345670123") + kEnd),
              HasSubstr("unsupported: member 'a': a header with fields of an incremental backup"));
}

TEST(ReadTar, RefusesExtendedHeadersThatContradictOneAnother) {
  EXPECT_THAT(Problem(Long("b") + Long("c") + kA + kEnd), HasSubstr("give its name twice"));
  EXPECT_THAT(Problem(Pax(Record("path=b")) + Long("c") + kA + kEnd), HasSubstr("give its name twice"));
  EXPECT_THAT(Problem(Pax(Record("size=3")) + Pax(Record("size=3")) + kA + kEnd), HasSubstr("two extended headers"));
  EXPECT_THAT(Problem(Pax(Record("size=3") + Record("size=2")) + kA + kEnd), HasSubstr("give its size twice"));
  for (const char* records : {"8 path=b\n", "path=b\n", "11 path=b\n", "6 path\n", "5 =b\n", "-9 path=b\n", "1 \n",
                              "99999999999999999999 path=b\n"})
    EXPECT_THAT(Problem(Pax(records) + kA + kEnd), HasSubstr("corrupt: member '././@PaxHeader': a PAX ")) << records;
  EXPECT_THAT(Problem(Pax(std::string(2 << 20, 'x')) + kA + kEnd), HasSubstr("an extended header of 2097152 bytes"));
}

TEST(ReadTar, HoldsNoMoreThanItMay) {
  std::string tar;
  for (int i = 0; i < 100; ++i) tar += Member("member_" + std::to_string(i), "");
  EXPECT_EQ(Problem(tar + kEnd, {100, 1 << 20}), "");
  EXPECT_THAT(Problem(tar + kEnd, {99, 1 << 20}), HasSubstr("unsupported: member 'member_99': more than 99 members"));
  EXPECT_THAT(Problem(tar + kEnd, {100, 4000}), HasSubstr("--max_memory"));
  std::string deep = "d";
  for (int i = 0; i < 40; ++i) deep += "/d";
  EXPECT_THAT(Problem(Member(deep, "") + kEnd), HasSubstr("unsupported: member 'd/d"));
}

TEST(IsTar, KnowsAHeaderByItsSum) {
  EXPECT_TRUE(IsTar(kA));
  EXPECT_TRUE(IsTar(Golden("pax.tar")));
  EXPECT_FALSE(IsTar(kEnd));
  EXPECT_FALSE(IsTar(std::string(kA).replace(0, 1, "b")));
  EXPECT_FALSE(IsTar(kA.substr(0, 511)));
}

// -- writing ----------------------------------------------------------------------------------------------------------

std::string Bytes(const FileLayout& file, char data) {
  std::string bytes(file.size, data);
  for (const Literal& literal : file.literals) bytes.replace(literal.offset, literal.bytes.size(), literal.bytes);
  return bytes;
}

TEST(TarLayout, IsTheFileOfPython) {
  FileLayout file;
  TarLayout tar(file);
  std::string folder, long_name;
  for (int i = 0; i < 12; ++i) folder += "folder_";
  for (int i = 0; i < 24; ++i) long_name += "long_";
  tar.AddFolder("");
  tar.AddFile("model_config.yaml", std::string_view("a: 1\n"));
  tar.AddFolder("model_weights");
  const uint64_t data = tar.AddFile("model_weights/" + folder + "/" + std::string(40, 'x'), 600);
  tar.AddFile("empty", std::string_view());
  tar.AddFile(long_name + "name", std::string_view("z"));
  tar.AddFile("tokenizer_\u00e9.model", std::string_view(std::string(512, 't')));
  tar.Finish();
  const std::string golden = Golden("pax.tar");
  EXPECT_TRUE(Bytes(file, 'y') == golden);
  EXPECT_EQ(data, golden.find('y', golden.find("xxx")));
}

TEST(TarLayout, OfABigFileBeginsAsThatOfPython) {
  FileLayout file;
  TarLayout tar(file);
  EXPECT_EQ(tar.AddFile("big", 9 * kGiB), Golden("big_header.tar").size());
  ASSERT_EQ(file.literals.size(), 1u);
  EXPECT_TRUE(file.literals[0].bytes == Golden("big_header.tar"));
  tar.Finish();
  EXPECT_EQ(file.size, RoundUp(Golden("big_header.tar").size() + 9 * kGiB + kEnd.size(), 10240));
}

}  // namespace
}  // namespace reshard
