// Bytes in memory as a file that is only read, and an Io of which every path is such a file.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/io.h"

namespace reshard {

class MemoryFile : public File {
 public:
  explicit MemoryFile(std::string bytes) : bytes_(std::move(bytes)) {}

  void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
    if (offset > bytes_.size() || size > bytes_.size() - offset) throw Error(Code::kCorrupt, "the file ends before");
    std::memcpy(buffer, bytes_.data() + offset, size);
    most_ = std::max(most_, size);
  }
  void WriteAt(const void*, uint64_t, uint64_t) override { Refuse(); }
  void Truncate(uint64_t) override { Refuse(); }
  void Sync() override {}
  void StartWriteBack(uint64_t, uint64_t) override {}
  void Forget(uint64_t, uint64_t) override {}
  FileInfo Info() override { return {FileInfo::Type::kFile, bytes_.size()}; }

  uint64_t most() const { return most_; }  // bytes that one call has read

 private:
  static void Refuse() { throw Error(Code::kInternal, "a file that is only read"); }

  std::string bytes_;
  uint64_t most_ = 0;
};

class MemoryIo : public Io {
 public:
  explicit MemoryIo(std::string bytes) : bytes_(std::move(bytes)) {}

  std::unique_ptr<File> OpenRead(const std::string&) override { return std::make_unique<MemoryFile>(bytes_); }
  std::optional<FileInfo> Stat(const std::string&) override { return FileInfo{FileInfo::Type::kFile, bytes_.size()}; }
  std::unique_ptr<File> OpenWrite(const std::string&) override { Refuse(); }
  std::unique_ptr<File> OpenTemporary(const std::string&) override { Refuse(); }
  std::vector<std::string> List(const std::string&) override { Refuse(); }
  void MakeDirectories(const std::string&) override { Refuse(); }
  void Rename(const std::string&, const std::string&) override { Refuse(); }
  bool Link(const std::string&, const std::string&) override { Refuse(); }
  void RemoveAll(const std::string&) override { Refuse(); }
  bool RemoveEmptyDirectory(const std::string&) override { Refuse(); }
  void SyncDirectory(const std::string&) override { Refuse(); }
  void SyncFileSystem(const std::string&) override { Refuse(); }
  FreeSpace Free(const std::string&) override { Refuse(); }
  std::string Canonical(const std::string& path) override { return path; }
  std::string BootId() override { return ""; }

 private:
  [[noreturn]] static void Refuse() { throw Error(Code::kInternal, "files that are only read"); }

  std::string bytes_;
};

}  // namespace reshard
