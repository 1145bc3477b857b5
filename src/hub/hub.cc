#include "hub/hub.h"

#include <algorithm>
#include <cstdlib>

namespace reshard {
namespace {

std::string Environment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value ? value : "";
}

bool IsWord(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Where the text has $NAME or ${NAME} at `at`: the name, and the end of the reference; else no name.
std::pair<std::string, size_t> VariableAt(const std::string& text, size_t at) {
  const bool braced = text.compare(at, 2, "${") == 0;
  const size_t begin = at + 1 + braced;
  size_t end = begin;
  while (end < text.size() && IsWord(text[end])) ++end;
  if (braced && (end == text.size() || text[end] != '}')) return {};
  return {text.substr(begin, end - begin), end + braced};
}

// As Python's expanduser and expandvars, which the hub's library applies: what is not set stays as it is written.
std::string Expanded(std::string text) {
  if (text == "~" || text.starts_with("~/")) text.replace(0, 1, Environment("HOME"));
  std::string expanded;
  for (size_t at = 0; at < text.size();) {
    const auto [name, end] = text[at] == '$' ? VariableAt(text, at) : std::pair<std::string, size_t>();
    const char* value = name.empty() ? nullptr : std::getenv(name.c_str());
    expanded += value ? std::string(value) : text.substr(at, 1);
    at = value ? end : at + 1;
  }
  return expanded;
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
  struct Place {
    const char *variable, *below;
  };
  constexpr Place kPlaces[] = {
      {"TRANSFORMERS_CACHE", ""},
      {"PYTORCH_TRANSFORMERS_CACHE", ""},
      {"PYTORCH_PRETRAINED_BERT_CACHE", ""},
      {"HF_HUB_CACHE", ""},
      {"HUGGINGFACE_HUB_CACHE", ""},
      {"HF_HOME", "/hub"},
      {"XDG_CACHE_HOME", "/huggingface/hub"},
  };
  for (const Place& place : kPlaces)
    if (const std::string folder = Environment(place.variable); !folder.empty()) return Expanded(folder) + place.below;
  return Expanded("~/.cache/huggingface/hub");
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
