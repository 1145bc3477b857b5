#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace reshard {
namespace {

// The dtypes of safetensors in the order of its enum, with what its Python side calls them.
struct Expected {
  std::string name;
  uint32_t bits;
  std::string torch;
};
const std::vector<Expected> kExpected = {
    {"BOOL", 8, "bool"},
    {"F4", 4, "float4_e2m1fn_x2"},
    {"F6_E2M3", 6, ""},
    {"F6_E3M2", 6, ""},
    {"U8", 8, "uint8"},
    {"I8", 8, "int8"},
    {"F8_E5M2", 8, "float8_e5m2"},
    {"F8_E4M3", 8, "float8_e4m3fn"},
    {"F8_E8M0", 8, "float8_e8m0fnu"},
    {"F8_E4M3FNUZ", 8, "float8_e4m3fnuz"},
    {"F8_E5M2FNUZ", 8, "float8_e5m2fnuz"},
    {"I16", 16, "int16"},
    {"U16", 16, "uint16"},
    {"F16", 16, "float16"},
    {"BF16", 16, "bfloat16"},
    {"I32", 32, "int32"},
    {"U32", 32, "uint32"},
    {"F32", 32, "float32"},
    {"C64", 64, "complex64"},
    {"F64", 64, "float64"},
    {"I64", 64, "int64"},
    {"U64", 64, "uint64"},
};

TEST(DtypeTable, HasTheRowsOfSafetensorsInItsOrder) {
  ASSERT_EQ(Dtypes().size(), kExpected.size());
  for (size_t i = 0; i < kExpected.size(); ++i) {
    const DtypeRow& row = Dtypes()[i];
    EXPECT_EQ(row.name, kExpected[i].name);
    EXPECT_EQ(row.bits, kExpected[i].bits) << row.name;
    EXPECT_EQ(row.torch, kExpected[i].torch) << row.name;
  }
}

TEST(DtypeTable, EveryRowRoundTripsItsSpellings) {
  for (const DtypeRow& row : Dtypes()) {
    EXPECT_EQ(&Row(row.dtype), &row) << row.name;
    EXPECT_EQ(DtypeFromName(row.name), row.dtype) << row.name;
    if (row.torch.empty()) continue;
    EXPECT_EQ(DtypeFromTorch(row.torch), row.dtype) << row.name;
    EXPECT_EQ(DtypeFromTorch("torch." + std::string(row.torch)), row.dtype) << row.name;
  }
}

TEST(DtypeTable, KnowsNoOtherSpelling) {
  for (const char* name : {"", "bf16", "BF16 ", "bfloat16", "F128"}) EXPECT_FALSE(DtypeFromName(name)) << name;
  for (const char* name : {"", "torch.", "BF16", "torch.torch.bfloat16", "half"})
    EXPECT_FALSE(DtypeFromTorch(name)) << name;
}

TEST(DtypeTable, ZarrSpellsOnlyWhatNeMoWrites) {
  for (const DtypeRow& row : Dtypes()) EXPECT_EQ(!row.zarr.empty(), IsCastable(row.dtype)) << row.name;
  EXPECT_EQ(Row(Dtype::kBF16).zarr, "bfloat16");
  EXPECT_EQ(Row(Dtype::kF16).zarr, "<f2");
  EXPECT_EQ(Row(Dtype::kF32).zarr, "<f4");
}

TEST(DtypeTable, ItemSizeIsWholeBytes) {
  EXPECT_EQ(ItemSize(Dtype::kF4), 0u);
  EXPECT_EQ(ItemSize(Dtype::kBool), 1u);
  EXPECT_EQ(ItemSize(Dtype::kBF16), 2u);
  EXPECT_EQ(ItemSize(Dtype::kF32), 4u);
  EXPECT_EQ(ItemSize(Dtype::kC64), 8u);
}

}  // namespace
}  // namespace reshard
