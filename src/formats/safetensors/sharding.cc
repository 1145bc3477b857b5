#include "formats/safetensors/sharding.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "base/json.h"

namespace reshard::safetensors {
namespace {

struct Unit {
  std::string_view name;  // lower case
  uint64_t bytes;
};

constexpr Unit kUnits[] = {
    {"kb", 1'000}, {"mb", 1'000'000}, {"gb", 1'000'000'000}, {"tb", 1'000'000'000'000},
    {"kib", kKiB}, {"mib", kMiB},     {"gib", kGiB},         {"tib", kGiB << 10},
};

std::string_view Trimmed(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// The unit that `text` ends with, taken off it; 1 byte where it has none, nothing where it is no unit.
std::optional<uint64_t> TakeUnit(std::string_view& text) {
  const size_t number_size =
      std::find_if(text.begin(), text.end(), [](char c) { return !IsDigit(c) && c != '.'; }) - text.begin();
  std::string name(Trimmed(text.substr(number_size)));
  text = text.substr(0, number_size);
  if (name.empty()) return 1;
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  const Unit* unit = std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& u) { return u.name == name; });
  if (unit == std::end(kUnits)) return std::nullopt;
  return unit->bytes;
}

// All of `text` as a number.
template <typename Number>
std::optional<Number> ParseNumber(std::string_view text) {
  Number value;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<uint64_t> SizeOf(std::string_view text) {
  text = Trimmed(text);
  const std::optional<uint64_t> unit = TakeUnit(text);
  if (!unit) return std::nullopt;
  if (const auto whole = ParseNumber<uint64_t>(text)) return CheckedMultiply(*whole, *unit);
  const auto fraction = ParseNumber<double>(text);
  if (!fraction || *unit == 1) return std::nullopt;
  // Truncated in double arithmetic, as huggingface_hub does.
  const double bytes = *fraction * static_cast<double>(*unit);
  if (bytes >= 0x1p64) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

void CheckShardPath(const std::string& tensor, const std::string& shard) {
  std::string problem;
  if (shard.empty()) problem = "is empty";
  if (shard.starts_with('/')) problem = "is an absolute path";
  if (shard.find('\0') != shard.npos) problem = "holds a zero byte";
  const std::string slashed = "/" + shard + "/";
  if (slashed.find("/../") != slashed.npos) problem = "leaves the folder";
  if (!problem.empty())
    throw Error(Code::kCorrupt,
                fmt::format("the file name {} {}, expected a file within the folder", Json(shard).dump(), problem))
        .Tensor(tensor);
}

// Collects weight_map and skips everything else.
class IndexEvents : public JsonEvents {
 public:
  IndexEvents(std::string_view text, const std::string& path, uint64_t max_tensors)
      : JsonEvents(text, path), max_tensors_(max_tensors) {}

  Index Take() {
    if (!map_seen_) throw Error(Code::kCorrupt, kNoMap);
    auto& entries = index_.entries;
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.tensor < b.tensor; });
    const auto twice = std::adjacent_find(entries.begin(), entries.end(),
                                          [](const auto& a, const auto& b) { return a.tensor == b.tensor; });
    if (twice != entries.end()) throw Error(Code::kCorrupt, "it is there twice, expected once").Tensor(twice->tensor);
    SortShards();
    return std::move(index_);
  }

  bool null() override { return Scalar("null"); }
  bool boolean(bool) override { return Scalar("boolean"); }
  bool number_integer(int64_t) override { return Scalar("number"); }
  bool number_unsigned(uint64_t) override { return Scalar("number"); }
  bool number_float(double, const std::string&) override { return Scalar("number"); }
  bool string(std::string& value) override { return in_map_ && level_ == 2 ? Add(value) : Scalar("string"); }
  bool start_array(size_t) override { return Open("array"); }
  bool start_object(size_t) override {
    const bool is_map = map_next_ && level_ == 1;
    if (!is_map) return Open("object");
    map_next_ = false;
    if (std::exchange(map_seen_, true)) throw Error(Code::kCorrupt, "weight_map is there twice, expected once");
    in_map_ = true;
    ++level_;
    return true;
  }
  bool end_array() override { return Close(); }
  bool end_object() override { return Close(); }
  bool key(std::string& name) override {
    if (level_ == 1) map_next_ = name == "weight_map";
    if (in_map_ && level_ == 2) tensor_ = std::move(name);
    return true;
  }

 private:
  static constexpr const char* kNoMap = "no weight_map, expected an object of tensor names and file names";

  // A value that is no file name.
  bool Scalar(const char* type) {
    if (level_ == 0 || (level_ == 1 && map_next_)) throw Error(Code::kCorrupt, kNoMap);
    if (in_map_)
      throw Error(Code::kCorrupt, fmt::format("weight_map gives {}, expected a string, a file name", type))
          .Tensor(tensor_);
    return true;
  }
  bool Open(const char* type) {
    const bool is_top = level_ == 0 && std::string_view(type) == "object";
    if (!is_top) Scalar(type);
    ++level_;
    return true;
  }
  bool Close() {
    if (--level_ == 1) in_map_ = false;
    return true;
  }

  bool Add(const std::string& shard) {
    if (index_.entries.size() == max_tensors_) throw TooManyTensors(max_tensors_);
    CheckShardPath(tensor_, shard);
    const auto [found, added] = numbers_.emplace(shard, static_cast<uint32_t>(numbers_.size()));
    index_.entries.push_back({std::move(tensor_), found->second});
    return true;
  }

  // Shards were numbered as they came.
  void SortShards() {
    std::vector<uint32_t> sorted(numbers_.size());
    for (auto& [shard, number] : numbers_) {
      sorted[number] = static_cast<uint32_t>(index_.shards.size());
      index_.shards.push_back(shard);
    }
    for (Index::Entry& entry : index_.entries) entry.shard = sorted[entry.shard];
  }

  const uint64_t max_tensors_;
  size_t level_ = 0;
  bool map_next_ = false, map_seen_ = false, in_map_ = false;
  std::string tensor_;
  std::map<std::string, uint32_t> numbers_;
  Index index_;
};

}  // namespace

