#include "hub/hub.h"

#include <algorithm>
#include <cstdlib>

namespace reshard {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  std::string text = value ? value : "";
  const char* home = std::getenv("HOME");
  if (text.starts_with("~/") && home) text = home + text.substr(1);
  return text;
}

// "namespace/name" or "name", of the characters that the hub allows: never a way out of the cache folder.
bool IsRepositoryName(const std::string& name) {
  auto allowed = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-' || c == '/';
  };
  return !name.empty() && std::all_of(name.begin(), name.end(), allowed) &&
         std::count(name.begin(), name.end(), '/') <= 1 && name.find("..") == std::string::npos &&
         name.front() != '/' && name.back() != '/';
}

}  // namespace

std::string HubCache() {
  for (const char* variable : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (std::string folder = Environment(variable); !folder.empty()) return folder;
  if (std::string home = Environment("HF_HOME"); !home.empty()) return home + "/hub";
  if (std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty()) return cache + "/huggingface/hub";
  return Environment("HOME") + "/.cache/huggingface/hub";
}

std::optional<std::string> FindModel(Io& io, const std::string& name) {
  auto is_folder = [&](const std::string& path) {
    auto info = io.Stat(path);
    return info && info->type == FileInfo::Type::kDirectory;
  };
  if (is_folder(name)) return name;
  if (!IsRepositoryName(name)) return std::nullopt;
  std::string flat = name;
  if (size_t slash = flat.find('/'); slash != std::string::npos) flat.replace(slash, 1, "--");
  std::string folder = HubCache() + "/models--" + flat, reference = folder + "/refs/main";
  if (!io.Stat(reference)) return std::nullopt;
  constexpr uint64_t kMaxReference = 1024;
  std::string commit = ReadWholeFile(io, reference, kMaxReference);
  commit.erase(std::find_if(commit.begin(), commit.end(), [](unsigned char c) { return !std::isalnum(c); }),
               commit.end());
  std::string snapshot = folder + "/snapshots/" + commit;
  if (commit.empty() || !is_folder(snapshot)) return std::nullopt;
  return snapshot;
}

}  // namespace reshard
