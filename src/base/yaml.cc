#include "base/yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <regex>
#include <sstream>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"

namespace reshard {
namespace {

constexpr size_t kMaxLevels = 64;
constexpr size_t kMaxNodes = 50'000;  // some 300 bytes each
constexpr size_t kMaxText = 4 * kMiB;

// What YAML 1.1 (5.1) lets stand in a text. Not for tidiness: the library takes byte 4 for the end of the text.
bool IsPrintable(char32_t code) {
  return code == '\t' || code == '\n' || code == '\r' || (code >= 0x20 && code <= 0x7E) || code == 0x85 ||
         (code >= 0xA0 && code <= 0xFFFD) || code >= 0x10000;
}

Error AtLine(size_t line, std::string message) {
  return Error(Code::kCorrupt, fmt::format("line {}: {}", line, message));
}

void CheckCharacters(std::string_view text) {
  size_t line = 1;
  while (!text.empty()) {
    std::optional<char32_t> code = TakeCodePoint(text);
    if (!code) throw AtLine(line, "bytes that are no UTF-8, expected text");
    if (!IsPrintable(*code))
      throw AtLine(line, fmt::format("character U+{:04X}, expected printable ones", uint32_t{*code}));
    line += *code == '\n';
  }
}

// Builds the tree in place from the library's events, and enforces the bounds while it grows.
class Builder : public YAML::EventHandler {
 public:
  explicit Builder(std::string_view text) : text_(text) { root_.type = Yaml::Type::kMapping; }

  Yaml Take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (started_) throw AtLine(mark.line + 1, "a second document, expected one");
    started_ = true;
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { AddScalar(mark, anchor, "null", false); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    bool quoted = tag == "!";
    if (!quoted) CheckTag(mark, tag);
    // yaml-cpp reads "\\N" and "\\_" as bytes of Latin-1.
    if (!IsUtf8(value)) throw AtLine(mark.line + 1, "an escape that makes no UTF-8, expected the character itself");
    AddScalar(mark, anchor, value, quoted);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto found = anchors_.find(anchor);
    if (found == anchors_.end())
      throw AtLine(mark.line + 1, "an alias inside the node that it names, expected one behind it");
    CountTree(mark, found->second, open_.size());
    Add(mark, found->second);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, Yaml::Type::kSequence);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, anchor, Yaml::Type::kMapping);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapEnd() override { Close(); }

 private:
  struct Frame {
    Yaml* node;  // stays where it is: its parent does not grow before it is closed
    YAML::Mark mark;
    YAML::anchor_t anchor;
    std::optional<std::string> key;  // of a mapping, waiting for its value
    std::unordered_set<std::string> keys;
  };

  void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    if (tag != "?") throw AtLine(mark.line + 1, fmt::format("tag '{}', expected none", tag));
  }

  // The library takes tabs for blanks; PyYAML and the specification (5.5) refuse them before a line's first token.
  void CheckIndentation(const YAML::Mark& mark) {
    if (mark.line < line_) return;
    while (line_ < mark.line) NextLine();
    std::string_view line = text_.substr(line_start_);
    size_t indent = std::min(line.find_first_not_of(" \t"), line.size());
    bool first = static_cast<size_t>(mark.column) == indent;
    if (first && line.substr(0, indent).find('\t') != line.npos)
      throw AtLine(mark.line + 1, "a tab in the indentation, expected blanks");
    NextLine();
  }
  void NextLine() {
    ++line_;
    line_start_ = std::min(text_.find('\n', line_start_), text_.size() - 1) + 1;
  }

  void Count(const YAML::Mark& mark, const std::string& text, size_t levels) {
    text_bytes_ += text.size();
    if (++nodes_ > kMaxNodes)
      throw AtLine(mark.line + 1, fmt::format("more than {} nodes with those of aliases, expected fewer", kMaxNodes));
    if (text_bytes_ > kMaxText)
      throw AtLine(mark.line + 1,
                   fmt::format("more than {} bytes of scalars with those of aliases, expected fewer", kMaxText));
    if (levels > kMaxLevels)
      throw AtLine(mark.line + 1, fmt::format("more than {} levels of nesting, expected fewer", kMaxLevels));
  }
  void CountTree(const YAML::Mark& mark, const Yaml& node, size_t levels) {
    Count(mark, node.text, levels + (node.type != Yaml::Type::kScalar));
    for (const Yaml& item : node.items) CountTree(mark, item, levels + 1);
    for (const auto& [key, value] : node.members) {
      Count(mark, key, levels);
      CountTree(mark, value, levels + 1);
    }
  }

