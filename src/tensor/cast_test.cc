// The kernels against a reference from the definition of the formats: the value of each encoding, and for rounding the
// midpoints between neighbouring values. It shares no arithmetic with the kernels.
#include "tensor/cast.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace reshard {
namespace {

// An IEEE 754 binary interchange format (and BF16, which is built alike).
struct Format {
  Dtype dtype;
  int exponent_bits, fraction_bits;

  uint32_t Sign() const { return 1u << (exponent_bits + fraction_bits); }
  uint32_t Infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
  bool IsNan(uint32_t bits) const { return (bits & (Sign() - 1)) > Infinity(); }

  // Of a magnitude up to infinity, for which it gives the value that would come next if exponents went on.
  double Value(uint32_t magnitude) const {
    int exponent = static_cast<int>(magnitude >> fraction_bits), bias = (1 << (exponent_bits - 1)) - 1;
    double fraction = std::ldexp(magnitude & ((1u << fraction_bits) - 1), -fraction_bits);
    return exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  }
};

constexpr Format kF32{Dtype::kF32, 8, 23}, kF16{Dtype::kF16, 5, 10}, kBF16{Dtype::kBF16, 8, 7};

// Rounds ascending magnitudes to the nearest value of a 16-bit format, a tie to the even encoding.
class Rounder {
 public:
  explicit Rounder(const Format& format) {
    for (uint32_t magnitude = 0; magnitude < format.Infinity(); ++magnitude)
      midpoints_.push_back((format.Value(magnitude) + format.Value(magnitude + 1)) / 2);
  }

  // The magnitude nearest to `value`; `from` is one not above it.
  uint32_t Round(double value, uint32_t from = 0) const {
    while (from < midpoints_.size() && (midpoints_[from] < value || (midpoints_[from] == value && from % 2 == 1)))
      ++from;
    return from;
  }

  // The last magnitude that is not above the rounded value, for a walk to begin at.
  uint32_t Begin(double value) const {
    return static_cast<uint32_t>(std::lower_bound(midpoints_.begin(), midpoints_.end(), value) - midpoints_.begin());
  }

