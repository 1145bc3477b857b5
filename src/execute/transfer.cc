#include "execute/transfer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "execute/element.h"

namespace reshard {
namespace {

constexpr uint64_t kPage = 4096;

uint64_t SourceElements(const Part& part) {
  uint64_t elements = 0;
  for (const Piece& piece : part.sources) elements += ElementCount(piece.box.shape);
  return elements;
}

}  // namespace

Buffer::Buffer(uint64_t size) : memory_(static_cast<std::byte*>(std::aligned_alloc(kPage, RoundUp(size, kPage)))) {
  if (!memory_) throw std::bad_alloc();
}

uint64_t StepElements(const Part& part, uint64_t bytes) {
  if (part.value) return RowsWithin(part, bytes) * DomainOf(part).shape[1];
  return bytes / (part.sources.empty() ? WidestItem(part) : ItemSize(part.sources[0].dtype));
}

// The sources fill the part, so that they overlap exactly where they hold more elements than it has.
bool SourcesOverlap(const Part& part) {
  const bool here = !part.sources.empty() && SourceElements(part) > ElementCount(part.shape);
  return here || std::any_of(part.operands.begin(), part.operands.end(), SourcesOverlap);
}

void CheckPart(const Part& part) {
  for (const Part& operand : part.operands) CheckPart(operand);
  if (!part.sources.empty() && SourceElements(part) < ElementCount(part.shape))
    throw Error(Code::kInternal, fmt::format("the plan has sources for {} of the {} elements of '{}'",
                                             SourceElements(part), ElementCount(part.shape), part.name));
  for (const auto* pieces : {&part.sources, &part.targets}) {
    for (const Piece& piece : *pieces) {
      if (ItemSize(piece.dtype) == 0)
        throw Error(Code::kInternal, fmt::format("the plan has '{}' as {}, whose elements are less than a byte",
                                                 part.name, Row(piece.dtype).name));
    }
  }
  if (part.sources.empty()) return;
  const ElementForm from = part.sources[0].form();
  for (const Piece& piece : part.sources)
    if (piece.form() != from)
      throw Error(Code::kInternal,
                  fmt::format("the plan has '{}' as {} and as {}", part.name, ToString(from), ToString(piece.form())));
  if (part.value) return;
  for (const Piece& piece : part.targets)
    if (piece.form() != from && !(IsCastable(piece.dtype) && IsCastable(from.dtype)))
      throw Error(Code::kUnsupported, fmt::format("'{}' would have to be cast from {} to {}", part.name, ToString(from),
                                                  ToString(piece.form())));
}

uint64_t PieceReader::Read(const Piece& piece, const Box& common, const Box& step, std::byte* dense) const {
  const uint64_t item = ItemSize(piece.dtype);
  std::shared_ptr<File> file = files.Get(first + piece.file);
  for (WindowCursor window(RunCursor(piece, common, step), kIoBuffer / item); window.Next();) {
    const uint64_t offset = piece.offset + window.file() * item, size = window.length() * item;
    if (window.single()) {
      file->ReadAt(dense + window.dense() * item, size, offset);
    } else {
      file->ReadAt(bounce, size, offset);
      window.ForEachRun([&](const ElementRun& run) {
        std::memcpy(dense + run.dense * item, bounce + (run.file - window.file()) * item, run.length * item);
      });
    }
    if (drop_cache) file->Forget(offset, size);
  }
  return ElementCount(common.shape) * item;
}

// Two sources of one element that are not the same; `dense` is UINT64_MAX where there is none.
struct SourceReader::Mismatch {
  uint64_t dense = UINT64_MAX;
  size_t expected = 0, found = 0;  // pieces
  std::byte expected_bytes[8], found_bytes[8];
};

uint64_t SourceReader::Read(const Part& part, const Box& step, std::byte* dense) const {
  uint64_t bytes = 0;
  Mismatch first;
  for (size_t i = 0; i < part.sources.size(); ++i) {
    const Piece& piece = part.sources[i];
    std::optional<Box> common = Intersect(piece.box, step);
    if (!common) continue;
    const bool again = std::any_of(part.sources.begin(), part.sources.begin() + i,
                                   [&](const Piece& earlier) { return Intersect(earlier.box, *common).has_value(); });
    bytes += reader_.Read(piece, *common, step, again ? second_ : dense);
    if (again) Reconcile(part, i, *common, step, dense, first);
  }
  if (first.dense != UINT64_MAX) throw Explain(part, step, first);
  return bytes;
}

// Compares what the second buffer has of a piece with what earlier pieces brought, then takes the rest over from it.
void SourceReader::Reconcile(const Part& part, size_t piece, const Box& common, const Box& step, std::byte* dense,
                             Mismatch& first) const {
  const uint64_t item = ItemSize(part.sources[piece].dtype);
  for (size_t earlier = 0; earlier < piece; ++earlier) {
    std::optional<Box> both = Intersect(part.sources[earlier].box, common);
    if (!both) continue;
    for (RunCursor runs = DenseRuns(*both, step); !runs.done(); runs.Advance(runs.run().length)) {
      const std::byte *expected = dense + runs.run().dense * item, *found = second_ + runs.run().dense * item;
      const uint64_t size = runs.run().length * item;
      if (std::memcmp(expected, found, size) == 0) continue;
      const uint64_t byte = std::mismatch(expected, expected + size, found).first - expected;
      const uint64_t at = runs.run().dense + byte / item;
      if (at >= first.dense) break;
      first.dense = at;
      first.expected = earlier;
      first.found = piece;
      std::memcpy(first.expected_bytes, dense + at * item, item);
      std::memcpy(first.found_bytes, second_ + at * item, item);
      break;
    }
  }
  for (RunCursor runs = DenseRuns(common, step); !runs.done(); runs.Advance(runs.run().length))
    std::memcpy(dense + runs.run().dense * item, second_ + runs.run().dense * item, runs.run().length * item);
}

Error SourceReader::Explain(const Part& part, const Box& step, const Mismatch& mismatch) const {
  const Piece &expected = part.sources[mismatch.expected], &found = part.sources[mismatch.found];
  auto name = [&](const Piece& piece) { return names_.tensors ? (*names_.tensors)[piece.tensor] : part.name; };
  Error error(
      Code::kMismatch,
      fmt::format("element {} of '{}' is {}, expected {} as in tensor '{}' of {}; copies must be equal",
                  ToString(IndexAt(step, mismatch.dense)), part.name, ElementValue(found.dtype, mismatch.found_bytes),
                  ElementValue(expected.dtype, mismatch.expected_bytes), name(expected),
                  names_.files[expected.file].relative));
  error.At("reading", names_.files[found.file].relative).Tensor(name(found));
  return error;
}

}  // namespace reshard
