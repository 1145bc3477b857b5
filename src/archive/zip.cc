#include "archive/zip.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"

// Byte layout and numbers: docs/formats/torch_zip.md.
namespace reshard {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kLocal = "PK\x03\x04", kDescriptor = "PK\x07\x08", kCentral = "PK\x01\x02",
                           kEnd64 = "PK\x06\x06", kLocator = "PK\x06\x07", kEnd = "PK\x05\x06";
constexpr uint64_t kLocalSize = 30, kCentralSize = 46, kEnd64Size = 56, kLocatorSize = 20, kEndSize = 22;
constexpr uint64_t kMaxComment = 0xFFFF;
constexpr uint16_t kEncrypted = 0x0001, kDescriptorFollows = 0x0008, kStrongEncryption = 0x0040, kUtf8Name = 0x0800,
                   kMaskedHeaders = 0x2000;
constexpr uint16_t kZip64Field = 0x0001;
constexpr uint64_t kAlignment = 64;
constexpr uint64_t kElsewhere = 0xFFFFFFFF;  // a size or an offset that the zip64 field has

uint16_t Load16(std::string_view bytes, size_t at) { return LoadLittle<uint16_t>(bytes.data() + at); }
uint32_t Load32(std::string_view bytes, size_t at) { return LoadLittle<uint32_t>(bytes.data() + at); }
uint64_t Load64(std::string_view bytes, size_t at) { return LoadLittle<uint64_t>(bytes.data() + at); }

// -- reading ----------------------------------------------------------------------------------------------------------

// Where the directory is, from the zip's begin.
struct Directory {
  uint64_t members = 0, size = 0, offset = 0;
};

// A header of the directory.
struct Entry {
  ZipMember member;
  uint64_t header = 0;  // the local one, from the zip's begin
  uint16_t flags = 0;
};

Error Corrupt(std::string message) { return Error(Code::kCorrupt, std::move(message)); }

Error CutOff(std::string found_and_wanted) {
  return Corrupt(std::move(found_and_wanted) + "; the file may be cut off; download it again");
}

class ZipReader {
 public:
  ZipReader(File& file, ByteRange range) : file_(file), range_(range) {}

  std::vector<ZipMember> Read(uint64_t max_members, uint64_t max_header) {
    FindDirectory();
    if (directory_.members > max_members)
      throw Error(Code::kUnsupported, fmt::format("a zip of {} members, expected at most {} within the memory limit; "
                                                  "give a larger --max_memory",
                                                  directory_.members, max_members));
    if (directory_.size > max_header)
      throw Error(Code::kUnsupported, fmt::format("a zip directory of {} bytes, expected at most {} within the memory "
                                                  "limit; give a larger --max_memory",
                                                  directory_.size, max_header));
    ReadDirectory();
    CheckNames();
    for (Entry& entry : entries_) ReadLocalHeader(entry);
    CheckOverlaps();
    std::vector<ZipMember> members;
    members.reserve(entries_.size());
    for (Entry& entry : entries_) members.push_back(std::move(entry.member));
    return members;
  }

 private:
  std::string Bytes(uint64_t offset, uint64_t size) {
    std::string bytes(size, '\0');
    file_.ReadAt(bytes.data(), size, range_.offset + offset);
    return bytes;
  }

