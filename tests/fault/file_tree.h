// Folders of small files as values.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/io.h"

namespace reshard {

using Files = std::map<std::string, std::string>;  // relative path to bytes

constexpr uint64_t kMostFileBytes = uint64_t{1} << 30;

inline void AddFiles(Io& io, const std::string& folder, const std::string& below, Files& files) {
  for (const std::string& name : io.List(JoinPath(folder, below))) {
    const std::string path = JoinPath(below, name), whole = JoinPath(folder, path);
    if (io.Stat(whole)->type == FileInfo::Type::kDirectory) {
      AddFiles(io, folder, path, files);
    } else {
      files[path] = ReadWholeFile(io, whole, kMostFileBytes);
    }
  }
}

inline Files FilesBelow(Io& io, const std::string& folder) {
  Files files;
  if (io.Stat(folder)) AddFiles(io, folder, "", files);
  return files;
}

inline void PutFiles(Io& io, const std::string& folder, const Files& files) {
  for (const auto& [path, bytes] : files) {
    io.MakeDirectories(ParentOf(JoinPath(folder, path)));
    WriteWholeFile(io, JoinPath(folder, path), bytes);
  }
}

}  // namespace reshard
