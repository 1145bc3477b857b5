#include "execute/element.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace reshard {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

double Small(Dtype dtype, uint8_t bits) { return ElementValue(dtype, &bits); }
double Half(Dtype dtype, uint16_t bits) { return ElementValue(dtype, &bits); }

// The extreme values that IEEE 754 and the OCP 8-bit floating point specification (and, for FNUZ, its authors' paper)
// name.
TEST(ElementValue, KnowsTheExtremesOfEveryFloat) {
  EXPECT_EQ(Half(Dtype::kF16, 0x7bff), 65504);
  EXPECT_EQ(Half(Dtype::kF16, 0x0001), std::ldexp(1, -24));
  EXPECT_EQ(Half(Dtype::kF16, 0xfc00), -kInf);
  EXPECT_TRUE(std::isnan(Half(Dtype::kF16, 0x7e00)));
  EXPECT_EQ(Half(Dtype::kBF16, 0x4049), 3.140625);
  EXPECT_EQ(Half(Dtype::kBF16, 0x0001), std::ldexp(1, -133));
  EXPECT_EQ(Small(Dtype::kF8E4M3, 0x7e), 448);
  EXPECT_EQ(Small(Dtype::kF8E4M3, 0x81), -std::ldexp(1, -9));
  EXPECT_TRUE(std::isnan(Small(Dtype::kF8E4M3, 0x7f)));
  EXPECT_EQ(Small(Dtype::kF8E5M2, 0x7b), 57344);
  EXPECT_EQ(Small(Dtype::kF8E5M2, 0x01), std::ldexp(1, -16));
  EXPECT_EQ(Small(Dtype::kF8E5M2, 0x7c), kInf);
  EXPECT_EQ(Small(Dtype::kF8E4M3Fnuz, 0x7f), 240);
  EXPECT_TRUE(std::isnan(Small(Dtype::kF8E4M3Fnuz, 0x80)));
  EXPECT_EQ(Small(Dtype::kF8E5M2Fnuz, 0x7f), 57344);
  EXPECT_EQ(Small(Dtype::kF8E8M0, 0), std::ldexp(1, -127));
  EXPECT_TRUE(std::isnan(Small(Dtype::kF8E8M0, 255)));
}

TEST(ElementValue, IsTheFloatForEveryExponent) {
  for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 65521) {
    const uint32_t element = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &element, sizeof value);
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(ElementValue(Dtype::kF32, &element)));
    else
      ASSERT_EQ(ElementValue(Dtype::kF32, &element), static_cast<double>(value)) << bits;
  }
}

TEST(ElementValue, ReadsIntegersWithTheirSign) {
  const uint64_t ones = UINT64_MAX;
  EXPECT_EQ(ElementValue(Dtype::kI8, &ones), -1);
  EXPECT_EQ(ElementValue(Dtype::kU8, &ones), 255);
  EXPECT_EQ(ElementValue(Dtype::kI16, &ones), -1);
  EXPECT_EQ(ElementValue(Dtype::kU16, &ones), 65535);
  EXPECT_EQ(ElementValue(Dtype::kI32, &ones), -1);
  EXPECT_EQ(ElementValue(Dtype::kU32, &ones), 4294967295.0);
  EXPECT_EQ(ElementValue(Dtype::kI64, &ones), -1);
  EXPECT_EQ(ElementValue(Dtype::kU64, &ones), 18446744073709551616.0);
}

uint64_t Ulps(float a, float b) { return UlpDistance(Dtype::kF32, &a, &b); }

TEST(UlpDistance, CountsStepsToTheNextFloat) {
  float value = -3 * std::numeric_limits<float>::denorm_min();
  const float start = value;
  for (uint64_t steps = 1; steps <= 6; ++steps) {
    value = std::nextafter(value, 1.0f);
    EXPECT_EQ(Ulps(start, value), steps) << value;
    EXPECT_EQ(Ulps(value, start), Ulps(start, value));
  }
  EXPECT_EQ(Ulps(0.0f, -0.0f), 0u);
  EXPECT_EQ(Ulps(std::numeric_limits<float>::max(), std::numeric_limits<float>::infinity()), 1u);
  EXPECT_EQ(Ulps(1.0f, std::numeric_limits<float>::quiet_NaN()), UINT64_MAX);
}

TEST(UlpDistance, IsOneForOtherDtypes) {
  const int64_t a = 1, b = 1000;
  EXPECT_EQ(UlpDistance(Dtype::kI64, &a, &b), 1u);
}

}  // namespace
}  // namespace reshard
