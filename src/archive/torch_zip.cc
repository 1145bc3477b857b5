#include "archive/torch_zip.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "base/hash.h"

// Byte layout and numbers: docs/formats/torch_zip.md.
namespace reshard {

using namespace std::string_view_literals;
const std::string_view kPickledNone = "\x80\x02N."sv;
const std::string_view kPickledEmptyDict = "\x80\x02}q\x00."sv;

namespace {

constexpr uint16_t kDescriptorFollows = 0x0008, kUtf8Name = 0x0800;
constexpr uint64_t kAlignment = 64;

struct Member {
  std::string name;
  std::string_view data;
  uint32_t crc = 0;
  uint32_t offset = 0;  // of the local header
};

// Twenty digits for the names of the members and twenty for their contents. The names are always the same five, and
// torch's hash of them is what libstdc++ makes of them; the contents' is a combination of their CRCs in order.
std::string SerializationId(const std::array<std::string_view, 5>& contents) {
  constexpr uint64_t kNamesHash = 2908468677762923104;
  uint64_t hash = 0;
  for (std::string_view content : contents) hash ^= uint64_t{Crc32(content)} + 0x9e3779b9 + (hash << 6) + (hash >> 2);
  return fmt::format("{:020}{:020}", kNamesHash, hash);
}

// Flags, method, time and date, the same in a member's two headers.
void AppendCommonFields(std::string& zip) {
  AppendLittle<uint16_t>(zip, kDescriptorFollows | kUtf8Name);
  zip.append(6, '\0');
}

// The fields that a data descriptor and a central header share.
void AppendSums(std::string& zip, const Member& member) {
  auto size = static_cast<uint32_t>(member.data.size());
  AppendLittle<uint32_t>(zip, member.crc);
  AppendLittle<uint32_t>(zip, size);  // compressed, but it never is
  AppendLittle<uint32_t>(zip, size);
}

void AppendMember(std::string& zip, const Member& member) {
  uint64_t unpadded = zip.size() + 30 + member.name.size() + 4;
  auto padding = static_cast<uint16_t>(RoundUp(unpadded, kAlignment) - unpadded);
  zip += "PK\x03\x04\0\0"sv;
  AppendCommonFields(zip);
  zip.append(12, '\0');  // CRC and sizes: in the data descriptor
  AppendLittle<uint16_t>(zip, static_cast<uint16_t>(member.name.size()));
  AppendLittle<uint16_t>(zip, 4 + padding);
  zip += member.name;
  zip += "FB";
  AppendLittle<uint16_t>(zip, padding);
  zip.append(padding, 'Z');
  zip += member.data;
  zip += "PK\x07\x08";
  AppendSums(zip, member);
}

void AppendCentralHeader(std::string& zip, const Member& member) {
  zip += "PK\x01\x02\0\0\0\0"sv;
  AppendCommonFields(zip);
  AppendSums(zip, member);
  AppendLittle<uint16_t>(zip, static_cast<uint16_t>(member.name.size()));
  zip.append(12, '\0');  // extra and comment sizes, disk, attributes
  AppendLittle<uint32_t>(zip, member.offset);
  zip += member.name;
}

// The end records, of which torch always writes the 64-bit one, its locator and the classic one.
void AppendEnd(std::string& zip, uint64_t members, uint64_t directory_offset) {
  uint64_t end_offset = zip.size(), directory_size = end_offset - directory_offset;
  zip += "PK\x06\x06"sv;
  AppendLittle<uint64_t>(zip, 44);  // bytes that follow in this record
  zip += "\x1e\x03\x2d\0"sv;        // made by version 3.0 on Unix, needs version 4.5
  zip.append(8, '\0');
  for (uint64_t field : {members, members, directory_size, directory_offset}) AppendLittle<uint64_t>(zip, field);
  zip += "PK\x06\x07\0\0\0\0"sv;
  AppendLittle<uint64_t>(zip, end_offset);
  AppendLittle<uint32_t>(zip, 1);
  zip += "PK\x05\x06\0\0\0\0"sv;
  for (int i = 0; i < 2; ++i) AppendLittle<uint16_t>(zip, static_cast<uint16_t>(members));
  for (uint64_t field : {directory_size, directory_offset}) AppendLittle<uint32_t>(zip, static_cast<uint32_t>(field));
  zip.append(2, '\0');
}

}  // namespace

std::string TorchZip(std::string_view stem, std::string_view pickle) {
  const std::string id = SerializationId({pickle, "1", "64", "little", "3\n"});
  std::array<Member, 6> members{{{"data.pkl", pickle},
                                 {".format_version", "1"},
                                 {".storage_alignment", "64"},
                                 {"byteorder", "little"},
                                 {"version", "3\n"},
                                 {".data/serialization_id", id}}};
  std::string zip;
  for (Member& member : members) {
    member.name = fmt::format("{}/{}", stem, member.name);
    member.crc = Crc32(member.data);
    member.offset = static_cast<uint32_t>(zip.size());
    AppendMember(zip, member);
  }
  uint64_t directory_offset = zip.size();
  for (const Member& member : members) AppendCentralHeader(zip, member);
  AppendEnd(zip, members.size(), directory_offset);
  return zip;
}

}  // namespace reshard
