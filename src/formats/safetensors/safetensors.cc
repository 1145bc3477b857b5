#include "formats/safetensors/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"
#include "formats/safetensors/sharding.h"

namespace reshard::safetensors {
namespace {

constexpr uint64_t kLengthSize = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the official parser's limit, inclusive
constexpr uint64_t kDataAlignment = 4096;     // of what we write; readers expect none
constexpr size_t kMaxIgnoredDepth = 125;      // of values that nobody reads; the official parser's limit
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::string_view kDownloadAgain = "the file may be cut off; download it again";

Error Corrupt(std::string message) { return Error(Code::kCorrupt, std::move(message)); }

// Position of the first byte that is not UTF-8, or text.size().
size_t FirstInvalidUtf8(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty() && TakeCodePoint(rest)) {
  }
  return text.size() - rest.size();
}

// A tensor as the header describes it. The data range is relative to the data section.
struct Entry {
  std::string name;
  Dims shape;
  uint64_t begin = 0;
  uint64_t end = 0;
  Dtype dtype = Dtype::kF32;
};

// Collects the entries of a header in header order. FORMAT.md's checks 7 to 12 are made here; what the numbers say is
// not judged. A deque: a hostile header may have a million entries, and a vector that grows needs twice their memory.
class HeaderSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderSax(uint64_t max_tensors) : max_tensors_(max_tensors) {}

  std::deque<Entry> TakeEntries() { return std::move(entries_); }

  bool null() override {
    if (!InIgnored() && !(in_ == In::kHeader && metadata_next_)) Refuse("null");
    return true;
  }
  bool boolean(bool value) override { return RefuseUnlessIgnored(value ? "true" : "false"); }
  // Called for numbers with a minus sign only.
  bool number_integer(int64_t value) override {
    return RefuseUnlessIgnored(value == 0 ? "the number -0" : fmt::format("the number {}", value));
  }
  // Fractions, exponents, and integers beyond 64 bits.
  bool number_float(double, const std::string& token) override {
    return RefuseUnlessIgnored(fmt::format("the number {}", Visible(token)));
  }
  bool number_unsigned(uint64_t value) override {
    if (in_ == In::kShape)
      AddExtent(value);
    else if (in_ == In::kOffsets)
      AddOffset(value);
    else
      RefuseUnlessIgnored(fmt::format("the number {}", value));
    return true;
  }
  bool string(std::string& value) override {
    if (in_ == In::kEntry && field_ == Field::kDtype)
      SetDtype(value);
    else if (in_ != In::kMetadata)
      RefuseUnlessIgnored(fmt::format("the string '{}'", Visible(value)));
    return true;
  }
  bool binary(nlohmann::json::binary_t&) override { return false; }  // JSON text has none

  bool key(std::string& value) override {
    if (in_ == In::kHeader)
      BeginNamed(value);
    else if (in_ == In::kEntry)
      BeginField(value);
    return true;
  }

  bool start_object(size_t) override {
    if (in_ == In::kStart)
      in_ = In::kHeader;
    else if (in_ == In::kHeader)
      in_ = metadata_next_ ? In::kMetadata : In::kEntry;
    else
      EnterIgnored("an object");
    return true;
  }
  bool end_object() override {
    if (in_ == In::kIgnored)
      LeaveIgnored();
    else if (in_ == In::kEntry)
      FinishEntry();
    else
      in_ = In::kHeader;
    return true;
  }
  bool start_array(size_t) override {
    if (in_ == In::kEntry && field_ == Field::kShape)
      in_ = In::kShape;
    else if (in_ == In::kEntry && field_ == Field::kOffsets)
      in_ = In::kOffsets;
    else
      EnterIgnored("an array");
    return true;
  }
  bool end_array() override {
    if (in_ == In::kIgnored) {
      LeaveIgnored();
      return true;
    }
    if (in_ == In::kOffsets && offsets_seen_ != 2)
      throw Corrupt(fmt::format("data_offsets of {} numbers, expected 2", offsets_seen_)).Tensor(entry_.name);
    in_ = In::kEntry;
    return true;
  }

