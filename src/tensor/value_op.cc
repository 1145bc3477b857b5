#include "tensor/value_op.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/bytes.h"
#include "tensor/cast.h"

namespace reshard {
namespace {

constexpr uint64_t kBlock = 64;    // columns that a layout permutes among themselves
constexpr uint64_t kChunk = 4096;  // elements that are cast at a time; whole blocks

constexpr uint8_t kPermute16[] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
constexpr uint8_t kPermute32[] = {0, 1, 8,  9,  16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27,
                                  4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31};

bool IsInt4(const ValueOp& op) { return op.kind == ValueOp::Kind::kInt4 || op.kind == ValueOp::Kind::kGptq; }

// Whether its first output is laid out for mixed-precision kernels.
bool Packs(const ValueOp& op) { return op.kind == ValueOp::Kind::kInt8 || IsInt4(op); }

// What a row's block of columns becomes: position p of the block holds column order[p].
struct BlockOrder {
  std::array<uint8_t, kBlock> order;
  int bias;                 // added to each value
  uint64_t interleave = 1;  // rows whose blocks lie side by side
};

// Where the bias is, groups of columns are also shuffled for the conversion to floating point.
uint64_t Unshuffled(uint64_t p, bool int4) {
  if (int4) return p / 8 * 8 + (p % 8 < 4 ? 2 * (p % 8) : 2 * (p % 8 - 4) + 1);
  const uint64_t in_group = p % 4;
  return p - in_group + (in_group == 1 ? 2 : in_group == 2 ? 1 : in_group);
}

BlockOrder OrderOf(const ValueOp& op) {
  const bool int4 = IsInt4(op), biased = op.layout != GemmLayout::kPlain;
  BlockOrder block;
  block.bias = biased ? (int4 ? 8 : 128) : 0;
  for (uint64_t p = 0; p < kBlock; ++p) {
    uint64_t column = biased ? Unshuffled(p, int4) : p;
    if (op.layout == GemmLayout::kInterleaved)
      column = int4 ? column / 32 * 32 + kPermute32[column % 32] : column / 16 * 16 + kPermute16[column % 16];
    block.order[p] = static_cast<uint8_t>(column);
  }
  if (op.layout == GemmLayout::kInterleaved) block.interleave = int4 ? 4 : 2;
  return block;
}

// Rows as F32, a chunk at a time, after the cast to the model's dtype.
class RowReader {
 public:
  RowReader(Dtype from, Dtype to, uint64_t columns, const std::byte* source)
      : from_(from), to_(to), columns_(columns), source_(source) {}

  // Calls use(values, first column, count).
  template <typename Use>
  void ForEachChunk(uint64_t row, Use use) {
    const std::byte* begin = source_ + row * columns_ * ItemSize(from_);
    for (uint64_t at = 0; at < columns_; at += kChunk) {
      const uint64_t count = std::min(kChunk, columns_ - at);
      overflows_ += Cast(from_, to_, begin + at * ItemSize(from_), cast_, count);
      Cast(to_, Dtype::kF32, cast_, values_, count);
      use(static_cast<const float*>(values_), at, count);
    }
  }

  uint64_t overflows() const { return overflows_; }

