// Bytes in memory as a file that is only read.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

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

}  // namespace reshard