  void AddScalar(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& text, bool quoted) {
    CheckIndentation(mark);
    Count(mark, text, open_.size());
    Yaml node;
    node.text = text;
    node.quoted = quoted;
    Keep(mark, anchor, node);
    Add(mark, std::move(node));
  }

  void Add(const YAML::Mark& mark, Yaml node) {
    bool is_key = !open_.empty() && open_.back().node->type == Yaml::Type::kMapping && !open_.back().key;
    if (is_key && node.type == Yaml::Type::kScalar) {
      SetKey(mark, node);
    } else {
      Place(mark) = std::move(node);
    }
  }

  void SetKey(const YAML::Mark& mark, const Yaml& key) {
    Frame& frame = open_.back();
    if (key.text == "<<" && !key.quoted) throw AtLine(mark.line + 1, "merge key '<<', expected the keys themselves");
    if (!frame.keys.insert(key.text).second)
      throw AtLine(mark.line + 1, fmt::format("key '{}' twice in one mapping, expected once", key.text));
    frame.key = key.text;
  }

  // Where the next value goes.
  Yaml& Place(const YAML::Mark& mark) {
    if (open_.empty()) return root_;
    Frame& parent = open_.back();
    if (parent.node->type == Yaml::Type::kSequence) return parent.node->items.emplace_back();
    if (!parent.key) throw AtLine(mark.line + 1, "a collection as a key, expected a scalar");
    std::string key = *std::exchange(parent.key, std::nullopt);
    return parent.node->members.emplace_back(YamlMember{std::move(key), Yaml()}).value;
  }

  void Open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, Yaml::Type type) {
    CheckTag(mark, tag);
    CheckIndentation(mark);
    Count(mark, "", open_.size() + 1);
    Yaml& node = Place(mark);
    node.type = type;
    open_.push_back({&node, mark, anchor, std::nullopt, {}});
  }

  void Close() {
    Frame frame = std::move(open_.back());
    open_.pop_back();
    Keep(frame.mark, frame.anchor, *frame.node);
  }

  // Copies for later aliases count too: nested anchors would keep a text once a level.
  void Keep(const YAML::Mark& mark, YAML::anchor_t anchor, const Yaml& node) {
    if (anchor == YAML::NullAnchor) return;
    CountTree(mark, node, open_.size());
    anchors_[anchor] = node;
  }

  std::string_view text_;
  Yaml root_;
  bool started_ = false;
  std::vector<Frame> open_;
  std::unordered_map<YAML::anchor_t, Yaml> anchors_;
  size_t nodes_ = 0, text_bytes_ = 0;
  int line_ = 0;  // the first whose indentation is not checked, and where it starts
  size_t line_start_ = 0;
};

// The resolvers of PyYAML, as regular expressions. A longer scalar is no number: std::regex takes stack by length.
constexpr size_t kMaxNumber = 200;

bool Matches(std::string_view text, const std::regex& pattern) {
  return text.size() <= kMaxNumber && std::regex_match(text.begin(), text.end(), pattern);
}

