// The box algebra against a naive array: a small grid, every cell of which is asked.
#include "tensor/box.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>

namespace reshard {
namespace {

constexpr uint64_t kExtent = 6;  // of the grid, on each axis

bool Contains(const Box& box, const Dims& cell) {
  for (size_t axis = 0; axis < cell.size(); ++axis)
    if (cell[axis] < box.origin[axis] || cell[axis] >= box.origin[axis] + box.shape[axis]) return false;
  return true;
}

template <typename Visit>
void ForEachCell(size_t axes, Visit visit) {
  for (uint64_t index = 0, cells = ElementCount(Dims::Filled(axes, kExtent)); index < cells; ++index) {
    Dims cell;
    for (uint64_t rest = index; cell.size() < axes; rest /= kExtent) cell.push_back(rest % kExtent);
    visit(cell);
  }
}

Box AnyBox(size_t axes) {
  Box box;
  for (size_t axis = 0; axis < axes; ++axis) {
    box.origin.push_back(*rc::gen::inRange<uint64_t>(0, kExtent));
    box.shape.push_back(*rc::gen::inRange<uint64_t>(1, kExtent - box.origin[axis] + 1));
  }
  return box;
}

size_t AnyAxes() { return *rc::gen::inRange<size_t>(0, 5); }

RC_GTEST_PROP(Intersect, HoldsExactlyTheCommonCells, ()) {
  size_t axes = AnyAxes();
  Box a = AnyBox(axes), b = AnyBox(axes);
  std::optional<Box> common = Intersect(a, b);
  bool meet = false;
  ForEachCell(axes, [&](const Dims& cell) {
    bool expected = Contains(a, cell) && Contains(b, cell);
    meet |= expected;
    RC_ASSERT((common && Contains(*common, cell)) == expected);
  });
  RC_ASSERT(common.has_value() == meet);
  RC_ASSERT(common == Intersect(b, a));
}

RC_GTEST_PROP(Scaled, HoldsTheCellsThatStandForSomeOfTheBox, ()) {
  size_t axes = AnyAxes();
  Box box = AnyBox(axes);
  Dims whole = Dims::Filled(axes, kExtent), scaled;
  for (size_t axis = 0; axis < axes; ++axis) scaled.push_back(kExtent / *rc::gen::element<uint64_t>(1, 2, 3, 6));
  const Box found = Scaled(box, whole, scaled);
  ForEachCell(axes, [&](const Dims& cell) {
    bool inside = true, expected = true;
    for (size_t axis = 0; axis < axes; ++axis) {
      inside &= cell[axis] < scaled[axis];
      const uint64_t per = kExtent / scaled[axis], begin = cell[axis] * per, end = begin + per;
      expected &= begin < box.origin[axis] + box.shape[axis] && box.origin[axis] < end;
    }
    if (inside) RC_ASSERT(Contains(found, cell) == expected);
  });
}

RC_GTEST_PROP(Subtract, CoversWhatLiesOutsideOfTheHoleOnce, ()) {
  size_t axes = AnyAxes();
  Box box = AnyBox(axes), hole = AnyBox(axes);
  std::vector<Box> left = Subtract(box, hole);
  ForEachCell(axes, [&](const Dims& cell) {
    size_t times = 0;
    for (const Box& piece : left) times += Contains(piece, cell);
    RC_ASSERT(times == (Contains(box, cell) && !Contains(hole, cell) ? 1u : 0u));
  });
  for (const Box& piece : left) RC_ASSERT(ElementCount(piece.shape) > 0u);
}

TEST(Intersect, ScalarsMeet) { EXPECT_EQ(Intersect(WholeBox({}), WholeBox({})), WholeBox({})); }

TEST(Intersect, EmptyBoxesMeetNothing) {
  EXPECT_FALSE(Intersect(WholeBox({0, 4}), WholeBox({0, 4})));
  EXPECT_FALSE(Intersect({{2}, {0}}, {{0}, {5}}));
}

TEST(Subtract, LeavesNothingOfABoxInsideTheHole) {
  EXPECT_TRUE(Subtract({{1, 1}, {2, 3}}, WholeBox({4, 4})).empty());
  EXPECT_TRUE(Subtract(WholeBox({}), WholeBox({})).empty());
}

TEST(Subtract, AHoleInTheMiddleLeavesTwoBoxesAnAxis) {
  EXPECT_EQ(Subtract(WholeBox({3, 3, 3}), {{1, 1, 1}, {1, 1, 1}}).size(), 6u);
}

TEST(WholeBox, StartsAtZero) { EXPECT_EQ(WholeBox({4, 2}), (Box{{0, 0}, {4, 2}})); }

}  // namespace
}  // namespace reshard
