// A zip of members that the input names, damaged where it says, or any bytes: ReadZip gives members that lie within it
// and apart from one another, or throws Error and nothing else. The first byte chooses.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "archive/zip.h"
#include "base/error.h"
#include "tests/fuzz_bytes.h"
#include "tests/memory_file.h"

using namespace reshard;

namespace {

std::string BuiltZip(FuzzBytes& in) {
  FileLayout file;
  ZipLayout zip(file, in.Text(1 + in.Choose(4)));
  for (size_t count = in.Choose(6); count > 0; --count) {
    const std::string name = in.Text(1 + in.Choose(12));
    zip.Add(name, in.Text(in.Choose(100)));
  }
  zip.Finish();
  std::string bytes = file.literals[0].bytes;
  Damage(bytes, in);
  return bytes;
}

bool AreSound(std::vector<ZipMember> members, uint64_t size) {
  std::set<std::string> names;
  std::sort(members.begin(), members.end(),
            [](const ZipMember& a, const ZipMember& b) { return a.data.offset < b.data.offset; });
  uint64_t end = 0;
  for (const ZipMember& member : members) {
    if (!names.insert(member.name).second || member.name.starts_with("../") || member.name[0] == '/') return false;
    if (member.data.offset < end || member.data.size > size || member.data.end() > size) return false;
    end = member.data.end();
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzBytes in(data, size);
  const std::string bytes = in.Choose(2) ? BuiltZip(in) : in.Rest();
  MemoryFile file(bytes);
  try {
    if (!AreSound(ReadZip(file, "input", {0, bytes.size()}, 1000, 1 << 20), bytes.size())) std::abort();
  } catch (const Error& error) {
    if (error.code() == Code::kInternal) std::abort();
  }
  return 0;
}