  // The last end record; nothing but its comment is behind it.
  void FindDirectory() {
    const auto last = [&](uint64_t bytes) {
      return Bytes(range_.size - std::min(range_.size, bytes), std::min(range_.size, bytes));
    };
    std::string tail = last(kEndSize);  // without a comment, as most are, no more is read
    if (!tail.starts_with(kEnd)) tail = last(kEndSize + kMaxComment);
    const size_t at = tail.size() < kEndSize ? tail.npos : tail.rfind(kEnd, tail.size() - kEndSize);
    if (at == tail.npos) throw CutOff("the zip has no end record, expected one in its last bytes");
    const std::string_view end = std::string_view(tail).substr(at);
    if (const uint64_t behind = end.size() - kEndSize; behind != Load16(end, 20))
      throw CutOff(fmt::format("the zip's end record has {} bytes behind it, expected {} of a comment", behind,
                               Load16(end, 20)));
    const uint64_t end_offset = range_.size - end.size();
    directory_ = {Load16(end, 10), Load32(end, 12), Load32(end, 16)};
    const uint64_t behind_directory = ReadEnd64(end_offset).value_or(end_offset);
    if (Load16(end, 4) != 0 || Load16(end, 6) != 0 || Load16(end, 8) != Load16(end, 10))
      throw Error(Code::kUnsupported, "a zip in several parts, expected one file");
    if (directory_.offset > behind_directory || directory_.size != behind_directory - directory_.offset)
      throw Corrupt(
          fmt::format("the zip's end record gives {} bytes of directory from offset {} on, expected them "
                      "to end at {}, where the end record is",
                      directory_.size, directory_.offset, behind_directory));
    if (directory_.members > directory_.size / kCentralSize)
      throw Corrupt(
          fmt::format("the zip's end record gives {} members in a directory of {} bytes, expected at least "
                      "{} bytes each",
                      directory_.members, directory_.size, kCentralSize));
  }

  // Takes over the 64-bit record where there is one, and returns its offset.
  std::optional<uint64_t> ReadEnd64(uint64_t end_offset) {
    const std::string locator = end_offset < kLocatorSize ? "" : Bytes(end_offset - kLocatorSize, kLocatorSize);
    if (!locator.starts_with(kLocator)) return std::nullopt;
    const uint64_t offset = Load64(locator, 8), locator_offset = end_offset - kLocatorSize;
    if (locator_offset < kEnd64Size || offset > locator_offset - kEnd64Size)
      throw Corrupt(fmt::format("the zip's 64-bit end record is said to be at offset {}, expected it before {}", offset,
                                locator_offset));
    const std::string record = Bytes(offset, kEnd64Size);
    if (!record.starts_with(kEnd64) || Load64(record, 4) != locator_offset - offset - 12)
      throw Corrupt(fmt::format("the zip has no 64-bit end record at offset {}, expected one that ends at {}", offset,
                                locator_offset));
    const Directory wide{Load64(record, 32), Load64(record, 40), Load64(record, 48)};
    CheckSame("members", directory_.members, wide.members, 0xFFFF);
    CheckSame("bytes of directory", directory_.size, wide.size, kElsewhere);
    CheckSame("as the directory's offset", directory_.offset, wide.offset, kElsewhere);
    directory_ = wide;
    return offset;
  }

  static void CheckSame(std::string_view what, uint64_t narrow, uint64_t wide, uint64_t elsewhere) {
    if (narrow != wide && narrow != elsewhere)
      throw Corrupt(fmt::format("the zip's end records give {} and {} {}, expected the same", narrow, wide, what));
  }

  void ReadDirectory() {
    const std::string bytes = Bytes(directory_.offset, directory_.size);
    std::string_view rest = bytes;
    entries_.reserve(directory_.members);
    while (!rest.empty()) {
      if (rest.size() < kCentralSize || !rest.starts_with(kCentral))
        throw Corrupt(
            fmt::format("the zip's directory has no header at its byte {}, expected one", bytes.size() - rest.size()));
      const uint64_t name = Load16(rest, 28), extra = Load16(rest, 30), comment = Load16(rest, 32);
      if (name + extra + comment > rest.size() - kCentralSize)
        throw Corrupt("the last header of the zip's directory is cut off, expected a whole one");
      AddEntry(rest.substr(0, kCentralSize), rest.substr(kCentralSize, name), rest.substr(kCentralSize + name, extra));
      rest.remove_prefix(kCentralSize + name + extra + comment);
    }
    if (entries_.size() != directory_.members)
      throw Corrupt(fmt::format("the zip's directory has {} members and its end record says {}, expected the same",
                                entries_.size(), directory_.members));
  }

  void AddEntry(std::string_view header, std::string_view name, std::string_view extra) {
    Entry& entry = entries_.emplace_back();
    entry.member.name = name;
    entry.member.crc = Load32(header, 16);
    entry.flags = Load16(header, 8);
    entry.header = Load32(header, 42);
    CheckIsPlain(entry, Load16(header, 10));
    uint64_t stored = Load32(header, 20), size = Load32(header, 24);
    TakeZip64(extra, entry, {&size, &stored, &entry.header});
    if (stored != size) throw Member(entry, fmt::format("{} bytes are stored as {}, expected as many", size, stored));
    entry.member.data.size = size;
  }