 private:
  const Dtype from_, to_;
  const uint64_t columns_;
  const std::byte* source_;
  uint64_t overflows_ = 0;
  alignas(64) std::byte cast_[kChunk * 4];
  alignas(64) float values_[kChunk];
};

// The largest magnitude of a row, values beyond `clamp` counting as it; NaN where the row has one.
float Largest(RowReader& reader, uint64_t row, float clamp) {
  float largest = 0;
  bool nan = false;
  reader.ForEachChunk(row, [&](const float* values, uint64_t, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      const float magnitude = std::fabs(values[i]);
      nan |= magnitude != magnitude;
      largest = std::max(largest, std::min(magnitude, clamp));
    }
  });
  return nan ? std::numeric_limits<float>::quiet_NaN() : largest;
}

// To the nearest integer, half away from zero: what C's round does, in a form that vectorises everywhere. Of values
// that an int has.
int RoundHalfAway(float x) {
  const int whole = static_cast<int>(x);
  const float rest = x - static_cast<float>(whole);
  return whole + (rest >= 0.5f ? 1 : 0) - (rest <= -0.5f ? 1 : 0);
}

void Quantise(const float* values, uint64_t count, float scale, int least, int most, int8_t* out) {
  for (uint64_t i = 0; i < count; ++i)
    out[i] = static_cast<int8_t>(std::clamp(RoundHalfAway(values[i] / scale), least, most));
}

void StoreScale(const ValueOp& op, float scale, uint64_t row, std::byte* out) {
  Cast(Dtype::kF32, op.dtype, &scale, out + row * ItemSize(op.dtype), 1);
}

// Puts the columns [at, at + count) of a row, all of which lie in one block, where the layout wants them.
void PutBlock(const BlockOrder& block, bool int4, uint64_t row, uint64_t columns, uint64_t at, uint64_t count,
              const int8_t* values, std::byte* out) {
  const uint64_t n = block.interleave;
  const uint64_t address = row / n * n * columns + n * at + kBlock * (row % n);  // of elements; at is a multiple of 64
  for (uint64_t p = 0; p < count; ++p) {
    const unsigned value = static_cast<unsigned>(values[block.order[p]] + block.bias);
    if (!int4) {
      out[address + p] = static_cast<std::byte>(value);
    } else if (p % 2 == 0) {
      out[(address + p) / 2] = static_cast<std::byte>(value & 15);
    } else {
      out[(address + p) / 2] |= static_cast<std::byte>((value & 15) << 4);
    }
  }
}

ValueReport ApplyWeightOnly(const ValueOp& op, RowReader& reader, uint64_t rows, uint64_t columns,
                            const std::array<std::byte*, kValueOutputs>& outputs) {
  const BlockOrder block = OrderOf(op);
  const bool int4 = IsInt4(op);
  const int levels = int4 ? 8 : 128;
  ValueReport report;
  alignas(64) int8_t quantised[kChunk];
  for (uint64_t row = 0; row < rows; ++row) {
    const float largest = Largest(reader, row, std::numeric_limits<float>::infinity());
    if (!std::isfinite(largest) && !report.not_a_number) report.not_a_number = row;
    const float scale = largest / static_cast<float>(levels);
    StoreScale(op, scale, row, outputs[1]);
    reader.ForEachChunk(row, [&](const float* values, uint64_t at, uint64_t count) {
      if (scale == 0 || !std::isfinite(scale)) {
        std::memset(quantised, 0, count);
      } else {
        Quantise(values, count, scale, -levels, levels - 1, quantised);
      }
      for (uint64_t in = 0; in < count; in += kBlock)
        PutBlock(block, int4, row, columns, at + in, std::min(kBlock, count - in), quantised + in, outputs[0]);
    });
  }
  return report;
}

ValueReport ApplyScales(const ValueOp& op, Dtype from, const std::byte* source, RowReader& reader, uint64_t rows,
                        uint64_t columns, const std::array<std::byte*, kValueOutputs>& outputs) {
  ValueReport report;
  Cast(from, op.dtype, source, outputs[0], rows * columns);
  for (uint64_t row = 0; row < rows; ++row) {
    const float largest = Largest(reader, row, std::numeric_limits<float>::infinity());
    if (!std::isfinite(largest) && !report.not_a_number) report.not_a_number = row;
    StoreScale(op, largest / 128, row, outputs[1]);
  }
  return report;
}

constexpr float kE4M3Max = 448, kFp8Clamp = 1200;

// A value of at most 448 in magnitude, to the nearest F8_E4M3, ties to even.
uint8_t ToE4M3(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  bits &= 0x7fffffff;
  constexpr uint32_t kLeastNormal = (127 - 6) << 23;
  if (bits < kLeastNormal) {  // steps of 2^-9
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    return static_cast<uint8_t>(sign | static_cast<uint8_t>(std::nearbyint(magnitude * 512)));
  }
  bits += 0x7ffff + (bits >> 20 & 1);
  return static_cast<uint8_t>(sign | ((bits >> 20) - ((127 - 7) << 3)));
}

ValueReport ApplyFp8(const ValueOp& op, RowReader& reader, uint64_t rows, uint64_t columns,
                     const std::array<std::byte*, kValueOutputs>& outputs) {
  ValueReport report;
  for (uint64_t row = 0; row < rows; ++row) {
    const float largest = Largest(reader, row, kFp8Clamp);
    if (std::isnan(largest) && !report.not_a_number) report.not_a_number = row;
    const bool reciprocal = op.kind == ValueOp::Kind::kFp8RowsReciprocal;
    const float quotient = reciprocal ? largest * (1 / kE4M3Max) : largest / kE4M3Max;
    const float scale = std::max(quotient, static_cast<float>(1.0 / (448.0 * 512.0)));
    std::memcpy(outputs[1] + row * sizeof scale, &scale, sizeof scale);
    reader.ForEachChunk(row, [&](const float* values, uint64_t at, uint64_t count) {
      std::byte* out = outputs[0] + row * columns + at;
      for (uint64_t i = 0; i < count; ++i) {
        const float clamped = std::clamp(values[i], -kFp8Clamp, kFp8Clamp);
        out[i] = static_cast<std::byte>(ToE4M3(std::clamp(clamped / scale, -kE4M3Max, kE4M3Max)));
      }
    });
  }
  return report;
}

void ApplyFp8AsIs(const std::byte* source, uint64_t rows, uint64_t columns, const std::byte* scales,
                  const std::array<std::byte*, kValueOutputs>& outputs) {
  std::memcpy(outputs[0], source, rows * columns);
  std::memcpy(outputs[1], scales, rows * ItemSize(Dtype::kF32));
}

constexpr uint64_t kNibbles = 8;  // of an I32

int Nibble(const std::byte* words, uint64_t word, uint64_t n) {
  return static_cast<int>(LoadLittle<uint32_t>(words + word * sizeof(uint32_t)) >> 4 * n & 15);
}

// Values are stored with 8 added; a zero of z, stored less one, stands for the value z, of which the kernel wants what
// it adds.
ValueReport ApplyGptq(const ValueOp& op, const std::byte* source, uint64_t rows, uint64_t words,
                      const std::array<const std::byte*, kMaxOperands>& operands,
                      const std::array<std::byte*, kValueOutputs>& outputs) {
  const BlockOrder block = OrderOf(op);
  const uint64_t columns = words * kNibbles, groups = columns / op.takes.group;
  ValueReport report;
  for (uint64_t row = 0; row < rows; ++row) {
    for (uint64_t at = 0; at < columns; at += kBlock) {
      int8_t values[kBlock] = {};
      const uint64_t count = std::min(kBlock, columns - at);
      for (uint64_t i = 0; i < count; ++i)
        values[i] = static_cast<int8_t>(Nibble(source, row * words + (at + i) / kNibbles, i % kNibbles) - 8);
      PutBlock(block, true, row, columns, at, count, values, outputs[0]);
    }
    for (uint64_t group = 0; group < groups; ++group) {
      const uint64_t at = (row * groups + group) * ItemSize(Dtype::kF16);
      float scale;
      Cast(Dtype::kF16, Dtype::kF32, operands[1] + at, &scale, 1);
      const float zero = static_cast<float>(7 - Nibble(operands[0], row / kNibbles * groups + group, row % kNibbles));
      const float added = zero * scale;
      std::memcpy(outputs[1] + at, operands[1] + at, ItemSize(Dtype::kF16));
      report.overflows += Cast(Dtype::kF32, Dtype::kF16, &added, outputs[2] + at, 1);
    }
  }
  return report;
}

std::string NotAMultiple(const char* what, uint64_t found, uint64_t of) {
  return found % of == 0 ? "" : fmt::format("{} {}, expected a multiple of {}", found, what, of);
}

}  // namespace

