#include "tensor/dims.h"

#include <gtest/gtest.h>

namespace reshard {
namespace {

TEST(Dims, CountsElementsAndOneForAScalar) {
  EXPECT_EQ(ElementCount({}), 1u);
  EXPECT_EQ(ElementCount({7}), 7u);
  EXPECT_EQ(ElementCount({32, 28672, 8192}), uint64_t{32} * 28672 * 8192);
  EXPECT_EQ(ElementCount({3, 0, 5}), 0u);
}

TEST(Dims, StridesWalkARowMajorArrayInOrder) {
  Dims shape{2, 3, 1, 4};
  Dims strides = RowMajorStrides(shape);
  uint64_t next = 0;
  for (uint64_t i = 0; i < shape[0]; ++i)
    for (uint64_t j = 0; j < shape[1]; ++j)
      for (uint64_t k = 0; k < shape[2]; ++k)
        for (uint64_t l = 0; l < shape[3]; ++l)
          EXPECT_EQ(i * strides[0] + j * strides[1] + k * strides[2] + l * strides[3], next++);
  EXPECT_EQ(RowMajorStrides({}), Dims{});
  EXPECT_EQ(RowMajorStrides({9}), Dims{1});
}

TEST(Dims, DifferInAxesAndInValues) {
  EXPECT_EQ((Dims{2, 3}), (Dims{2, 3}));
  EXPECT_FALSE((Dims{2, 3}) == (Dims{2, 3, 1}));
  EXPECT_FALSE((Dims{2, 3}) == (Dims{3, 2}));
  EXPECT_EQ(Dims::Filled(6, 5), (Dims{5, 5, 5, 5, 5, 5}));
}

TEST(Dims, PrintAsAList) {
  EXPECT_EQ(ToString({4096, 128}), "[4096, 128]");
  EXPECT_EQ(ToString({}), "[]");
}

}  // namespace
}  // namespace reshard
