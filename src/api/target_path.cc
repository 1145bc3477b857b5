#include "api/target_path.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"

namespace reshard {
namespace {

// Without links as far as it exists.
std::string Resolve(Io& io, const std::string& path) {
  std::string existing = ExistingParent(io, path), whole = WithoutSlashes(path);
  std::string rest = whole.size() > existing.size() && existing != "." ? whole.substr(existing.size())
                     : existing == "." && whole != "."                 ? "/" + whole
                                                                       : "";
  return WithoutSlashes(io.Canonical(existing) + (rest.empty() || rest[0] == '/' ? rest : "/" + rest));
}

bool IsWithin(const std::string& path, const std::string& folder) {
  return path == folder || path.starts_with(folder == "/" ? folder : folder + "/");
}

// Of a file, or of all that lies in a folder.
uint64_t SizeOf(Io& io, const std::string& path) {
  const auto info = io.Stat(path);
  if (!info || info->type != FileInfo::Type::kDirectory) return info ? info->size : 0;
  uint64_t bytes = 0;
  for (const std::string& name : io.List(path)) bytes += SizeOf(io, JoinPath(path, name));
  return bytes;
}

}  // namespace

std::string ExistingParent(Io& io, std::string path) {
  path = WithoutSlashes(path);
  while (!io.Stat(path) && path != "/" && path != ".") path = WithoutSlashes(ParentOf(path));
  return path;
}

void CheckTargetPath(Io& io, const std::string& source, const TargetPlace& place) {
  const std::string target = place.path(), from = Resolve(io, source), to = Resolve(io, target);
  const char* wanted = place.is_file() ? "file" : "folder";
  auto refuse = [&](const char* found) {
    throw Error(Code::kPermission, fmt::format("{} the source {}, expected a {} of its own", found, source, wanted))
        .At("writing", target);
  };
  if (from == to) refuse("the target is");
  if (IsWithin(to, from)) refuse("the target lies inside");
  if (IsWithin(from, to)) refuse("the target holds");
  auto info = io.Stat(target);
  if (!info || (info->type == FileInfo::Type::kDirectory) != place.is_file()) return;
  throw Error(Code::kAlreadyExists,
              fmt::format("this is a {}, expected a {} or nothing; choose another name, or delete it",
                          place.is_file() ? "folder" : "file", wanted))
      .At("writing", target);
}

void CheckFreeSpace(Io& io, const Plan& plan, const TargetPlace& place, bool replace, uint64_t staged) {
  const std::string target = place.path();
  constexpr uint64_t kRecords = 16;  // owner, records, receipt, folders of staging
  uint64_t bytes = kMiB, inodes = plan.files.size() + kRecords;
  std::set<std::string> folders;
  for (const FileLayout& file : plan.files) {
    bytes += RoundUp(file.size, 4 * kKiB);
    folders.insert(ParentOf(file.path));
  }
  inodes += folders.size();
  bytes -= std::min(bytes, staged);
  if (staged > 0) inodes = kRecords;  // the others are there
  FreeSpace free = io.Free(ExistingParent(io, target));
  if (free.inodes < inodes)
    throw Error(Code::kNoSpace, fmt::format("{} files can still be made there, expected {}", free.inodes, inodes))
        .At("writing", target);
  if (free.bytes >= bytes) return;
  bool old_is_in_the_way = replace && free.bytes + SizeOf(io, target) >= bytes;
  throw Error(
      Code::kNoSpace,
      fmt::format("{} are free, expected {}, {} more{}", HumanBytes(free.bytes), HumanBytes(bytes),
                  HumanBytes(bytes - free.bytes),
                  old_is_in_the_way
                      ? "; the old checkpoint stays until the new one is there, delete it first where that is too much"
                      : ""))
      .At("writing", target);
}

}  // namespace reshard
