// An Io that counts its calls and lets one of them fail, or end the run: for every n, a test asks what is left after
// the n-th. Calls that are several system calls (a write, the removal of a tree, folders with their parents) count as
// several and can stop half way. Syncs are counted, and not passed on: a process that is killed loses nothing that it
// wrote.
#pragma once

#include <atomic>
#include <csignal>
#include <cstdint>
#include <filesystem>
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
  explicit FaultyIo(Io& base) : base_(base) {}

  // Each counts from one, from now on.
  void FailAt(uint64_t call, int error_number) { Arm(Fault::kError, call, error_number); }
  void KillAt(uint64_t call) { Arm(Fault::kKilled, call, 0); }  // nor does any later call do anything
  void RaiseAt(uint64_t call, int signal) { Arm(Fault::kSignal, call, signal); }

  uint64_t calls() const { return calls_; }

  std::unique_ptr<File> OpenRead(const std::string& path) override {
    Count("reading", path);
    return std::make_unique<FaultyFile>(*this, base_.OpenRead(path), path);
  }
  std::unique_ptr<File> OpenWrite(const std::string& path) override {
    Count("writing", path);
    return std::make_unique<FaultyFile>(*this, base_.OpenWrite(path), path);
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
    const std::filesystem::path parent = std::filesystem::path(path).parent_path();
    if (!parent.empty() && !std::filesystem::exists(parent)) MakeDirectories(parent.string());
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
  void RemoveAll(const std::string& path) override {
    if (std::filesystem::is_directory(std::filesystem::symlink_status(path))) {
      for (const std::string& name : base_.List(path)) RemoveAll(JoinPath(path, name));
    }
    Count("deleting", path);
    base_.RemoveAll(path);
  }
  bool RemoveEmptyDirectory(const std::string& path) override {
    Count("deleting", path);
    return base_.RemoveEmptyDirectory(path);
  }
  void SyncDirectory(const std::string& path) override { Count("syncing", path); }
  void SyncFileSystem(const std::string& path) override { Count("syncing", path); }
  FreeSpace Free(const std::string& path) override {
    Count("reading", path);
    return base_.Free(path);
  }
  std::string Canonical(const std::string& path) override {
    Count("reading", path);
    return base_.Canonical(path);
  }

 private:
  enum class Fault { kNone, kError, kKilled, kSignal };

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
    void Sync() override { io_.Count("syncing", path_); }
    void StartWriteBack(uint64_t, uint64_t) override { io_.Count("writing", path_); }
    void Forget(uint64_t, uint64_t) override { io_.Count("writing", path_); }
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
  }

  void Count(const char* doing, const std::string& path) {
    const uint64_t call = ++calls_;
    if (fault_ == Fault::kKilled && call >= at_) throw Killed();
    if (fault_ == Fault::kError && call == at_) throw SystemError(number_, doing, path);
    if (fault_ == Fault::kSignal && call == at_) std::raise(number_);
  }

  Io& base_;
  Fault fault_ = Fault::kNone;
  uint64_t at_ = 0;
  int number_ = 0;
  std::atomic<uint64_t> calls_{0};
};

}  // namespace reshard