 private:
  std::vector<double> midpoints_;
};

// Sign, all ones, the quiet bit, and as many upper payload bits as fit.
uint32_t ConvertedNan(const Format& from, const Format& to, uint32_t bits) {
  uint32_t payload = bits & ((1u << from.fraction_bits) - 1);
  int more = to.fraction_bits - from.fraction_bits;
  uint32_t moved = more >= 0 ? payload << more : payload >> -more;
  return (bits & from.Sign() ? to.Sign() : 0) | to.Infinity() | 1u << (to.fraction_bits - 1) | moved;
}

template <typename To, typename From>
std::vector<To> CastAll(const Format& from, const Format& to, const std::vector<From>& input, uint64_t* overflows) {
  std::vector<To> output(input.size());
  *overflows = Cast(from.dtype, to.dtype, input.data(), output.data(), input.size());
  return output;
}

std::vector<uint16_t> All16Bits() {
  std::vector<uint16_t> all(1 << 16);
  std::iota(all.begin(), all.end(), uint16_t{0});
  return all;
}

void CheckWidening(const Format& from) {
  uint64_t overflows;
  std::vector<uint16_t> input = All16Bits();
  std::vector<uint32_t> output = CastAll<uint32_t>(from, kF32, input, &overflows);
  EXPECT_EQ(overflows, 0u);
  for (uint32_t bits : input) {
    uint32_t magnitude = bits & (from.Sign() - 1), sign = bits & from.Sign();
    if (from.IsNan(bits)) {
      ASSERT_EQ(output[bits], ConvertedNan(from, kF32, bits)) << bits;
    } else {
      float expected = static_cast<float>(magnitude == from.Infinity() ? HUGE_VAL : from.Value(magnitude)), actual;
      std::memcpy(&actual, &output[bits], sizeof actual);
      ASSERT_EQ(actual, sign ? -expected : expected) << bits;
      ASSERT_EQ(std::signbit(actual), sign != 0) << bits;
    }
  }
}

TEST(Cast, WidensEveryF16) { CheckWidening(kF16); }
TEST(Cast, WidensEveryBF16) { CheckWidening(kBF16); }

void CheckBetween16Bits(const Format& from, const Format& to) {
  uint64_t overflows, expected_overflows = 0;
  std::vector<uint16_t> input = All16Bits(), output = CastAll<uint16_t>(from, to, input, &overflows);
  Rounder rounder(to);
  for (uint32_t bits : input) {
    uint32_t magnitude = bits & (from.Sign() - 1), expected = to.Infinity();
    if (magnitude < from.Infinity()) {
      expected = rounder.Round(from.Value(magnitude), rounder.Begin(from.Value(magnitude)));
      expected_overflows += expected == to.Infinity();
    }
    if (bits & from.Sign()) expected |= to.Sign();
    ASSERT_EQ(output[bits], from.IsNan(bits) ? ConvertedNan(from, to, bits) : expected) << bits;
  }
  EXPECT_EQ(overflows, expected_overflows);
}

TEST(Cast, ConvertsEveryF16ToBF16) { CheckBetween16Bits(kF16, kBF16); }
TEST(Cast, ConvertsEveryBF16ToF16) { CheckBetween16Bits(kBF16, kF16); }

// The lower halves of the F32 inputs, ascending: all, or those where something happens to the bits that are cut off.
std::vector<uint32_t> LowerHalves() {
#ifdef RESHARD_TEST_QUICK
  bool quick = true;
#else
  bool quick = std::getenv("RESHARD_TEST_QUICK") != nullptr;
#endif
  std::vector<uint32_t> halves;
  for (uint32_t half = 0; half < 1 << 16; ++half)
    if (!quick || (half + 1) % 0x400 <= 2) halves.push_back(half);
  return halves;
}

// The inputs of one upper half; an empty text, or the first difference.
std::string CheckUpperHalf(const Format& to, const Rounder& rounder, uint32_t upper,
                           const std::vector<uint32_t>& lower_halves) {
  std::vector<uint32_t> input;
  for (uint32_t lower : lower_halves) input.push_back(upper << 16 | lower);
  uint64_t overflows, expected_overflows = 0;
  std::vector<uint16_t> output = CastAll<uint16_t>(kF32, to, input, &overflows);
  uint32_t magnitude = 0;
  for (size_t i = 0; i < input.size(); ++i) {
    uint32_t expected = to.Infinity() | (input[i] & kF32.Sign() ? to.Sign() : 0);
    if (kF32.IsNan(input[i])) {
      expected = ConvertedNan(kF32, to, input[i]);
    } else if ((input[i] & ~kF32.Sign()) < kF32.Infinity()) {
      float value;
      std::memcpy(&value, &input[i], sizeof value);
      magnitude = rounder.Round(std::fabs(value), i == 0 ? rounder.Begin(std::fabs(value)) : magnitude);
      expected_overflows += magnitude == to.Infinity();
      expected = magnitude | (input[i] & kF32.Sign() ? to.Sign() : 0);
    }
    if (output[i] != expected)
      return std::to_string(input[i]) + " becomes " + std::to_string(output[i]) + ", not " + std::to_string(expected);
  }
  if (overflows == expected_overflows) return "";
  return std::to_string(overflows) + " overflows, not " + std::to_string(expected_overflows) + ", of upper half " +
         std::to_string(upper);
}

void CheckNarrowing(const Format& to) {
  Rounder rounder(to);
  std::vector<uint32_t> lower_halves = LowerHalves();
  constexpr uint32_t kThreads = 2;
  std::string difference[kThreads];
  std::vector<std::thread> threads;
  for (uint32_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      for (uint32_t upper = thread; upper < 1 << 16 && difference[thread].empty(); upper += kThreads)
        difference[thread] = CheckUpperHalf(to, rounder, upper, lower_halves);
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& text : difference) EXPECT_EQ(text, "");
}

TEST(Cast, RoundsEveryF32ToF16) { CheckNarrowing(kF16); }
TEST(Cast, RoundsEveryF32ToBF16) { CheckNarrowing(kBF16); }

TEST(Cast, KeepsToItsBuffersAtAnyAlignmentAndCount) {
  // 1.0 in each format.
  const std::vector<std::pair<Dtype, std::string>> ones = {{Dtype::kF32, std::string("\0\0\x80\x3f", 4)},
                                                           {Dtype::kF16, std::string("\0\x3c", 2)},
                                                           {Dtype::kBF16, std::string("\x80\x3f", 2)}};
  for (const auto& [from, source_one] : ones)
    for (const auto& [to, target_one] : ones)
      for (size_t count : {0, 1, 31, 33, 1000})
        for (size_t shift : {0, 1, 2, 3}) {
          std::string source(shift, 'x'), expected(3 - shift, 'x');
          for (size_t i = 0; i < count; ++i) source += source_one, expected += target_one;
          expected += "xxx";
          std::string target(expected.size(), 'x');
          EXPECT_EQ(Cast(from, to, source.data() + shift, target.data() + 3 - shift, count), 0u);
          EXPECT_EQ(target, expected) << Row(from).name << " to " << Row(to).name << ", " << count << " from " << shift;
        }
}

TEST(Cast, CountsOverflowsAcrossBlocks) {
  std::vector<float> input(3'000'000, 1e6f);
  input[0] = 1.0f;
  input[1] = INFINITY;
  input[2] = NAN;
  std::vector<uint16_t> output(input.size());
  EXPECT_EQ(Cast(Dtype::kF32, Dtype::kF16, input.data(), output.data(), input.size()), input.size() - 3);
  EXPECT_EQ(output.back(), kF16.Infinity());
}

TEST(Cast, CopiesEqualDtypesOfAnyKind) {
  std::vector<uint64_t> input = {1, ~uint64_t{0}, 0x7ff0000000000001}, output(3);
  EXPECT_EQ(Cast(Dtype::kF64, Dtype::kF64, input.data(), output.data(), 3), 0u);
  EXPECT_EQ(output, input);
  uint16_t signaling_nan = 0x7f81, copy = 0;
  Cast(Dtype::kBF16, Dtype::kBF16, &signaling_nan, &copy, 1);
  EXPECT_EQ(copy, signaling_nan);
  const ElementForm minus_one(Dtype::kBF16, true);
  copy = 0;
  Cast(minus_one, minus_one, &signaling_nan, &copy, 1);
  EXPECT_EQ(copy, signaling_nan);
}

// -- between values and values minus one ------------------------------------------------------------------------------

std::string BytesOf(const Format& format, const std::vector<uint32_t>& bits) {
  std::string bytes;
  for (uint32_t element : bits) bytes.append(reinterpret_cast<const char*>(&element), ItemSize(format.dtype));
  return bytes;
}

std::vector<uint32_t> Shift(const Format& from, const Format& to, int shift, const std::vector<uint32_t>& input,
                            uint64_t* overflows) {
  const std::string source = BytesOf(from, input);
  std::string target(input.size() * ItemSize(to.dtype), '\0');
  *overflows = Cast({from.dtype, shift > 0}, {to.dtype, shift < 0}, source.data(), target.data(), input.size());
  std::vector<uint32_t> output(input.size());
  for (size_t i = 0; i < output.size(); ++i)
    std::memcpy(&output[i], target.data() + i * ItemSize(to.dtype), ItemSize(to.dtype));
  return output;
}

// As torch 2.13 has it: (w.float() + 1).to(dtype), (w.float() - 1).to(dtype).
TEST(Cast, AddsAndSubtractsOneAsTorchDoes) {
  struct Case {
    Format from, to;
    int shift;
    std::vector<uint32_t> input, expected;
  };
  const Case cases[] = {
      {kBF16,
       kBF16,
       1,
       {0x0000, 0x8000, 0xbf80, 0x3b80, 0x3c40, 0xbb00, 0x3bc0, 0x7f7f, 0xff80, 0x3e21},
       {0x3f80, 0x3f80, 0x0000, 0x3f80, 0x3f82, 0x3f80, 0x3f81, 0x7f7f, 0xff80, 0x3f94}},
      {kF16,
       kF16,
       1,
       {0x0000, 0x8000, 0xbc00, 0x1000, 0x1001, 0x1600, 0x7bff, 0xfbff, 0x0001, 0x2e66},
       {0x3c00, 0x3c00, 0x0000, 0x3c00, 0x3c01, 0x3c02, 0x7bff, 0xfbff, 0x3c00, 0x3c66}},
      {kF32,
       kF32,
       1,
       {0x33800000, 0x33800001, 0x34400000, 0xb2800000, 0xb3000001, 0xbf800000, 0x80000000, 0x3dcccccd},
       {0x3f800000, 0x3f800001, 0x3f800002, 0x3f800000, 0x3f7fffff, 0x00000000, 0x3f800000, 0x3f8ccccd}},
      // 1 + 2^-8 + 2^-31 is rounded to F32 first, to a tie between two values of BF16.
      {kF32, kBF16, 1, {0x3b800000, 0x3b800001, 0x3c400000, 0x3b7fffff}, {0x3f80, 0x3f80, 0x3f82, 0x3f80}},
      {kF32, kF16, 1, {0x477fdf00, 0xc77fef00, 0xc77ff100}, {0x7bff, 0xfbff, 0xfc00}},
      {kBF16,
       kBF16,
       -1,
       {0x3f80, 0x8000, 0x3f81, 0x3f7f, 0x0001, 0x4380, 0xbf80},
       {0x0000, 0xbf80, 0x3c00, 0xbb80, 0xbf80, 0x437f, 0xc000}},
      {kF16, kF16, -1, {0x3c00, 0x3c01, 0x3bff, 0x0001, 0xfbff, 0x6801}, {0, 0x1400, 0x9000, 0xbc00, 0xfbff, 0x6800}},
      {kBF16, kF32, -1, {0x3f81, 0x0080, 0x3e21}, {0x3c000000, 0xbf800000, 0xbf57c000}},
      {kF16, kBF16, -1, {0x3c01, 0x3bff, 0x4a48}, {0x3a80, 0xba00, 0x4139}},
  };
  for (const Case& c : cases) {
    uint64_t overflows;
    EXPECT_EQ(Shift(c.from, c.to, c.shift, c.input, &overflows), c.expected)
        << Row(c.from.dtype).name << " to " << Row(c.to.dtype).name << ", " << c.shift;
    EXPECT_EQ(overflows, c.to.dtype == Dtype::kF16 && c.from.dtype == Dtype::kF32 ? 1u : 0u);
  }
}

// All elements of 16 bits; of F32 some of each upper half, and what the shift brings close to where 16 bits round.
std::vector<uint32_t> ShiftInputs(const Format& from, int shift) {
  std::vector<uint32_t> inputs;
  if (from.fraction_bits < 23) {
    for (uint32_t bits : All16Bits()) inputs.push_back(bits);
    return inputs;
  }
  for (uint32_t upper = 0; upper < 1 << 16; ++upper)
    for (uint32_t lower : {0x0000, 0x0001, 0x5a5a, 0x7fff, 0x8000, 0x8001, 0xffff})
      inputs.push_back(upper << 16 | lower);
  for (const Format& to : {kF16, kBF16})
    for (uint32_t magnitude = 0; magnitude < to.Infinity(); ++magnitude)
      for (double sign : {1.0, -1.0}) {
        const double midpoint = sign * (to.Value(magnitude) + to.Value(magnitude + 1)) / 2;
        uint32_t bits;
        const float near = static_cast<float>(midpoint - shift);
        std::memcpy(&bits, &near, sizeof bits);
        for (uint32_t neighbour : {bits - 1, bits, bits + 1}) inputs.push_back(neighbour);
      }
  return inputs;
}

// The sum of a value and one in double, which is exact or next to it, rounded to F32.
float SumInF32(const Format& from, uint32_t bits, int shift) {
  const uint32_t magnitude = bits & (from.Sign() - 1);
  const double value = magnitude == from.Infinity() ? HUGE_VAL : from.Value(magnitude);
  return static_cast<float>((bits & from.Sign() ? -value : value) + shift);
}

void CheckShift(const Format& from, const Format& to, int shift) {
  const std::vector<uint32_t> input = ShiftInputs(from, shift);
  const Rounder rounder(to.fraction_bits < 23 ? to : kBF16);
  uint64_t overflows, expected_overflows = 0;
  const std::vector<uint32_t> output = Shift(from, to, shift, input, &overflows);
  for (size_t i = 0; i < input.size(); ++i) {
    const float sum = SumInF32(from, input[i], shift);
    uint32_t expected;
    if (from.IsNan(input[i])) {
      expected = ConvertedNan(kF32, to, ConvertedNan(from, kF32, input[i]));
    } else if (to.fraction_bits == 23) {
      std::memcpy(&expected, &sum, sizeof expected);
    } else {
      const double magnitude = std::fabs(sum);
      expected = to.Infinity();
      if (!std::isinf(sum)) expected = rounder.Round(magnitude, rounder.Begin(magnitude));
      expected_overflows += !std::isinf(sum) && expected == to.Infinity();
      if (std::signbit(sum)) expected |= to.Sign();
    }
    ASSERT_EQ(output[i], expected) << input[i];
  }
  EXPECT_EQ(overflows, expected_overflows);
  const bool narrows = to.exponent_bits < from.exponent_bits || to.fraction_bits < from.fraction_bits;
  EXPECT_EQ(overflows > 0, narrows && from.dtype != Dtype::kF16);
}

TEST(Cast, AddsAndSubtractsOneInF32) {
  for (const Format& from : {kF32, kF16, kBF16})
    for (const Format& to : {kF32, kF16, kBF16})
      for (int shift : {1, -1}) {
        SCOPED_TRACE(std::string(Row(from.dtype).name) + " to " + std::string(Row(to.dtype).name));
        CheckShift(from, to, shift);
      }
}

TEST(Cast, NamesForms) {
  EXPECT_EQ(ToString(ElementForm(Dtype::kBF16)), "BF16");
  EXPECT_EQ(ToString(ElementForm(Dtype::kF32, true)), "F32 minus one");
}

}  // namespace
}  // namespace reshard
