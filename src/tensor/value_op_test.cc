// Expected bytes: the hashes of the original preprocessing (docs/formats/trtllm.md), and its closed form, element by
// element.
#include "tensor/value_op.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "base/hash.h"
#include "tensor/cast.h"

namespace reshard {
namespace {

using Kind = ValueOp::Kind;

constexpr uint64_t kVectorRows = 64, kVectorColumns = 128;

std::string PackedVector(Kind kind, unsigned sm) {
  std::vector<int8_t> values;
  for (uint64_t n = 0; n < kVectorRows; ++n)
    for (uint64_t k = 0; k < kVectorColumns; ++k)
      values.push_back(static_cast<int8_t>(kind == Kind::kInt8 ? static_cast<int>((131 * k + 17 * n) % 256) - 128
                                                               : static_cast<int>((5 * k + 3 * n) % 16) - 8));
  const ValueOp op{kind, *GemmLayoutOf(sm), Dtype::kF16};
  std::string bytes(ElementCount(OutputsOf(op, kVectorRows, kVectorColumns)[0].shape), '\x55');
  Pack(op, values.data(), kVectorRows, kVectorColumns, reinterpret_cast<std::byte*>(bytes.data()));
  return Sha256Hex(bytes);
}

TEST(Pack, GivesTheBytesOfTheOriginal) {
  EXPECT_EQ(PackedVector(Kind::kInt8, 70), "a3e7d64296df9c0f72b7bac466162cf911a8fae065c6e1f0968994f56edb70b0");
  EXPECT_EQ(PackedVector(Kind::kInt4, 70), "e40bd81eae436d84fff3170960e8f49e78edf0cfcba877d8a9dcdea2e7f6f6eb");
  for (unsigned sm : {75, 80, 86, 89}) {
    EXPECT_EQ(PackedVector(Kind::kInt8, sm), "f92c32e49a750e1b9fc30cae54be3acfb0f1b2ff5511eccbfdbbd46089008a65") << sm;
    EXPECT_EQ(PackedVector(Kind::kInt4, sm), "b3019688275429cbef9de0c52b4bdcc2c936cf573be3d72d51abe4cf2791274a") << sm;
  }
  EXPECT_EQ(PackedVector(Kind::kInt8, 90), "a980bf3f78f0670a779291924a7d75a715233c922cee67b2ea4d862fba500afb");
  EXPECT_EQ(PackedVector(Kind::kInt4, 90), "568a2bad1034aa3c0c51ecca7407d41f4da6dbb9d54ae5dfc516c84d3d57c2d8");
}

// Element by element, as the closed form says.
std::vector<uint8_t> Reference(bool int4, unsigned sm, const std::vector<int>& q, uint64_t rows, uint64_t columns) {
  static const int kPerm16[] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  static const int kPerm32[] = {0, 1, 8,  9,  16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27,
                                4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31};
  const int* permutation = int4 ? kPerm32 : kPerm16;  // a pointer: GCC 12's UBSan loses the index into `a ? b : c`
  const bool b = sm >= 75 && sm < 90, bias = sm < 90;
  const uint64_t tile = b ? (int4 ? 4 : 2) : 1, p = int4 ? 32 : 16;
  std::vector<uint8_t> out(rows * columns / (int4 ? 2 : 1));
  for (uint64_t n = 0; n < rows; ++n) {
    for (uint64_t k = 0; k < columns; ++k) {
      const uint64_t source = b ? k / p * p + static_cast<uint64_t>(permutation[k % p]) : k;
      uint64_t a = b ? n / tile * tile * columns + tile * (k / 64) * 64 + 64 * (n % tile) + k % 64 : n * columns + k;
      int v = q[n * columns + source];
      if (bias) {
        v += int4 ? 8 : 128;
        if (int4) {
          a = a / 8 * 8 + (a % 8 % 2 == 0 ? a % 8 / 2 : 4 + (a % 8 - 1) / 2);
        } else {
          a = a / 4 * 4 + (a % 4 == 1 ? 2 : a % 4 == 2 ? 1 : a % 4);
        }
      }
      if (int4) {
        out[a / 2] = static_cast<uint8_t>(out[a / 2] | (v & 15) << (a % 2 * 4));
      } else {
        out[a] = static_cast<uint8_t>(v);
      }
    }
  }
  return out;
}

struct Result {
  std::vector<uint8_t> bytes, scales;
  ValueReport report;
};

Result Applied(const ValueOp& op, Dtype from, const std::vector<float>& values, uint64_t rows, uint64_t columns) {
  std::vector<std::byte> source(values.size() * ItemSize(from));
  Cast(Dtype::kF32, from, values.data(), source.data(), values.size());
  const auto outputs = OutputsOf(op, rows, columns);
  Result result;
  result.bytes.assign(ElementCount(outputs[0].shape) * ItemSize(outputs[0].dtype), 0x55);
  result.scales.assign(rows * ItemSize(outputs[1].dtype), 0x55);
  result.report =
      Apply(op, from, source.data(), rows, columns, {},
            {reinterpret_cast<std::byte*>(result.bytes.data()), reinterpret_cast<std::byte*>(result.scales.data())});
  return result;
}

// Values that `dtype` holds exactly: ties of the quantisation, zeros and both signs among them.
std::vector<float> RandomValues(uint64_t seed, Dtype dtype, uint64_t rows, uint64_t columns) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 0.7f);
  std::vector<float> values(rows * columns);
  for (uint64_t i = 0; i < values.size(); ++i) {
    values[i] = random() % 8 == 0 ? static_cast<float>(static_cast<int>(random() % 257) - 128) / 64 : normal(random);
    if (i / columns % 7 == 3) values[i] = random() % 2 ? 0.0f : -0.0f;  // a channel of zeros
  }
  std::vector<uint16_t> cast(values.size());
  if (dtype != Dtype::kF32) {
    Cast(Dtype::kF32, dtype, values.data(), cast.data(), values.size());
    Cast(dtype, Dtype::kF32, cast.data(), values.data(), values.size());
  }
  return values;
}

