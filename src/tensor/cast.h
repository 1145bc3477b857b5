// Cast kernels. Between F32, F16 and BF16, every pair: widening is exact; narrowing rounds to nearest, ties to even,
// and keeps subnormals. NaN stays NaN (quiet, sign and upper payload bits kept); a finite value beyond the target's
// range becomes infinity and is counted. Equal dtypes copy the bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace reshard {

// Casts `count` elements from `source` to `target`; neither needs to be aligned, and they must not overlap. Returns how
// many finite values became infinite. Both dtypes must be castable, or equal (any byte-sized dtype).
uint64_t Cast(Dtype from, Dtype to, const void* source, void* target, size_t count);

}  // namespace reshard
