// An empty folder of its own for one test, deleted with all that is in it.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/io.h"
#include "gtest/gtest.h"

namespace reshard {

class ScratchFolder {
 public:
  explicit ScratchFolder(const std::string& parent = testing::TempDir()) : path_(JoinPath(parent, "reshard-XXXXXX")) {
    if (mkdtemp(path_.data()) == nullptr) throw SystemError(errno, "making", path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  // Where thousands of small files cost nothing, if this machine has such a place.
  static std::string InMemory() { return access("/dev/shm", W_OK) == 0 ? "/dev/shm" : testing::TempDir(); }

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return JoinPath(path_, name); }

 private:
  std::string path_;
};

}  // namespace reshard
