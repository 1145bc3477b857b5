// Any bytes as a safetensors file: the reader gives tensors that lie within it, or throws Error and nothing else.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "formats/safetensors/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    for (const reshard::StoredTensor& tensor : reshard::safetensors::ReadHeader(bytes, size, "input", 0)) {
      const uint64_t bits = reshard::ElementCount(tensor.shape) * reshard::Row(tensor.dtype).bits;
      if (tensor.chunks.size() != 1 || tensor.chunks[0].offset + bits / 8 > size) std::abort();
    }
  } catch (const reshard::Error&) {
  }
  return 0;
}
