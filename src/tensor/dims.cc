#include "tensor/dims.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace reshard {

uint64_t ElementCount(const Dims& shape) {
  uint64_t count = 1;
  for (uint64_t extent : shape) count *= extent;
  return count;
}

Dims RowMajorStrides(const Dims& shape) {
  Dims strides = Dims::Filled(shape.size(), 1);
  for (size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
  return strides;
}

std::string ToString(const Dims& shape) { return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", ")); }

}  // namespace reshard
