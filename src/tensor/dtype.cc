#include "tensor/dtype.h"

#include <algorithm>

namespace reshard {
namespace {

constexpr DtypeRow kDtypes[] = {
    {Dtype::kBool, "BOOL", "bool", "", 8},
    {Dtype::kF4, "F4", "float4_e2m1fn_x2", "", 4},
    {Dtype::kF6E2M3, "F6_E2M3", "", "", 6},
    {Dtype::kF6E3M2, "F6_E3M2", "", "", 6},
    {Dtype::kU8, "U8", "uint8", "", 8},
    {Dtype::kI8, "I8", "int8", "", 8},
    {Dtype::kF8E5M2, "F8_E5M2", "float8_e5m2", "", 8},
    {Dtype::kF8E4M3, "F8_E4M3", "float8_e4m3fn", "", 8},
    {Dtype::kF8E8M0, "F8_E8M0", "float8_e8m0fnu", "", 8},
    {Dtype::kF8E4M3Fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", "", 8},
    {Dtype::kF8E5M2Fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", "", 8},
    {Dtype::kI16, "I16", "int16", "", 16},
    {Dtype::kU16, "U16", "uint16", "", 16},
    {Dtype::kF16, "F16", "float16", "<f2", 16},
    {Dtype::kBF16, "BF16", "bfloat16", "bfloat16", 16},
    {Dtype::kI32, "I32", "int32", "", 32},
    {Dtype::kU32, "U32", "uint32", "", 32},
    {Dtype::kF32, "F32", "float32", "<f4", 32},
    {Dtype::kC64, "C64", "complex64", "", 64},
    {Dtype::kF64, "F64", "float64", "", 64},
    {Dtype::kI64, "I64", "int64", "", 64},
    {Dtype::kU64, "U64", "uint64", "", 64},
};

constexpr bool InEnumOrder() {
  for (size_t i = 0; i < std::size(kDtypes); ++i)
    if (kDtypes[i].dtype != static_cast<Dtype>(i)) return false;
  return std::size(kDtypes) == static_cast<size_t>(Dtype::kU64) + 1;
}
static_assert(InEnumOrder(), "Row() indexes the table by the enum");

template <typename Match>
std::optional<Dtype> Find(Match match) {
  auto row = std::find_if(std::begin(kDtypes), std::end(kDtypes), match);
  if (row == std::end(kDtypes)) return std::nullopt;
  return row->dtype;
}

}  // namespace

std::span<const DtypeRow> Dtypes() { return kDtypes; }
const DtypeRow& Row(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)]; }

std::optional<Dtype> DtypeFromName(std::string_view safetensors_name) {
  return Find([&](const DtypeRow& row) { return row.name == safetensors_name; });
}

std::optional<Dtype> DtypeFromTorch(std::string_view name) {
  if (name.starts_with("torch.")) name.remove_prefix(6);
  return Find([&](const DtypeRow& row) { return !row.torch.empty() && row.torch == name; });
}

bool IsCastable(Dtype dtype) { return dtype == Dtype::kF32 || dtype == Dtype::kF16 || dtype == Dtype::kBF16; }

}  // namespace reshard
