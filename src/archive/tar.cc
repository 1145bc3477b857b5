#include "archive/tar.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"

namespace reshard {
namespace {

using namespace std::string_view_literals;

constexpr uint64_t kBlock = 512;
constexpr uint64_t kRecord = 20 * kBlock;  // what the end is padded to
constexpr uint64_t kMaxEnd = kMiB;         // of zeros behind the last member: blocking factors are far below it
constexpr uint64_t kMaxExtended = kMiB;    // of one extended header
constexpr uint64_t kMaxName = 4096;
constexpr size_t kMaxDepth = 32;
constexpr uint64_t kPerEntry = 256;  // bytes of memory that a member takes besides its name, three times

// Fields of a header block: offset and size.
struct Field {
  size_t at, size;
  std::string_view Of(std::string_view block) const { return block.substr(at, size); }
};
constexpr Field kName{0, 100}, kMode{100, 8}, kUid{108, 8}, kGid{116, 8}, kSize{124, 12}, kTime{136, 12}, kSum{148, 8},
    kType{156, 1}, kMagic{257, 8}, kPrefix{345, 155};
constexpr std::string_view kUstar = "ustar\00000"sv;

std::string_view ToNul(std::string_view field) { return field.substr(0, field.find('\0')); }

bool IsZero(std::string_view bytes) { return bytes.find_first_not_of('\0') == std::string_view::npos; }

// -- reading ----------------------------------------------------------------------------------------------------------

// What a number field says: octal digits between blanks, or base 256; empty is 0. Nothing where it is no number below
// 2^63.
std::optional<uint64_t> Number(std::string_view field) {
  if (static_cast<uint8_t>(field[0]) == 0x80) {
    uint64_t value = 0;
    for (char byte : field.substr(1)) {
      if (value >> 55) return std::nullopt;
      value = value << 8 | static_cast<uint8_t>(byte);
    }
    return value;
  }
  field = ToNul(field);
  field.remove_prefix(std::min(field.find_first_not_of(' '), field.size()));
  field = field.substr(0, field.find_last_not_of(' ') + 1);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value, 8);
  if (field.empty()) return 0;
  if (error != std::errc() || end != field.data() + field.size()) return std::nullopt;
  return value;
}

std::optional<uint64_t> Decimal(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value >> 63) return std::nullopt;
  return value;
}

// Of a header's bytes, the sum's own field counted as blanks. Some old writers added them as signed numbers.
bool SumIsRight(std::string_view block) {
  const std::optional<uint64_t> told = Number(kSum.Of(block));
  int64_t sum = 8 * ' ', signed_sum = sum;
  for (size_t i = 0; i < block.size(); ++i) {
    if (i >= kSum.at && i < kSum.at + kSum.size) continue;
    sum += static_cast<uint8_t>(block[i]);
    signed_sum += static_cast<int8_t>(block[i]);
  }
  return told && (static_cast<int64_t>(*told) == sum || static_cast<int64_t>(*told) == signed_sum);
}

// Two names that a file system may take for one become equal.
std::string Folded(std::string name) {
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return name;
}

bool HasCombiningMark(std::string_view name) {
  while (!name.empty())
    if (auto point = TakeCodePoint(name); point && *point >= 0x300 && *point <= 0x36f) return true;
  return false;
}

// What extended headers say of the members behind them.
struct Said {
  std::optional<std::string> name;
  std::optional<uint64_t> size;
};

// Keys of PAX headers that make a member's data something else than the file's bytes.
constexpr std::string_view kSparseKeys[] = {"GNU.sparse.", "SCHILY.realsize", "SUN.holesdata"};

class TarReader {
 public:
  TarReader(File& file, const std::string& path, uint64_t size, const TarLimits& limits)
      : file_(file), path_(path), size_(size), limits_(limits) {}

  std::vector<TarMember> Read() {
    while (true) {
      const std::string block = Block();
      if (IsZero(block)) break;
      ReadEntry(block);
    }
    if (pending_ || long_link_) throw Corrupt("an extended header stands before no member, expected a member");
    CheckEnd();
    return std::move(members_);
  }

