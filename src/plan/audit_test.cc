// Plans by hand, against a count of every byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "plan/planner.h"

namespace reshard {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Piece PieceOf(const Dims& shape, const std::vector<Axis>& axes, Dtype dtype = Dtype::kBF16) {
  Piece piece;
  piece.box = WholeBox(shape);
  std::copy(axes.begin(), axes.end(), piece.axes.begin());
  piece.dtype = dtype;
  return piece;
}

Piece RowMajor(const Dims& shape, Dtype dtype = Dtype::kBF16) {
  std::vector<Axis> axes;
  const Dims strides = RowMajorStrides(shape);
  for (size_t axis = 0; axis < shape.size(); ++axis) axes.push_back({shape[axis], strides[axis], 0});
  return PieceOf(shape, axes, dtype);
}

// One part of one source and one target piece, in a file each.
Plan PlanOf(const Dims& shape, const Piece& target, uint64_t target_size) {
  Plan plan;
  plan.sources = {{"in", "in", ElementCount(shape) * 2, 0, 0}};
  plan.files = {{"out", target_size, {}}};
  plan.source_tensors = {"a"};
  plan.target_tensors = {"b"};
  plan.parts = {{"the part", shape, {RowMajor(shape)}, {target}}};
  return plan;
}

TEST(Audit, AcceptsAPieceThatFillsItsFile) {
  EXPECT_THAT(Audit(PlanOf({3, 5}, RowMajor({3, 5}), 30)), IsEmpty());
  EXPECT_THAT(Audit(PlanOf({3, 5}, PieceOf({3, 5}, {{3, 1, 0}, {5, 3, 0}}), 30)), IsEmpty());  // transposed
  EXPECT_THAT(Audit(PlanOf({}, RowMajor({}), 2)), IsEmpty());
}

// Twenty elements in a range of twenty, some of them twice.
TEST(Audit, FindsAPieceThatOverlapsItself) {
  for (const std::vector<Axis>& axes :
       {std::vector<Axis>{{2, 19, 0}, {10, 0, 0}}, std::vector<Axis>{{2, 1, 0}, {10, 2, 0}},  // the one that does not
        std::vector<Axis>{{2, 10, 0}, {5, 1, 5}},                                             // nor this
        std::vector<Axis>{{2, 15, 0}, {5, 1, 0}}, std::vector<Axis>{{2, 0, 0}, {5, 1, 15}}}) {
    std::vector<int> count(20);
    for (uint64_t i = 0; i < 2; ++i)
      for (uint64_t j = 0; j < 10; ++j) ++count.at(axes[0].At(i) + axes[1].At(j));
    const bool once = std::all_of(count.begin(), count.end(), [](int n) { return n == 1; });
    EXPECT_EQ(Audit(PlanOf({2, 10}, PieceOf({2, 10}, axes), 40)).empty(), once) << axes[0].inner;
  }
}

// Strides and blocks of all sorts; literals fill what the piece leaves, so that a plan is wrong only if a byte is
// written twice.
// FP8 rows with a scale each, carried over: 6 rows of 4 columns, of which the domain is `domain`.
Plan CarriedPlan(const Box& domain) {
  Plan plan;
  plan.sources = {{"in", "in", 6 * 4 + 6 * 4, 0, 0}};
  plan.source_tensors = {"a"};
  plan.target_tensors = {"b"};
  const uint64_t rows = domain.shape[0], columns = domain.shape[1];
  plan.files = {{"out", rows * columns, {}}, {"scales", rows * 4, {}}};
  Part part{"the part", {6, 4}, {RowMajor({6, 4}, Dtype::kF8E4M3)}, {}, domain};
  part.value = ValueOp{ValueOp::Kind::kFp8AsIs, GemmLayout::kPlain, Dtype::kBF16, {Encoding::kFp8Rows, 0}};
  Piece scales = RowMajor({6, 1}, Dtype::kF32);
  scales.offset = 24;
  part.operands = {{"scales", {6, 1}, {scales}, {}}};
  part.targets = {RowMajor({rows, columns}, Dtype::kF8E4M3), RowMajor({rows}, Dtype::kF32)};
  part.targets[1].output = 1;
  part.targets[1].file = 1;
  plan.parts = {part};
  return plan;
}

TEST(Audit, LooksAtOperandsOfValueOps) {
  const Plan whole = CarriedPlan({{0, 0}, {6, 4}});
  EXPECT_THAT(Audit(whole), IsEmpty());
  EXPECT_THAT(Audit(CarriedPlan({{2, 0}, {3, 4}})), IsEmpty());
  EXPECT_THAT(Audit(CarriedPlan({{0, 2}, {6, 2}})), IsEmpty());  // a scale is for all columns
  Plan without = whole;
  without.parts[0].operands.clear();
  EXPECT_THAT(Audit(without), Contains(HasSubstr("0 operands")));
  Plan other = whole;
  other.parts[0].operands[0].sources[0].dtype = Dtype::kF16;
  EXPECT_THAT(Audit(other), Contains(HasSubstr("operand 1 is not what the value op takes")));
  Plan beyond = whole;
  beyond.parts[0].operands[0].sources[0].offset = 28;
  EXPECT_THAT(Audit(beyond), Contains(HasSubstr("beyond the end of its file")));
}

TEST(Audit, CutsGroupsOfAnOperandNowhere) {
  Plan plan;
  plan.sources = {{"in", "in", 1024, 0, 0}};
  plan.source_tensors = {"a"};
  plan.parts = {{"the part", {8, 8}, {RowMajor({8, 8}, Dtype::kI32)}, {}, Box{{0, 4}, {8, 4}}}};
  Part& part = plan.parts[0];
  part.value = ValueOp{ValueOp::Kind::kGptq, GemmLayout::kPlain, Dtype::kF16, {Encoding::kGptq, 32}};
  part.operands = {{"zeros", {1, 2}, {RowMajor({1, 2}, Dtype::kI32)}, {}},
                   {"scales", {8, 2}, {RowMajor({8, 2}, Dtype::kF16)}, {}}};
  EXPECT_THAT(Audit(plan), IsEmpty());
  part.domain = Box{{0, 4}, {8, 2}};
  EXPECT_THAT(Audit(plan), Contains(HasSubstr("operand 1 goes with elements outside of the domain")));
}

TEST(Audit, CountsEveryByte) {
  std::mt19937_64 random(1);
  auto pick = [&](uint64_t low, uint64_t high) { return low + random() % (high - low + 1); };
  int right = 0, wrong = 0;
  for (int round = 0; round < 20'000; ++round) {
    Dims shape;
    std::vector<Axis> axes;
    for (uint64_t n = pick(1, 3), stride = 1; n > 0; --n) {
      shape.push_back(pick(1, 5));
      const uint64_t block = pick(1, shape.back() + 1), gap = pick(0, 7) ? 0 : 1;
      axes.push_back({block, stride, stride * (block + gap)});
      stride *= shape.back() + gap;
      if (pick(0, 9) == 0) axes.back().inner = pick(0, 6);
      if (pick(0, 9) == 0) axes.back().outer = pick(0, 6);
    }
    Piece piece = PieceOf(shape, axes);
    piece.offset = pick(0, 3);
    std::vector<int> count(piece.offset);
    for (uint64_t n = 0; n < ElementCount(shape); ++n) {
      uint64_t at = 0, rest = n;
      for (size_t axis = shape.size(); axis-- > 0; rest /= shape[axis]) at += axes[axis].At(rest % shape[axis]);
      const uint64_t byte = piece.offset + 2 * at;
      if (count.size() < byte + 2) count.resize(byte + 2);
      ++count[byte], ++count[byte + 1];
    }
    Plan plan = PlanOf(shape, piece, count.size());
    for (uint64_t byte = 0; byte < count.size(); ++byte)
      if (count[byte] == 0) plan.files[0].literals.push_back({byte, "x"});
    const bool once = std::all_of(count.begin(), count.end(), [](int n) { return n <= 1; });
    ++(once ? right : wrong);
    ASSERT_EQ(Audit(plan).empty(), once) << round << ": " << ToString(shape);
    --plan.files[0].size;
    ASSERT_THAT(Audit(plan), testing::Not(IsEmpty())) << round;
  }
  EXPECT_GT(right, 2'000);
  EXPECT_GT(wrong, 2'000);
}

// Modulo 2^64 each of these would end within its file.
TEST(Audit, FindsPiecesWhoseEndIsBeyond64Bits) {
  constexpr uint64_t kHalf = uint64_t{1} << 63;
  Piece far = RowMajor({3});
  far.offset = UINT64_MAX - 1;
  for (const Piece& piece : {far, PieceOf({3}, {{3, kHalf, 0}}), PieceOf({3}, {{1, 0, kHalf}}),
                             PieceOf({3}, {{3, kHalf / 2, 0}}), PieceOf({3}, {{3, UINT64_MAX, 0}})}) {
    EXPECT_THAT(Audit(PlanOf({3}, piece, 6)), Contains("the part: a target piece lies beyond the end of its file"));
    Plan plan = PlanOf({3}, RowMajor({3}), 6);
    plan.parts[0].sources = {piece};
    EXPECT_THAT(Audit(plan), ElementsAre("the part: a source piece lies beyond the end of its file"));
  }
}

TEST(Audit, DoesNotTakeApartWhatCannotFit) {
  const uint64_t many = uint64_t{1} << 40;
  Plan plan = PlanOf({many, many}, PieceOf({many, many}, {{many, 0, 0}, {many, 0, 0}}), 2);
  EXPECT_THAT(Audit(plan), Contains("the part: a target piece is larger than its file"));
}

TEST(Audit, WantsOneDtypeForAllSourcesOfAPart) {
  Plan plan = PlanOf({4}, RowMajor({4}), 8);
  plan.parts[0].sources.push_back(RowMajor({4}));
  EXPECT_THAT(Audit(plan), IsEmpty());  // the same twice: compared when they are read
  plan.parts[0].sources[1].dtype = Dtype::kF16;
  EXPECT_THAT(Audit(plan), ElementsAre("the part: sources of BF16 and of F16"));
  plan.parts[0].sources = {RowMajor({4})};
  plan.parts[0].targets[0].dtype = Dtype::kF16;  // a cast
  EXPECT_THAT(Audit(plan), IsEmpty());
}

TEST(Audit, WantsOneFormForAllSourcesOfAPart) {
  Plan plan = PlanOf({4}, RowMajor({4}), 8);
  plan.parts[0].sources[0].minus_one = true;  // the target is not: one is added
  EXPECT_THAT(Audit(plan), IsEmpty());
  plan.parts[0].sources.push_back(RowMajor({4}));
  EXPECT_THAT(Audit(plan), ElementsAre("the part: sources of BF16 minus one and of BF16"));
}

TEST(Audit, WantsNothingMinusOneThatIsNotOnlyCast) {
  Plan plan = PlanOf({4}, RowMajor({4}, Dtype::kI16), 8);
  plan.parts[0].targets[0].minus_one = true;
  EXPECT_THAT(Audit(plan), Contains("the part: I16 minus one, which is for values that are only cast"));
  const Plan carried = CarriedPlan({{0, 0}, {6, 4}});
  plan = carried;
  plan.parts[0].targets[1].minus_one = true;
  EXPECT_THAT(Audit(plan), Contains("the part: F32 minus one, which is for values that are only cast"));
  plan = carried;
  plan.parts[0].operands[0].sources[0].minus_one = true;
  EXPECT_THAT(Audit(plan), Contains(HasSubstr("operand 1 is not what the value op takes")));
}

TEST(Audit, LooksAtEveryNumberOfAPiece) {
  for (auto side : {&Part::sources, &Part::targets}) {
    auto problems = [&](auto damage) {
      Plan plan = PlanOf({4}, RowMajor({4}), 8);
      damage((plan.parts[0].*side)[0]);
      return Audit(plan);
    };
    EXPECT_THAT(problems([](Piece& piece) { piece.tensor = 1; }), Contains(HasSubstr("piece of no tensor")));
    EXPECT_THAT(problems([](Piece& piece) { piece.file = 1; }), Contains(HasSubstr("piece in no file")));
    EXPECT_THAT(problems([](Piece& piece) { piece.axes[0].block = 0; }), Contains(HasSubstr("blocks of 0")));
    EXPECT_THAT(problems([](Piece& piece) { piece.dtype = Dtype::kF4; }), Contains(HasSubstr("less than a byte")));
    EXPECT_THAT(problems([](Piece& piece) { piece.box = WholeBox({2, 2}); }), Contains(HasSubstr("lies outside")));
  }
}

TEST(Audit, WantsZerosBehindItsRangeForAChecksum) {
  const auto problems_with = [](const Checksum& checksum) {
    Plan plan = PlanOf({3, 5}, RowMajor({3, 5}), 30 + 12);
    plan.files[0].literals = {{30, std::string(8, '\0') + "text"}};
    plan.files[0].checksums = {checksum};
    return Audit(plan);
  };
  EXPECT_THAT(problems_with({0, 30, {30, 34}}), IsEmpty());
  EXPECT_THAT(problems_with({0, 30, {30, 35}}), Contains(HasSubstr("no place for the checksum of bytes 0 to 30")));
  EXPECT_THAT(problems_with({0, 31, {30, 34}}), Contains(HasSubstr("no place")));  // within the range
  EXPECT_THAT(problems_with({0, 30, {30, 20}}), Contains(HasSubstr("no place")));  // in the data
  EXPECT_THAT(problems_with({0, 30, {30, 40}}), Contains(HasSubstr("no place")));  // beyond the end
  EXPECT_THAT(problems_with({40, UINT64_MAX, {30, 34}}), Contains(HasSubstr("no place")));
}

}  // namespace
}  // namespace reshard