  void CheckIsPlain(const Entry& entry, uint16_t method) {
    if (entry.flags & (kEncrypted | kStrongEncryption | kMaskedHeaders))
      throw Error(Code::kUnsupported,
                  fmt::format("member '{}' is encrypted, expected plain bytes", Visible(entry.member.name)));
    if (method != 0)
      throw Error(Code::kUnsupported, fmt::format("member '{}' is compressed (method {}), expected stored bytes, as "
                                                  "torch.save writes them; unpack the zip and pack it without "
                                                  "compression",
                                                  Visible(entry.member.name), method));
  }

  // What did not fit the header stands in one field of the extra ones.
  static void TakeZip64(std::string_view extra, const Entry& entry, std::initializer_list<uint64_t*> fields) {
    std::optional<std::string_view> wide;
    while (extra.size() >= 4) {
      const uint64_t size = Load16(extra, 2);
      if (size > extra.size() - 4) throw Member(entry, "an extra field is cut off, expected a whole one");
      if (Load16(extra, 0) == kZip64Field) {
        if (wide) throw Member(entry, "the zip64 field is there twice, expected once");
        wide = extra.substr(4, size);
      }
      extra.remove_prefix(4 + size);
    }
    for (uint64_t* field : fields) {
      if (*field != kElsewhere || !wide) continue;
      if (wide->size() < 8) throw Member(entry, "the zip64 field is cut off, expected a number of 64 bits more");
      *field = Load64(*wide, 0);
      wide->remove_prefix(8);
    }
  }

  void CheckNames() {
    std::vector<std::string_view> names;
    for (const Entry& entry : entries_) {
      CheckName(entry);
      names.push_back(entry.member.name);
    }
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) throw Corrupt(fmt::format("member '{}' is there twice, expected once", Visible(*twice)));
  }

  void CheckName(const Entry& entry) {
    const auto top = [](const std::string& name) { return std::string_view(name).substr(0, name.find('/') + 1); };
    const std::string& name = entry.member.name;
    const std::string slashed = "/" + name + "/";
    std::string_view problem;
    if (name.empty() || name.find('\0') != name.npos) problem = "is empty or holds a zero byte";
    if (name.starts_with('/')) problem = "is absolute";
    if (slashed.find("/../") != slashed.npos) problem = "leaves the archive";
    if (!problem.empty())
      throw Corrupt(fmt::format("the member name '{}' {}, expected one below a top folder", Visible(name), problem));
    if (top(name).empty() || top(name) != top(entries_[0].member.name))
      throw Corrupt(fmt::format("member '{}' is not in the folder of '{}', expected one top folder", Visible(name),
                                Visible(entries_[0].member.name)));
  }

  // It must say the same as the directory, and its data must lie before that.
  void ReadLocalHeader(Entry& entry) {
    const ZipMember& member = entry.member;
    const uint64_t size = kLocalSize + member.name.size();
    if (entry.header > directory_.offset || size > directory_.offset - entry.header)
      throw Member(entry, fmt::format("its local header is said to be at offset {}, expected it before {}, where the "
                                      "directory begins",
                                      entry.header, directory_.offset));
    const std::string header = Bytes(entry.header, size);
    if (!header.starts_with(kLocal))
      throw Member(entry, fmt::format("there is no local header at offset {}, expected one", entry.header));
    if (Load16(header, 26) != member.name.size() || std::string_view(header).substr(kLocalSize) != member.name)
      throw Member(entry, "its local header has another name, expected the directory's");
    if (Load16(header, 6) != entry.flags || Load16(header, 8) != 0 || !SameSums(header, entry))
      throw Member(entry, "its local header and the directory contradict one another, expected the same");
    const uint64_t begin = entry.header + size + Load16(header, 28);
    if (begin > directory_.offset || member.data.size > directory_.offset - begin)
      throw Member(entry, fmt::format("{} bytes from offset {} on, expected them to end before {}, where the "
                                      "directory begins",
                                      member.data.size, begin, directory_.offset));
    entry.member.data.offset = range_.offset + begin;
  }

