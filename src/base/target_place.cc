#include "base/target_place.h"

#include <algorithm>

namespace reshard {
namespace {

constexpr char kLogs[] = "conversion-logs";

}  // namespace

TargetPlace TargetPlace::Folder(std::string path) { return {std::move(path), ""}; }

TargetPlace TargetPlace::File(const std::string& path) { return {ParentOf(path), path.substr(path.rfind('/') + 1)}; }

TargetPlace TargetPlace::Existing(Io& io, const std::string& path) {
  const std::optional<FileInfo> info = io.Stat(path);
  if (info) return info->type == FileInfo::Type::kDirectory ? Folder(path) : File(path);
  const TargetPlace file = File(path);
  return io.Stat(file.root()) ? file : Folder(path);
}

std::string TargetPlace::logs() const { return JoinPath(folder_, is_file() ? file_ + "-" + kLogs : kLogs); }

std::vector<std::string> TargetPlace::Entries(Io& io) const {
  std::vector<std::string> entries = io.List(folder_);
  std::erase_if(entries, [&](const std::string& entry) {
    return is_file() ? entry != file_ : entry == ".reshard" || entry == receipt() || entry == kLogs;
  });
  return entries;
}

}  // namespace reshard
