// The only way to the operating system's files. Everything that reads a checkpoint or writes one goes through an Io, so
// that tests can put another in its place: one that fails at the n-th call, one that drops the data, one in memory.
//
// Thread rule: an Io and a File may be used by any number of threads at once. Errors: every failure is an Error of
// SystemError's making that names the path. Nothing here retries but EINTR and short transfers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace reshard {

struct FileInfo {
  enum class Type { kFile, kDirectory, kOther };  // symbolic links are followed
  Type type = Type::kFile;
  uint64_t size = 0;  // bytes
  int64_t mtime_ns = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
};

struct FreeSpace {
  uint64_t bytes = 0;
  uint64_t inodes = 0;  // UINT64_MAX where the file system has no fixed number
};

class File {
 public:
  virtual ~File() = default;  // closes, and ignores what closing says: Sync first

  // Fills all of `size` bytes from `offset`; a file that ends before is kCorrupt ("the file may be cut off"). One
  // system call moves at most 1 MiB.
  virtual void ReadAt(void* buffer, uint64_t size, uint64_t offset) = 0;
  virtual void WriteAt(const void* buffer, uint64_t size, uint64_t offset) = 0;
  virtual void Truncate(uint64_t size) = 0;
  virtual void Sync() = 0;
  // Starts write-back of a byte range and does not wait for it.
  virtual void StartWriteBack(uint64_t offset, uint64_t size) = 0;
  // Waits for write-back of a range begun before, then lets the page cache forget it.
  virtual void Forget(uint64_t offset, uint64_t size) = 0;
  virtual FileInfo Info() = 0;
};

class Io {
 public:
  virtual ~Io() = default;

  // `path` must be a regular file: a directory, a FIFO or a device is kCorrupt, and never blocks.
  virtual std::unique_ptr<File> OpenRead(const std::string& path) = 0;
  // Opens for writing, and makes the file if it is not there (mode 0666 and the umask).
  virtual std::unique_ptr<File> OpenWrite(const std::string& path) = 0;
  // For writing and reading: a file without a name, which is gone when it is closed.
  virtual std::unique_ptr<File> OpenTemporary(const std::string& folder) = 0;
  // Nothing where there is no such path (ENOENT, ENOTDIR). Other failures (a loop of links, no permission) throw.
  virtual std::optional<FileInfo> Stat(const std::string& path) = 0;
  // Names of the entries of a directory, sorted bytewise, without "." and "..".
  virtual std::vector<std::string> List(const std::string& path) = 0;
  // The parents too; no error if it exists already.
  virtual void MakeDirectories(const std::string& path) = 0;
  virtual void Rename(const std::string& from, const std::string& to) = 0;
  // False where `to` exists already: the one atomic way to claim a name.
  virtual bool Link(const std::string& from, const std::string& to) = 0;
  // A file, or a directory with all that is in it; no error if it is not there. Links are removed, not followed.
  virtual void RemoveAll(const std::string& path) = 0;
  // A directory only if it is empty. False where it is not, or is not there.
  virtual bool RemoveEmptyDirectory(const std::string& path) = 0;
  virtual void SyncDirectory(const std::string& path) = 0;
  // Waits until all that was written to the file system that holds `path` is on the disk.
  virtual void SyncFileSystem(const std::string& path) = 0;
  virtual FreeSpace Free(const std::string& path) = 0;
  // The absolute path without links, of something that exists.
  virtual std::string Canonical(const std::string& path) = 0;
  // Of the running system; another one after each start of it, when what was not synced before may be gone.
  virtual std::string BootId() = 0;
};

Io& PosixIo();

// Passes everything on but the data of WriteAt: files get their size and no content. For measuring memory with targets
// that no disk here holds.
std::unique_ptr<Io> DiscardingIo(Io& base);

// The whole of a small file; more than `limit` bytes is kCorrupt.
std::string ReadWholeFile(Io& io, const std::string& path, uint64_t limit);
// Its bytes in order, in pieces of at most 1 MiB, each valid during the call.
void ReadInPieces(Io& io, const std::string& path, const std::function<void(std::string_view)>& take);
// Creates or replaces; not synced.
void WriteWholeFile(Io& io, const std::string& path, const std::string& bytes);

// "a" of "a/b", "/" of "/a", "." of "a".
std::string ParentOf(const std::string& path);
// Without those at its end, but for "/" itself.
std::string WithoutSlashes(std::string path);
std::string JoinPath(const std::string& folder, const std::string& name);

}  // namespace reshard
