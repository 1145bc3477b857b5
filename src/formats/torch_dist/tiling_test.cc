#include "formats/torch_dist/tiling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/error.h"
#include "tensor/testutil.h"

namespace reshard::torch_dist {
namespace {

using testing::HasSubstr;

TEST(Tiling, FindsAGridInAnyOrder) {
  const std::vector<Box> boxes = {{{4, 3}, {1, 3}}, {{0, 3}, {4, 3}}, {{4, 0}, {1, 3}}, {{0, 0}, {4, 3}}};
  const auto grid = GridOf(boxes, {5, 6});
  ASSERT_TRUE(grid);
  EXPECT_EQ(grid->shape, (Dims{4, 3}));
  EXPECT_EQ(grid->order, (std::vector<size_t>{3, 1, 2, 0}));
}

TEST(Tiling, FindsTheGridOfAScalar) {
  const auto grid = GridOf({Box{}}, {});
  ASSERT_TRUE(grid);
  EXPECT_EQ(grid->order, std::vector<size_t>{0});
}

TEST(Tiling, FindsNoGridWhereBoxesAreUneven) {
  EXPECT_FALSE(GridOf({{{0}, {2}}, {{2}, {3}}}, {5}));
  EXPECT_FALSE(GridOf({{{0}, {2}}, {{0}, {2}}}, {4}));
  EXPECT_FALSE(GridOf({{{1}, {2}}}, {2}));
  EXPECT_FALSE(GridOf({{{0}, {2}}}, {4}));
}

TEST(Tiling, AcceptsWhatFillsTheShape) {
  EXPECT_EQ(TilingProblem({{{0}, {2}}, {{2}, {3}}}, {5}), "");
  const std::vector<Box> pinwheel = {
      {{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}};
  EXPECT_EQ(TilingProblem(pinwheel, {3, 3}), "");
}

TEST(Tiling, NamesAnOverlapAndAGap) {
  EXPECT_THAT(TilingProblem({{{0}, {3}}, {{2}, {3}}}, {5}), HasSubstr("[0] of [3] and at [2] of [3] overlap"));
  EXPECT_THAT(TilingProblem({{{0}, {2}}, {{3}, {2}}}, {5}), HasSubstr("4 of 5 elements"));
  EXPECT_THAT(TilingProblem({}, {5}), HasSubstr("0 of 5 elements"));
}

// One box along the diagonal for each cut of both axes: too many cells to mark.
std::vector<Box> Diagonal(uint64_t count) {
  std::vector<Box> boxes;
  for (uint64_t i = 0; i < count; ++i) boxes.push_back({{i, i}, {1, 1}});
  return boxes;
}

TEST(Tiling, ComparesBoxesInPairsWhereTheirCellsAreMany) {
  std::vector<Box> boxes = Diagonal(500);
  EXPECT_THAT(TilingProblem(boxes, {500, 500}), HasSubstr("500 of 250000 elements"));
  boxes.push_back({{7, 7}, {1, 1}});
  EXPECT_THAT(TilingProblem(boxes, {500, 500}), HasSubstr("at [7, 7] of [1, 1] overlap"));
}

TEST(Tiling, RefusesWhatTakesTooLong) {
  try {
    TilingProblem(Diagonal(3000), {3000, 3000});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUnsupported);
  }
}

// What is wrong by counting how often each element is met.
std::string Counted(const std::vector<Box>& boxes, const Dims& shape) {
  std::vector<int> met(ElementCount(shape));
  for (const Box& box : boxes)
    ForEachIndex(box, [&](const Dims& index) {
      uint64_t at = 0;
      for (size_t axis = 0; axis < shape.size(); ++axis) at = at * shape[axis] + index[axis];
      ++met[at];
    });
  if (*std::max_element(met.begin(), met.end()) > 1) return "overlap";
  return *std::min_element(met.begin(), met.end()) == 0 ? "gap" : "";
}

// Boxes that come of cutting one in two again and again; then some are lost, doubled or moved.
TEST(Tiling, AgreesWithCountingElements) {
  std::mt19937 random(1);
  int sound = 0;
  for (int round = 0; round < 2000; ++round) {
    Dims shape;
    for (size_t axis = 0; axis < 1 + random() % 3; ++axis) shape.push_back(1 + random() % 6);
    std::vector<Box> boxes = {WholeBox(shape)};
    for (size_t cut = 0; cut < random() % 8; ++cut) {
      const size_t i = random() % boxes.size(), axis = random() % shape.size();
      if (boxes[i].shape[axis] < 2) continue;
      Box rest = boxes[i];
      const uint64_t at = 1 + random() % (rest.shape[axis] - 1);
      boxes[i].shape[axis] = at;
      rest.origin[axis] += at;
      rest.shape[axis] -= at;
      boxes.push_back(rest);
    }
    std::shuffle(boxes.begin(), boxes.end(), random);
    if (round % 4 == 1) boxes.pop_back();
    if (round % 4 == 2) boxes.push_back(boxes[random() % boxes.size()]);
    if (boxes.empty()) continue;
    const std::string expected = Counted(boxes, shape), found = TilingProblem(boxes, shape);
    EXPECT_EQ(found.empty(), expected.empty()) << found;
    EXPECT_THAT(found, HasSubstr(expected));
    EXPECT_TRUE(expected.empty() || !GridOf(boxes, shape));
    sound += expected.empty();
  }
  EXPECT_GT(sound, 500);
}

}  // namespace
}  // namespace reshard::torch_dist
