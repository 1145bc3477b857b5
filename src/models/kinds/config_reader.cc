#include "models/kinds/config_reader.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"

namespace reshard {
namespace {

// Products of a layer count and two sizes stay within 64 bits.
constexpr uint64_t kMaxSize = uint64_t{1} << 23;

}  // namespace

const Json& ConfigReader::At(std::string_view key) const {
  static const Json kNull;
  auto found = config_.find(key);
  return found == config_.end() ? kNull : *found;
}

void ConfigReader::Wrong(std::string_view key, const Json& found, const char* expected) const {
  bool is_odd_number = found.is_number_float() && !std::isfinite(found.get<double>());  // which JSON cannot print
  std::string text = is_odd_number ? fmt::format("{}", found.get<double>()) : found.dump();
  throw Error(Code::kCorrupt, fmt::format("'{}' is {}, expected {}", key, text, expected)).At("reading", path_);
}

uint64_t ConfigReader::Size(std::string_view key, uint64_t otherwise) const {
  const Json& value = At(key);
  if (value.is_null()) return otherwise;
  if (!value.is_number_unsigned() || value.get<uint64_t>() == 0 || value.get<uint64_t>() > kMaxSize)
    Wrong(key, value, "a whole number from 1 to 8388608");
  return value.get<uint64_t>();
}

uint64_t ConfigReader::RequiredSize(std::string_view key) const {
  if (At(key).is_null())
    throw Error(Code::kCorrupt, fmt::format("'{}' is missing, expected a whole number", key)).At("reading", path_);
  return Size(key, 0);
}

bool ConfigReader::Bool(std::string_view key, bool otherwise) const {
  const Json& value = At(key);
  if (value.is_null()) return otherwise;
  if (!value.is_boolean()) Wrong(key, value, "true or false");
  return value.get<bool>();
}

std::string ConfigReader::String(std::string_view key, std::string otherwise) const {
  const Json& value = At(key);
  if (value.is_null()) return otherwise;
  if (!value.is_string()) Wrong(key, value, "a text");
  return value.get<std::string>();
}

Json ConfigReader::Number(std::string_view key, Json otherwise) const {
  const Json& value = At(key);
  if (value.is_null()) return otherwise;
  if (!value.is_number() || !std::isfinite(value.get<double>())) Wrong(key, value, "a finite number");
  return value;
}

Json ConfigReader::Positive(std::string_view key, Json otherwise) const {
  Json value = Number(key, std::move(otherwise));
  if (!At(key).is_null() && value.get<double>() <= 0) Wrong(key, value, "a number above 0");
  return value;
}

}  // namespace reshard
