// Whether boxes fill a shape, once each: a regular grid, or any other arrangement.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tensor/box.h"

namespace reshard::torch_dist {

// The grid that the boxes are the cells of, edge cells clipped, and the number of the box in each cell, in row-major
// order; nothing where they are no regular grid. They lie within the shape, have no extent of zero, and there is one.
struct Grid {
  Dims shape;
  std::vector<size_t> order;
};
std::optional<Grid> GridOf(const std::vector<Box>& boxes, const Dims& shape);

// What is wrong with boxes that are no grid, in words: two overlap, or they leave a gap; empty where they fill the
// shape. Errors: kUnsupported for an arrangement that takes too long to follow.
std::string TilingProblem(const std::vector<Box>& boxes, const Dims& shape);

}  // namespace reshard::torch_dist
