// Little-endian loads and stores, and arithmetic that cannot wrap. All sizes are bytes unless a name says elements.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

namespace reshard {

constexpr uint64_t kKiB = uint64_t{1} << 10;
constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

// The sum or product, or nothing where it does not fit 64 bits.
inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}
inline std::optional<uint64_t> CheckedMultiply(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

inline uint64_t CeilDiv(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }
inline uint64_t RoundUp(uint64_t a, uint64_t multiple) { return CeilDiv(a, multiple) * multiple; }

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "every format here is little-endian, and so must the machine be");

template <typename T>
T LoadLittle(const void* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}
template <typename T>
void AppendLittle(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace reshard
