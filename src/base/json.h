// JSON of untrusted files, and JSON as Python writes it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace reshard {

using Json = nlohmann::ordered_json;

// A document tree of a small text (a config): 30 times its size in memory. Errors, all kCorrupt with `path` and
// "reading": no UTF-8, no JSON (line and column in the message), a byte order mark, a key twice in one object, more
// than 64 levels, text behind the value. Integers stay 64-bit exact; larger ones become doubles.
Json ParseJson(std::string_view text, const std::string& path);

// The events of a text that is too large for a tree. Derive from it; errors of the grammar are its own.
class JsonEvents : public nlohmann::json_sax<Json> {
 public:
  JsonEvents(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  bool binary(Json::binary_t&) override { return false; }  // JSON text has none
  bool parse_error(size_t position, const std::string&, const Json::exception& error) override;

 protected:
  std::string_view text_;
  const std::string& path_;
};

// Sends a text's events to `events`, which was made of it. Errors: those of ParseJson but for keys and levels, which
// are the receiver's to judge.
void ReadJson(std::string_view text, const std::string& path, JsonEvents& events);

// What Python's json.dumps(value, indent=indent, sort_keys=sort_keys) returns, without the newline that callers add:
// non-ASCII as \uXXXX (surrogate pairs, lower-case hex), floats by repr, {} and [] for empty ones.
std::string PythonJson(const Json& value, bool sort_keys, int indent = 2);

// Python's repr of a float: shortest digits that round-trip, ".0" kept, exponent below 1e-4 and from 1e16 on ("1e-05").
std::string PythonFloat(double value);

// `text` with the value of the top-level key `key` replaced by the JSON text `value`, every other byte kept; nullopt
// where the object has no such key. `text` must have passed ParseJson.
std::optional<std::string> ReplaceTopLevelValue(std::string_view text, std::string_view key, std::string_view value);

// The same for an object, but that a key which is not there becomes the first, spaced as the one that was.
std::string WithTopLevelValue(std::string_view text, std::string_view key, std::string_view value);

}  // namespace reshard
