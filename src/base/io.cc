#include "base/io.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard {
namespace {

constexpr uint64_t kMaxTransfer = kMiB;

// What `call` returns, made again as long as a signal interrupts it.
template <typename Call>
auto Retry(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

class Descriptor {
 public:
  Descriptor(const std::string& path, int flags, const char* doing)
      : value_(Retry([&] { return open(path.c_str(), flags | O_CLOEXEC | O_NOCTTY, 0666); })) {
    if (value_ == -1) throw SystemError(errno, doing, path);
  }
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() { close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

const char* DescribeType(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return "a directory";
    case S_IFIFO:
      return "a FIFO";
    case S_IFSOCK:
      return "a socket";
    case S_IFCHR:
    case S_IFBLK:
      return "a device";
    default:
      return "something that is no file";
  }
}

Error NotRegular(mode_t mode, const std::string& path) {
  Error error(Code::kCorrupt, fmt::format("found {}, expected a regular file", DescribeType(mode)));
  error.At("reading", path);
  return error;
}

FileInfo ToFileInfo(const struct stat& status) {
  FileInfo info;
  info.type = S_ISREG(status.st_mode)   ? FileInfo::Type::kFile
              : S_ISDIR(status.st_mode) ? FileInfo::Type::kDirectory
                                        : FileInfo::Type::kOther;
  info.size = static_cast<uint64_t>(status.st_size);
  info.mtime_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
  info.inode = status.st_ino;
  info.device = status.st_dev;
  return info;
}

// Both calls below need the page cache of a local file system; elsewhere they say so in one of these ways.
bool IsUnavailable(int error_number) {
  return error_number == ENOSYS || error_number == EINVAL || error_number == EOPNOTSUPP || error_number == ESPIPE;
}

class PosixFile : public File {
 public:
  PosixFile(const std::string& path, int flags, const char* doing)
      : path_(path), doing_(doing), descriptor_(path, flags, doing) {}
  PosixFile(int descriptor, const std::string& path, const char* doing)
      : path_(path), doing_(doing), descriptor_(descriptor) {}

  void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
    char* out = static_cast<char*>(buffer);
    for (uint64_t done = 0; done < size;) {
      const size_t count = std::min(size - done, kMaxTransfer);
      const ssize_t got = Retry([&] { return pread(fd(), out + done, count, static_cast<off_t>(offset + done)); });
      if (got == -1) throw Failed();
      if (got == 0) throw CutOff(offset + size);
      done += static_cast<uint64_t>(got);
    }
  }

  void WriteAt(const void* buffer, uint64_t size, uint64_t offset) override {
    const char* in = static_cast<const char*>(buffer);
    for (uint64_t done = 0; done < size;) {
      const size_t count = std::min(size - done, kMaxTransfer);
      const ssize_t put = Retry([&] { return pwrite(fd(), in + done, count, static_cast<off_t>(offset + done)); });
      if (put == -1) throw Failed();
      if (put == 0) throw SystemError(EIO, doing_, path_);
      done += static_cast<uint64_t>(put);
    }
  }

  void Truncate(uint64_t size) override {
    if (Retry([&] { return ftruncate(fd(), static_cast<off_t>(size)); }) == -1) throw Failed();
  }

  void Sync() override {
    if (Retry([&] { return fsync(fd()); }) == -1) throw Failed();
  }

  void StartWriteBack(uint64_t offset, uint64_t size) override { SyncRange(offset, size, SYNC_FILE_RANGE_WRITE); }

  void Forget(uint64_t offset, uint64_t size) override {
    if (!SyncRange(offset, size, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER)) {
      Sync();
    }
    // Only a hint: what it answers changes nothing.
    if (size > 0) posix_fadvise(fd(), static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
  }

  FileInfo Info() override { return ToFileInfo(Status()); }

  struct stat Status() {
    struct stat status;
    if (fstat(fd(), &status) == -1) throw Failed();
    return status;
  }

 private:
  int fd() const { return descriptor_.value(); }
  Error Failed() const { return SystemError(errno, doing_, path_); }

  Error CutOff(uint64_t wanted) {
    Error error(Code::kCorrupt,
                fmt::format("the file has {} bytes, expected at least {}; it may be cut off", Info().size, wanted));
    error.At(doing_, path_);
    return error;
  }

  // False where this file system cannot. Any other failure must be thrown: the kernel tells a write-back error to a
  // descriptor once, and a later fsync would succeed.
  bool SyncRange(uint64_t offset, uint64_t size, unsigned flags) {
    if (size == 0) return true;  // which to the kernel would mean "to the end"
    const auto call = [&] {
      return sync_file_range(fd(), static_cast<off_t>(offset), static_cast<off_t>(size), flags);
    };
    if (Retry(call) == 0) return true;
    if (!IsUnavailable(errno)) throw Failed();
    return false;
  }

  const std::string path_;
  const char* doing_;
  Descriptor descriptor_;
};

class PosixIoImpl : public Io {
 public:
  std::unique_ptr<File> OpenRead(const std::string& path) override {
    try {
      // O_NONBLOCK: opening a FIFO must not wait for its other end.
      auto file = std::make_unique<PosixFile>(path, O_RDONLY | O_NONBLOCK, "reading");
      const mode_t mode = file->Status().st_mode;
      if (!S_ISREG(mode)) throw NotRegular(mode, path);
      return file;
    } catch (const Error&) {
      // Sockets, and devices without a driver, cannot even be opened.
      struct stat status;
      if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) throw NotRegular(status.st_mode, path);
      throw;
    }
  }

  std::unique_ptr<File> OpenWrite(const std::string& path) override {
    return std::make_unique<PosixFile>(path, O_WRONLY | O_CREAT, "writing");
  }

  std::unique_ptr<File> OpenTemporary(const std::string& folder) override {
    int descriptor = Retry([&] { return open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); });
    // Not every file system knows of files without a name.
    if (descriptor == -1 && (IsUnavailable(errno) || errno == EISDIR)) {
      std::string path = JoinPath(folder, ".reshard-XXXXXX");
      descriptor = mkostemp(path.data(), O_CLOEXEC);
      if (descriptor != -1) unlink(path.c_str());
    }
    if (descriptor == -1) throw SystemError(errno, "making a temporary file in", folder);
    return std::make_unique<PosixFile>(descriptor, folder, "writing a temporary file in");
  }

  std::optional<FileInfo> Stat(const std::string& path) override {
    struct stat status;
    if (stat(path.c_str(), &status) == 0) return ToFileInfo(status);
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    throw SystemError(errno, "reading", path);
  }

  std::vector<std::string> List(const std::string& path) override {
    std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(path.c_str()), closedir);
    if (!directory) throw SystemError(errno, "reading", path);
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = readdir(directory.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
      errno = 0;
    }
    if (errno != 0) throw SystemError(errno, "reading", path);
    std::sort(names.begin(), names.end());
    return names;
  }

