#include "execute/open_files.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>

#include "base/error.h"

namespace reshard {
namespace {

constexpr uint64_t kMostOpenFiles = 256;
constexpr uint64_t kOthersOpenFiles = 16;  // standard streams, the claim's owner file, directories
constexpr uint64_t kFilesPerWorker = 3;

}  // namespace

OpenFileLimit LimitOpenFiles(unsigned workers) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = 64;
  uint64_t files =
      std::clamp<uint64_t>(limit.rlim_cur, kOthersOpenFiles + kFilesPerWorker + 1, kMostOpenFiles) - kOthersOpenFiles;
  uint64_t fitting = std::clamp<uint64_t>(workers, 1, files / (kFilesPerWorker + 1));
  return {static_cast<unsigned>(fitting), files - fitting * kFilesPerWorker};
}

std::shared_ptr<File> OpenFiles::Get(size_t number) {
  std::lock_guard lock(mutex_);
  Slot& slot = slots_[number];
  if (slot.file) {
    recent_.splice(recent_.begin(), recent_, slot.place);
    return slot.file;
  }
  if (recent_.size() >= capacity_) {
    slots_[recent_.back()].file.reset();
    recent_.pop_back();
  }
  slot.file = open_(number);
  slot.place = recent_.insert(recent_.begin(), number);
  return slot.file;
}

namespace {

void CheckUnchanged(const FileInfo& info, const SourceFile& source) {
  if (info.size != source.size)
    throw Error(Code::kMismatch, fmt::format("the file changed since the plan: it has {} bytes, expected {}; run again",
                                             info.size, source.size))
        .At("reading", source.relative);
  if (info.mtime_ns != source.mtime_ns)
    throw Error(Code::kMismatch, fmt::format("the file changed since the plan: its modification time is {} ns, "
                                             "expected {}; run again",
                                             info.mtime_ns, source.mtime_ns))
        .At("reading", source.relative);
}

}  // namespace

void CheckUnchanged(Io& io, const std::vector<SourceFile>& sources) {
  for (const SourceFile& source : sources) {
    const std::optional<FileInfo> info = io.Stat(source.path);
    if (!info || info->inode != source.inode)
      throw Error(Code::kMismatch, "the file was replaced while it was read, expected it to stay; run again")
          .At("reading", source.relative);
    CheckUnchanged(*info, source);
  }
}

std::unique_ptr<File> OpenSource(Io& io, const SourceFile& source) {
  std::unique_ptr<File> file = io.OpenRead(source.path);
  CheckUnchanged(file->Info(), source);
  return file;
}

}  // namespace reshard