std::optional<GemmLayout> GemmLayoutOf(unsigned sm) {
  if (sm >= 70 && sm < 75) return GemmLayout::kBiased;
  if (sm >= 75 && sm < 90) return GemmLayout::kInterleaved;
  if (sm == 90) return GemmLayout::kPlain;
  return std::nullopt;
}

std::vector<ValueTensor> Encoded::Stored(uint64_t rows, uint64_t columns) const {
  switch (encoding) {
    case Encoding::kPlain:
      return {};
    case Encoding::kFp8Rows:
      return {{{rows, columns}, Dtype::kF8E4M3}, {{rows, 1}, Dtype::kF32}};
    case Encoding::kGptq:
      return {{{rows, columns / kNibbles}, Dtype::kI32},
              {{rows / kNibbles, columns / group}, Dtype::kI32},
              {{rows, columns / group}, Dtype::kF16}};
  }
  return {};
}

std::array<ValueTensor, kValueOutputs> OutputsOf(const ValueOp& op, uint64_t rows, uint64_t columns) {
  const ValueTensor none{{0}, Dtype::kF32};
  switch (op.kind) {
    case ValueOp::Kind::kInt8:
      return {{{{rows, columns}, Dtype::kI8}, {{rows}, op.dtype}, none}};
    case ValueOp::Kind::kInt4:
      return {{{{rows, columns / 2}, Dtype::kI8}, {{rows}, op.dtype}, none}};
    case ValueOp::Kind::kInt8Scales:
      return {{{{rows, columns}, op.dtype}, {{rows}, op.dtype}, none}};
    case ValueOp::Kind::kFp8Rows:
    case ValueOp::Kind::kFp8RowsReciprocal:
    case ValueOp::Kind::kFp8AsIs:
      return {{{{rows, columns}, Dtype::kF8E4M3}, {{rows}, Dtype::kF32}, none}};
    case ValueOp::Kind::kGptq: {
      const ValueTensor grouped{{rows, columns * kNibbles / op.takes.group}, Dtype::kF16};
      return {{{{rows, columns * kNibbles / 4}, Dtype::kF16}, grouped, grouped}};
    }
  }
  return {};
}

