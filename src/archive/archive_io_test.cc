#include "archive/archive_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zlib.h>

#include <array>

#include "base/bytes.h"
#include "base/error.h"
#include "tests/fault/faulty_io.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Packed() {
  FileLayout file;
  TarLayout tar(file);
  tar.AddFolder("");
  tar.AddFile("model_config.yaml", std::string_view("a: 1\n"));
  tar.AddFolder("empty");
  tar.AddFile("w/x/0.0", std::string_view("zero"));
  tar.AddFile("w/x-y", std::string_view("one"));
  tar.AddFile("w/x/0.1", std::string_view(std::string(3000, '2')));
  tar.Finish();
  return file.literals[0].bytes;
}

std::string Gzip(const std::string& bytes) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

class Archive : public testing::Test {
 protected:
  std::unique_ptr<Io> Open(const std::string& name, Io& base = PosixIo()) {
    return OpenArchive(base, scratch / name, {{100, kMiB}, scratch.path(), "set TMPDIR"});
  }
  std::string Write(const std::string& name, const std::string& bytes) {
    WriteWholeFile(PosixIo(), scratch / name, bytes);
    return scratch / name;
  }
  std::string Problem(const std::string& name, const std::string& bytes, Io& base = PosixIo()) {
    const std::string path = Write(name, bytes);
    try {
      Open(name, base);
      return "";
    } catch (const Error& error) {
      EXPECT_EQ(error.path(), path);
      return std::string(CodeName(error.code())) + ": " + error.message();
    }
  }
  const ScratchFolder scratch;
};

TEST_F(Archive, IsAFolderOfItsMembersWhetherCompressedOrNot) {
  for (const bool compressed : {false, true}) {
    const std::string path = Write("m.nemo", compressed ? Gzip(Packed()) : Packed());
    const auto io = Open("m.nemo");
    ASSERT_TRUE(io);
    EXPECT_EQ(io->Stat(path)->type, FileInfo::Type::kDirectory);
    EXPECT_THAT(io->List(path), ElementsAre("empty", "model_config.yaml", "w"));
    EXPECT_THAT(io->List(path + "/w"), ElementsAre("x", "x-y"));
    EXPECT_THAT(io->List(path + "/w/x/"), ElementsAre("0.0", "0.1"));
    EXPECT_THAT(io->List(path + "/empty"), ElementsAre());
    EXPECT_EQ(ReadWholeFile(*io, path + "/model_config.yaml", 100), "a: 1\n");
    EXPECT_EQ(ReadWholeFile(*io, path + "/w/x/0.1", 4000), std::string(3000, '2'));
    EXPECT_FALSE(io->Stat(path + "/w/x/0.2"));
    EXPECT_FALSE(io->Stat(path + "/model_config.yaml/a"));
    EXPECT_EQ(io->Canonical(path + "/w"), PosixIo().Canonical(path) + "/w");
    EXPECT_THROW(io->OpenRead(path + "/w"), Error);
    EXPECT_THROW(io->OpenRead(path + "/none"), Error);
    EXPECT_THROW(io->List(path + "/model_config.yaml"), Error);
    EXPECT_THAT(PosixIo().List(scratch.path()), ElementsAre("m.nemo"));  // nothing of the spool
  }
}

TEST_F(Archive, LetsEverythingElseThrough) {
  const std::string path = Write("m.nemo", Packed()), other = Write("m.nemo2", "other");
  const auto io = Open("m.nemo");
  EXPECT_EQ(ReadWholeFile(*io, other, 10), "other");
  EXPECT_THAT(io->List(scratch.path()), ElementsAre("m.nemo", "m.nemo2"));
  WriteWholeFile(*io, scratch / "new", "new");
  EXPECT_EQ(io->Stat(scratch / "new")->size, 3u);
}

