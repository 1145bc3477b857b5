// Value ops: arithmetic on the rows of a matrix that makes other tensors of it. Sources: docs/formats/trtllm.md.
//
// Rows are output channels, columns input features. Each op takes whole rows, some at a time (its tile), and gives for
// them, output by output, consecutive bytes of tensors whose first axis is the rows':
//
//   weight-only int8, int4   [0] I8 [rows, columns * bits / 8], laid out for a class of GPUs; [1] scales [rows]
//   scales only              [0] the rows, cast; [1] the scales of int8 [rows]
//   FP8 row-wise             [0] F8_E4M3 [rows, columns]; [1] scales F32 [rows]
//   FP8 row-wise, reciprocal the same with scales as a GPU divides by 448: times the nearest F32 to 1/448
//   FP8 as it is             the same, of a matrix that is FP8 already
//   GPTQ int4                [0] F16 [rows, columns / 4], laid out; [1] scales F16, [2] zeros F16 [rows, groups]
//
// What a source has quantised already is a matrix of items, which may be several columns each, with operands beside it:
//
//   FP8 rows                 F8_E4M3 [rows, columns]; scales F32 [rows, 1]
//   GPTQ                     I32 [rows, columns / 8]; zeros I32 [rows / 8, groups]; scales F16 [rows, groups]
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tensor/dims.h"
#include "tensor/dtype.h"

namespace reshard {

// How mixed-precision GEMM kernels want quantised weights: sm70 to 74, sm75 to 89, sm90.
enum class GemmLayout : uint8_t { kBiased, kInterleaved, kPlain };
std::optional<GemmLayout> GemmLayoutOf(unsigned sm);

// How a source stores a matrix.
enum class Encoding : uint8_t { kPlain, kFp8Rows, kGptq };

constexpr size_t kMaxOperands = 2;

struct ValueTensor {
  Dims shape;
  Dtype dtype = Dtype::kI8;
};

struct Encoded {
  Encoding encoding = Encoding::kPlain;
  uint64_t group = 0;  // GPTQ: columns that have a scale together, a multiple of 8

  uint64_t columns_an_item() const { return encoding == Encoding::kGptq ? 8 : 1; }
  // The matrix itself, of `rows` and `columns`, and its operands: extents that divide the matrix's. Element (i, j) of
  // one goes with that share of its rows and columns. Nothing for a plain matrix.
  std::vector<ValueTensor> Stored(uint64_t rows, uint64_t columns) const;

  friend bool operator==(const Encoded&, const Encoded&) = default;
};

struct ValueOp {
  enum class Kind : uint8_t { kInt8, kInt4, kInt8Scales, kFp8Rows, kFp8RowsReciprocal, kFp8AsIs, kGptq };
  Kind kind = Kind::kInt8;
  GemmLayout layout = GemmLayout::kPlain;
  // Of the model: plain rows are cast to it before anything else; also of the scales of int8, int4.
  Dtype dtype = Dtype::kBF16;
  Encoded takes = {};

  friend bool operator==(const ValueOp&, const ValueOp&) = default;
};

constexpr size_t kValueOutputs = 3;  // an op may have fewer: the last are then empty

// `columns` counts items.
std::array<ValueTensor, kValueOutputs> OutputsOf(const ValueOp& op, uint64_t rows, uint64_t columns);

// Rows that must be done together, from a multiple of it on.
uint64_t TileRows(const ValueOp& op);

// Why a matrix of all `rows` and `columns` (not items) cannot be done, with the number found and what is expected of
// it; empty where it can.
std::string WhyNot(const ValueOp& op, uint64_t rows, uint64_t columns);

// The layout of weight-only int8 and int4 alone: `values`, rows by columns, are quantised already.
void Pack(const ValueOp& op, const int8_t* values, uint64_t rows, uint64_t columns, std::byte* out);

// What the op could not do to the rows.
struct ValueReport {
  uint64_t overflows = 0;  // finite values that the cast to op.dtype made infinite
  std::optional<uint64_t>
      not_a_number;  // the first row with a value that has no quantised one: NaN, or infinity in int8
};

// Does `rows` rows (a multiple of TileRows, or up to the last) of `columns` items at `source`, with what goes with them
// of each operand, and fills the outputs. All are dense. Throws nothing and allocates nothing; any number of threads at
// once.
ValueReport Apply(const ValueOp& op, Dtype from, const std::byte* source, uint64_t rows, uint64_t columns,
                  const std::array<const std::byte*, kMaxOperands>& operands,
                  const std::array<std::byte*, kValueOutputs>& outputs);

}  // namespace reshard
