#include "execute/compare.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "execute/testutil.h"
#include "tensor/cast.h"

namespace reshard {
namespace {

using namespace reshard::testing;
using ::testing::ElementsAre;
using Verdict = PartComparison::Verdict;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Parts with the files of both sides.
struct Sides {
  ScratchFolder folder;
  std::vector<Part> parts;
  std::vector<SourceFile> a, b;

  void Add(const Dims& shape, Dtype a_dtype, const std::string& a_bytes, Dtype b_dtype, const std::string& b_bytes) {
    const uint32_t file = static_cast<uint32_t>(a.size());
    a.push_back(WriteSource(folder, "a" + std::to_string(file), a_bytes));
    b.push_back(WriteSource(folder, "b" + std::to_string(file), b_bytes));
    parts.push_back({"part " + std::to_string(file),
                     shape,
                     {RowMajorPiece(WholeBox(shape), a_dtype, file, 0)},
                     {RowMajorPiece(WholeBox(shape), b_dtype, file, 0)}});
  }

  std::vector<PartComparison> Run(unsigned workers = 1, uint64_t dense = kMaxDenseBuffer) {
    TestIo io;
    ExecuteOptions options;
    options.workers = workers;
    options.dense_buffer = dense;
    return Compare(parts, a, b, io, options);
  }
};

TEST(Compare, FindsEqualBitsEqual) {
  Sides sides;
  std::string bytes = Bytes<float>({1, -0.0f, kNan, kInf, 5, 6});
  sides.Add({2, 3}, Dtype::kF32, bytes, Dtype::kF32, bytes);
  std::vector<PartComparison> results = sides.Run();
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].part, 0u);
  EXPECT_EQ(results[0].verdict, Verdict::kEqual);
  EXPECT_EQ(results[0].differing, 0u);
  EXPECT_FALSE(results[0].first);
  EXPECT_FALSE(results[0].worst);
}

// 0x3f808000 lies halfway between the BF16 values 1 and 0x3f81 and goes to the even one.
TEST(Compare, FindsRoundedValuesEqualRounded) {
  Sides sides;
  std::string a = Bytes<uint32_t>({0x3f808000, 0x3f818000, 0xc0490fdb});
  sides.Add({3}, Dtype::kF32, a, Dtype::kBF16, Bytes<uint16_t>({0x3f80, 0x3f82, 0xc049}));
  sides.Add({3}, Dtype::kF32, a, Dtype::kBF16, Bytes<uint16_t>({0x3f80, 0x3f84, 0xc049}));
  std::vector<PartComparison> results = sides.Run();
  EXPECT_EQ(results[0].verdict, Verdict::kEqualRounded);
  EXPECT_EQ(results[1].verdict, Verdict::kDiffers);
  EXPECT_EQ(results[1].differing, 1u);
  EXPECT_THAT(results[1].first->index, ElementsAre(1));
  EXPECT_EQ(results[1].first->a, 1.01171875);  // unrounded: 1 + 3 / 256
  EXPECT_EQ(results[1].first->b, 1.03125);
  EXPECT_EQ(results[1].first->ulps, 2u);
}

// 0.15625 + 1 has nine bits, and BF16 eight: 1.15625 is 0x3f94, and the way back gives 0x3e20.
TEST(Compare, BringsAToTheFormOfB) {
  Sides sides;
  const std::string minus_one = Bytes<uint16_t>({0x0000, 0xbf80, 0x3e21}), plain = Bytes<uint16_t>({0x3f80, 0, 0x3f94});
  sides.Add({3}, Dtype::kBF16, minus_one, Dtype::kBF16, plain);
  sides.Add({3}, Dtype::kBF16, plain, Dtype::kBF16, minus_one);
  sides.Add({3}, Dtype::kBF16, minus_one, Dtype::kBF16, minus_one);
  sides.parts[0].sources[0].minus_one = true;
  sides.parts[1].targets[0].minus_one = true;
  sides.parts[2].sources[0].minus_one = sides.parts[2].targets[0].minus_one = true;
  std::vector<PartComparison> results = sides.Run();
  EXPECT_EQ(results[0].verdict, Verdict::kEqualRounded);
  EXPECT_EQ(results[1].verdict, Verdict::kDiffers);
  EXPECT_EQ(results[1].differing, 1u);
  EXPECT_THAT(results[1].first->index, ElementsAre(2));
  EXPECT_EQ(results[1].first->a, 0.15625);
  EXPECT_EQ(results[1].first->b, 0.1572265625);
  EXPECT_EQ(results[1].first->ulps, 1u);
  EXPECT_EQ(results[2].verdict, Verdict::kEqual);
}