  // Zeros, where a descriptor behind the data has them.
  static bool SameSums(std::string_view header, const Entry& entry) {
    const uint64_t size = std::min(entry.member.data.size, kElsewhere);
    const auto is = [&](size_t at, uint64_t value) {
      const uint32_t said = Load32(header, at);
      return said == value || ((entry.flags & kDescriptorFollows) && said == 0) || (at != 14 && said == kElsewhere);
    };
    return is(14, entry.member.crc) && is(18, size) && is(22, size);
  }

  void CheckOverlaps() const {
    std::vector<const Entry*> sorted;
    for (const Entry& entry : entries_) sorted.push_back(&entry);
    std::sort(sorted.begin(), sorted.end(), [](const Entry* a, const Entry* b) { return a->header < b->header; });
    for (size_t i = 1; i < sorted.size(); ++i)
      if (sorted[i]->header < sorted[i - 1]->member.data.end() - range_.offset)
        throw Member(*sorted[i], fmt::format("it begins at offset {}, within member '{}', expected no overlap",
                                             sorted[i]->header, Visible(sorted[i - 1]->member.name)));
  }

  static Error Member(const Entry& entry, std::string_view found_and_wanted) {
    return Corrupt(fmt::format("member '{}': {}", Visible(entry.member.name), found_and_wanted));
  }

  File& file_;
  const ByteRange range_;
  Directory directory_;
  std::vector<Entry> entries_;
};

// -- writing ----------------------------------------------------------------------------------------------------------

bool IsWide(uint64_t value) { return value >= kElsewhere; }
uint32_t Narrow(uint64_t value) { return static_cast<uint32_t>(std::min(value, kElsewhere)); }

// Flags, method, time and date, the same in a member's two headers.
void AppendCommonFields(std::string& bytes, uint64_t size) {
  AppendLittle<uint16_t>(bytes, kUtf8Name | (size ? kDescriptorFollows : 0));
  bytes.append(6, '\0');
}

// Of a member's two headers, where a number does not fit them. `stored`: the size behind compression, which the local
// header does not know yet.
std::string Zip64Field(uint64_t size, uint64_t stored, uint64_t header) {
  std::string numbers;
  if (IsWide(size))
    for (uint64_t number : {size, stored}) AppendLittle<uint64_t>(numbers, number);
  if (IsWide(header)) AppendLittle<uint64_t>(numbers, header);
  if (numbers.empty()) return "";
  std::string field;
  AppendLittle<uint16_t>(field, kZip64Field);
  AppendLittle<uint16_t>(field, static_cast<uint16_t>(numbers.size()));
  return field + numbers;
}

std::string LocalHeader(std::string_view name, uint64_t size, uint64_t offset) {
  const std::string zip64 = Zip64Field(size, 0, offset);
  const uint64_t unpadded = offset + kLocalSize + name.size() + zip64.size() + 4;
  const auto padding = static_cast<uint16_t>(RoundUp(unpadded, kAlignment) - unpadded);
  std::string bytes(kLocal);
  bytes.append(2, '\0');
  AppendCommonFields(bytes, size);
  bytes.append(12, '\0');  // CRC and sizes: in the data descriptor
  AppendLittle<uint16_t>(bytes, static_cast<uint16_t>(name.size()));
  AppendLittle<uint16_t>(bytes, static_cast<uint16_t>(zip64.size() + 4 + padding));
  bytes += name;
  bytes += zip64;
  bytes += "FB";
  AppendLittle<uint16_t>(bytes, padding);
  bytes.append(padding, 'Z');
  return bytes;
}

constexpr size_t kCrcInDescriptor = 4, kCrcInCentralHeader = 16;

std::string Descriptor(uint32_t crc, uint64_t size, bool is_wide) {
  std::string bytes(kDescriptor);
  AppendLittle<uint32_t>(bytes, crc);
  for (int i = 0; i < 2; ++i)  // compressed, but it never is
    is_wide ? AppendLittle<uint64_t>(bytes, size) : AppendLittle<uint32_t>(bytes, static_cast<uint32_t>(size));
  return bytes;
}