 private:
  Error Failed(Code code, const std::string& problem) const {
    return Error(code, entry_.empty() ? problem : fmt::format("member '{}': {}", Visible(entry_), problem))
        .At("reading", path_);
  }
  Error Corrupt(const std::string& problem) const { return Failed(Code::kCorrupt, problem); }
  Error Unsupported(const std::string& problem) const { return Failed(Code::kUnsupported, problem); }

  // The next header; several come with one read where members are small.
  std::string Block() {
    entry_.clear();
    if (size_ - at_ < kBlock)
      throw Corrupt(
          fmt::format("it ends at byte {} without two blocks of zeros, expected them behind the last member; "
                      "it may be cut off",
                      size_));
    if (at_ < window_at_ || at_ + kBlock > window_at_ + window_.size()) {
      window_at_ = at_;
      window_.resize(std::min(size_ - at_, 8 * kBlock));
      file_.ReadAt(window_.data(), window_.size(), window_at_);
    }
    std::string block = window_.substr(at_ - window_at_, kBlock);
    at_ += kBlock;
    return block;
  }

  void ReadEntry(std::string_view block) {
    const uint64_t begin = at_ - kBlock;
    entry_ = ToNul(kName.Of(block));
    if (!SumIsRight(block))
      throw Corrupt(
          fmt::format("the header at byte {} has another sum than it says, expected a tar's header; the file "
                      "may be damaged",
                      begin));
    const auto stored = Number(kSize.Of(block));
    if (!stored) {
      const bool negative = static_cast<uint8_t>(kSize.Of(block)[0]) == 0xff || kSize.Of(block).find('-') < kSize.size;
      throw Corrupt(fmt::format("the size in the header at byte {} is {}, expected a number below 2^63", begin,
                                negative ? "negative" : "no such number"));
    }
    switch (char type = kType.Of(block)[0]) {
      case 'x': {
        if (pending_) throw Corrupt("two extended headers of one member, expected one");
        pending_ = true;
        const Said said = Records(Extended(*stored));
        if (said.name) Say(member_.name, *said.name, "name");
        member_.size = said.size;
        return;
      }
      case 'g': {
        const Said said = Records(Extended(*stored));
        if (said.name) all_.name = said.name;
        if (said.size) all_.size = said.size;
        return;
      }
      case 'L':
        pending_ = true;
        return Say(member_.name, std::string(ToNul(Extended(*stored))), "name");
      case 'K':  // of a link, which is refused by itself
        if (std::exchange(long_link_, true)) throw Corrupt("two long targets of one link, expected one");
        Extended(*stored);
        return;
      default:
        ReadMember(block, type, *stored);
        member_ = {};
        pending_ = long_link_ = false;
    }
  }

  // The data of an extended header.
  std::string Extended(uint64_t size) {
    if (size > kMaxExtended)
      throw Corrupt(fmt::format("an extended header of {} bytes, expected at most {}", size, kMaxExtended));
    const ByteRange range = Take(size);
    Hold(size + kPerEntry);
    std::string bytes(size, '\0');
    if (size) file_.ReadAt(bytes.data(), size, range.offset);
    return bytes;
  }

  // The range of the next data, and goes behind it.
  ByteRange Take(uint64_t size) {
    const ByteRange range{at_, size};
    if (size > size_ - at_ || RoundUp(size, kBlock) > size_ - at_)
      throw Corrupt(fmt::format("{} bytes from byte {} on in a file of {}, expected all of them; it may be cut off",
                                size, at_, size_));
    at_ += RoundUp(size, kBlock);
    return range;
  }

  void Hold(uint64_t bytes) {
    held_ += bytes;
    if (held_ > limits_.max_header)
      throw Unsupported(
          fmt::format("the archive's headers take more than {} bytes, expected at most so many; give a "
                      "larger --max_memory",
                      limits_.max_header));
  }

