#include "base/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_set>
#include <vector>

#include "base/error.h"

namespace reshard {
namespace {

constexpr size_t kMaxLevels = 64;

Error Corrupt(std::string message, const std::string& path) {
  return Error(Code::kCorrupt, std::move(message)).At("reading", path);
}

// "line 3, column 7" of a byte, both counted from 1.
std::string Position(std::string_view text, size_t byte) {
  std::string_view before = text.substr(0, byte);
  size_t line = 1 + std::count(before.begin(), before.end(), '\n');
  size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
  return fmt::format("line {}, column {}", line, byte - line_start + 1);
}

// The library's words without its position and without the last token, which may be as long as the file.
std::string Explanation(const std::string& what) {
  if (what.find("number overflow") != what.npos)
    return "a number beyond the range of 64-bit floats, expected one within";
  size_t begin = what.find("syntax error");
  if (begin == what.npos) return "no JSON: nothing to parse, expected JSON";  // newer versions say so of an empty text
  return "no JSON: " + what.substr(begin, what.find("; last read:", begin) - begin) + ", expected JSON";
}

// Builds the tree from the library's events. The library's own builder takes a key twice, any depth, and, as it looks
// for every new key among the old ones, time by the square of their number.
class Builder : public JsonEvents {
 public:
  using JsonEvents::JsonEvents;

  Json Take() { return std::move(root_); }

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(int64_t value) override { return Add(value); }
  bool number_unsigned(uint64_t value) override { return Add(value); }
  bool number_float(double value, const std::string&) override { return Add(value); }
  bool string(std::string& value) override { return Add(std::move(value)); }

  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(std::string& key) override {
    if (!open_.back().keys.insert(key).second)
      throw Corrupt(fmt::format("key '{}' twice in one object, expected once", key), path_);
    open_.back().key = std::move(key);
    return true;
  }

 private:
  struct Frame {
    Json* collection;  // stays where it is: its parent does not grow before it is closed
    std::string key;
    std::unordered_set<std::string> keys;
  };

