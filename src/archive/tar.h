// tar archives of files and folders, read by offset and never extracted; laid out as Python's tarfile writes them
// (dialects and checks: docs/formats/nemo.md).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "archive/layout.h"
#include "archive/zip.h"
#include "base/io.h"

namespace reshard {

struct TarMember {
  std::string name;     // without "./" before it and "/" behind it
  bool folder = false;  // whose data is empty
  ByteRange data;       // in the file, from its begin
};

struct TarLimits {
  uint64_t max_members = 0;
  uint64_t max_header = 0;  // bytes that names and extended headers may take in memory
};

// The members of the tar that is a file's first `size` bytes, in its order, without the root folder. Reads headers
// only. No name is there twice, nor in another case; no file is a folder as well; every name is UTF-8, relative and
// without ".", "..", an empty part or a combining mark, by which two names could be one to a file system. Errors, all
// with `path`: kCorrupt (no tar, a header that contradicts itself or another, a member beyond the file, a name that
// would not stay in a folder, a device, no end, anything behind the end), kUnsupported (links, sparse members, types
// of other dialects; more than the limits, naming --max_memory).
std::vector<TarMember> ReadTar(File& file, const std::string& path, uint64_t size, const TarLimits& limits);

// Whether these bytes, 512 or more, are the first of a tar: a header whose sum is right.
bool IsTar(std::string_view begin);

// Puts a tar at the end of a file, as Python's tarfile does with its default format, PAX: "./" before all names, no
// owner, modes 0644 and 0755, and one time for all. Extended headers stand only before names of more than 100 bytes or
// outside of ASCII, and files of 8 GiB and more.
class TarLayout {
 public:
  explicit TarLayout(FileLayout& file) : file_(file), begin_(file.size) {}
  // "model_weights", or "" for the root.
  void AddFolder(std::string_view name);
  // Reserves a file's data and returns its offset in the FileLayout. What of it no literal gives is data.
  uint64_t AddFile(std::string_view name, uint64_t size);
  // A file of these bytes.
  void AddFile(std::string_view name, std::string_view bytes);
  // Nothing may be added after it.
  void Finish();

 private:
  void AppendHeader(const std::string& name, char type, uint64_t size);
  void Pad(uint64_t multiple);

  FileLayout& file_;
  uint64_t begin_;
};

}  // namespace reshard