  template <typename T>
  void Say(std::optional<T>& field, T value, const char* what) {
    if (field) throw Corrupt(fmt::format("extended headers give its {} twice, expected once", what));
    field = std::move(value);
  }

  // What the records "<length> <key>=<value>\n" of a PAX header say.
  Said Records(std::string_view text) {
    Said said;
    while (!text.empty()) {
      const size_t blank = text.find(' ');
      const auto length = Decimal(text.substr(0, std::min(blank, text.size())));
      if (!length || *length > text.size() || *length < blank + 2 || text[*length - 1] != '\n')
        throw Corrupt("a PAX header that is no list of records, expected '<length> <key>=<value>'");
      const std::string_view record = text.substr(blank + 1, *length - blank - 2);
      const size_t equals = record.find('=');
      if (equals == 0 || equals == std::string_view::npos)
        throw Corrupt("a PAX record without a key, expected '<length> <key>=<value>'");
      Record(record.substr(0, equals), record.substr(equals + 1), said);
      text.remove_prefix(*length);
    }
    return said;
  }

  void Record(std::string_view key, std::string_view value, Said& said) {
    for (std::string_view sparse : kSparseKeys)
      if (key.starts_with(sparse)) throw Sparse();
    if (key == "path") return Say(said.name, std::string(value), "name");
    if (key != "size") return;
    const auto size = Decimal(value);
    if (!size)
      throw Corrupt(fmt::format("the size '{}' in its PAX header, expected a number below 2^63", Visible(value)));
    Say(said.size, *size, "size");
  }

  Error Sparse() const {
    return Unsupported("it is a sparse file, expected all of its bytes; pack it again without --sparse");
  }

  void ReadMember(std::string_view block, char type, uint64_t stored) {
    const std::string raw = NameOf(block);
    entry_ = raw;
    const bool old_folder = type == '\0' && raw.ends_with('/');
    TarMember member;
    member.folder = type == '5' || old_folder;
    if (!member.folder) RefuseType(type);
    const uint64_t size = member_.size ? *member_.size : all_.size.value_or(stored);
    if (member.folder && size > 0) throw Corrupt(fmt::format("a folder of {} bytes, expected none", size));
    if (!member.folder && raw.ends_with('/')) throw Corrupt("the name of a file ends in '/', expected a name");
    member.name = Relative(raw);
    member.data = Take(size);
    if (member.name.empty()) return AddRoot(member);
    Claim(member);
    members_.push_back(std::move(member));
    if (members_.size() > limits_.max_members)
      throw Unsupported(
          fmt::format("more than {} members, expected at most so many within the memory limit; give a "
                      "larger --max_memory",
                      limits_.max_members));
  }

  std::string NameOf(std::string_view block) const {
    const std::string_view prefix = ToNul(kPrefix.Of(block)), name = ToNul(kName.Of(block));
    const bool ustar = kMagic.Of(block) == kUstar;
    if (!ustar && !IsZero(kPrefix.Of(block)))
      throw Unsupported("a header with fields of an incremental backup, expected plain ones; pack it again with tar");
    if (member_.name) return *member_.name;
    if (all_.name) return *all_.name;
    return prefix.empty() ? std::string(name) : fmt::format("{}/{}", prefix, name);
  }

  void RefuseType(char type) const {
    switch (type) {
      case '0':
      case '\0':
      case '7':
        return;
      case '1':
      case '2':
        throw Unsupported(
            fmt::format("it is a {} link, expected a file or a folder; pack it again with tar -h "
                        "--hard-dereference",
                        type == '1' ? "hard" : "symbolic"));
      case '3':
      case '4':
        throw Corrupt("it is a device, expected a file or a folder");
      case '6':
        throw Corrupt("it is a FIFO, expected a file or a folder");
      case 'S':
        throw Sparse();
      default:
        throw Unsupported(fmt::format("it is of the type '{}', expected a file or a folder", Visible({&type, 1})));
    }
  }

