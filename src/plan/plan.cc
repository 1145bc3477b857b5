#include "plan/plan.h"

#include <algorithm>

namespace reshard {
namespace {

// The grid that a part is cut on: the leading axes one by one, one axis in steps, the rest whole.
struct Grid {
  Dims step;       // extents of an op's box, but at the edge
  uint64_t count;  // ops
};

Grid GridOf(const Part& part) {
  Grid grid{part.shape, 1};
  uint64_t limit = kMaxOpBytes / WidestItem(part);  // elements
  for (size_t axis = 0; axis < part.shape.size(); ++axis) {
    uint64_t rest = std::max<uint64_t>(ElementCount(grid.step) / std::max<uint64_t>(grid.step[axis], 1), 1);
    grid.step[axis] = std::min(grid.step[axis], std::max<uint64_t>(limit / rest, 1));
  }
  for (size_t axis = 0; axis < part.shape.size(); ++axis)
    grid.count *= grid.step[axis] ? (part.shape[axis] + grid.step[axis] - 1) / grid.step[axis] : 0;
  return grid;
}

}  // namespace

bool OpCursor::Next(Op& op) {
  for (; part_ < parts_.size(); ++part_, index_ = 0) {
    const Part& part = parts_[part_];
    Grid grid = GridOf(part);
    if (index_ >= grid.count) continue;
    op.part = static_cast<uint32_t>(part_);
    op.box = WholeBox(part.shape);
    uint64_t rest = index_++;
    for (size_t axis = part.shape.size(); axis-- > 0;) {
      uint64_t cells = (part.shape[axis] + grid.step[axis] - 1) / grid.step[axis];
      op.box.origin[axis] = rest % cells * grid.step[axis];
      op.box.shape[axis] = std::min(grid.step[axis], part.shape[axis] - op.box.origin[axis]);
      rest /= cells;
    }
    return true;
  }
  return false;
}

uint32_t WidestItem(const Part& part) {
  uint32_t widest = 1;
  for (const auto* pieces : {&part.sources, &part.targets})
    for (const Piece& piece : *pieces) widest = std::max(widest, ItemSize(piece.dtype));
  return widest;
}

}  // namespace reshard
