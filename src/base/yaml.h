// YAML of untrusted files, and YAML as OmegaConf (PyYAML) writes it.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace reshard {

// A node keeps its scalar's source text: what a text means (12:00:00 is no number) is for the reader of the key to say.
struct Yaml {
  enum class Type { kScalar, kSequence, kMapping };
  Type type = Type::kScalar;
  std::string text;     // of a scalar
  bool quoted = false;  // 'text' or "text" or a block scalar: a string whatever it looks like
  std::vector<Yaml> items;                             // of a sequence
  std::vector<std::pair<std::string, Yaml>> members;  // of a mapping, in file order

  const Yaml* Find(std::string_view key) const;  // a member of a mapping, or nullptr
};

// Errors, all kCorrupt with `path` and "reading": no YAML (line in the message), a tag ("!!python/object"), a key twice
// in one mapping, more than 64 levels, more than 16 MiB of text, more than 1,000,000 nodes after aliases are followed,
// several documents. An empty text is an empty mapping.
Yaml ParseYaml(std::string_view text, const std::string& path);

// The value that YAML 1.1, as PyYAML's safe_load reads it, gives the node: null, bool, int, float or string for scalars,
// except that base-60 numbers (12:00:00) stay strings. "1e-5" is a string there and here; ".inf" and ".nan" are floats.
Json YamlValue(const Yaml& node);

// Block YAML exactly as OmegaConf.save writes it (PyYAML's safe dumper, allow_unicode, no sorting, width unlimited for
// our values): two blanks a level, sequences not indented below their key, `null`, `true`, floats as PyYAML writes them
// (1.0e-05, 0.02, 500000.0), strings quoted with '...' only where a plain scalar would read as something else; empty
// collections as {} and []. Ends in a newline.
std::string EmitYaml(const Json& mapping);

}  // namespace reshard
