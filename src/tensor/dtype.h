// The dtype table: one row per element type, one column per spelling.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace reshard {

// In the order of safetensors' own enum (safetensors/src/tensor.rs), whose writer sorts by it, descending.
enum class Dtype : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

struct DtypeRow {
  Dtype dtype;
  std::string_view name;   // safetensors' spelling, and ours in messages: "BF16"
  std::string_view torch;  // "bfloat16"; empty where torch has none
  std::string_view zarr;   // the `dtype` of .zarray: "bfloat16", "<f2"; empty where NeMo never writes it
  uint32_t bits;           // of one element
};

std::span<const DtypeRow> Dtypes();
const DtypeRow& Row(Dtype dtype);

std::optional<Dtype> DtypeFromName(std::string_view safetensors_name);
// "bfloat16", also with a "torch." before it.
std::optional<Dtype> DtypeFromTorch(std::string_view name);

// Whole bytes of one element; 0 for the types below a byte.
inline uint32_t ItemSize(Dtype dtype) { return Row(dtype).bits / 8; }

// F32, F16, BF16: the types that weights are cast between.
bool IsCastable(Dtype dtype);

}  // namespace reshard
