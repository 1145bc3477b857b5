// Cast kernels. Between F32, F16 and BF16, every pair: widening is exact; narrowing rounds to nearest, ties to even,
// and keeps subnormals. NaN stays NaN (quiet, sign and upper payload bits kept); a finite value beyond the target's
// range becomes infinity and is counted. Equal forms copy the bytes.
//
// Between a tensor that stores values and one that stores values minus one, in any of these dtypes and within one too,
// one is added or subtracted in F32, as torch does with w.float() + 1, and the sum is then cast.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tensor/dtype.h"

namespace reshard {

// How a tensor stores its values.
struct ElementForm {
  Dtype dtype = Dtype::kF32;
  bool minus_one = false;  // what is stored is the value minus one

  ElementForm(Dtype of, bool less = false) : dtype(of), minus_one(less) {}

  // What an element of this form lacks to be one of the other, before it is rounded.
  float ShiftTo(const ElementForm& to) const { return static_cast<float>(minus_one - to.minus_one); }

  friend bool operator==(const ElementForm&, const ElementForm&) = default;
};

// "BF16", "BF16 minus one".
std::string ToString(const ElementForm& form);

// Casts `count` elements from `source` to `target`; neither needs to be aligned, and they must not overlap. Returns how
// many finite values became infinite. The forms must be equal (any byte-sized dtype), or both dtypes castable.
uint64_t Cast(const ElementForm& from, const ElementForm& to, const void* source, void* target, size_t count);

}  // namespace reshard
