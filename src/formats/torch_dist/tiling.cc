#include "formats/torch_dist/tiling.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard::torch_dist {
namespace {

// Cells that may be marked for each box, and boxes that may be compared in pairs.
constexpr uint64_t kCellsPerBox = 16, kFewCells = 1024, kFewBoxes = 1024;

std::string Overlap(const Box& a, const Box& b) {
  return fmt::format("the chunks at {} of {} and at {} of {} overlap, expected each element in one", ToString(a.origin),
                     ToString(a.shape), ToString(b.origin), ToString(b.shape));
}

// The coordinates at which boxes begin or end, along each axis.
using Cuts = std::array<std::vector<uint64_t>, Dims::kMaxAxes>;

Cuts CutsOf(const std::vector<Box>& boxes, size_t axes) {
  Cuts cuts;
  for (size_t axis = 0; axis < axes; ++axis) {
    for (const Box& box : boxes) {
      cuts[axis].push_back(box.origin[axis]);
      cuts[axis].push_back(box.end(axis));
    }
    std::sort(cuts[axis].begin(), cuts[axis].end());
    cuts[axis].erase(std::unique(cuts[axis].begin(), cuts[axis].end()), cuts[axis].end());
  }
  return cuts;
}

// The cells between cuts that a box is made of.
Box CellsOf(const Box& box, const Cuts& cuts) {
  Box cells;
  for (size_t axis = 0; axis < box.shape.size(); ++axis) {
    auto number = [&](uint64_t coordinate) {
      return static_cast<uint64_t>(std::lower_bound(cuts[axis].begin(), cuts[axis].end(), coordinate) -
                                   cuts[axis].begin());
    };
    cells.origin.push_back(number(box.origin[axis]));
    cells.shape.push_back(number(box.end(axis)) - cells.origin[axis]);
  }
  return cells;
}

// Marks the cells of each box; nothing where there are too many of them, else the two that overlap, or an empty text.
std::optional<std::string> OverlapByCells(const std::vector<Box>& boxes, size_t axes) {
  const Cuts cuts = CutsOf(boxes, axes);
  Dims counts;
  uint64_t cells = 1;
  for (size_t axis = 0; axis < axes; ++axis) {
    counts.push_back(cuts[axis].size() - 1);
    cells = CheckedMultiply(cells, counts[axis]).value_or(UINT64_MAX);
  }
  if (cells > kCellsPerBox * boxes.size() + kFewCells) return std::nullopt;
  std::vector<uint32_t> owner(cells, UINT32_MAX);
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Box range = CellsOf(boxes[i], cuts);
    Dims cell = Dims::Filled(axes, 0);
    do {
      uint64_t at = 0;
      for (size_t axis = 0; axis < axes; ++axis) at = at * counts[axis] + range.origin[axis] + cell[axis];
      if (owner[at] != UINT32_MAX) return Overlap(boxes[owner[at]], boxes[i]);
      owner[at] = static_cast<uint32_t>(i);
    } while (NextCell(range.shape, cell));
  }
  return "";
}

std::string OverlapByPairs(const std::vector<Box>& boxes) {
  if (boxes.size() > kFewBoxes)
    throw Error(Code::kUnsupported, fmt::format("{} chunks that are no grid, expected a grid, or at most {} chunks",
                                                boxes.size(), kFewBoxes));
  for (size_t i = 0; i < boxes.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (Intersect(boxes[j], boxes[i])) return Overlap(boxes[j], boxes[i]);
  return "";
}

}  // namespace

std::optional<Grid> GridOf(const std::vector<Box>& boxes, const Dims& shape) {
  const auto first = std::find_if(boxes.begin(), boxes.end(),
                                  [&](const Box& box) { return box.origin == Dims::Filled(shape.size(), 0); });
  if (first == boxes.end()) return std::nullopt;
  Grid grid{first->shape, std::vector<size_t>(boxes.size(), SIZE_MAX)};
  const Dims counts = CellCounts(shape, grid.shape);
  uint64_t cells = 1;
  for (uint64_t count : counts) cells = CheckedMultiply(cells, count).value_or(UINT64_MAX);
  if (cells != boxes.size()) return std::nullopt;
  for (size_t i = 0; i < boxes.size(); ++i) {
    Dims cell;
    uint64_t at = 0;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      cell.push_back(boxes[i].origin[axis] / grid.shape[axis]);
      at = at * counts[axis] + cell[axis];
    }
    if (!(CellBox(cell, shape, grid.shape) == boxes[i]) || grid.order[at] != SIZE_MAX) return std::nullopt;
    grid.order[at] = i;
  }
  return grid;
}

std::string TilingProblem(const std::vector<Box>& boxes, const Dims& shape) {
  if (!boxes.empty()) {
    const std::optional<std::string> by_cells = OverlapByCells(boxes, shape.size());
    if (std::string overlap = by_cells ? *by_cells : OverlapByPairs(boxes); !overlap.empty()) return overlap;
  }
  uint64_t covered = 0;
  for (const Box& box : boxes) covered += ElementCount(box.shape);  // disjoint within the shape
  if (covered == ElementCount(shape)) return "";
  return fmt::format("the chunks leave a gap: they hold {} of {} elements, expected all", covered, ElementCount(shape));
}

}  // namespace reshard::torch_dist