TEST(Compare, GivesValuesAsBStoresThemNotRounded) {
  Sides sides;
  sides.Add({2}, Dtype::kF32, Bytes<float>({1, 0.3125f + 0x1p-20f}), Dtype::kF16, Bytes<uint16_t>({0x4000, 0x3d44}));
  sides.parts[0].sources[0].minus_one = true;
  PartComparison result = sides.Run()[0];
  EXPECT_EQ(result.differing, 1u);
  EXPECT_EQ(result.first->a, 1.3125 + 0x1p-20);
  EXPECT_EQ(result.first->b, 1.31640625);
  EXPECT_EQ(result.first->ulps, 4u);
}

// Padding of one side is compared as it is stored.
TEST(Compare, TakesZerosForZerosInEveryForm) {
  Sides sides;
  sides.Add({2}, Dtype::kF32, Bytes<float>({0, 0}), Dtype::kF32, Bytes<float>({0, 0}));
  sides.parts[0].sources[0].minus_one = true;
  sides.parts[0].targets.clear();
  EXPECT_EQ(sides.Run()[0].verdict, Verdict::kEqual);
  sides.parts[0].targets.swap(sides.parts[0].sources);
  EXPECT_EQ(sides.Run()[0].verdict, Verdict::kEqual);
}

TEST(Compare, GivesTheFirstAndTheWorstDifference) {
  Sides sides;
  std::vector<uint32_t> a(24, 0x3f800000), b = a;
  b[7] += 1;
  b[13] -= 5;
  b[20] += 5;
  sides.Add({2, 3, 4}, Dtype::kF32, Bytes(a), Dtype::kF32, Bytes(b));
  for (unsigned workers : {1, 2, 5}) {
    for (uint64_t dense : {4, 12, 4096}) {
      PartComparison result = sides.Run(workers, dense)[0];
      EXPECT_EQ(result.verdict, Verdict::kDiffers);
      EXPECT_EQ(result.differing, 3u);
      EXPECT_THAT(result.first->index, ElementsAre(0, 1, 3));
      EXPECT_EQ(result.first->ulps, 1u);
      EXPECT_THAT(result.worst->index, ElementsAre(1, 0, 1));
      EXPECT_EQ(result.worst->ulps, 5u);
      EXPECT_EQ(result.worst->b, std::ldexp(0x1000000 - 5, -24));
    }
  }
}

TEST(Compare, TakesNanOfOtherBitsAsTheWorst) {
  Sides sides;
  sides.Add({4}, Dtype::kF32, Bytes<uint32_t>({0x3f800000, 0x7fc00000, 0x7fc00001, 0}), Dtype::kF32,
            Bytes<uint32_t>({0xff7fffff, 0x7fc00000, 0x7fc00002, 0x7fc00000}));
  PartComparison result = sides.Run()[0];
  EXPECT_EQ(result.differing, 3u);
  EXPECT_THAT(result.first->index, ElementsAre(0));
  EXPECT_THAT(result.worst->index, ElementsAre(2));
  EXPECT_EQ(result.worst->ulps, UINT64_MAX);
}

TEST(Compare, TakesOtherDtypesAsEqualOrNot) {
  Sides sides;
  sides.Add({2}, Dtype::kI64, Bytes<int64_t>({-5, 7}), Dtype::kI64, Bytes<int64_t>({-5, 1000}));
  PartComparison result = sides.Run()[0];
  EXPECT_EQ(result.differing, 1u);
  EXPECT_EQ(result.worst->a, 7);
  EXPECT_EQ(result.worst->b, 1000);
  EXPECT_EQ(result.worst->ulps, 1u);
}

TEST(Compare, ComparesEveryCopyOfTheOtherSide) {
  Sides sides;
  std::vector<float> values(6, 1);
  sides.Add({6}, Dtype::kF32, Bytes(values), Dtype::kF32, Bytes(values));
  values[4] = 2;
  sides.b.push_back(WriteSource(sides.folder, "replica", Bytes(values)));
  sides.parts[0].targets.push_back(RowMajorPiece(WholeBox({6}), Dtype::kF32, 1, 0));
  PartComparison result = sides.Run()[0];
  EXPECT_EQ(result.verdict, Verdict::kDiffers);
  EXPECT_EQ(result.differing, 1u);
  EXPECT_THAT(result.first->index, ElementsAre(4));
}