std::vector<std::vector<size_t>> SplitIntoShards(const std::vector<uint64_t>& sizes, uint64_t max_shard_size) {
  std::vector<std::vector<size_t>> shards;
  std::vector<size_t> open;
  uint64_t open_size = 0;  // never above max_shard_size
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > max_shard_size) {
      shards.push_back({i});  // the open shard stays open, and comes after it
      continue;
    }
    if (sizes[i] > max_shard_size - open_size) {
      shards.push_back(std::move(open));
      open.clear();
      open_size = 0;
    }
    open.push_back(i);
    open_size += sizes[i];
  }
  if (!open.empty()) shards.push_back(std::move(open));
  return shards;
}

std::string ShardName(std::string_view stem, std::string_view extension, size_t number, size_t count) {
  if (count == 1) return fmt::format("{}{}", stem, extension);
  return fmt::format("{}-{:05}-of-{:05}{}", stem, number, count, extension);
}

uint64_t ParseSize(std::string_view text, std::string_view option) {
  const std::optional<uint64_t> size = SizeOf(text);
  if (!size || *size == 0)
    throw Error(
        Code::kInvalidArgument,
        fmt::format("{} is '{}', expected a size above zero such as 10GB, 1.5GB or a number of bytes", option, text));
  return *size;
}

std::string IndexText(std::vector<std::pair<std::string, std::string>> weight_map, uint64_t total_parameters,
                      uint64_t total_size) {
  Json index = {{"metadata", {{"total_parameters", total_parameters}, {"total_size", total_size}}},
                {"weight_map", Json::object()}};
  // Appended to the object's vector: its own insertion looks for the key first, and a model may have 100,000.
  auto& entries = index["weight_map"].get_ref<Json::object_t&>();
  for (auto& [tensor, shard] : weight_map) entries.push_back({std::move(tensor), std::move(shard)});
  return PythonJson(index, true) + "\n";
}

Index ParseIndex(std::string_view text, const std::string& path, uint64_t max_tensors) {
  try {
    IndexEvents events(text, path, max_tensors);
    ReadJson(text, path, events);
    return events.Take();
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

Error TooManyTensors(uint64_t max_tensors) {
  return Error(Code::kUnsupported,
               fmt::format("more than {} tensors, expected at most so many within the memory limit; give a larger "
                           "--max_memory",
                           max_tensors));
}

}  // namespace reshard::safetensors
