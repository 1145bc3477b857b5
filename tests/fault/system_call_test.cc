// Conversions of real files whose system calls are interrupted by signals or move less than asked, at the n-th call for
// every n, and one on a real disk that fills up.
//
// This program's own definitions of the calls come before the C library's.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <iostream>
#include <string>

#include "base/error.h"
#include "base/io.h"
#include "gtest/gtest.h"
#include "reshard/reshard.h"
#include "tests/fault/file_tree.h"
#include "tests/fault/scratch_folder.h"

namespace {

enum class Fault { kNone, kInterrupted, kShort };
struct {
  std::atomic<Fault> fault{Fault::kNone};
  std::atomic<uint64_t> first{1}, every{1};  // the first call that is hit, and how many later the next one is
  std::atomic<uint64_t> calls{0};
} plan;

bool IsHit() {
  const uint64_t call = ++plan.calls;
  return call >= plan.first && (call - plan.first) % plan.every == 0;
}

// Counts a call that moves no data; true if it is to fail with EINTR.
bool Interrupts() {
  if (plan.fault != Fault::kInterrupted || !IsHit()) return false;
  errno = EINTR;
  return true;
}

// How much of `size` a call may move, or -1 with EINTR.
ssize_t Allowed(size_t size) {
  if (plan.fault == Fault::kNone || !IsHit()) return static_cast<ssize_t>(size);
  if (plan.fault == Fault::kShort) return static_cast<ssize_t>(size < 2 ? size : size / 2);
  errno = EINTR;
  return -1;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = (flags & O_CREAT) != 0 ? va_arg(arguments, unsigned) : 0;
  va_end(arguments);
  return Interrupts() ? -1 : static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}
ssize_t pread(int file, void* buffer, size_t size, off_t offset) {
  const ssize_t allowed = Allowed(size);
  return allowed < 0 ? -1 : syscall(SYS_pread64, file, buffer, allowed, offset);
}
ssize_t pwrite(int file, const void* buffer, size_t size, off_t offset) {
  const ssize_t allowed = Allowed(size);
  return allowed < 0 ? -1 : syscall(SYS_pwrite64, file, buffer, allowed, offset);
}
int ftruncate(int file, off_t size) noexcept {
  return Interrupts() ? -1 : static_cast<int>(syscall(SYS_ftruncate, file, size));
}
int fsync(int file) { return Interrupts() ? -1 : static_cast<int>(syscall(SYS_fsync, file)); }
int syncfs(int file) noexcept { return Interrupts() ? -1 : static_cast<int>(syscall(SYS_syncfs, file)); }

}  // extern "C"

namespace reshard {
namespace {

struct Direction {
  const char *name, *input, *to;
};

void PrintTo(const Direction& row, std::ostream* out) { *out << row.name; }

class SystemCall : public testing::TestWithParam<Direction> {
 protected:
  static void TearDownTestSuite() { std::cout << "points tried: " << points_ << "\n"; }

  void TearDown() override { plan.fault = Fault::kNone; }

  ConvertOptions Options(const std::string& output) const {
    ConvertOptions options;
    options.input = std::string(RESHARD_SOURCE_DIR "/tests/fixtures/llama-tp2-bf16-zarr/") + GetParam().input;
    options.output = output;
    options.to = GetParam().to;
    options.vocab_size = 66;
    options.run.workers = 1;
    options.run.max_memory = uint64_t{16} << 30;  // this process is that of all conversions; a sanitizer keeps them
    if (options.to == "trtllm") options.tp_size = 2;
    return options;
  }

  Files Converted(Fault fault, uint64_t first, uint64_t every) {
    const ScratchFolder scratch(ScratchFolder::InMemory());
    plan.first = first;
    plan.every = every;
    plan.calls = 0;
    plan.fault = fault;
    ++points_;
    Conversion(Options(scratch / "out")).Run();
    plan.fault = Fault::kNone;
    return FilesBelow(PosixIo(), scratch / "out");
  }

  static uint64_t points_;
};
uint64_t SystemCall::points_ = 0;

TEST_P(SystemCall, MayBeInterruptedOrMoveLessThanAsked) {
  const Files undisturbed = Converted(Fault::kNone, 1, 1);
  for (const Fault fault : {Fault::kInterrupted, Fault::kShort}) {
    uint64_t n = 1;
    do {
      ASSERT_TRUE(Converted(fault, n, UINT64_MAX) == undisturbed) << "call " << n;
    } while (plan.calls >= n++);
    EXPECT_GT(n, 50u);
    ASSERT_TRUE(Converted(fault, 1, 2) == undisturbed) << "every other call";
  }
  ASSERT_TRUE(Converted(Fault::kShort, 1, 1) == undisturbed) << "every call";
}

INSTANTIATE_TEST_SUITE_P(Directions, SystemCall,
                         testing::Values(Direction{"HfToNemo", "hf", "nemo"}, Direction{"NemoToHf", "nemo", "hf"},
                                         Direction{"HfToTrtllm", "hf", "trtllm"},
                                         Direction{"NemoToTrtllm", "nemo", "trtllm"}, Direction{"HfToHf", "hf", "hf"}),
                         [](const auto& row) { return row.param.name; });

// A tmpfs of its own, where this process may mount one.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& path) : path_(path) {
    PosixIo().MakeDirectories(path);
    mounted_ = mount("tmpfs", path.c_str(), "tmpfs", 0, "size=4m") == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  const std::string path_;
  bool mounted_ = false;
};

using FullDisk = SystemCall;

TEST_P(FullDisk, KeepsWhatIsStagedAndTheSameCommandGoesOn) {
  const ScratchFolder scratch;
  const SmallDisk disk(scratch / "disk");
  if (!disk.mounted()) GTEST_SKIP() << "no file system can be mounted here";
  const std::string filler = scratch / "disk/filler";
  ConvertOptions options = Options(scratch / "disk/out");
  options.run.progress = [&](const Progress&) {
    const std::string page(4096, 'x');
    while (PosixIo().Free(scratch / "disk").bytes > 10 * page.size()) {
      const auto file = PosixIo().OpenWrite(filler);
      file->WriteAt(page.data(), page.size(), file->Info().size);
    }
  };
  try {
    Conversion(options).Run();
    ADD_FAILURE() << "it was not full";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNoSpace) << error.what();
  }
  PosixIo().RemoveAll(filler);
  const ConvertReport rest = Conversion(Options(scratch / "disk/out")).Run();
  const ConvertReport whole = Conversion(Options(scratch / "whole")).Run();
  EXPECT_LT(rest.bytes_read, whole.bytes_read);
  EXPECT_TRUE(FilesBelow(PosixIo(), scratch / "disk/out") == FilesBelow(PosixIo(), scratch / "whole"));
}

INSTANTIATE_TEST_SUITE_P(Directions, FullDisk,
                         testing::Values(Direction{"HfToNemo", "hf", "nemo"}, Direction{"HfToTrtllm", "hf", "trtllm"}),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace reshard
