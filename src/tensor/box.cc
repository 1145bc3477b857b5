#include "tensor/box.h"

#include <algorithm>

#include "base/bytes.h"

namespace reshard {

Box WholeBox(const Dims& shape) { return {Dims::Filled(shape.size(), 0), shape}; }

std::optional<Box> Intersect(const Box& a, const Box& b) {
  Box common = a;
  for (size_t axis = 0; axis < a.shape.size(); ++axis) {
    uint64_t low = std::max(a.origin[axis], b.origin[axis]);
    uint64_t high = std::min(a.end(axis), b.end(axis));
    if (low >= high) return std::nullopt;
    common.origin[axis] = low;
    common.shape[axis] = high - low;
  }
  return common;
}

Box Scaled(const Box& box, const Dims& whole, const Dims& scaled) {
  Box along = box;
  for (size_t axis = 0; axis < box.shape.size(); ++axis) {
    const uint64_t per = whole[axis] / scaled[axis];
    along.origin[axis] = box.origin[axis] / per;
    along.shape[axis] = CeilDiv(box.end(axis), per) - along.origin[axis];
  }
  return along;
}

std::vector<Box> Subtract(const Box& box, const Box& hole) {
  if (ElementCount(box.shape) == 0) return {};
  std::optional<Box> common = Intersect(box, hole);
  if (!common) return {box};
  std::vector<Box> left;
  Box rest = box;
  for (size_t axis = 0; axis < box.shape.size(); ++axis) {
    // What lies before and behind the hole on this axis; the axes before it are already narrowed to the hole.
    uint64_t low = common->origin[axis], high = common->end(axis);
    for (auto [begin, end] : {std::pair{rest.origin[axis], low}, std::pair{high, rest.end(axis)}}) {
      if (begin == end) continue;
      left.push_back(rest);
      left.back().origin[axis] = begin;
      left.back().shape[axis] = end - begin;
    }
    rest.origin[axis] = low;
    rest.shape[axis] = high - low;
  }
  return left;
}

Dims CellCounts(const Dims& shape, const Dims& grid) {
  Dims counts;
  for (size_t axis = 0; axis < shape.size(); ++axis) counts.push_back(CeilDiv(shape[axis], grid[axis]));
  return counts;
}

bool NextCell(const Dims& counts, Dims& cell) {
  for (size_t axis = counts.size(); axis-- > 0;) {
    if (++cell[axis] < counts[axis]) return true;
    cell[axis] = 0;
  }
  return false;
}

Box CellBox(const Dims& cell, const Dims& shape, const Dims& grid) {
  Box box;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    box.origin.push_back(cell[axis] * grid[axis]);
    box.shape.push_back(std::min(grid[axis], shape[axis] - box.origin[axis]));
  }
  return box;
}

}  // namespace reshard