  bool parse_error(size_t position, const std::string& last_token, const nlohmann::json::exception&) override {
    throw Corrupt(
        fmt::format("the header is not JSON: '{}' before its byte {}, expected one JSON object and nothing "
                    "behind it; the file may be damaged; download it again",
                    Visible(last_token), position));
  }

 private:
  enum class In { kStart, kHeader, kMetadata, kEntry, kShape, kOffsets, kIgnored };
  enum class Field { kDtype, kShape, kOffsets, kOther };
  static constexpr std::string_view kFieldNames[] = {"dtype", "shape", "data_offsets"};  // by Field

  bool InIgnored() const { return in_ == In::kIgnored || (in_ == In::kEntry && field_ == Field::kOther); }

  void EnterIgnored(std::string_view found) {
    RefuseUnlessIgnored(found);
    in_ = In::kIgnored;
    if (++ignored_depth_ > kMaxIgnoredDepth)
      throw Corrupt(
          fmt::format("more than {} levels of nested JSON, expected at most {}", kMaxIgnoredDepth, kMaxIgnoredDepth))
          .Tensor(entry_.name);
  }
  void LeaveIgnored() {
    if (--ignored_depth_ == 0) in_ = In::kEntry;
  }

  void BeginNamed(std::string& name) {
    metadata_next_ = name == kMetadataKey;
    if (metadata_next_) {
      if (std::exchange(metadata_seen_, true)) throw Corrupt("__metadata__ is there twice, expected once");
      return;
    }
    if (const std::optional<char32_t> hidden = FirstHidden(name))
      throw Corrupt(fmt::format("the tensor name '{}' holds U+{:04X}, expected no control and no bidi characters",
                                Visible(name), static_cast<uint32_t>(*hidden)));
    entry_ = Entry();
    entry_.name = std::move(name);
    std::fill(std::begin(seen_), std::end(seen_), false);
    offsets_seen_ = 0;
  }

  void BeginField(const std::string& name) {
    const auto* found = std::find(std::begin(kFieldNames), std::end(kFieldNames), name);
    field_ = static_cast<Field>(found - std::begin(kFieldNames));
    if (field_ != Field::kOther && std::exchange(seen_[static_cast<size_t>(field_)], true))
      throw Corrupt(fmt::format("'{}' is there twice, expected once", name)).Tensor(entry_.name);
  }

  void FinishEntry() {
    for (size_t i = 0; i < std::size(seen_); ++i)
      if (!seen_[i])
        throw Corrupt(fmt::format("no '{}', expected dtype, shape and data_offsets", kFieldNames[i]))
            .Tensor(entry_.name);
    if (entries_.size() == max_tensors_) throw TooManyTensors(max_tensors_);
    entries_.push_back(std::move(entry_));
    in_ = In::kHeader;
  }

  void SetDtype(const std::string& name) {
    const std::optional<Dtype> dtype = DtypeFromName(name);
    if (!dtype) {
      std::vector<std::string_view> known;
      for (const DtypeRow& row : Dtypes()) known.push_back(row.name);
      throw Corrupt(fmt::format("unknown dtype '{}', expected one of {}", Visible(name), fmt::join(known, ", ")))
          .Tensor(entry_.name);
    }
    entry_.dtype = *dtype;
  }

  void AddExtent(uint64_t extent) {
    if (entry_.shape.size() == Dims::kMaxAxes)
      throw Error(Code::kUnsupported,
                  fmt::format("more than {} axes, expected at most {}", Dims::kMaxAxes, Dims::kMaxAxes))
          .Tensor(entry_.name);
    entry_.shape.push_back(extent);
  }

  void AddOffset(uint64_t offset) { (offsets_seen_++ == 0 ? entry_.begin : entry_.end) = offset; }

  bool RefuseUnlessIgnored(std::string_view found) const {
    if (!InIgnored()) Refuse(found);
    return true;
  }

