// Any bytes as JSON: a tree or an Error; what we write of the tree reads back equal, and the value of every top-level
// key can be replaced.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/json.h"

using reshard::Json;

namespace {

void CheckReplacement(std::string_view text, const Json& json) {
  if (!json.is_object()) return;
  for (const auto& [key, value] : json.items()) {
    auto changed = reshard::ReplaceTopLevelValue(text, key, "[7]");
    if (!changed || reshard::ParseJson(*changed, "changed").at(key) != Json({7})) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Json json = reshard::ParseJson(text, "input");
    if (reshard::ParseJson(reshard::PythonJson(json, false), "output") != json) std::abort();
    CheckReplacement(text, json);
  } catch (const reshard::Error&) {
  }
  return 0;
}
