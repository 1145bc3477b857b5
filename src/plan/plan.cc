#include "plan/plan.h"

#include <algorithm>

#include "base/bytes.h"

namespace reshard {
namespace {

// The grid that a part is cut on: the leading axes one by one, one axis in steps, the rest whole.
struct Grid {
  Dims step;       // extents of an op's box, but at the edge
  uint64_t count;  // ops
};

Grid GridOf(const Part& part) {
  const Dims shape = DomainOf(part).shape;
  Grid grid{shape, 1};
  if (part.value) {
    grid.step[0] = std::min(shape[0], RowsWithin(part, kMaxOpBytes));
    grid.count = CeilDiv(shape[0], grid.step[0]);
    return grid;
  }
  uint64_t limit = kMaxOpBytes / WidestItem(part);  // elements
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    uint64_t rest = std::max<uint64_t>(ElementCount(grid.step) / std::max<uint64_t>(grid.step[axis], 1), 1);
    grid.step[axis] = std::min(grid.step[axis], std::max<uint64_t>(limit / rest, 1));
  }
  for (size_t axis = 0; axis < shape.size(); ++axis)
    grid.count *= grid.step[axis] ? CeilDiv(shape[axis], grid.step[axis]) : 0;
  return grid;
}

}  // namespace

bool OpCursor::Next(Op& op) {
  for (; part_ < parts_.size(); ++part_, index_ = 0) {
    const Part& part = parts_[part_];
    Grid grid = GridOf(part);
    if (index_ >= grid.count) continue;
    op.part = static_cast<uint32_t>(part_);
    const Box domain = DomainOf(part);
    op.box = domain;
    uint64_t rest = index_++;
    for (size_t axis = domain.shape.size(); axis-- > 0;) {
      const uint64_t cells = CeilDiv(domain.shape[axis], grid.step[axis]);
      const uint64_t begin = rest % cells * grid.step[axis];
      op.box.origin[axis] += begin;
      op.box.shape[axis] = std::min(grid.step[axis], domain.shape[axis] - begin);
      rest /= cells;
    }
    return true;
  }
  return false;
}

Box DomainOf(const Part& part) { return part.domain ? *part.domain : WholeBox(part.shape); }

uint64_t SourceBytes(const Part& part, const Box& box) {
  uint64_t bytes = 0;
  for (const Piece& source : part.sources)
    if (const std::optional<Box> common = Intersect(source.box, box))
      bytes += ElementCount(common->shape) * ItemSize(source.dtype);
  for (const Part& operand : part.operands) bytes += SourceBytes(operand, Scaled(box, part.shape, operand.shape));
  return bytes;
}

uint64_t RowsWithin(const Part& part, uint64_t bytes) {
  const uint64_t columns = DomainOf(part).shape[1], tile = TileRows(*part.value);
  const uint64_t row = columns * WidestItem(part);
  return std::max<uint64_t>(bytes / std::max<uint64_t>(row, 1) / tile, 1) * tile;
}

uint32_t WidestItem(const Part& part) {
  uint32_t widest = 1;
  for (const auto* pieces : {&part.sources, &part.targets})
    for (const Piece& piece : *pieces) widest = std::max(widest, ItemSize(piece.dtype));
  return widest;
}

}  // namespace reshard