  [[noreturn]] void Refuse(std::string_view found) const {
    const bool in_tensor = in_ != In::kStart && !metadata_next_;
    throw Corrupt(fmt::format("{} is {}, expected {}", Here(), found, Wanted())).Tensor(in_tensor ? entry_.name : "");
  }
  std::string_view Here() const {
    switch (in_) {
      case In::kStart:
        return "the header";
      case In::kHeader:
        return metadata_next_ ? kMetadataKey : "the tensor's entry";
      case In::kMetadata:
        return "a value of __metadata__";
      case In::kEntry:
        return kFieldNames[static_cast<size_t>(field_)];
      case In::kShape:
        return "an extent of the shape";
      default:
        return "one of data_offsets";
    }
  }
  std::string_view Wanted() const {
    switch (in_) {
      case In::kStart:
        return "a JSON object";
      case In::kHeader:
        return metadata_next_ ? "an object or null" : "an object with dtype, shape and data_offsets";
      case In::kMetadata:
        return "a string";
      case In::kEntry:
        return field_ == Field::kDtype ? "a string" : "an array of whole numbers";
      default:
        return "a whole number from 0 to 18446744073709551615";
    }
  }

  const uint64_t max_tensors_;
  In in_ = In::kStart;
  Field field_ = Field::kOther;
  bool metadata_next_ = false;  // the value that follows, or that we are in, is that of __metadata__
  bool metadata_seen_ = false;
  bool seen_[std::size(kFieldNames)] = {};
  size_t offsets_seen_ = 0;
  size_t ignored_depth_ = 0;
  Entry entry_;
  std::deque<Entry> entries_;
};

// The header's length of a file that begins with `start` (its first 8 bytes, where it has them).
uint64_t HeaderLength(std::string_view start, uint64_t file_size) {
  if (file_size < kLengthSize || start.size() < kLengthSize)
    throw Corrupt(
        fmt::format("the file has {} bytes, expected at least {}; {}", file_size, kLengthSize, kDownloadAgain));
  if (start.starts_with("version"))
    throw Corrupt("a git-lfs pointer, expected weights; run 'git lfs pull' in the folder that it was cloned to");
  const auto length = LoadLittle<uint64_t>(start.data());
  if (length > kMaxHeader)
    throw Corrupt(
        fmt::format("a header length of {} bytes, expected at most {}; this is no safetensors file, or a "
                    "damaged one",
                    length, kMaxHeader));
  if (length > file_size - kLengthSize)
    throw Corrupt(fmt::format("a header of {} bytes in a file of {} bytes, expected at most {}; {}", length, file_size,
                              file_size - kLengthSize, kDownloadAgain));
  return length;
}

std::deque<Entry> ParseEntries(std::string_view header, uint64_t max_tensors) {
  if (const size_t position = FirstInvalidUtf8(header); position < header.size())
    throw Corrupt(
        fmt::format("the header is not UTF-8 at its byte {}, expected UTF-8; the file may be damaged; download "
                    "it again",
                    position));
  // The JSON parser skips the first and takes the second for the end of the text.
  if (header.starts_with("\xEF\xBB\xBF")) throw Corrupt("the header begins with a byte order mark, expected '{'");
  if (const size_t position = header.find('\0'); position != header.npos)
    throw Corrupt(fmt::format("the header has a zero byte at its byte {}, expected JSON and blanks", position));
  HeaderSax sax(max_tensors);
  nlohmann::json::sax_parse(header.begin(), header.end(), &sax);
  return sax.TakeEntries();
}

void CheckNamesDiffer(const std::deque<Entry>& entries) {
  std::vector<const Entry*> by_name;
  by_name.reserve(entries.size());
  for (const Entry& entry : entries) by_name.push_back(&entry);
  std::sort(by_name.begin(), by_name.end(), [](const Entry* a, const Entry* b) { return a->name < b->name; });
  const auto same = [](const Entry* a, const Entry* b) { return a->name == b->name; };
  const auto twice = std::adjacent_find(by_name.begin(), by_name.end(), same);
  if (twice != by_name.end()) throw Corrupt("the name is there twice, expected each name once").Tensor((*twice)->name);
}