TEST(Compare, RefusesCopiesThatDifferWithinASide) {
  Sides sides;
  std::vector<float> values(6, 1);
  sides.Add({6}, Dtype::kF32, Bytes(values), Dtype::kF32, Bytes(values));
  values[4] = 2;
  sides.a.push_back(WriteSource(sides.folder, "replica", Bytes(values)));
  sides.parts[0].sources.push_back(RowMajorPiece(WholeBox({6}), Dtype::kF32, 1, 0));
  try {
    sides.Run();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kMismatch);
    EXPECT_STREQ(error.what(),
                 "reading replica, tensor 'part 0': element [4] of 'part 0' is 2, expected 1 as in tensor 'part 0' of "
                 "a0; copies must be equal");
  }
}

TEST(Compare, RefusesAPartThatIsNotWhole) {
  Sides sides;
  sides.Add({2}, Dtype::kF32, Bytes<float>({1, 2}), Dtype::kF32, Bytes<float>({1, 2}));
  sides.parts[0].targets[0].box.shape[0] = 1;
  EXPECT_THROW(sides.Run(), Error);
}

// Random places on both sides, some elements of b changed; the reference looks at one element after the other.
TEST(Compare, FindsWhatAnElementWiseReferenceFinds) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Sides sides;
    Part part{"part", RandomShape(random, 10), {}, {}};
    const Box whole = WholeBox(part.shape);
    const uint64_t count = ElementCount(part.shape);
    const bool rounded = Pick(random, 0, 1);
    const Dtype b_dtype = rounded ? Dtype::kBF16 : Dtype::kF32;
    std::vector<float> values(count);
    for (float& value : values) value = std::ldexp(static_cast<float>(Pick(random, 1 << 23, 1 << 24)), -20);
    Elements a = Bytes(values), b(count * ItemSize(b_dtype), '\0');
    Cast(Dtype::kF32, b_dtype, a.data(), b.data(), count);
    std::vector<std::pair<uint64_t, uint64_t>> changed;  // element, ulps
    for (uint64_t element = 0; element < count; ++element) {
      if (Pick(random, 0, 20) > 0) continue;
      changed.emplace_back(element, Pick(random, 1, 100));
      uint32_t bits = 0;
      std::memcpy(&bits, &b[element * ItemSize(b_dtype)], ItemSize(b_dtype));
      bits += static_cast<uint32_t>(changed.back().second);
      std::memcpy(&b[element * ItemSize(b_dtype)], &bits, ItemSize(b_dtype));
    }
    auto place = [&](const Elements& elements, Dtype dtype, std::vector<Piece>& pieces) {
      std::string image;
      for (const Box& box : RandomCover(random, whole)) {
        Piece piece;
        piece.dtype = dtype;
        piece.offset = image.size();
        image.resize(piece.offset +
                     PlaceBox(random, box, static_cast<Nesting>(Pick(random, 0, 2)), piece) * ItemSize(dtype));
        PutPiece(piece, part.shape, elements, image);
        pieces.push_back(piece);
      }
      return image;
    };
    sides.a = {WriteSource(sides.folder, "a", place(a, Dtype::kF32, part.sources))};
    sides.b = {WriteSource(sides.folder, "b", place(b, b_dtype, part.targets))};
    sides.parts = {part};
    PartComparison result = sides.Run(static_cast<unsigned>(Pick(random, 1, 3)), Pick(random, 4, 200))[0];
    ASSERT_EQ(result.differing, changed.size());
    if (changed.empty()) {
      ASSERT_EQ(result.verdict, rounded ? Verdict::kEqualRounded : Verdict::kEqual);
      continue;
    }
    ASSERT_EQ(result.verdict, Verdict::kDiffers);
    auto worst = std::max_element(changed.begin(), changed.end(),
                                  [](const auto& x, const auto& y) { return x.second < y.second; });
    auto linear = [&](const Difference& difference) {
      uint64_t index = 0;
      for (size_t i = 0; i < part.shape.size(); ++i) index = index * part.shape[i] + difference.index[i];
      return index;
    };
    ASSERT_EQ(linear(*result.first), changed[0].first);
    ASSERT_EQ(result.first->a, values[changed[0].first]);
    ASSERT_EQ(linear(*result.worst), worst->first);
    ASSERT_EQ(result.worst->ulps, worst->second);
  }
}

}  // namespace
}  // namespace reshard