bool IsNull(std::string_view text) {
  return text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

std::optional<bool> Bool(std::string_view text) {
  for (std::string_view word : {"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
    if (text == word) return true;
  for (std::string_view word : {"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
    if (text == word) return false;
  return std::nullopt;
}

bool IsInteger(std::string_view text) {
  static const std::regex kPattern("[-+]?(0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)");
  return Matches(text, kPattern);
}

bool IsFloat(std::string_view text) {
  static const std::regex kPattern(
      "[-+]?[0-9][0-9_]*\\.[0-9_]*([eE][-+][0-9]+)?|\\.[0-9][0-9_]*([eE][-+][0-9]+)?|"
      "[-+]?\\.(inf|Inf|INF)|\\.(nan|NaN|NAN)");
  return Matches(text, kPattern);
}

// Base-60 numbers, dates, the merge key and the default value key: what else PyYAML takes for something but a string.
bool IsOtherwiseResolved(std::string_view text) {
  static const std::regex kPattern(
      "[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\\.[0-9_]*|"
      "[0-9]{4}-[0-9]{2}-[0-9]{2}|"
      "[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(\\.[0-9]*)?"
      "([ \t]*(Z|[-+][0-9]{1,2}(:[0-9]{2})?))?|<<|=");
  return Matches(text, kPattern);
}

// What Python's int() or float() reads, or YAML 1.1's list of booleans names: OmegaConf quotes these too.
bool IsPythonNumberOrBool(std::string_view text) {
  static const std::regex kPattern(
      "[-+]?(([0-9]+(_[0-9]+)*\\.?([0-9]+(_[0-9]+)*)?|\\.[0-9]+(_[0-9]+)*)(e[-+]?[0-9]+(_[0-9]+)*)?|inf|infinity|nan)",
      std::regex::icase);
  return text == "y" || text == "Y" || text == "n" || text == "N" || Bool(text) || Matches(text, kPattern);
}

// Nothing beyond 64 bits, or without a digit ("0x_").
Json Integer(const std::string& text) {
  std::string digits = text;
  std::erase(digits, '_');
  bool negative = digits[0] == '-';
  if (digits[0] == '-' || digits[0] == '+') digits.erase(0, 1);
  int base = digits.starts_with("0b")                ? 2
             : digits.starts_with("0x")              ? 16
             : digits.size() > 1 && digits[0] == '0' ? 8
                                                     : 10;
  if (base == 2 || base == 16) digits.erase(0, 2);
  uint64_t value = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  constexpr uint64_t kMostNegative = uint64_t{1} << 63;
  if (error != std::errc() || (negative && value > kMostNegative)) return text;
  if (negative) return static_cast<int64_t>(0 - value);
  return value;
}

Json Float(const std::string& text) {
  std::string digits = text;
  std::erase(digits, '_');
  bool negative = digits[0] == '-';
  if (digits[0] == '-' || digits[0] == '+') digits.erase(0, 1);
  double value = 0;
  if (digits[0] == '.' && (digits[1] == 'i' || digits[1] == 'I')) {
    value = std::numeric_limits<double>::infinity();
  } else if (digits[0] == '.' && (digits[1] == 'n' || digits[1] == 'N')) {
    value = std::numeric_limits<double>::quiet_NaN();
  } else {
    value = std::strtod(digits.c_str(), nullptr);  // beyond the range: 0 or infinity, as in Python
  }
  return negative ? -value : value;
}

Json ScalarValue(const Yaml& node) {
  if (node.quoted) return node.text;
  if (IsNull(node.text)) return nullptr;
  if (std::optional<bool> value = Bool(node.text)) return *value;
  constexpr std::string_view kNumberStarts = "-+.0123456789";
  if (kNumberStarts.find(node.text[0]) == kNumberStarts.npos) return node.text;
  if (IsInteger(node.text)) return Integer(node.text);
  if (IsFloat(node.text)) return Float(node.text);
  return node.text;
}

bool IsBlankOrEnd(std::string_view text, size_t position) { return position >= text.size() || text[position] == ' '; }

// Whether a scalar without quotes would be read as structure (PyYAML's analysis of a scalar in block context).
bool HasIndicators(std::string_view text) {
  if (text.starts_with("---") || text.starts_with("...")) return true;
  if (text[0] == ' ' || text.back() == ' ') return true;
  constexpr std::string_view kIndicators = "#,[]{}&*!|>'\"%@`";
  if (kIndicators.find(text[0]) != kIndicators.npos) return true;
  if ((text[0] == '?' || text[0] == '-') && IsBlankOrEnd(text, 1)) return true;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ':' && IsBlankOrEnd(text, i + 1)) return true;
    if (text[i] == '#' && i > 0 && text[i - 1] == ' ') return true;
  }
  return false;
}

// Line breaks of YAML 1.1, and characters that only double quotes can hold.
bool NeedsEscapes(char32_t code) {
  return code == '\t' || code == '\n' || code == '\r' || code == 0x85 || code == 0x2028 || code == 0x2029 ||
         code == 0xFEFF || !IsPrintable(code);
}

bool NeedsEscapes(std::string_view text) {
  while (!text.empty())
    if (std::optional<char32_t> code = TakeCodePoint(text); !code || NeedsEscapes(*code)) return true;
  return false;
}

std::string Escape(char32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\t') return "\\t";
  if (code == '\r') return "\\r";
  if (code == '"') return "\\\"";
  if (code == '\\') return "\\\\";
  uint32_t number = code;
  return number <= 0xFF     ? fmt::format("\\x{:02X}", number)
         : number <= 0xFFFF ? fmt::format("\\u{:04X}", number)
                            : fmt::format("\\U{:08X}", number);
}

std::string DoubleQuoted(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    std::string_view before = text;
    std::optional<char32_t> code = TakeCodePoint(text);
    if (!code) throw Error(Code::kInternal, "a string that is no UTF-8 cannot be written as YAML");
    bool escape = *code == '"' || *code == '\\' || NeedsEscapes(*code);
    out += escape ? Escape(*code) : std::string(before.substr(0, before.size() - text.size()));
  }
  return out + "\"";
}

std::string SingleQuoted(std::string_view text) {
  std::string out = "'";
  for (char c : text) out.append(c == '\'' ? 2 : 1, c);
  return out + "'";
}

std::string StringText(std::string_view text) {
  if (NeedsEscapes(text)) return DoubleQuoted(text);
  bool plain = !IsNull(text) && !IsInteger(text) && !IsFloat(text) && !IsOtherwiseResolved(text) &&
               !IsPythonNumberOrBool(text) && !HasIndicators(text);
  return plain ? std::string(text) : SingleQuoted(text);
}

// repr, but with a dot before every exponent: YAML 1.1 asks for one.
std::string FloatText(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value < 0 ? "-.inf" : ".inf";
  std::string text = PythonFloat(value);
  size_t e = text.find('e');
  if (e != text.npos && text.find('.') == text.npos) text.insert(e, ".0");
  return text;
}

std::string ScalarText(const Json& value) {
  if (value.is_string()) return StringText(value.get_ref<const std::string&>());
  if (value.is_number_float()) return FloatText(value.get<double>());
  return value.dump();  // also {} and []
}

bool IsBlock(const Json& value) { return value.is_structured() && !value.empty(); }

// The members of a collection, one below the other at column `indent`; the first starts where the text ends.
void EmitBlock(const Json& collection, size_t indent, std::string& out) {
  bool first = true;
  for (const auto& [key, value] : collection.items()) {
    if (!first) out.append(indent, ' ');
    first = false;
    if (collection.is_array()) {
      out += "- ";
      if (IsBlock(value)) EmitBlock(value, indent + 2, out);
    } else {
      out += StringText(key) + ":";
      if (IsBlock(value)) {
        size_t below = value.is_array() ? indent : indent + 2;
        out += "\n" + std::string(below, ' ');
        EmitBlock(value, below, out);
      } else {
        out += " ";
      }
    }
    if (!IsBlock(value)) out += ScalarText(value) + "\n";
  }
}

}  // namespace

const Yaml* Yaml::Find(std::string_view key) const {
  for (const auto& [name, value] : members)
    if (name == key) return &value;
  return nullptr;
}

Yaml ParseYaml(std::string_view text, const std::string& path) {
  try {
    if (text.size() > kMaxText)
      throw Error(Code::kCorrupt, fmt::format("{} bytes, expected at most {}", text.size(), kMaxText));
    CheckCharacters(text);
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    Builder builder(text);
    while (parser.HandleNextDocument(builder)) {
    }
    return builder.Take();
  } catch (const YAML::Exception& error) {
    throw AtLine(error.mark.line + 1, error.msg + ", expected YAML").At("reading", path);
  } catch (Error& error) {
    error.At("reading", path);
    throw;
  }
}

Json YamlValue(const Yaml& node) {
  if (node.type == Yaml::Type::kScalar) return ScalarValue(node);
  if (node.type == Yaml::Type::kSequence) {
    Json array = Json::array();
    for (const Yaml& item : node.items) array.push_back(YamlValue(item));
    return array;
  }
  Json object = Json::object();
  auto& members = object.get_ref<Json::object_t&>();  // whose emplace would look for each key among all before
  for (const auto& [key, value] : node.members) members.emplace_back(key, YamlValue(value));
  return object;
}

std::string EmitYaml(const Json& mapping) {
  if (mapping.empty()) return "{}\n";
  std::string out;
  EmitBlock(mapping, 0, out);
  return out;
}

}  // namespace reshard
