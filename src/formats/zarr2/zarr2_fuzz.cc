// Any bytes as a .zarray: a header within the bounds that it promises, and the same again from the text we write of it;
// or Error and nothing else.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/bytes.h"
#include "base/error.h"
#include "formats/zarr2/zarr2.h"

using namespace reshard;

namespace {

bool IsSound(const zarr2::Header& header) {
  if (!IsCastable(header.dtype) || header.shape.size() != header.chunks.size()) return false;
  uint64_t bytes = ItemSize(header.dtype);
  for (uint64_t extent : header.chunks) {
    auto product = CheckedMultiply(bytes, extent);
    if (extent == 0 || !product) return false;
    bytes = *product;
  }
  return true;
}

bool IsEqual(const zarr2::Header& a, const zarr2::Header& b) {
  return a.dtype == b.dtype && a.shape == b.shape && a.chunks == b.chunks && a.separator == b.separator;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const zarr2::Header header = zarr2::ParseHeader({reinterpret_cast<const char*>(data), size}, "input");
    if (!IsSound(header) || !IsEqual(zarr2::ParseHeader(zarr2::HeaderText(header), "output"), header)) std::abort();
  } catch (const Error&) {
  }
  return 0;
}