  void MakeDirectories(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    if (error == std::errc::file_exists) {
      throw Error(Code::kAlreadyExists,
                  "found a file or a link that leads nowhere, expected a folder or nothing; delete it")
          .At("making", path);
    }
    if (error) throw SystemError(error.value(), "making", path);
  }

  void Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) == -1) throw SystemError(errno, "renaming", from);
  }

  bool Link(const std::string& from, const std::string& to) override {
    if (link(from.c_str(), to.c_str()) == 0) return true;
    if (errno == EEXIST) return false;
    throw SystemError(errno, "linking", from);
  }

  void RemoveAll(const std::string& path) override {
    try {
      std::filesystem::remove_all(path);
    } catch (const std::filesystem::filesystem_error& error) {
      throw SystemError(error.code().value(), "deleting", error.path1().empty() ? path : error.path1().string());
    }
  }

  bool RemoveEmptyDirectory(const std::string& path) override {
    if (rmdir(path.c_str()) == 0) return true;
    if (errno == ENOTEMPTY || errno == EEXIST || errno == ENOENT) return false;
    throw SystemError(errno, "deleting", path);
  }

  void SyncDirectory(const std::string& path) override {
    const Descriptor directory(path, O_RDONLY | O_DIRECTORY, "syncing");
    if (Retry([&] { return fsync(directory.value()); }) == 0) return;
    // Some network file systems have no such call, because a directory is on the server at once.
    if (!IsUnavailable(errno)) throw SystemError(errno, "syncing", path);
  }

  void SyncFileSystem(const std::string& path) override {
    const Descriptor descriptor(path, O_RDONLY | O_NONBLOCK, "syncing");
    if (Retry([&] { return syncfs(descriptor.value()); }) == -1) throw SystemError(errno, "syncing", path);
  }

  FreeSpace Free(const std::string& path) override {
    struct statvfs status;
    if (Retry([&] { return statvfs(path.c_str(), &status); }) == -1) throw SystemError(errno, "reading", path);
    FreeSpace space;
    space.bytes = CheckedMultiply(status.f_bavail, status.f_frsize).value_or(UINT64_MAX);
    space.inodes = status.f_files == 0 ? UINT64_MAX : status.f_favail;
    return space;
  }

  std::string Canonical(const std::string& path) override {
    const std::unique_ptr<char, void (*)(void*)> resolved(realpath(path.c_str(), nullptr), std::free);
    if (!resolved) throw SystemError(errno, "reading", path);
    return resolved.get();
  }

  std::string BootId() override {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string id;
    std::getline(file, id);
    return id;
  }
};

