// A box: origin and shape in elements, row-major axis order. Where boxes meet is all the geometry there is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensor/dims.h"
#include "tensor/dtype.h"

namespace reshard {

struct Box {
  Dims origin, shape;

  uint64_t end(size_t axis) const { return origin[axis] + shape[axis]; }
  friend bool operator==(const Box& a, const Box& b) { return a.origin == b.origin && a.shape == b.shape; }
};

Box WholeBox(const Dims& shape);

// The common box of two boxes with as many axes, or nothing where it is empty. A scalar (no axis) meets a scalar.
std::optional<Box> Intersect(const Box& a, const Box& b);

// The box of a tensor whose elements each stand for several of another one, that go with a box of that: `whole` is its
// shape and `scaled` the other's, whose extents divide it. What goes with the box in part goes with it.
Box Scaled(const Box& box, const Dims& whole, const Dims& scaled);

// Disjoint boxes that fill `box` outside of `hole`.
std::vector<Box> Subtract(const Box& box, const Box& hole);

// The cells of a regular grid over a shape, whose extents are at least 1: along each axis; that behind `cell` in
// row-major order, false behind the last; what of the shape lies in one.
Dims CellCounts(const Dims& shape, const Dims& grid);
bool NextCell(const Dims& counts, Dims& cell);
Box CellBox(const Dims& cell, const Dims& shape, const Dims& grid);

// Calls visit(cell) for each of them in row-major order.
template <typename Visit>
void ForEachCell(const Dims& counts, Visit visit) {
  if (ElementCount(counts) == 0) return;
  Dims cell = Dims::Filled(counts.size(), 0);
  do {
    visit(cell);
  } while (NextCell(counts, cell));
}

// A stored box of a tensor: element (i0, i1, ...) of the box lies at byte `offset` + (i0*strides[0] + i1*strides[1] +
// ...)
// * item size of file number `file`. Strides count elements; the offset need not be aligned.
struct Chunk {
  Box box;
  Dims strides;
  uint32_t file = 0;
  uint64_t offset = 0;
};

// A tensor as a checkpoint stores it. Its chunks fill its shape, once each. `grid` is the chunk shape where the chunks
// are a regular grid, in row-major order of their cells (edge chunks clipped); it has no axes where they are not.
struct StoredTensor {
  std::string name;
  Dtype dtype = Dtype::kF32;
  Dims shape;
  Dims grid;
  std::vector<Chunk> chunks;
  uint32_t rank = 0;  // that stores it, where a checkpoint has several; a name may then be there on each
};

}  // namespace reshard
