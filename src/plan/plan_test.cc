#include "plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace reshard {
namespace {

Piece PieceOf(const Dims& shape, Dtype dtype) {
  Piece piece;
  piece.box = WholeBox(shape);
  piece.dtype = dtype;
  return piece;
}

Part PartOf(const Dims& shape, Dtype source, Dtype target) {
  return {"part", shape, {PieceOf(shape, source)}, {PieceOf(shape, target)}};
}

std::vector<Op> OpsOf(const std::vector<Part>& parts) {
  std::vector<Op> ops;
  Op op;
  for (OpCursor cursor(parts); cursor.Next(op);) ops.push_back(op);
  return ops;
}

// Boxes within `shape` of which no two meet and that have as many elements together fill it.
void ExpectTiles(const Dims& shape, const std::vector<Box>& boxes) {
  uint64_t elements = 0;
  for (size_t i = 0; i < boxes.size(); ++i) {
    EXPECT_GT(ElementCount(boxes[i].shape), 0u);
    EXPECT_EQ(Intersect(boxes[i], WholeBox(shape)), boxes[i]);
    for (size_t j = 0; j < i; ++j) EXPECT_FALSE(Intersect(boxes[i], boxes[j]));
    elements += ElementCount(boxes[i].shape);
  }
  EXPECT_EQ(elements, ElementCount(shape));
}

void ExpectGoodOps(const std::vector<Part>& parts) {
  std::vector<std::vector<Box>> boxes(parts.size());
  uint32_t part = 0;
  for (const Op& op : OpsOf(parts)) {
    ASSERT_LT(op.part, parts.size());
    EXPECT_GE(op.part, part);
    part = op.part;
    ASSERT_EQ(op.box.shape.size(), parts[part].shape.size());
    EXPECT_LE(ElementCount(op.box.shape) * WidestItem(parts[part]), kMaxOpBytes);
    boxes[part].push_back(op.box);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    SCOPED_TRACE(ToString(parts[i].shape));
    ExpectTiles(parts[i].shape, boxes[i]);
  }
}

// Shapes whose bytes are spread from one to 256 MiB, with a zero extent now and then.
Dims RandomShape(std::mt19937_64& random) {
  Dims shape = Dims::Filled(random() % (Dims::kMaxAxes + 1), 1);
  uint64_t room = uint64_t{1} << random() % 26;
  for (size_t left = shape.size(); left > 0; --left) {
    uint64_t& extent = shape[random() % shape.size()];
    if (extent != 1) continue;
    extent = 1 + random() % room;
    room = std::max<uint64_t>(room / extent, 1);
  }
  if (!shape.empty() && random() % 10 == 0) shape[random() % shape.size()] = 0;
  return shape;
}

TEST(OpCursor, TilesEveryPartOnce) {
  constexpr Dtype kDtypes[] = {Dtype::kU8, Dtype::kBF16, Dtype::kF32, Dtype::kF64};
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<Part> parts;
    for (uint64_t n = random() % 5; n > 0; --n)
      parts.push_back(PartOf(RandomShape(random), kDtypes[random() % 4], kDtypes[random() % 4]));
    ExpectGoodOps(parts);
    if (HasFailure()) return;
  }
}

TEST(OpCursor, CutsRowsThatAreLargerThanAnOp) {
  ExpectGoodOps({PartOf({3, 9'000'001}, Dtype::kF32, Dtype::kBF16)});
  ExpectGoodOps({PartOf({2, 3, 5'000'011}, Dtype::kBF16, Dtype::kF32)});
  ExpectGoodOps({PartOf({40'000'003}, Dtype::kBF16, Dtype::kBF16)});
  ExpectGoodOps({PartOf({128'256, 4096}, Dtype::kBF16, Dtype::kF32)});
  ExpectGoodOps({PartOf({2, 2, 3, 4100, 1023}, Dtype::kF32, Dtype::kF32)});
}

TEST(OpCursor, LeavesAPartWholeThatFits) {
  for (const Dims& shape : {Dims{}, Dims{1}, Dims{kMaxOpBytes / 4}, Dims{2048, 2048}, Dims{2, 3, 5}}) {
    SCOPED_TRACE(ToString(shape));
    std::vector<Op> ops = OpsOf({PartOf(shape, Dtype::kF32, Dtype::kBF16)});
    ASSERT_EQ(ops.size(), 1u);
    EXPECT_EQ(ops[0].box, WholeBox(shape));
  }
}

TEST(OpCursor, SkipsPartsWithoutElements) {
  std::vector<Part> parts;
  for (const Dims& shape : {Dims{0}, Dims{4, 0}, Dims{2, 2}, Dims{0, 9'000'001, 4}, Dims{3}, Dims{5, 0, 5}})
    parts.push_back(PartOf(shape, Dtype::kF32, Dtype::kF32));
  std::vector<Op> ops = OpsOf(parts);
  ASSERT_EQ(ops.size(), 2u);
  EXPECT_EQ(ops[0].part, 2u);
  EXPECT_EQ(ops[1].part, 4u);
  EXPECT_TRUE(OpsOf({}).empty());
}

// Neither what else is in the plan nor where a part lies moves the cuts.
TEST(OpCursor, CutsEachPartByItself) {
  Part part = PartOf({10'000, 3001}, Dtype::kBF16, Dtype::kBF16);
  std::vector<Op> alone = OpsOf({part});
  ASSERT_GT(alone.size(), 1u);
  Part moved = part;
  moved.sources[0].offset = 12'345;
  moved.targets[0].file = 7;
  std::vector<Op> among = OpsOf({PartOf({9'000'000}, Dtype::kF64, Dtype::kF64), moved, part});
  ASSERT_GE(among.size(), 2 * alone.size());
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(among[among.size() - alone.size() + i].box, alone[i].box);
    EXPECT_EQ(among[among.size() - 2 * alone.size() + i].box, alone[i].box);
  }
}

TEST(OpCursor, StaysAtTheEnd) {
  const std::vector<Part> parts = {PartOf({2}, Dtype::kF32, Dtype::kF32)};
  OpCursor cursor(parts);
  Op op;
  EXPECT_TRUE(cursor.Next(op));
  EXPECT_FALSE(cursor.Next(op));
  EXPECT_FALSE(cursor.Next(op));
}

TEST(WidestItem, LooksAtBothSides) {
  EXPECT_EQ(WidestItem(PartOf({2}, Dtype::kF32, Dtype::kBF16)), 4u);
  EXPECT_EQ(WidestItem(PartOf({2}, Dtype::kBF16, Dtype::kF32)), 4u);
  EXPECT_EQ(WidestItem({"zeros", {2}, {}, {PieceOf({2}, Dtype::kF16)}}), 2u);
}

TEST(Axis, GoesFromBlockToBlock) {
  const Axis axis{3, 2, 100};
  const uint64_t expected[] = {0, 2, 4, 100, 102, 104, 200, 202};
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(axis.At(i), expected[i]);
}

}  // namespace
}  // namespace reshard