uint64_t TileRows(const ValueOp& op) {
  if (op.kind == ValueOp::Kind::kGptq) return kNibbles;  // more than the layout asks for, and a multiple of it
  return Packs(op) ? OrderOf(op).interleave : 1;
}

std::string WhyNot(const ValueOp& op, uint64_t rows, uint64_t columns) {
  if (!Packs(op)) return "";
  const uint64_t transposed = IsInt4(op) ? 64 : 32;
  const uint64_t in = op.layout == GemmLayout::kInterleaved ? 64 : transposed;
  std::string problem = NotAMultiple("input features", columns, in);
  if (problem.empty() && op.takes.group) problem = NotAMultiple("input features", columns, op.takes.group);
  return problem.empty() ? NotAMultiple("output channels", rows, transposed) : problem;
}

void Pack(const ValueOp& op, const int8_t* values, uint64_t rows, uint64_t columns, std::byte* out) {
  const BlockOrder block = OrderOf(op);
  for (uint64_t row = 0; row < rows; ++row)
    for (uint64_t at = 0; at < columns; at += kBlock)
      PutBlock(block, IsInt4(op), row, columns, at, std::min(kBlock, columns - at), values + row * columns + at, out);
}

ValueReport Apply(const ValueOp& op, Dtype from, const std::byte* source, uint64_t rows, uint64_t columns,
                  const std::array<const std::byte*, kMaxOperands>& operands,
                  const std::array<std::byte*, kValueOutputs>& outputs) {
  RowReader reader(from, op.dtype, columns, source);
  ValueReport report;
  switch (op.kind) {
    case ValueOp::Kind::kInt8:
    case ValueOp::Kind::kInt4:
      report = ApplyWeightOnly(op, reader, rows, columns, outputs);
      break;
    case ValueOp::Kind::kInt8Scales:
      report = ApplyScales(op, from, source, reader, rows, columns, outputs);
      break;
    case ValueOp::Kind::kFp8Rows:
    case ValueOp::Kind::kFp8RowsReciprocal:
      report = ApplyFp8(op, reader, rows, columns, outputs);
      break;
    case ValueOp::Kind::kFp8AsIs:
      ApplyFp8AsIs(source, rows, columns, operands[0], outputs);
      break;
    case ValueOp::Kind::kGptq:
      return ApplyGptq(op, source, rows, columns, operands, outputs);
  }
  // Each op reads a row twice, but the one that only needs the scales.
  report.overflows = reader.overflows() / (op.kind == ValueOp::Kind::kInt8Scales ? 1 : 2);
  return report;
}

}  // namespace reshard