  // The name as it counts from the archive's root: "" for the root itself.
  std::string Relative(std::string_view name) const {
    if (name.size() > kMaxName)
      throw Corrupt(fmt::format("a name of {} bytes, expected at most {}", name.size(), kMaxName));
    if (!IsUtf8(name)) throw Corrupt("its name is not UTF-8, expected UTF-8");
    if (name.find('\0') != std::string_view::npos) throw Corrupt("its name holds a NUL, expected a file's name");
    if (HasCombiningMark(name))
      throw Unsupported("its name holds a combining mark, expected composed letters (Unicode's NFC); rename it");
    if (name.starts_with('/')) throw Corrupt("its name is absolute, expected one below the archive");
    while (name.ends_with('/')) name.remove_suffix(1);
    if (name == ".") return "";
    if (name.starts_with("./")) name.remove_prefix(2);
    size_t depth = 0;
    for (size_t at = 0; at <= name.size();) {
      const size_t slash = std::min(name.find('/', at), name.size());
      const std::string_view part = name.substr(at, slash - at);
      if (part == "..") throw Corrupt("its name has '..', expected one below the archive");
      if (part.empty() || part == ".") throw Corrupt("its name has an empty part or '.', expected a plain name");
      if (++depth > kMaxDepth)
        throw Unsupported(fmt::format("it lies deeper than {} folders, expected fewer", kMaxDepth));
      at = slash + 1;
    }
    return std::string(name);
  }

  void AddRoot(const TarMember& member) {
    if (!member.folder) throw Corrupt("the archive's root is a file, expected a folder");
    if (std::exchange(has_root_, true)) throw Corrupt("the archive's root is there twice, expected once");
  }

  // Takes the member's name, and those of the folders that it lies in.
  void Claim(const TarMember& member) {
    for (size_t slash = member.name.find('/'); slash != std::string::npos; slash = member.name.find('/', slash + 1)) {
      const std::string folder = member.name.substr(0, slash);
      const Entry& entry = Enter(folder, {folder, true, false});
      if (!entry.folder) throw Corrupt(fmt::format("it lies in '{}', which is a file, expected a folder", folder));
    }
    Entry& entry = Enter(member.name, {member.name, member.folder, false});
    if (entry.told || entry.folder != member.folder) throw Corrupt("it is a duplicate, expected each name once");
    entry.told = true;
  }

  struct Entry {
    std::string name;
    bool folder;
    bool told;  // by a member of its own
  };

  Entry& Enter(const std::string& name, Entry entry) {
    const auto [found, fresh] = entries_.try_emplace(Folded(name), std::move(entry));
    if (fresh) Hold(3 * name.size() + kPerEntry);
    if (found->second.name != name)
      throw Corrupt(fmt::format("it is also there as '{}', expected names that differ by more than case",
                                Visible(found->second.name)));
    return found->second;
  }

  // Zeros, from the block that Read has seen on.
  void CheckEnd() {
    if (size_ - at_ < kBlock) throw Corrupt("it ends with one block of zeros, expected two; it may be cut off");
    if (size_ - at_ > kMaxEnd)
      throw Corrupt(fmt::format("{} bytes lie behind the end of the archive, expected at most {} of padding",
                                size_ - at_, kMaxEnd));
    if (size_ % kBlock != 0)
      throw Corrupt(fmt::format("its {} bytes are no whole number of blocks, expected one; it may be cut off", size_));
    std::string end(size_ - at_, '\0');
    file_.ReadAt(end.data(), end.size(), at_);
    if (const size_t garbage = end.find_first_not_of('\0'); garbage != std::string::npos)
      throw Corrupt(fmt::format("other bytes than zeros behind the end of the archive, at byte {}, expected none",
                                at_ + garbage));
  }

  File& file_;
  const std::string& path_;
  const uint64_t size_;
  const TarLimits limits_;
  uint64_t at_ = 0, held_ = 0;
  std::string window_;
  uint64_t window_at_ = 0;
  std::string entry_;  // what messages call the member
  Said all_, member_;
  bool pending_ = false, long_link_ = false, has_root_ = false;
  std::map<std::string, Entry> entries_;
  std::vector<TarMember> members_;
};

