// One element as a number: for messages and for the distance between two.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace reshard {

// The element's value; of a complex number its real part. Integers beyond 2^53 are rounded.
double ElementValue(Dtype dtype, const void* element);

// How many values of the dtype lie between two elements whose bits differ, one of them counted; -0 and +0 are one
// value. UINT64_MAX where one is NaN. Dtypes that are not castable have no such line: 1.
uint64_t UlpDistance(Dtype dtype, const void* a, const void* b);

}  // namespace reshard
