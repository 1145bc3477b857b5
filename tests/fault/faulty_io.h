// An Io that counts its calls and lets one of them fail, or end the run: for every n, a test asks what is left after
// the n-th. Calls that are several system calls (a write, the removal of a tree, folders with their parents) count as
// several and can stop half way. Syncs are counted; they are not passed on to the real files, since a process that is
// killed loses nothing that it wrote.
#pragma once

#include <atomic>
#include <csignal>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/io.h"

namespace reshard {

// The run ended here. No std::exception, so that nothing takes it for an error that it can handle.
struct Killed {};

class FaultyIo : public Io {
 public:
  explicit FaultyIo(Io& base) : base_(base), sync_(&base != &PosixIo()) {}

  // Each counts from one, from now on.
  void FailAt(uint64_t call, int error_number) { Arm(Fault::kError, call, error_number); }
  void FailSyncAt(uint64_t sync, int error_number) { Arm(Fault::kFailedSync, sync, error_number); }
  void KillAt(uint64_t call) { Arm(Fault::kKilled, call, 0); }  // nor does any later call do anything
  void RaiseAt(uint64_t call, int signal) { Arm(Fault::kSignal, call, signal); }

  uint64_t calls() const { return calls_; }
  uint64_t syncs() const { return syncs_; }  // and other calls that tell of data that could not be written back

  std::unique_ptr<File> OpenRead(const std::string& path) override {
    Count("reading", path);
    return std::make_unique<FaultyFile>(*this, base_.OpenRead(path), path);
  }
  std::unique_ptr<File> OpenWrite(const std::string& path) override {
    Count("writing", path);
    return std::make_unique<FaultyFile>(*this, base_.OpenWrite(path), path);
  }
  std::unique_ptr<File> OpenTemporary(const std::string& folder) override {
    Count("making a temporary file in", folder);
    return std::make_unique<FaultyFile>(*this, base_.OpenTemporary(folder), folder);
  }
  std::optional<FileInfo> Stat(const std::string& path) override {
    Count("reading", path);
    return base_.Stat(path);
  }
  std::vector<std::string> List(const std::string& path) override {
    Count("reading", path);
    return base_.List(path);
  }
  void MakeDirectories(const std::string& path) override {
    const std::string parent = ParentOf(path);
    if (!base_.Stat(parent)) MakeDirectories(parent);
    Count("making", path);
    base_.MakeDirectories(path);
  }
  void Rename(const std::string& from, const std::string& to) override {
    Count("renaming", from);
    base_.Rename(from, to);
  }
  bool Link(const std::string& from, const std::string& to) override {
    Count("linking", from);
    return base_.Link(from, to);
  }
  // No test that counts has links in what is removed.
  void RemoveAll(const std::string& path) override {
    const std::optional<FileInfo> info = base_.Stat(path);
    if (info && info->type == FileInfo::Type::kDirectory) {
      for (const std::string& name : base_.List(path)) RemoveAll(JoinPath(path, name));
    }
    Count("deleting", path);
    base_.RemoveAll(path);
  }
  bool RemoveEmptyDirectory(const std::string& path) override {
    Count("deleting", path);
    return base_.RemoveEmptyDirectory(path);
  }
  void SyncDirectory(const std::string& path) override {
    CountSync(path);
    if (sync_) base_.SyncDirectory(path);
  }
  void SyncFileSystem(const std::string& path) override {
    CountSync(path);
    if (sync_) base_.SyncFileSystem(path);
  }
  FreeSpace Free(const std::string& path) override {
    Count("reading", path);
    return base_.Free(path);
  }
  std::string Canonical(const std::string& path) override {
    Count("reading", path);
    return base_.Canonical(path);
  }
  std::string BootId() override { return base_.BootId(); }

 private:
  enum class Fault { kNone, kError, kFailedSync, kKilled, kSignal };

  class FaultyFile : public File {
   public:
    FaultyFile(FaultyIo& io, std::unique_ptr<File> base, std::string path)
        : io_(io), base_(std::move(base)), path_(std::move(path)) {}

    void ReadAt(void* buffer, uint64_t size, uint64_t offset) override {
      io_.Count("reading", path_);
      base_->ReadAt(buffer, size, offset);
    }
    void WriteAt(const void* buffer, uint64_t size, uint64_t offset) override {
      const uint64_t half = size / 2;
      io_.Count("writing", path_);
      base_->WriteAt(buffer, half, offset);
      io_.Count("writing", path_);
      base_->WriteAt(static_cast<const char*>(buffer) + half, size - half, offset + half);
    }
    void Truncate(uint64_t size) override {
      io_.Count("writing", path_);
      base_->Truncate(size);
    }
    void Sync() override {
      io_.CountSync(path_);
      if (io_.sync_) base_->Sync();
    }
    void StartWriteBack(uint64_t, uint64_t) override { io_.CountSync(path_); }
    void Forget(uint64_t, uint64_t) override { io_.CountSync(path_); }
    FileInfo Info() override {
      io_.Count("reading", path_);
      return base_->Info();
    }

   private:
    FaultyIo& io_;
    std::unique_ptr<File> base_;
    const std::string path_;
  };

  void Arm(Fault fault, uint64_t call, int number) {
    fault_ = fault;
    at_ = call;
    number_ = number;
    calls_ = 0;
    syncs_ = 0;
  }

  void Count(const char* doing, const std::string& path) {
    const uint64_t call = ++calls_;
    if (fault_ == Fault::kKilled && call >= at_) throw Killed();
    if (fault_ == Fault::kError && call == at_) throw SystemError(number_, doing, path);
    if (fault_ == Fault::kSignal && call == at_) std::raise(number_);
  }

  void CountSync(const std::string& path) {
    Count("syncing", path);
    if (++syncs_ == at_ && fault_ == Fault::kFailedSync) throw SystemError(number_, "syncing", path);
  }

  Io& base_;
  const bool sync_;
  Fault fault_ = Fault::kNone;
  uint64_t at_ = 0;
  int number_ = 0;
  std::atomic<uint64_t> calls_{0}, syncs_{0};
};

}  // namespace reshard
