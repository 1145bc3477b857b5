// For tests of geometry.
#pragma once

#include <cstdint>
#include <functional>

#include "tensor/box.h"

namespace reshard {

// Calls visit(index) for every index of the box, in row-major order.
inline void ForEachIndex(const Box& box, const std::function<void(const Dims&)>& visit) {
  Dims index = box.origin;
  for (uint64_t left = ElementCount(box.shape); left > 0; --left) {
    visit(index);
    for (size_t a = index.size(); a-- > 0;) {
      if (++index[a] < box.end(a)) break;
      index[a] = box.origin[a];
    }
  }
}

inline void ForEachIndex(const Dims& shape, const std::function<void(const Dims&)>& visit) {
  ForEachIndex(WholeBox(shape), visit);
}

}  // namespace reshard