TEST(Apply, QuantisesWeightsAsTheOriginalDoes) {
  for (unsigned sm : {70, 80, 90})
    for (bool int4 : {false, true})
      for (Dtype dtype : {Dtype::kBF16, Dtype::kF16, Dtype::kF32}) {
        SCOPED_TRACE(testing::Message() << "sm " << sm << (int4 ? " int4 " : " int8 ") << Row(dtype).name);
        const uint64_t rows = 64, columns = 64 * (5 + sm % 3 * 60);  // also more than one chunk
        const std::vector<float> values = RandomValues(sm + int4, dtype, rows, columns);
        const ValueOp op{int4 ? Kind::kInt4 : Kind::kInt8, *GemmLayoutOf(sm), dtype};
        const Result result = Applied(op, dtype, values, rows, columns);
        std::vector<int> q(values.size());
        const float levels = int4 ? 8.0f : 128.0f;
        for (uint64_t n = 0; n < rows; ++n) {
          float largest = 0;
          for (uint64_t k = 0; k < columns; ++k) largest = std::max(largest, std::fabs(values[n * columns + k]));
          const float scale = largest * (1 / levels);
          for (uint64_t k = 0; k < columns; ++k)
            if (scale != 0)
              q[n * columns + k] = static_cast<int>(
                  std::min(levels - 1, std::max(-levels, std::round(values[n * columns + k] / scale))));
          uint32_t expected = 0, found = 0;
          Cast(Dtype::kF32, dtype, &scale, &expected, 1);
          std::memcpy(&found, result.scales.data() + n * ItemSize(dtype), ItemSize(dtype));
          ASSERT_EQ(found, expected) << n;
        }
        ASSERT_EQ(result.bytes, Reference(int4, sm, q, rows, columns));
        EXPECT_FALSE(result.report.not_a_number);
      }
}

TEST(Apply, CastsToTheModelsDtypeFirst) {
  const std::vector<float> values = RandomValues(1, Dtype::kF32, 32, 64);
  std::vector<uint16_t> cast(values.size());
  std::vector<float> rounded(values.size());
  Cast(Dtype::kF32, Dtype::kBF16, values.data(), cast.data(), values.size());
  Cast(Dtype::kBF16, Dtype::kF32, cast.data(), rounded.data(), values.size());
  const ValueOp op{Kind::kInt8, GemmLayout::kInterleaved, Dtype::kBF16};
  EXPECT_EQ(Applied(op, Dtype::kF32, values, 32, 64).bytes, Applied(op, Dtype::kBF16, rounded, 32, 64).bytes);
}

