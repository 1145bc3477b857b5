// Any text as model.safetensors.index.json: the parser gives file names within the folder, or throws Error and nothing
// else.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "formats/safetensors/sharding.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    for (const std::string& shard : reshard::safetensors::ParseIndex(text, "input", 10'000).shards)
      if (shard.empty() || shard[0] == '/' || shard == "..") std::abort();
  } catch (const reshard::Error&) {
  }
  return 0;
}
