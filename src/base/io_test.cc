#include "base/io.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Pattern(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 2654435761u >> 13);
  return bytes;
}

std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void Spit(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

template <typename Call>
Error ErrorOf(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(Code::kInternal, "nothing was thrown");
}

TEST(PosixIo, ATemporaryFileIsReadAndWrittenAndHasNoName) {
  const ScratchFolder scratch;
  const auto file = PosixIo().OpenTemporary(scratch.path());
  file->WriteAt("abc", 3, 2);
  char bytes[6] = {};
  file->ReadAt(bytes, 5, 0);
  EXPECT_EQ(std::string(bytes, 5), std::string("\0\0abc", 5));
  EXPECT_EQ(file->Info().size, 5u);
  EXPECT_THAT(PosixIo().List(scratch.path()), ElementsAre());
  const Error error = ErrorOf([&] { PosixIo().OpenTemporary(scratch / "missing"); });
  EXPECT_EQ(error.code(), Code::kNotFound);
  EXPECT_EQ(error.path(), scratch / "missing");
}

TEST(PosixFile, WritesAndReadsAtAnyOffsetWhateverTheSize) {
  const ScratchFolder scratch;
  const std::string bytes = Pattern(3 * kMiB + 17);  // four system calls
  PosixIo().OpenWrite(scratch / "a")->WriteAt(bytes.data(), bytes.size(), 5);
  EXPECT_EQ(Slurp(scratch / "a"), std::string(5, '\0') + bytes);

  const auto file = PosixIo().OpenRead(scratch / "a");
  std::string read(bytes.size() - 1000, '\0');
  file->ReadAt(read.data(), read.size(), 5 + 1000);
  EXPECT_EQ(read, bytes.substr(1000));
  EXPECT_EQ(file->Info().size, bytes.size() + 5);
  EXPECT_EQ(file->Info().type, FileInfo::Type::kFile);
}

TEST(PosixFile, SaysThatAFileMayBeCutOff) {
  const ScratchFolder scratch;
  Spit(scratch / "short", "0123456789");
  const auto file = PosixIo().OpenRead(scratch / "short");
  char buffer[8];
  file->ReadAt(buffer, 8, 2);
  const Error error = ErrorOf([&] { file->ReadAt(buffer, 8, 3); });
  EXPECT_EQ(error.code(), Code::kCorrupt);
  EXPECT_EQ(std::string(error.what()),
            "reading " + (scratch / "short") + ": the file has 10 bytes, expected at least 11; it may be cut off");
}

TEST(PosixFile, OpensForWritingWithoutCuttingAndTruncates) {
  const ScratchFolder scratch;
  Spit(scratch / "a", "0123456789");
  const auto file = PosixIo().OpenWrite(scratch / "a");
  file->WriteAt("xy", 2, 4);
  EXPECT_EQ(Slurp(scratch / "a"), "0123xy6789");
  file->Truncate(5);
  EXPECT_EQ(Slurp(scratch / "a"), "0123x");
  file->Truncate(7);
  EXPECT_EQ(Slurp(scratch / "a"), std::string("0123x\0\0", 7));
}

TEST(PosixFile, KeepsItsBytesThroughWriteBackForgettingAndSyncing) {
  const ScratchFolder scratch;
  const std::string bytes = Pattern(2 * kMiB);
  const auto file = PosixIo().OpenWrite(scratch / "a");
  file->WriteAt(bytes.data(), bytes.size(), 0);
  file->StartWriteBack(0, kMiB);
  file->StartWriteBack(kMiB, 0);
  file->Forget(0, kMiB);
  file->Sync();
  EXPECT_EQ(Slurp(scratch / "a"), bytes);
}

TEST(PosixFile, GetsTheModeThatTheUmaskLeaves) {
  const ScratchFolder scratch;
  const mode_t before = umask(027);
  PosixIo().OpenWrite(scratch / "a");
  umask(before);
  struct stat status;
  ASSERT_EQ(stat((scratch / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0640u);
}

TEST(PosixFile, ReportsAFullDevice) {
  const auto file = PosixIo().OpenWrite("/dev/full");
  const Error error = ErrorOf([&] { file->WriteAt("x", 1, 0); });
  EXPECT_EQ(error.code(), Code::kNoSpace);
  EXPECT_STREQ(error.what(), "writing /dev/full: No space left on device");
}

// The limit cuts the first transfer short; the rest of it must then fail, not be lost.
TEST(PosixFile, ReportsAShortWriteThatCannotGoOn) {
  const ScratchFolder scratch;
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const struct rlimit limit = {kMiB / 2, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &limit);
  const std::string bytes = Pattern(kMiB);
  const auto file = PosixIo().OpenWrite(scratch / "a");
  const Error error = ErrorOf([&] { file->WriteAt(bytes.data(), bytes.size(), 0); });
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_EQ(error.code(), Code::kIo);
  EXPECT_EQ(error.path(), scratch / "a");
  EXPECT_EQ(file->Info().size, kMiB / 2);
}

TEST(PosixIo, OpensOnlyRegularFilesAndNeverWaits) {
  const ScratchFolder scratch;
  ASSERT_EQ(mkfifo((scratch / "fifo").c_str(), 0600), 0);
  const int server = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  (scratch / "socket").copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(bind(server, reinterpret_cast<struct sockaddr*>(&address), sizeof address), 0);
  close(server);

  const struct {
    std::string path;
    std::string found;
  } kRows[] = {{scratch.path(), "a directory"},
               {scratch / "fifo", "a FIFO"},
               {scratch / "socket", "a socket"},
               {"/dev/null", "a device"}};
  for (const auto& row : kRows) {
    const Error error = ErrorOf([&] { PosixIo().OpenRead(row.path); });
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_EQ(error.what(), "reading " + row.path + ": found " + row.found + ", expected a regular file");
  }
}

TEST(PosixIo, FollowsLinksAndNamesALoop) {
  const ScratchFolder scratch;
  Spit(scratch / "blob", "bytes");
  ASSERT_EQ(symlink("blob", (scratch / "link").c_str()), 0);
  ASSERT_EQ(symlink("loop", (scratch / "loop").c_str()), 0);
  ASSERT_EQ(symlink("nowhere", (scratch / "dangling").c_str()), 0);
  EXPECT_EQ(ReadWholeFile(PosixIo(), scratch / "link", 100), "bytes");
  EXPECT_EQ(PosixIo().Canonical(scratch / "link"), PosixIo().Canonical(scratch.path()) + "/blob");
  EXPECT_FALSE(PosixIo().Stat(scratch / "dangling"));
  for (const Error& error :
       {ErrorOf([&] { PosixIo().OpenRead(scratch / "loop"); }), ErrorOf([&] { PosixIo().Stat(scratch / "loop"); }),
        ErrorOf([&] { PosixIo().Canonical(scratch / "loop"); })}) {
    EXPECT_EQ(error.path(), scratch / "loop");
    EXPECT_THAT(error.what(), HasSubstr("symbolic links"));
  }
}

TEST(PosixIo, StatsWhatIsThere) {
  const ScratchFolder scratch;
  Spit(scratch / "a", "12345");
  struct stat status;
  ASSERT_EQ(stat((scratch / "a").c_str(), &status), 0);
  const std::optional<FileInfo> info = PosixIo().Stat(scratch / "a");
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->type, FileInfo::Type::kFile);
  EXPECT_EQ(info->size, 5u);
  EXPECT_EQ(info->inode, status.st_ino);
  EXPECT_EQ(info->device, status.st_dev);
  EXPECT_EQ(info->mtime_ns, status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec);
  EXPECT_EQ(PosixIo().Stat(scratch.path())->type, FileInfo::Type::kDirectory);
  EXPECT_EQ(PosixIo().Stat("/dev/null")->type, FileInfo::Type::kOther);
  EXPECT_FALSE(PosixIo().Stat(scratch / "b"));
  EXPECT_FALSE(PosixIo().Stat(scratch / "a/below"));
  const Error error = ErrorOf([&] { PosixIo().Stat(scratch / std::string(300, 'n')); });
  EXPECT_THAT(error.what(), HasSubstr("File name too long"));
}

TEST(PosixIo, ListsBytewise) {
  const ScratchFolder scratch;
  for (const char* name : {"b", "B", ".hidden", "a", "\xc3\xa4", "a.b"}) Spit(scratch / name, "");
  EXPECT_THAT(PosixIo().List(scratch.path()), ElementsAre(".hidden", "B", "a", "a.b", "b", "\xc3\xa4"));
  EXPECT_EQ(ErrorOf([&] { PosixIo().List(scratch / "none"); }).code(), Code::kNotFound);
}

TEST(PosixIo, MakesDirectoriesOnce) {
  const ScratchFolder scratch;
  PosixIo().MakeDirectories(scratch / "a/b/c");
  PosixIo().MakeDirectories(scratch / "a/b/c");
  EXPECT_EQ(PosixIo().Stat(scratch / "a/b/c")->type, FileInfo::Type::kDirectory);
  Spit(scratch / "file", "");
  const Error error = ErrorOf([&] { PosixIo().MakeDirectories(scratch / "file/below"); });
  EXPECT_EQ(error.path(), scratch / "file/below");
}

TEST(PosixIo, RenamesOverAFile) {
  const ScratchFolder scratch;
  Spit(scratch / "new", "new");
  Spit(scratch / "old", "old");
  PosixIo().Rename(scratch / "new", scratch / "old");
  EXPECT_EQ(Slurp(scratch / "old"), "new");
  const Error error = ErrorOf([&] { PosixIo().Rename(scratch / "new", scratch / "old"); });
  EXPECT_EQ(error.code(), Code::kNotFound);
  EXPECT_EQ(error.path(), scratch / "new");
}

TEST(PosixIo, LinksOnlyToANameThatIsFree) {
  const ScratchFolder scratch;
  Spit(scratch / "mine", "mine");
  Spit(scratch / "theirs", "theirs");
  EXPECT_TRUE(PosixIo().Link(scratch / "mine", scratch / "owner"));
  EXPECT_FALSE(PosixIo().Link(scratch / "theirs", scratch / "owner"));
  EXPECT_EQ(Slurp(scratch / "owner"), "mine");
  EXPECT_EQ(ErrorOf([&] { PosixIo().Link(scratch / "none", scratch / "other"); }).code(), Code::kNotFound);
}

TEST(PosixIo, RemovesLinksAndNotWhatTheyPointTo) {
  const ScratchFolder scratch;
  PosixIo().MakeDirectories(scratch / "kept");
  Spit(scratch / "kept/file", "kept");
  PosixIo().MakeDirectories(scratch / "gone/deep");
  Spit(scratch / "gone/deep/file", "gone");
  std::filesystem::create_directory_symlink(scratch / "kept", scratch / "gone/link");
  std::filesystem::create_directory_symlink(scratch / "kept", scratch / "top");
  PosixIo().RemoveAll(scratch / "gone");
  PosixIo().RemoveAll(scratch / "gone");
  PosixIo().RemoveAll(scratch / "top");
  EXPECT_THAT(PosixIo().List(scratch.path()), ElementsAre("kept"));
  EXPECT_EQ(Slurp(scratch / "kept/file"), "kept");
}

TEST(PosixIo, RemovesADirectoryOnlyIfItIsEmpty) {
  const ScratchFolder scratch;
  PosixIo().MakeDirectories(scratch / "a/b");
  EXPECT_FALSE(PosixIo().RemoveEmptyDirectory(scratch / "a"));
  EXPECT_TRUE(PosixIo().RemoveEmptyDirectory(scratch / "a/b"));
  EXPECT_TRUE(PosixIo().RemoveEmptyDirectory(scratch / "a"));
  EXPECT_FALSE(PosixIo().RemoveEmptyDirectory(scratch / "a"));
}

TEST(PosixIo, SyncsDirectoriesAndFileSystems) {
  const ScratchFolder scratch;
  PosixIo().SyncDirectory(scratch.path());
  PosixIo().SyncFileSystem(scratch.path());
  EXPECT_EQ(ErrorOf([&] { PosixIo().SyncDirectory(scratch / "none"); }).code(), Code::kNotFound);
  EXPECT_EQ(ErrorOf([&] { PosixIo().SyncFileSystem(scratch / "none"); }).code(), Code::kNotFound);
}

TEST(PosixIo, KnowsWhatIsFree) {
  // No free inode is counted where the file system has no table of them; /proc has neither blocks nor inodes.
  const FreeSpace none = PosixIo().Free("/proc");
  EXPECT_EQ(none.bytes, 0u);
  EXPECT_EQ(none.inodes, UINT64_MAX);

  const ScratchFolder scratch;
  const auto space = std::filesystem::space(scratch.path());
  EXPECT_NEAR(static_cast<double>(PosixIo().Free(scratch.path()).bytes), static_cast<double>(space.available),
              static_cast<double>(kGiB));
  EXPECT_EQ(ErrorOf([&] { PosixIo().Free(scratch / "none"); }).code(), Code::kNotFound);
}

TEST(DiscardingIo, KeepsSizesAndDropsData) {
  const ScratchFolder scratch;
  const std::unique_ptr<Io> io = DiscardingIo(PosixIo());
  const auto file = io->OpenWrite(scratch / "a");
  file->Truncate(uint64_t{1} << 40);
  file->WriteAt("data", 4, 123456789);
  file->Sync();
  struct stat status;
  ASSERT_EQ(stat((scratch / "a").c_str(), &status), 0);
  EXPECT_EQ(status.st_size, off_t{1} << 40);
  EXPECT_EQ(status.st_blocks, 0);
  WriteWholeFile(*io, scratch / "b", "1234");
  EXPECT_EQ(Slurp(scratch / "b"), std::string(4, '\0'));
}

TEST(WholeFile, IsReplacedAndReadUpToALimit) {
  const ScratchFolder scratch;
  WriteWholeFile(PosixIo(), scratch / "a", "a longer text");
  WriteWholeFile(PosixIo(), scratch / "a", "short");
  EXPECT_EQ(ReadWholeFile(PosixIo(), scratch / "a", 5), "short");
  const Error error = ErrorOf([&] { ReadWholeFile(PosixIo(), scratch / "a", 4); });
  EXPECT_EQ(error.code(), Code::kCorrupt);
  EXPECT_EQ(error.what(), "reading " + (scratch / "a") + ": the file has 5 bytes, expected at most 4");
  WriteWholeFile(PosixIo(), scratch / "empty", "");
  EXPECT_EQ(ReadWholeFile(PosixIo(), scratch / "empty", 0), "");
}

TEST(JoinPath, PutsOneSlashBetween) {
  EXPECT_EQ(JoinPath("a", "b/c"), "a/b/c");
  EXPECT_EQ(JoinPath("a/", "b"), "a/b");
  EXPECT_EQ(JoinPath("/", "b"), "/b");
  EXPECT_EQ(JoinPath("", "b"), "b");
}

}  // namespace
}  // namespace reshard