TEST(Apply, TellsOfValuesThatHaveNoQuantisedOne) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (float odd : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values(32 * 64, 0.5f);
    values[7 * 64 + 5] = odd;
    EXPECT_EQ(
        Applied({Kind::kInt8, GemmLayout::kPlain, Dtype::kBF16}, Dtype::kBF16, values, 32, 64).report.not_a_number, 7u);
    const bool clamped = !std::isnan(odd);  // FP8 clamps infinities
    EXPECT_EQ(Applied({Kind::kFp8Rows, GemmLayout::kPlain, Dtype::kBF16}, Dtype::kBF16, values, 32, 64)
                  .report.not_a_number.has_value(),
              !clamped);
  }
  std::vector<float> large(32 * 64, 1e38f);
  EXPECT_EQ(Applied({Kind::kInt8, GemmLayout::kPlain, Dtype::kF16}, Dtype::kF32, large, 32, 64).report.overflows,
            32u * 64);
}

// All F8_E4M3 values, by the format's definition: sign, 4 bits of exponent with bias 7, 3 of mantissa.
float E4M3Value(unsigned code) {
  const unsigned exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), static_cast<int>(exponent) - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

// The nearest code, the even one of two: by trying all.
unsigned NearestE4M3(float value) {
  unsigned best = std::signbit(value) ? 0x80 : 0;
  for (unsigned low = 0; low < 0x7f; ++low) {
    const unsigned code = low | (std::signbit(value) ? 0x80u : 0u);
    const double distance = std::fabs(static_cast<double>(value) - E4M3Value(code));
    const double least = std::fabs(static_cast<double>(value) - E4M3Value(best));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best;
}

TEST(Apply, ScalesRowsToFp8) {
  const uint64_t rows = 21, columns = 96;
  std::vector<float> values = RandomValues(3, Dtype::kBF16, rows, columns);
  for (uint64_t k = 0; k < columns; ++k) values[2 * columns + k] *= 1e-7f;  // below the least scale
  values[5 * columns] = 3000;                                               // beyond the clamp
  std::vector<uint16_t> cast(values.size());
  Cast(Dtype::kF32, Dtype::kBF16, values.data(), cast.data(), values.size());
  Cast(Dtype::kBF16, Dtype::kF32, cast.data(), values.data(), values.size());
  const Result result =
      Applied({Kind::kFp8Rows, GemmLayout::kPlain, Dtype::kBF16}, Dtype::kBF16, values, rows, columns);
  for (uint64_t n = 0; n < rows; ++n) {
    float largest = 0;
    for (uint64_t k = 0; k < columns; ++k)
      largest = std::max(largest, std::min(std::fabs(values[n * columns + k]), 1200.0f));
    const float scale = std::max(largest / 448.0f, static_cast<float>(1.0 / (448 * 512)));
    float found;
    std::memcpy(&found, result.scales.data() + 4 * n, 4);
    ASSERT_EQ(found, scale);
    for (uint64_t k = 0; k < columns; ++k) {
      const float x = std::max(-1200.0f, std::min(1200.0f, values[n * columns + k]));
      const float y = std::max(-448.0f, std::min(448.0f, x / scale));
      ASSERT_EQ(result.bytes[n * columns + k], NearestE4M3(y)) << n << " " << k << " " << y;
    }
  }
}

// As TensorRT-LLM's importer computes it, from nibbles that are taken out of the words one by one. 3 groups of 32
// columns, 16 rows.
TEST(Apply, CarriesGptqOver) {
  const uint64_t rows = 16, columns = 96, group = 32, groups = columns / group;
  std::mt19937 random(5);
  std::vector<uint32_t> words(rows * columns / 8), zeros(rows / 8 * groups);
  for (auto* numbers : {&words, &zeros})
    for (uint32_t& number : *numbers) number = static_cast<uint32_t>(random());
  std::vector<float> scales(rows * groups);
  for (float& scale : scales) scale = static_cast<float>(random() % 1000 + 1) / 8192;
  std::vector<uint16_t> halves(scales.size()), found_scales(scales.size()), found_zeros(scales.size());
  Cast(Dtype::kF32, Dtype::kF16, scales.data(), halves.data(), scales.size());
  for (GemmLayout layout : {GemmLayout::kBiased, GemmLayout::kInterleaved, GemmLayout::kPlain}) {
    const ValueOp op{Kind::kGptq, layout, Dtype::kF16, {Encoding::kGptq, group}};
    const uint64_t whole = layout == GemmLayout::kInterleaved ? 64 : columns;  // what the layout takes
    std::vector<int8_t> values;
    std::vector<uint32_t> taken;
    for (uint64_t n = 0; n < rows; ++n)
      for (uint64_t k = 0; k < whole; ++k) {
        const uint32_t word = words[n * columns / 8 + k / 8];
        if (k % 8 == 0) taken.push_back(word);
        values.push_back(static_cast<int8_t>(static_cast<int>(word >> 4 * (k % 8) & 15) - 8));
      }
    std::vector<std::byte> expected(rows * whole / 2), found(expected.size());
    Pack({Kind::kInt4, layout, Dtype::kF16}, values.data(), rows, whole, expected.data());
    std::vector<uint32_t> some_zeros;
    std::vector<uint16_t> some_halves;
    const uint64_t some = whole / group;
    for (uint64_t n = 0; n < rows / 8; ++n)
      for (uint64_t b = 0; b < some; ++b) some_zeros.push_back(zeros[n * groups + b]);
    for (uint64_t n = 0; n < rows; ++n)
      for (uint64_t b = 0; b < some; ++b) some_halves.push_back(halves[n * groups + b]);
    const ValueReport report =
        Apply(op, Dtype::kI32, reinterpret_cast<std::byte*>(taken.data()), rows, whole / 8,
              {reinterpret_cast<std::byte*>(some_zeros.data()), reinterpret_cast<std::byte*>(some_halves.data())},
              {found.data(), reinterpret_cast<std::byte*>(found_scales.data()),
               reinterpret_cast<std::byte*>(found_zeros.data())});
    EXPECT_EQ(report.overflows, 0u);
    EXPECT_EQ(found, expected);
    for (uint64_t n = 0; n < rows; ++n)
      for (uint64_t b = 0; b < some; ++b) {
        const int z = static_cast<int>(some_zeros[n / 8 * some + b] >> 4 * (n % 8) & 15);
        float scale, zero;
        Cast(Dtype::kF16, Dtype::kF32, &some_halves[n * some + b], &scale, 1);
        Cast(Dtype::kF16, Dtype::kF32, &found_zeros[n * some + b], &zero, 1);
        ASSERT_EQ(found_scales[n * some + b], some_halves[n * some + b]);
        const double exact = (7 - z) * static_cast<double>(scale);  // 11 bits and 4: rounded to 11
        ASSERT_LE(std::fabs(zero - exact), std::fabs(exact) / 2048) << n << " " << b;
      }
  }
}

TEST(WhyNot, GivesBothNumbers) {
  const ValueOp int8{Kind::kInt8, GemmLayout::kInterleaved, Dtype::kF16},
      int4{Kind::kInt4, GemmLayout::kPlain, Dtype::kF16};
  EXPECT_EQ(WhyNot(int8, 32, 64), "");
  EXPECT_EQ(WhyNot(int8, 32, 96), "96 input features, expected a multiple of 64");
  EXPECT_EQ(WhyNot(int8, 40, 64), "40 output channels, expected a multiple of 32");
  EXPECT_EQ(WhyNot(int4, 32, 64), "32 output channels, expected a multiple of 64");
  EXPECT_EQ(WhyNot({Kind::kFp8Rows, GemmLayout::kPlain, Dtype::kF16}, 3, 5), "");
  EXPECT_FALSE(GemmLayoutOf(69));
  EXPECT_FALSE(GemmLayoutOf(100));
}

}  // namespace
}  // namespace reshard
