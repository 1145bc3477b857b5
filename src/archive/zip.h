// zip archives of stored members, read by offset and never extracted; laid out as torch.save writes them (layout and
// checks: docs/formats/torch_zip.md).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "archive/layout.h"
#include "base/io.h"

namespace reshard {

// A range of a file of which only that is looked at: a zip in a .distcp file, a member of a tar.
struct ByteRange {
  uint64_t offset = 0, size = 0;
  uint64_t end() const { return offset + size; }
};

struct ZipMember {
  std::string name;  // whole, with the top folder
  ByteRange data;    // in the file, from its begin
  uint32_t crc = 0;
};

// The members of the zip that fills `range` of a file, in the order of its directory. Reads the end record, the
// directory and the local headers only. Errors, all with `path`: kCorrupt (no end record, a record or a member beyond
// the range, directory and local header that contradict one another, members that overlap, a name twice, "..", an
// absolute name, no common top folder), kUnsupported (a compressed or encrypted member; more than `max_members`; a
// directory of more than `max_header` bytes, naming --max_memory).
std::vector<ZipMember> ReadZip(File& file, const std::string& path, ByteRange range, uint64_t max_members,
                               uint64_t max_header);

// Puts a zip at the end of a file, as torch.save does: every member below `top`, data at multiples of 64 bytes from the
// zip's begin, 64-bit fields where sizes or offsets need them, descriptors behind the data.
class ZipLayout {
 public:
  ZipLayout(FileLayout& file, std::string_view top);
  void Add(std::string_view name, std::string_view bytes);
  // A member that is data: returns its offset in the file. Its CRC becomes a checksum of the file.
  uint64_t AddData(std::string_view name, uint64_t size);
  // The directory and the end records; nothing may be added after it. Returns the size of the whole zip.
  uint64_t Finish();

 private:
  struct Member {
    std::string name;
    uint64_t header = 0, size = 0;  // from the zip's begin
    uint32_t crc = 0;
    int64_t checksum = -1;  // index in the file's, of data
  };
  void Begin(std::string_view name, uint64_t size);
  void AppendDescriptor();

  FileLayout& file_;
  std::string top_;
  uint64_t begin_;
  std::vector<Member> members_;
};

}  // namespace reshard