TEST_F(Archive, AMemberHasTheArchivesTimeAndPlaceAsTheyAreNow) {
  const std::string path = Write("m.nemo", Packed());
  const auto io = Open("m.nemo");
  const auto file = io->OpenRead(path + "/w/x-y");
  EXPECT_EQ(file->Info().size, 3u);
  EXPECT_EQ(file->Info().inode, PosixIo().Stat(path)->inode);
  const timespec times[2] = {{12345, 0}, {12345, 6}};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  EXPECT_EQ(file->Info().mtime_ns, 12345'000'000'006);
  EXPECT_EQ(io->Stat(path + "/w/x-y")->mtime_ns, 12345'000'000'006);
  PosixIo().RemoveAll(path);
  EXPECT_FALSE(io->Stat(path + "/w/x-y"));
  EXPECT_THROW(file->Info(), Error);
}

TEST_F(Archive, ReadsNothingBehindAMember) {
  const std::string path = Write("m.nemo", Packed());
  const auto io = Open("m.nemo");
  const auto file = io->OpenRead(path + "/w/x-y");
  char buffer[4] = {};
  file->ReadAt(buffer, 2, 1);
  EXPECT_STREQ(buffer, "ne");
  EXPECT_THROW(file->ReadAt(buffer, 2, 2), Error);
  EXPECT_THROW(file->ReadAt(buffer, 1, UINT64_MAX), Error);
}

TEST_F(Archive, IsNoneWhereTheFileIsNeitherTarNorNamedAsOne) {
  Write("plain", "text");
  EXPECT_FALSE(Open("plain"));
  EXPECT_FALSE(Open("missing"));
  PosixIo().MakeDirectories(scratch / "folder.nemo");
  EXPECT_FALSE(Open("folder.nemo"));
  Write("x.tar", Packed());
  EXPECT_TRUE(Open("x.tar"));
  EXPECT_TRUE(Open("x.tar/"));
  EXPECT_THAT(Problem("m.nemo", std::string(600, 'x')), HasSubstr("corrupt: member 'xxx"));
  EXPECT_THAT(Problem("m.nemo", ""), HasSubstr("corrupt: it ends at byte 0"));
  EXPECT_THAT(Problem("m.nemo", "version https://git-lfs.github.com/spec/v1\n"), HasSubstr("git lfs pull"));
}

TEST_F(Archive, TakesGzipsOfSeveralMembers) {
  const std::string tar = Packed(), path = Write("m.nemo", Gzip(tar.substr(0, 700)) + Gzip("") + Gzip(tar.substr(700)));
  const auto io = Open("m.nemo");
  EXPECT_EQ(ReadWholeFile(*io, path + "/w/x/0.0", 100), "zero");
}

TEST_F(Archive, RefusesDamagedGzips) {
  const std::string gzip = Gzip(Packed());
  EXPECT_EQ(Problem("m.nemo", gzip), "");
  EXPECT_THAT(Problem("m.nemo", gzip + "x"), HasSubstr("corrupt: the gzip file: other bytes follow its end"));
  EXPECT_THAT(Problem("m.nemo", gzip + std::string(512, '\0')), HasSubstr("other bytes follow its end"));
  EXPECT_THAT(Problem("m.nemo", gzip.substr(0, gzip.size() - 1)), HasSubstr("it ends in the middle"));
  EXPECT_THAT(Problem("m.nemo", gzip.substr(0, 5)), HasSubstr("it ends in the middle"));
  std::string damaged = gzip;
  damaged[damaged.size() - 6] ^= 1;  // of the CRC
  EXPECT_THAT(Problem("m.nemo", damaged), HasSubstr("corrupt: the gzip file: it is damaged near byte"));
  EXPECT_THAT(Problem("m.nemo", Gzip("no tar")), HasSubstr("corrupt: the gzip file holds no tar"));
  EXPECT_THAT(Problem("m.nemo", Gzip("")), HasSubstr("corrupt: the gzip file holds no tar"));
  EXPECT_THAT(Problem("m.nemo", Gzip(std::string(1000, 'x'))), HasSubstr("corrupt: the gzip file holds no tar"));
}

TEST_F(Archive, RefusesAGzipThatGrowsAThousandfold) {
  EXPECT_THAT(Problem("m.nemo", Gzip(Packed() + std::string(100 << 20, '\0'))), HasSubstr("unpack to"));
}

// An Io that says how much is free, or that a write does not fit.
class FullIo : public FaultyIo {
 public:
  explicit FullIo(uint64_t free) : FaultyIo(PosixIo()), free_(free) {}
  FreeSpace Free(const std::string&) override { return {free_, 1000}; }

 private:
  uint64_t free_;
};

TEST_F(Archive, SaysWhereThereIsNoRoomToUnpackAndWhatToDo) {
  const std::string gzip = Gzip(Packed());
  FullIo full(kMiB);
  EXPECT_EQ(Problem("m.nemo", gzip, full),
            fmt::format("no_space: 1.05 MB are free in {} with 0 B of it unpacked there, expected room for all of "
                        "it; set TMPDIR",
                        scratch.path()));
  FullIo failing(kGiB);
  Open("m.nemo", failing);
  const uint64_t calls = failing.calls();
  int refused = 0;
  for (uint64_t call = 1; call <= calls; ++call) {
    failing.FailAt(call, ENOSPC);
    try {
      Open("m.nemo", failing);
      ADD_FAILURE() << call;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kNoSpace);
      refused += error.message().find("set TMPDIR") != std::string::npos;
    }
  }
  EXPECT_EQ(refused, 2);  // the two halves of the one write
  EXPECT_THAT(PosixIo().List(scratch.path()), ElementsAre("m.nemo"));
}

TEST_F(Archive, TellsItsProgressAndStops) {
  Write("m.nemo", Gzip(Packed()));
  ArchiveOptions options{{100, kMiB}, scratch.path(), "", [](uint64_t done, uint64_t total, uint64_t unpacked) {
                           EXPECT_LE(done, total);
                           EXPECT_EQ(unpacked, Packed().size());
                           throw Error(Code::kCancelled, "stop");
                         }};
  EXPECT_THROW(OpenArchive(PosixIo(), scratch / "m.nemo", options), Error);
  EXPECT_THAT(PosixIo().List(scratch.path()), ElementsAre("m.nemo"));
}

}  // namespace
}  // namespace reshard
