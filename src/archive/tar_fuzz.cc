// Any bytes as a tar: members that are what ReadTar promises, and the same again when they are laid out anew; or Error
// and nothing else. The mutator moves whole blocks, puts odd values into fields and makes the headers' sums right,
// which chance would not.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <string_view>

#include "archive/tar.h"
#include "base/error.h"
#include "base/text.h"
#include "tests/memory_file.h"

using namespace reshard;

extern "C" __attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

constexpr size_t kBlock = 512;
constexpr TarLimits kLimits{200, 100'000};

bool IsPlain(const std::string& name) {
  if (!IsUtf8(name) || name.find('\0') != std::string::npos) return false;
  const std::string slashed = "/" + name + "/";
  for (const char* part : {"//", "/./", "/../"})
    if (slashed.find(part) != std::string::npos) return false;
  return true;
}

// A file is no folder of another, and nothing is there twice, in whatever case.
bool IsTree(const std::vector<TarMember>& members) {
  std::map<std::string, bool> folders;
  for (const TarMember& member : members) {
    std::string name = member.name;
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    if (!folders.emplace(name, member.folder).second) return false;
  }
  for (const auto& [name, is_folder] : folders)
    for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
      if (auto outer = folders.find(name.substr(0, slash)); outer != folders.end() && !outer->second) return false;
  return true;
}

bool AreSound(const std::vector<TarMember>& members, uint64_t size) {
  uint64_t end = 0;
  for (const TarMember& member : members) {
    if (!IsPlain(member.name) || member.data.offset < end + kBlock) return false;
    if (member.data.offset % kBlock || member.data.end() < member.data.offset || member.data.end() > size) return false;
    if (member.folder && member.data.size) return false;
    end = member.data.end();
  }
  return members.size() <= kLimits.max_members && IsTree(members);
}

std::vector<TarMember> LaidOutAndRead(const std::vector<TarMember>& members) {
  FileLayout layout;
  TarLayout tar(layout);
  tar.AddFolder("");
  for (const TarMember& member : members)
    if (member.folder)
      tar.AddFolder(member.name);
    else
      tar.AddFile(member.name, member.data.size);
  tar.Finish();
  std::string bytes(layout.size, 'd');
  for (const Literal& literal : layout.literals) bytes.replace(literal.offset, literal.bytes.size(), literal.bytes);
  MemoryFile file(bytes);
  return ReadTar(file, "output", bytes.size(), {kLimits.max_members, 1 << 20});
}

bool IsEqual(const std::vector<TarMember>& a, const std::vector<TarMember>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const TarMember& left, const TarMember& right) {
    return left.name == right.name && left.folder == right.folder && left.data.size == right.data.size;
  });
}

// -- mutation ---------------------------------------------------------------------------------------------------------

size_t SizeIn(const uint8_t* header) {
  size_t size = 0;
  for (size_t i = 124; i < 136 && header[i] >= '0' && header[i] <= '7'; ++i) size = size * 8 + header[i] - '0';
  return size;
}

void RightSums(uint8_t* data, size_t size) {
  for (size_t at = 0; at + kBlock <= size;) {
    uint8_t* header = data + at;
    at += kBlock;
    if (std::all_of(header, header + kBlock, [](uint8_t byte) { return byte == 0; })) continue;
    std::memset(header + 148, ' ', 8);
    unsigned sum = 0;
    for (size_t i = 0; i < kBlock; ++i) sum += header[i];
    char text[8];
    std::snprintf(text, sizeof text, "%06o", sum);
    std::memcpy(header + 148, text, 7);
    if (const size_t blocks = (SizeIn(header) + kBlock - 1) / kBlock; blocks <= (size - at) / kBlock)
      at += blocks * kBlock;
  }
}

// Copies, or moves, a block to another place.
void MoveBlock(uint8_t* data, size_t size, std::mt19937& random) {
  const size_t blocks = size / kBlock;
  uint8_t *from = data + random() % blocks * kBlock, *to = data + random() % blocks * kBlock;
  if (random() % 2)
    std::memmove(to, from, kBlock);
  else if (from != to)
    std::swap_ranges(from, from + kBlock, to);
}

struct Value {
  size_t at;
  std::string_view bytes;
};
using namespace std::string_view_literals;
constexpr Value kValues[] = {
    {156, "x"},
    {156, "g"},
    {156, "L"},
    {156, "K"},
    {156, "5"},
    {156, "0"},
    {156, "\0"sv},
    {156, "1"},
    {156, "2"},
    {156, "S"},
    {156, "7"},
    {124, "00000000000"},
    {124, "77777777777"},
    {124, "00000001000"},
    {124, "-0000000001"},
    {124, "\x80\0\0\0"sv},
    {124, "\xff\xff"},
    {124, "        0"},
    {0, "./"},
    {0, "../"},
    {0, "/"},
    {0, "a/a/a/a"},
    {0, "A\0"sv},
    {0, "./a\0"sv},
    {0, "\xc3\xa9"},
    {0, "e\xcc\x81"},
    {257, "ustar  \0"sv},
    {257, "\0\0\0\0\0\0\0\0"sv},
    {345, "p/q\0"sv},
    {345, "..\0"sv},
    {512, "12 path=abcd\n"},
    {512, "11 size=12\n"},
    {512, "12 path=../a\n"},
    {512, "17 GNU.sparse.x=1\n"},
};

void SetField(uint8_t* data, size_t size, std::mt19937& random) {
  const Value& value = kValues[random() % std::size(kValues)];
  const size_t at = random() % (size / kBlock) * kBlock + value.at;
  if (at + value.bytes.size() <= size) std::memcpy(data + at, value.bytes.data(), value.bytes.size());
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::mt19937 random(seed);
  const unsigned how = random() % 8;
  if (size < kBlock || how < 3)
    size = LLVMFuzzerMutate(data, size, max_size);
  else if (how < 5)
    MoveBlock(data, size, random);
  else
    SetField(data, size, random);
  if (random() % 16) RightSums(data, size);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    MemoryFile file(bytes);
    const std::vector<TarMember> members = ReadTar(file, "input", size, kLimits);
    if (!AreSound(members, size) || !IsEqual(LaidOutAndRead(members), members)) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
