// The JSON that the Python library fiddle writes of configurations (io.json of NeMo 2), as data: classes are names, and
// nothing is imported or built.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"

namespace reshard {

// A configured class and its arguments. Values that are configured classes themselves are objects with `_target_`, the
// dotted name, beside their arguments; functions, classes and constants are dotted names.
struct FiddleConfig {
  std::string target;  // dotted name of the class
  Json arguments;      // an object
};

// The configuration at which the arguments of `path_in` ("model", "config") end, from the root on. Errors, with
// `path`: kCorrupt (no fiddle document, a reference to nothing or around in a circle), kMismatch (no such argument),
// kUnsupported (a pickle in its place, more than 100,000 values).
FiddleConfig ReadFiddle(const Json& document, const std::string& path, std::initializer_list<std::string_view> path_in);

// A value to write: a leaf, a name, a list, an empty dict or a configured class.
struct FiddleValue {
  enum class Type { kLeaf, kName, kList, kEmptyDict, kConfig };
  Type type = Type::kLeaf;
  Json leaf;
  std::string module, name;                                     // kName, kConfig
  std::vector<std::pair<std::string, FiddleValue>> items = {};  // kConfig: by argument; kList: names are not used

  static FiddleValue Leaf(Json value);
  static FiddleValue Name(std::string module, std::string name);
  static FiddleValue List(const Json& values);
  static FiddleValue EmptyDict();
  static FiddleValue Config(std::string module, std::string name);
  FiddleValue& Add(std::string argument, FiddleValue value);  // returns itself
};

// The document that fiddle's dump_json makes of a configuration.
Json FiddleDocument(const FiddleValue& root);

}  // namespace reshard
