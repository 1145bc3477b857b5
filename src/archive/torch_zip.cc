#include "archive/torch_zip.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <utility>

#include "archive/zip.h"
#include "base/hash.h"

// Byte layout and numbers: docs/formats/torch_zip.md.
namespace reshard {

using namespace std::string_view_literals;
const std::string_view kPickledNone = "\x80\x02N."sv;
const std::string_view kPickledEmptyDict = "\x80\x02}q\x00."sv;
const std::string_view kPickledListOfNone = "\x80\x02]q\x00Na."sv;

namespace {

// Twenty digits for the names of the members and twenty for their contents. The names are always the same five, and
// torch's hash of them is what libstdc++ makes of them; the contents' is a combination of their CRCs in order.
std::string SerializationId(const std::array<std::string_view, 5>& contents) {
  constexpr uint64_t kNamesHash = 2908468677762923104;
  uint64_t hash = 0;
  for (std::string_view content : contents) hash ^= uint64_t{Crc32(content)} + 0x9e3779b9 + (hash << 6) + (hash >> 2);
  return fmt::format("{:020}{:020}", kNamesHash, hash);
}

}  // namespace

std::string TorchZip(std::string_view stem, std::string_view pickle) {
  const std::string id = SerializationId({pickle, "1", "64", "little", "3\n"});
  FileLayout file;
  ZipLayout zip(file, stem);
  zip.Add("data.pkl", pickle);
  zip.Add(".format_version", "1");
  zip.Add(".storage_alignment", "64");
  zip.Add("byteorder", "little");
  zip.Add("version", "3\n");
  zip.Add(".data/serialization_id", id);
  zip.Finish();
  return file.literals[0].bytes;
}

}  // namespace reshard
