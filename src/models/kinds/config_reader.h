// Typed keys of a config, with errors that name file, key, found and expected.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"

namespace reshard {

class ConfigReader {
 public:
  ConfigReader(const Json& config, std::string path) : config_(config), path_(std::move(path)) {}

  // The value, or null where the key is absent.
  const Json& At(std::string_view key) const;

  // Errors: kCorrupt where the value has another type; absent and null give `otherwise`.
  uint64_t Size(std::string_view key, uint64_t otherwise) const;  // 1 to 2^23
  bool Bool(std::string_view key, bool otherwise) const;
  std::string String(std::string_view key, std::string otherwise) const;
  Json Number(std::string_view key, Json otherwise) const;    // finite
  Json Positive(std::string_view key, Json otherwise) const;  // a number above 0

  // A size that must be there.
  uint64_t RequiredSize(std::string_view key) const;

  const Json& config() const { return config_; }
  const std::string& path() const { return path_; }

 private:
  [[noreturn]] void Wrong(std::string_view key, const Json& found, const char* expected) const;

  const Json& config_;
  std::string path_;
};

}  // namespace reshard
