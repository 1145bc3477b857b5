#include "execute/element.h"

#include <cmath>
#include <limits>

#include "base/bytes.h"

namespace reshard {
namespace {

// How a floating-point dtype of at most 32 bits spends its exponents. FN: no infinity, NaN where all bits but the sign
// are set. FNUZ: no infinity, no negative zero; NaN is what would be that.
enum class Specials { kIeee, kFn, kFnuz };

struct FloatFormat {
  Dtype dtype;
  int exponent_bits, mantissa_bits, bias;
  Specials specials = Specials::kIeee;
};

constexpr FloatFormat kFloatFormats[] = {
    {Dtype::kF32, 8, 23, 127},
    {Dtype::kBF16, 8, 7, 127},
    {Dtype::kF16, 5, 10, 15},
    {Dtype::kF8E5M2, 5, 2, 15},
    {Dtype::kF8E4M3, 4, 3, 7, Specials::kFn},
    {Dtype::kF8E5M2Fnuz, 5, 2, 16, Specials::kFnuz},
    {Dtype::kF8E4M3Fnuz, 4, 3, 8, Specials::kFnuz},
};

uint32_t LoadBits(uint32_t item_size, const void* element) {
  uint32_t bits = 0;
  std::memcpy(&bits, element, item_size);
  return bits;
}

double Decode(const FloatFormat& format, uint32_t bits) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const uint32_t mantissas = uint32_t{1} << format.mantissa_bits, exponents = uint32_t{1} << format.exponent_bits;
  const uint32_t mantissa = bits % mantissas, exponent = bits / mantissas % exponents;
  const bool negative = bits / mantissas / exponents != 0;
  double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - format.bias - format.mantissa_bits)
                    : std::ldexp(mantissas + mantissa, static_cast<int>(exponent) - format.bias - format.mantissa_bits);
  switch (format.specials) {
    case Specials::kIeee:
      if (exponent == exponents - 1) magnitude = mantissa ? kNan : std::numeric_limits<double>::infinity();
      break;
    case Specials::kFn:
      if (exponent == exponents - 1 && mantissa == mantissas - 1) magnitude = kNan;
      break;
    case Specials::kFnuz:
      if (negative && exponent == 0 && mantissa == 0) return kNan;
      break;
  }
  return negative ? -magnitude : magnitude;
}

template <typename T>
double ValueOf(const void* element) {
  return static_cast<double>(LoadLittle<T>(element));
}

// The element's place on the line of its dtype, lowest value first. NaNs lie beyond the infinities.
int64_t Rank(uint32_t bits, uint32_t sign) {
  const int64_t magnitude = bits & (sign - 1);
  return bits & sign ? -magnitude : magnitude;
}

}  // namespace

double ElementValue(Dtype dtype, const void* element) {
  for (const FloatFormat& format : kFloatFormats)
    if (format.dtype == dtype) return Decode(format, LoadBits(ItemSize(dtype), element));
  switch (dtype) {
    case Dtype::kF8E8M0: {
      const int exponent = LoadLittle<uint8_t>(element);
      return exponent == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, exponent - 127);
    }
    case Dtype::kI8:
      return ValueOf<int8_t>(element);
    case Dtype::kI16:
      return ValueOf<int16_t>(element);
    case Dtype::kU16:
      return ValueOf<uint16_t>(element);
    case Dtype::kI32:
      return ValueOf<int32_t>(element);
    case Dtype::kU32:
      return ValueOf<uint32_t>(element);
    case Dtype::kC64:
      return ValueOf<float>(element);
    case Dtype::kF64:
      return ValueOf<double>(element);
    case Dtype::kI64:
      return ValueOf<int64_t>(element);
    case Dtype::kU64:
      return ValueOf<uint64_t>(element);
    default:  // BOOL, U8
      return ValueOf<uint8_t>(element);
  }
}

uint64_t UlpDistance(Dtype dtype, const void* a, const void* b) {
  if (!IsCastable(dtype)) return 1;
  if (std::isnan(ElementValue(dtype, a)) || std::isnan(ElementValue(dtype, b))) return UINT64_MAX;
  const uint32_t sign = uint32_t{1} << (8 * ItemSize(dtype) - 1);
  const int64_t distance = Rank(LoadBits(ItemSize(dtype), a), sign) - Rank(LoadBits(ItemSize(dtype), b), sign);
  return static_cast<uint64_t>(distance < 0 ? -distance : distance);
}

}  // namespace reshard