class DiscardingFile : public File {
 public:
  explicit DiscardingFile(std::unique_ptr<File> base) : base_(std::move(base)) {}

  void ReadAt(void* buffer, uint64_t size, uint64_t offset) override { base_->ReadAt(buffer, size, offset); }
  void WriteAt(const void*, uint64_t, uint64_t) override {}
  void Truncate(uint64_t size) override { base_->Truncate(size); }
  void Sync() override { base_->Sync(); }
  void StartWriteBack(uint64_t offset, uint64_t size) override { base_->StartWriteBack(offset, size); }
  void Forget(uint64_t offset, uint64_t size) override { base_->Forget(offset, size); }
  FileInfo Info() override { return base_->Info(); }

 private:
  std::unique_ptr<File> base_;
};

// It drops records and receipts too: what must be read again is written through another Io.
class DiscardingIoImpl : public Io {
 public:
  explicit DiscardingIoImpl(Io& base) : base_(base) {}

  std::unique_ptr<File> OpenRead(const std::string& path) override { return base_.OpenRead(path); }
  std::unique_ptr<File> OpenWrite(const std::string& path) override {
    return std::make_unique<DiscardingFile>(base_.OpenWrite(path));
  }
  std::unique_ptr<File> OpenTemporary(const std::string& folder) override { return base_.OpenTemporary(folder); }
  std::optional<FileInfo> Stat(const std::string& path) override { return base_.Stat(path); }
  std::vector<std::string> List(const std::string& path) override { return base_.List(path); }
  void MakeDirectories(const std::string& path) override { base_.MakeDirectories(path); }
  void Rename(const std::string& from, const std::string& to) override { base_.Rename(from, to); }
  bool Link(const std::string& from, const std::string& to) override { return base_.Link(from, to); }
  void RemoveAll(const std::string& path) override { base_.RemoveAll(path); }
  bool RemoveEmptyDirectory(const std::string& path) override { return base_.RemoveEmptyDirectory(path); }
  void SyncDirectory(const std::string& path) override { base_.SyncDirectory(path); }
  void SyncFileSystem(const std::string& path) override { base_.SyncFileSystem(path); }
  FreeSpace Free(const std::string& path) override { return base_.Free(path); }
  std::string Canonical(const std::string& path) override { return base_.Canonical(path); }
  std::string BootId() override { return base_.BootId(); }

 private:
  Io& base_;
};

}  // namespace

Io& PosixIo() {
  static PosixIoImpl io;
  return io;
}

std::unique_ptr<Io> DiscardingIo(Io& base) { return std::make_unique<DiscardingIoImpl>(base); }

std::string ReadWholeFile(Io& io, const std::string& path, uint64_t limit) {
  const std::unique_ptr<File> file = io.OpenRead(path);
  const uint64_t size = file->Info().size;
  if (size > limit) {
    throw Error(Code::kCorrupt, fmt::format("the file has {} bytes, expected at most {}", size, limit))
        .At("reading", path);
  }
  std::string bytes(size, '\0');
  file->ReadAt(bytes.data(), size, 0);
  return bytes;
}

void ReadInPieces(Io& io, const std::string& path, const std::function<void(std::string_view)>& take) {
  constexpr uint64_t kPiece = uint64_t{1} << 20;
  const std::unique_ptr<File> file = io.OpenRead(path);
  const uint64_t end = file->Info().size;
  std::string buffer(std::min(end, kPiece), '\0');
  for (uint64_t at = 0; at < end; at += buffer.size()) {
    const uint64_t size = std::min<uint64_t>(buffer.size(), end - at);
    file->ReadAt(buffer.data(), size, at);
    take(std::string_view(buffer).substr(0, size));
  }
}

void WriteWholeFile(Io& io, const std::string& path, const std::string& bytes) {
  const std::unique_ptr<File> file = io.OpenWrite(path);
  file->Truncate(bytes.size());
  file->WriteAt(bytes.data(), bytes.size(), 0);
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string WithoutSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string JoinPath(const std::string& folder, const std::string& name) {
  if (folder.empty()) return name;
  return folder.back() == '/' ? folder + name : folder + "/" + name;
}

}  // namespace reshard