// -- writing ----------------------------------------------------------------------------------------------------------

// 1980-01-01, the first day of a zip: old enough to be nobody's, and GNU tar takes 1970 for a mistake.
constexpr uint64_t kWritten = 315532800;
constexpr uint64_t kUstarSizes = uint64_t{1} << 33;  // what eleven octal digits can say

void Put(std::string& block, Field field, std::string_view text) { block.replace(field.at, text.size(), text); }

void PutOctal(std::string& block, Field field, uint64_t value) {
  Put(block, field, fmt::format("{:0{}o}", value, field.size - 1));
}

std::string HeaderBlock(std::string_view name, char type, uint64_t size, unsigned mode, uint64_t time) {
  std::string block(kBlock, '\0');
  Put(block, kName, name.substr(0, kName.size));
  PutOctal(block, kMode, mode);
  PutOctal(block, kUid, 0);
  PutOctal(block, kGid, 0);
  PutOctal(block, kSize, size);
  PutOctal(block, kTime, time);
  block[kType.at] = type;
  Put(block, kMagic, kUstar);
  Put(block, kSum, std::string(kSum.size, ' '));
  uint64_t sum = 0;
  for (char byte : block) sum += static_cast<uint8_t>(byte);
  Put(block, kSum, fmt::format("{:06o}", sum) + '\0');
  return block;
}

// A record tells its own length, its digits included.
std::string PaxRecord(std::string_view key, std::string_view value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t length = rest + 1;
  while (fmt::format("{}", length).size() + rest != length) ++length;
  return fmt::format("{} {}={}\n", length, key, value);
}

// For readers that know no extended headers: a question mark for each letter outside of ASCII.
std::string Ascii(std::string_view name) {
  std::string ascii;
  while (!name.empty()) {
    const auto point = TakeCodePoint(name);
    if (!point) name.remove_prefix(1);
    ascii += point && *point < 0x80 ? static_cast<char>(*point) : '?';
  }
  return ascii;
}

}  // namespace

std::vector<TarMember> ReadTar(File& file, const std::string& path, uint64_t size, const TarLimits& limits) {
  return TarReader(file, path, size, limits).Read();
}

bool IsTar(std::string_view begin) {
  const std::string_view block = begin.substr(0, kBlock);
  return block.size() == kBlock && !IsZero(block) && SumIsRight(block);
}

void TarLayout::AddFolder(std::string_view name) {
  AppendHeader(name.empty() ? "./" : fmt::format("./{}/", name), '5', 0);
}

uint64_t TarLayout::AddFile(std::string_view name, uint64_t size) {
  AppendHeader(fmt::format("./{}", name), '0', size);
  const uint64_t offset = file_.size;
  file_.size += size;
  Pad(kBlock);
  return offset;
}

void TarLayout::AddFile(std::string_view name, std::string_view bytes) {
  AppendHeader(fmt::format("./{}", name), '0', bytes.size());
  file_.Append(bytes);
  Pad(kBlock);
}

void TarLayout::Finish() {
  file_.Append(std::string(2 * kBlock, '\0'));
  Pad(kRecord);
}

void TarLayout::AppendHeader(const std::string& name, char type, uint64_t size) {
  const std::string ascii = Ascii(name);
  std::string records;
  if (ascii != name || name.size() > kName.size) records += PaxRecord("path", name);
  if (size >= kUstarSizes) records += PaxRecord("size", fmt::format("{}", std::exchange(size, 0)));
  if (!records.empty()) {
    file_.Append(HeaderBlock("././@PaxHeader", 'x', records.size(), 0, 0));
    file_.Append(records);
    Pad(kBlock);
  }
  file_.Append(HeaderBlock(ascii, type, size, type == '5' ? 0755 : 0644, kWritten));
}

void TarLayout::Pad(uint64_t multiple) {
  const uint64_t size = file_.size - begin_;
  file_.Append(std::string(RoundUp(size, multiple) - size, '\0'));
}

}  // namespace reshard