// The tensor begins where the one before it (nullptr: the data section) ends.
void CheckPlace(const Entry& entry, const Entry* previous) {
  const uint64_t expected = previous ? previous->end : 0;
  if (entry.begin == expected && entry.end >= entry.begin) return;
  const std::string after = previous ? fmt::format("where tensor '{}' ends", previous->name) : "where the data begins";
  if (entry.begin > expected)
    throw Corrupt(fmt::format("data_offsets begin at {}, expected {}, {}; {} bytes belong to no tensor", entry.begin,
                              expected, after, entry.begin - expected))
        .Tensor(entry.name);
  if (entry.begin < expected)
    throw Corrupt(
        fmt::format("data_offsets begin at {}, expected {}, {}; the tensors overlap", entry.begin, expected, after))
        .Tensor(entry.name);
  throw Corrupt(fmt::format("data_offsets end at {}, expected at least {}, where they begin", entry.end, entry.begin))
      .Tensor(entry.name);
}

// The extents are multiplied in order, as the official parser does: [2^63, 4, 0] overflows, [0, 2^63, 4] has no bytes.
std::optional<uint64_t> BitCount(const Entry& entry) {
  std::optional<uint64_t> bits = 1;
  for (uint64_t extent : entry.shape) {
    bits = CheckedMultiply(*bits, extent);
    if (!bits) return std::nullopt;
  }
  return CheckedMultiply(*bits, Row(entry.dtype).bits);
}

void CheckSize(const Entry& entry) {
  const uint64_t found = entry.end - entry.begin;
  const std::optional<uint64_t> bits = BitCount(entry);
  if (bits && *bits % 8 == 0 && found == *bits / 8) return;
  const std::string what = fmt::format("{} {}", Row(entry.dtype).name, ToString(entry.shape));
  if (!bits)
    throw Corrupt(fmt::format("the size of {} overflows, expected less than 2^64 bits", what)).Tensor(entry.name);
  if (*bits % 8 != 0) throw Corrupt(fmt::format("{} is {} bits, expected whole bytes", what, *bits)).Tensor(entry.name);
  throw Corrupt(fmt::format("data_offsets give {} bytes, expected {} for {}", found, *bits / 8, what))
      .Tensor(entry.name);
}

void CheckDataSize(uint64_t found, uint64_t expected) {
  if (found < expected)
    throw Corrupt(fmt::format("{} bytes of data, expected {}; {}", found, expected, kDownloadAgain));
  if (found > expected)
    throw Corrupt(fmt::format("{} bytes of data, expected {}; {} bytes behind the last tensor belong to none", found,
                              expected, found - expected));
}

StoredTensor Stored(Entry entry, uint64_t data_start, uint32_t file) {
  StoredTensor tensor;
  tensor.name = std::move(entry.name);
  tensor.dtype = entry.dtype;
  tensor.shape = entry.shape;
  tensor.chunks = {{WholeBox(entry.shape), RowMajorStrides(entry.shape), file, data_start + entry.begin}};
  return tensor;
}

std::vector<StoredTensor> ParseHeader(std::string_view header, uint64_t file_size, uint32_t file,
                                      uint64_t max_tensors) {
  const uint64_t data_start = kLengthSize + header.size();
  std::deque<Entry> entries = ParseEntries(header, max_tensors);
  CheckNamesDiffer(entries);
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  const Entry* previous = nullptr;
  for (const Entry& entry : entries) {
    CheckPlace(entry, previous);
    CheckSize(entry);
    previous = &entry;
  }
  CheckDataSize(file_size - data_start, previous ? previous->end : 0);

  std::vector<StoredTensor> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) tensors.push_back(Stored(std::move(entry), data_start, file));
  return tensors;
}

uint64_t ByteSize(const StoredTensor& tensor) { return ElementCount(tensor.shape) * Row(tensor.dtype).bits / 8; }

// The text of serde_json, the official writer's: only quotes, backslashes and control characters are escaped.
std::string Quoted(const std::string& name) { return nlohmann::json(name).dump(); }

