// JSON of untrusted files, and JSON as Python writes it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace reshard {

using Json = nlohmann::ordered_json;

// A document tree of a small text (configs, indexes). Errors, all kCorrupt with `path` and "reading": no UTF-8, no JSON
// (line and column in the message), a byte order mark, a key twice in one object, more than 64 levels, text behind the
// value. Integers stay 64-bit exact; larger ones become doubles.
Json ParseJson(std::string_view text, const std::string& path);

// What Python's json.dumps(value, indent=indent, sort_keys=sort_keys) returns, without the newline that callers add:
// non-ASCII as \uXXXX (surrogate pairs, lower-case hex), floats by repr, {} and [] for empty ones.
std::string PythonJson(const Json& value, bool sort_keys, int indent = 2);

// Python's repr of a float: shortest digits that round-trip, ".0" kept, exponent below 1e-4 and from 1e16 on ("1e-05").
std::string PythonFloat(double value);

// Whether JSON and YAML can hold the text.
bool IsUtf8(const std::string& text);

// `text` with the value of the top-level key `key` replaced by the JSON text `value`, every other byte kept; nullopt
// where the object has no such key. `text` must have passed ParseJson.
std::optional<std::string> ReplaceTopLevelValue(std::string_view text, std::string_view key, std::string_view value);

// The same for an object, but that a key which is not there becomes the first, spaced as the one that was.
std::string WithTopLevelValue(std::string_view text, std::string_view key, std::string_view value);

}  // namespace reshard
