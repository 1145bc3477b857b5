// Compares two checkpoints in one streaming pass: the same parts, found in files on both sides.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "execute/execute.h"

namespace reshard {

struct Difference {
  std::vector<uint64_t> index;  // of the part, in elements
  double a = 0, b = 0;          // as b stores them, a not rounded
  // Of b's dtype, between a rounded to it and b; -0 and +0 are one value. UINT64_MAX where one of them is NaN, 1 for
  // dtypes that are not castable.
  uint64_t ulps = 0;
};

struct PartComparison {
  // kEqual: the same form and bits. kEqualRounded: a, cast to b's form, has b's bits: what a conversion of a to b's
  // form writes. Where one side is stored minus one, that may hold one way only: the sum has lost bits.
  enum class Verdict { kEqual, kEqualRounded, kDiffers };
  size_t part = 0;  // index into the parts given
  Verdict verdict = Verdict::kEqual;
  uint64_t differing = 0;  // elements, once for each piece of b that has them
  uint64_t overflows = 0;  // finite values of a that are infinite in b's dtype, counted alike
  std::optional<Difference> first, worst;
};

// Parts whose `sources` lie in `a_files` and whose `targets` lie in `b_files`; both sides cover the part (several
// pieces may hold the same elements: each is compared). Same workers and buffers as Execute. NaN equals NaN of any
// payload only where the bits are equal after the cast. Errors as Execute's.
std::vector<PartComparison> Compare(const std::vector<Part>& parts, const std::vector<SourceFile>& a_files,
                                    const std::vector<SourceFile>& b_files, Io& io, const ExecuteOptions& options);

// The bytes one worker needs beside its stack: a dense buffer a side, whether sources overlap or not, and kIoBuffer.
uint64_t CompareWorkerBytes(uint64_t dense_buffer);

}  // namespace reshard