std::string CentralHeader(std::string_view name, uint32_t crc, uint64_t size, uint64_t offset) {
  const std::string zip64 = Zip64Field(size, size, offset);
  std::string bytes(kCentral);
  bytes.append(4, '\0');
  AppendCommonFields(bytes, size);
  AppendLittle<uint32_t>(bytes, crc);
  for (int i = 0; i < 2; ++i) AppendLittle<uint32_t>(bytes, Narrow(size));
  AppendLittle<uint16_t>(bytes, static_cast<uint16_t>(name.size()));
  AppendLittle<uint16_t>(bytes, static_cast<uint16_t>(zip64.size()));
  bytes.append(10, '\0');  // comment size, disk, attributes
  AppendLittle<uint32_t>(bytes, Narrow(offset));
  bytes += name;
  bytes += zip64;
  return bytes;
}

// The end records, of which torch always writes the 64-bit one, its locator and the classic one.
std::string EndRecords(uint64_t members, uint64_t directory_offset, uint64_t end_offset) {
  const uint64_t directory_size = end_offset - directory_offset;
  std::string bytes(kEnd64);
  AppendLittle<uint64_t>(bytes, kEnd64Size - 12);  // bytes that follow in this record
  bytes += "\x1e\x03\x2d\0"sv;                     // made by version 3.0 on Unix, needs version 4.5
  bytes.append(8, '\0');
  for (uint64_t field : {members, members, directory_size, directory_offset}) AppendLittle<uint64_t>(bytes, field);
  bytes += kLocator;
  bytes.append(4, '\0');
  AppendLittle<uint64_t>(bytes, end_offset);
  AppendLittle<uint32_t>(bytes, 1);
  bytes += kEnd;
  bytes.append(4, '\0');
  for (int i = 0; i < 2; ++i) AppendLittle<uint16_t>(bytes, static_cast<uint16_t>(std::min<uint64_t>(members, 0xFFFF)));
  for (uint64_t field : {directory_size, directory_offset}) AppendLittle<uint32_t>(bytes, Narrow(field));
  bytes.append(2, '\0');
  return bytes;
}

}  // namespace

std::vector<ZipMember> ReadZip(File& file, const std::string& path, ByteRange range, uint64_t max_members,
                               uint64_t max_header) {
  try {
    return ZipReader(file, range).Read(max_members, max_header);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

ZipLayout::ZipLayout(FileLayout& file, std::string_view top) : file_(file), top_(top), begin_(file.size) {}

void ZipLayout::Add(std::string_view name, std::string_view bytes) {
  Begin(name, bytes.size());
  members_.back().crc = Crc32(bytes);
  file_.Append(bytes);
  AppendDescriptor();
}

uint64_t ZipLayout::AddData(std::string_view name, uint64_t size) {
  Begin(name, size);
  const uint64_t offset = file_.size;
  if (size == 0) return offset;
  file_.size += size;
  members_.back().checksum = static_cast<int64_t>(file_.checksums.size());
  file_.checksums.push_back({offset, size, {file_.size + kCrcInDescriptor}});
  AppendDescriptor();
  return offset;
}

void ZipLayout::Begin(std::string_view name, uint64_t size) {
  Member& member = members_.emplace_back();
  member.name = top_ + "/";
  member.name += name;
  member.header = file_.size - begin_;
  member.size = size;
  file_.Append(LocalHeader(member.name, size, member.header));
}

void ZipLayout::AppendDescriptor() {
  const Member& member = members_.back();
  const bool is_wide = IsWide(member.size) || IsWide(member.header);
  if (member.size > 0) file_.Append(Descriptor(member.crc, member.size, is_wide));
}

uint64_t ZipLayout::Finish() {
  const uint64_t directory = file_.size - begin_;
  for (const Member& member : members_) {
    if (member.checksum >= 0) file_.checksums[member.checksum].places[1] = file_.size + kCrcInCentralHeader;
    file_.Append(CentralHeader(member.name, member.crc, member.size, member.header));
  }
  file_.Append(EndRecords(members_.size(), directory, file_.size - begin_));
  return file_.size - begin_;
}

}  // namespace reshard