std::string EntryText(const StoredTensor& tensor, uint64_t begin, uint64_t end) {
  return fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", Quoted(tensor.name),
                     Row(tensor.dtype).name, fmt::join(tensor.shape.begin(), tensor.shape.end(), ","), begin, end);
}

// Refuses what would make a file that is none, or of which no reader would take the tensor.
void CheckWritable(const StoredTensor& tensor, const std::string& path) {
  std::string problem;
  if (FirstInvalidUtf8(tensor.name) < tensor.name.size()) problem = "a name that is not UTF-8, expected UTF-8";
  if (tensor.name == kMetadataKey) problem = "the name of the metadata, expected another";
  if (const uint64_t bits = ElementCount(tensor.shape) * Row(tensor.dtype).bits; bits % 8 != 0)
    problem =
        fmt::format("{} {} is {} bits, expected whole bytes", Row(tensor.dtype).name, ToString(tensor.shape), bits);
  if (!problem.empty()) throw Error(Code::kUnsupported, std::move(problem)).At("writing", path).Tensor(tensor.name);
}

}  // namespace

std::vector<StoredTensor> ReadFile(Io& io, const std::string& path, uint32_t file, uint64_t max_header,
                                   uint64_t max_tensors) {
  try {
    const std::unique_ptr<File> source = io.OpenRead(path);
    const uint64_t file_size = source->Info().size;
    std::string start(std::min(file_size, kLengthSize), '\0');
    source->ReadAt(start.data(), start.size(), 0);
    const uint64_t length = HeaderLength(start, file_size);
    if (length > max_header)
      throw Error(Code::kUnsupported, fmt::format("a header of {} bytes, expected at most {} within the memory limit; "
                                                  "give a larger --max_memory",
                                                  length, max_header));
    std::string header(length, '\0');
    source->ReadAt(header.data(), header.size(), kLengthSize);
    return ParseHeader(header, file_size, file, max_tensors);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

std::vector<StoredTensor> ReadHeader(const std::string& header_and_length, uint64_t file_size, const std::string& path,
                                     uint32_t file) {
  try {
    const std::string_view bytes = header_and_length;
    const uint64_t length = HeaderLength(bytes.substr(0, kLengthSize), file_size);
    return ParseHeader(bytes.substr(kLengthSize, length), file_size, file, UINT64_MAX);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

FileLayout LayOut(std::string path, std::vector<StoredTensor*> tensors, uint32_t file, Metadata metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return a->dtype != b->dtype ? a->dtype > b->dtype : a->name < b->name;
  });

  std::string header = metadata == Metadata::kFormatPt ? R"({"__metadata__":{"format":"pt"})" : "{";
  uint64_t data_size = 0;
  for (const StoredTensor* tensor : tensors) {
    CheckWritable(*tensor, path);
    const uint64_t end = data_size + ByteSize(*tensor);
    if (header.size() > 1) header += ",";
    header += EntryText(*tensor, data_size, end);
    data_size = end;
  }
  header += "}";
  const uint64_t data_start = RoundUp(kLengthSize + header.size(), kDataAlignment);
  header.resize(data_start - kLengthSize, ' ');
  if (header.size() > kMaxHeader)
    throw Error(Code::kUnsupported,
                fmt::format("a header of {} bytes for {} tensors, expected at most {}; give a smaller "
                            "--max_shard_size",
                            header.size(), tensors.size(), kMaxHeader))
        .At("writing", path);

  uint64_t offset = data_start;
  for (StoredTensor* tensor : tensors) {
    tensor->grid = Dims();
    tensor->chunks = {{WholeBox(tensor->shape), RowMajorStrides(tensor->shape), file, offset}};
    offset += ByteSize(*tensor);
  }
  std::string bytes;
  bytes.reserve(data_start);
  AppendLittle<uint64_t>(bytes, header.size());
  bytes += header;
  return {std::move(path), data_start + data_size, {{0, std::move(bytes)}}};
}

}  // namespace reshard::safetensors
