// YAML of untrusted files, and YAML as OmegaConf (PyYAML) writes it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace reshard {

struct YamlMember;

// A node keeps its scalar's source text: what a text means (12:00:00 is no number) is for the reader of the key to say.
struct Yaml {
  enum class Type { kScalar, kSequence, kMapping };
  Type type = Type::kScalar;
  std::string text;                 // of a scalar; every spelling of null is "null"
  bool quoted = false;              // 'text' or "text" or a block scalar: a string whatever it looks like
  std::vector<Yaml> items;          // of a sequence
  std::vector<YamlMember> members;  // of a mapping, in file order

  const Yaml* Find(std::string_view key) const;  // a member of a mapping, or nullptr
};

struct YamlMember {
  std::string key;
  Yaml value;
};

// Errors, all kCorrupt with `path` and "reading", most with the line: no YAML or no UTF-8, a tag ("!!python/object"), a
// key twice in one mapping or that is no scalar, a merge key ("<<"), a tab before a line's first node, more than 64
// levels, more than 4 MiB of text, the same or more than 50,000 nodes after aliases are followed (keys and what an
// anchor keeps count too), several documents. An empty text is an empty mapping.
Yaml ParseYaml(std::string_view text, const std::string& path);

// The value that YAML 1.1, as PyYAML's safe_load reads it, gives the node: null, bool, int, float or string for
// scalars, except that base-60 numbers (12:00:00), dates and integers beyond 64 bits stay strings. "1e-5" is a string
// there and here; ".inf" and ".nan" are floats.
Json YamlValue(const Yaml& node);

// Block YAML exactly as OmegaConf.save writes it (PyYAML's safe dumper, allow_unicode, no sorting, width unlimited for
// our values): two blanks a level, sequences not indented below their key, `null`, `true`, floats as PyYAML writes them
// (1.0e-05, 0.02, 500000.0), strings quoted with '...' only where a plain scalar would read as something else, to
// PyYAML or to Python's int() and float(); empty collections as {} and []. Strings with line breaks or control
// characters are double-quoted on one line, which reads back equal although OmegaConf spreads line breaks over lines;
// keys are shorter than 1,000 characters. Ends in a newline.
std::string EmitYaml(const Json& mapping);

}  // namespace reshard