  Json& Place(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    auto& [parent, key, keys] = open_.back();
    if (parent->is_array()) return parent->get_ref<Json::array_t&>().emplace_back(std::move(value));
    return parent->get_ref<Json::object_t&>().emplace_back(std::move(key), std::move(value)).second;
  }
  bool Add(Json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(Json empty) {
    if (open_.size() == kMaxLevels)
      throw Corrupt(fmt::format("more than {} levels of nesting, expected fewer", kMaxLevels), path_);
    Json& placed = Place(std::move(empty));
    open_.push_back({&placed, {}, {}});
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Frame> open_;
};

void CheckBytes(std::string_view text, const std::string& path) {
  if (text.starts_with("\xEF\xBB\xBF")) throw Corrupt("starts with a byte order mark, expected JSON without", path);
  size_t nul = text.find('\0');  // the library takes it for the end
  if (nul != text.npos) throw Corrupt(Position(text, nul) + ": a NUL byte, expected JSON", path);
}

// The JSON text of a string, all ASCII.
std::string Quoted(const std::string& text) { return Json(text).dump(-1, ' ', true); }

// Prints as Python does.
class Printer {
 public:
  Printer(bool sort_keys, size_t indent) : sort_keys_(sort_keys), indent_(indent) {}

  std::string Print(const Json& value) {
    Append(value, 0);
    return std::move(out_);
  }

 private:
  void Append(const Json& value, size_t level) {
    if (value.is_object() && !value.empty()) {
      AppendObject(value, level);
    } else if (value.is_array() && !value.empty()) {
      AppendArray(value, level);
    } else if (value.is_number_float()) {
      out_ += JsonFloat(value.get<double>());
    } else {
      out_ += value.dump(-1, ' ', true);
    }
  }

  void AppendArray(const Json& array, size_t level) {
    std::string separator = "[\n";
    for (const Json& item : array) {
      out_ += separator + std::string((level + 1) * indent_, ' ');
      Append(item, level + 1);
      separator = ",\n";
    }
    out_ += "\n" + std::string(level * indent_, ' ') + "]";
  }

  void AppendObject(const Json& object, size_t level) {
    std::vector<const Json::object_t::value_type*> members;
    for (const auto& member : object.get_ref<const Json::object_t&>()) members.push_back(&member);
    if (sort_keys_) std::sort(members.begin(), members.end(), [](auto* a, auto* b) { return a->first < b->first; });
    std::string separator = "{\n";
    for (const auto* member : members) {
      out_ += separator + std::string((level + 1) * indent_, ' ') + Quoted(member->first) + ": ";
      Append(member->second, level + 1);
      separator = ",\n";
    }
    out_ += "\n" + std::string(level * indent_, ' ') + "}";
  }

  static std::string JsonFloat(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return PythonFloat(value);
  }

  const bool sort_keys_;
  const size_t indent_;
  std::string out_;
};

// The parts of a text that ParseJson has accepted, so that nothing needs a check but what comes next.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  size_t position() const { return position_; }
  char SkipSpace() {  // returns what stands there
    position_ = text_.find_first_not_of(" \t\r\n", position_);
    return text_[position_];
  }
  void SkipOne() { ++position_; }

  std::string_view String() {
    size_t begin = position_++;
    while (text_[position_] != '"') position_ += text_[position_] == '\\' ? 2 : 1;
    return text_.substr(begin, ++position_ - begin);
  }

  std::string_view Value() {
    size_t begin = position_, levels = 0;
    do {
      char c = text_[position_];
      if (c == '"') {
        String();
      } else if (c == '{' || c == '[') {
        ++levels;
        ++position_;
      } else if (c == '}' || c == ']') {
        --levels;
        ++position_;
      } else if (levels > 0) {
        ++position_;
      } else {  // a number or a word
        position_ = text_.find_first_of(",}] \t\r\n", position_);
      }
    } while (levels > 0);
    return text_.substr(begin, position_ - begin);
  }

 private:
  std::string_view text_;
  size_t position_ = 0;
};

}  // namespace

Json ParseJson(std::string_view text, const std::string& path) {
  Builder builder(text, path);
  ReadJson(text, path, builder);
  return builder.Take();
}

bool JsonEvents::parse_error(size_t position, const std::string&, const Json::exception& error) {
  size_t byte = std::min(position - 1, text_.size());  // the library counts from 1
  throw Corrupt(Position(text_, byte) + ": " + Explanation(error.what()), path_);
}

void ReadJson(std::string_view text, const std::string& path, JsonEvents& events) {
  CheckBytes(text, path);
  Json::sax_parse(text.begin(), text.end(), &events);
}

std::string PythonJson(const Json& value, bool sort_keys, int indent) {
  return Printer(sort_keys, static_cast<size_t>(indent)).Print(value);
}

std::string PythonFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, std::abs(value), std::chars_format::scientific).ptr;
  std::string_view text(buffer, end - buffer);  // "1.25e-07"
  size_t e = text.find('e');
  std::string digits(text.substr(0, 1));
  if (e > 1) digits += text.substr(2, e - 2);
  int exponent = std::stoi(std::string(text.substr(e + 1)));

  std::string sign = std::signbit(value) ? "-" : "";
  int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    if (count > 1) digits.insert(1, ".");
    return fmt::format("{}{}e{}{:02}", sign, digits, exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return sign + "0." + std::string(-exponent - 1, '0') + digits;
  if (count <= exponent + 1) return sign + digits + std::string(exponent + 1 - count, '0') + ".0";
  return sign + digits.insert(exponent + 1, ".");
}

std::optional<std::string> ReplaceTopLevelValue(std::string_view text, std::string_view key, std::string_view value) {
  Scanner scanner(text);
  if (scanner.SkipSpace() != '{') return std::nullopt;
  scanner.SkipOne();
  while (scanner.SkipSpace() != '}') {
    bool found = Json::parse(scanner.String()).get_ref<const std::string&>() == key;
    scanner.SkipSpace();
    scanner.SkipOne();  // the colon
    scanner.SkipSpace();
    size_t begin = scanner.position();
    scanner.Value();
    if (found) return fmt::format("{}{}{}", text.substr(0, begin), value, text.substr(scanner.position()));
    if (scanner.SkipSpace() == ',') scanner.SkipOne();
  }
  return std::nullopt;
}

std::string WithTopLevelValue(std::string_view text, std::string_view key, std::string_view value) {
  if (auto with = ReplaceTopLevelValue(text, key, value)) return *with;
  Scanner scanner(text);
  scanner.SkipSpace();
  scanner.SkipOne();  // the brace
  size_t begin = scanner.position();
  bool is_empty = scanner.SkipSpace() == '}';
  std::string_view space = is_empty ? "" : text.substr(begin, scanner.position() - begin);
  return fmt::format("{}{}{}: {}{}{}", text.substr(0, begin), space, Json(key).dump(), value, is_empty ? "" : ",",
                     text.substr(begin));
}

}  // namespace reshard
