#include "tensor/cast.h"

#include <algorithm>
#include <bit>
#include <type_traits>

#include "base/bytes.h"
#include "base/error.h"

// One copy of the loops for each generation of vector instructions, chosen when the program starts. GCC needs the whole
// of x86-64-v4 to use AVX-512 here (16-bit lanes); Clang 14 accepts that name, but never chooses it.
#if !defined(__x86_64__) || !defined(__GLIBC__) || defined(RESHARD_NO_TARGET_CLONES)
#define RESHARD_TARGET_CLONES
#elif defined(__clang__)
#define RESHARD_TARGET_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define RESHARD_TARGET_CLONES __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#endif

namespace reshard {
namespace {

constexpr uint32_t kF32Infinity = 0x7f800000, kF32Magnitude = 0x7fffffff, kF32Quiet = 0x00400000;

// Each format converts its bits to those of F32, exactly, and back, with NaN already quiet. Every path is computed and
// one selected: a branch would keep the loops from being vectorised.
struct F32 {
  using Bits = uint32_t;
  static uint32_t Widen(Bits bits) { return bits; }
  static uint32_t Round(uint32_t f32) { return f32; }
};

struct BF16 {
  using Bits = uint16_t;
  static constexpr uint32_t kInfinity = 0x7f80;

  static uint32_t Widen(Bits bits) { return uint32_t{bits} << 16; }

  static uint32_t Round(uint32_t f32) {
    uint32_t rounded = f32 + 0x7fff + (f32 >> 16 & 1);
    bool is_nan = (f32 & kF32Magnitude) > kF32Infinity;
    return (is_nan ? f32 : rounded) >> 16;
  }
};

struct F16 {
  using Bits = uint16_t;
  static constexpr uint32_t kInfinity = 0x7c00;
  static constexpr uint32_t kSmallestNormal = 0x0400;
  // What the exponents of F32 and F16 differ by, in the place where F32 has its exponent.
  static constexpr uint32_t kBias = (127 - 15) << 23;

  static uint32_t Widen(Bits bits) {
    uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    uint32_t normal = (magnitude << 13) + kBias;
    uint32_t not_finite = normal + kBias;
    uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
    uint32_t finite = magnitude < kSmallestNormal ? subnormal : normal;
    return sign | (magnitude < kInfinity ? finite : not_finite);
  }

  static uint32_t Round(uint32_t f32) {
    uint32_t sign = f32 >> 16 & 0x8000, magnitude = f32 & kF32Magnitude;
    uint32_t normal = std::min((magnitude - kBias + 0xfff + (magnitude >> 13 & 1)) >> 13, kInfinity);
    // Between 0.5 and 1 a float counts in units of F16's smallest subnormal: adding 0.5 rounds to them.
    uint32_t subnormal =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
    uint32_t nan = kInfinity | (magnitude >> 13 & 0x3ff);
    uint32_t number = magnitude < (kSmallestNormal << 13) + kBias ? subnormal : normal;
    return sign | (magnitude > kF32Infinity ? nan : number);
  }
};

inline uint32_t Quiet(uint32_t f32) { return (f32 & kF32Magnitude) > kF32Infinity ? f32 | kF32Quiet : f32; }

template <typename From, typename To, typename Shift>
[[gnu::always_inline]] inline uint32_t CastBlock(const char* __restrict source, char* __restrict target, size_t count,
                                                 Shift shift) {
  uint32_t overflows = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t f32 = Quiet(From::Widen(LoadLittle<typename From::Bits>(source + i * sizeof(typename From::Bits))));
    f32 = shift(f32);
    uint32_t rounded = To::Round(f32);
    if constexpr (!std::is_same_v<To, F32>)
      overflows += ((f32 & kF32Magnitude) < kF32Infinity) & ((rounded & 0x7fff) == To::kInfinity);
    auto bits = static_cast<typename To::Bits>(rounded);
    std::memcpy(target + i * sizeof bits, &bits, sizeof bits);
  }
  return overflows;
}

// Block by block, so that the loop counts overflows in 32 bits, as wide as everything else in it.
template <typename From, typename To, typename Shift>
[[gnu::always_inline]] inline uint64_t CastAs(const char* source, char* target, size_t count, Shift shift) {
  constexpr size_t kBlock = size_t{1} << 20;
  uint64_t overflows = 0;
  for (size_t done = 0; done < count; done += kBlock)
    overflows += CastBlock<From, To>(source + done * sizeof(typename From::Bits),
                                     target + done * sizeof(typename To::Bits), std::min(kBlock, count - done), shift);
  return overflows;
}

template <typename From, typename Shift>
[[gnu::always_inline]] inline uint64_t CastFrom(Dtype to, const char* source, char* target, size_t count, Shift shift) {
  if (to == Dtype::kF32) return CastAs<From, F32>(source, target, count, shift);
  if (to == Dtype::kF16) return CastAs<From, F16>(source, target, count, shift);
  return CastAs<From, BF16>(source, target, count, shift);
}

template <typename Shift>
[[gnu::always_inline]] inline uint64_t CastFloats(Dtype from, Dtype to, const char* source, char* target, size_t count,
                                                  Shift shift) {
  if (from == Dtype::kF32) return CastFrom<F32>(to, source, target, count, shift);
  if (from == Dtype::kF16) return CastFrom<F16>(to, source, target, count, shift);
  return CastFrom<BF16>(to, source, target, count, shift);
}

RESHARD_TARGET_CLONES
uint64_t CastPlain(Dtype from, Dtype to, const char* source, char* target, size_t count) {
  return CastFloats(from, to, source, target, count, [](uint32_t f32) { return f32; });
}

RESHARD_TARGET_CLONES
uint64_t CastShifted(Dtype from, Dtype to, float shift, const char* source, char* target, size_t count) {
  return CastFloats(from, to, source, target, count,
                    [=](uint32_t f32) { return std::bit_cast<uint32_t>(std::bit_cast<float>(f32) + shift); });
}

}  // namespace

std::string ToString(const ElementForm& form) {
  return std::string(Row(form.dtype).name) + (form.minus_one ? " minus one" : "");
}

uint64_t Cast(const ElementForm& from, const ElementForm& to, const void* source, void* target, size_t count) {
  auto* in = static_cast<const char*>(source);
  auto* out = static_cast<char*>(target);
  if (from == to) {
    std::copy_n(in, count * ItemSize(from.dtype), out);
    return 0;
  }
  if (!IsCastable(from.dtype) || !IsCastable(to.dtype))
    throw Error(Code::kInternal,
                "a cast from " + ToString(from) + " to " + ToString(to) + ", expected F32, F16 or BF16");
  const float shift = from.ShiftTo(to);
  return shift == 0 ? CastPlain(from.dtype, to.dtype, in, out, count)
                    : CastShifted(from.dtype, to.dtype, shift, in, out, count);
}

}  // namespace reshard
