// Any bytes as YAML: a tree or an Error; what we write of a mapping reads back equal.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/yaml.h"

using reshard::Json;

namespace {

// What EmitYaml asks for, whatever is escaped.
bool KeysAreShort(const Json& value) {
  for (const auto& [key, member] : value.items())
    if (key.size() > 200 || (member.is_structured() && !KeysAreShort(member))) return false;
  return true;
}

// By text: NaN equals NaN.
bool ReadsBackEqual(const Json& mapping) {
  std::string text = reshard::EmitYaml(mapping);
  return reshard::EmitYaml(reshard::YamlValue(reshard::ParseYaml(text, "output"))) == text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Json value;
  try {
    value = reshard::YamlValue(reshard::ParseYaml({reinterpret_cast<const char*>(data), size}, "input"));
  } catch (const reshard::Error&) {
    return 0;
  }
  if (value.is_object() && KeysAreShort(value) && !ReadsBackEqual(value)) std::abort();
  return 0;
}
