// What an op writes, and for which task.
#pragma once

#include <cstdint>
#include <optional>

#include "execute/gather.h"
#include "execute/shares.h"
#include "plan/plan.h"

namespace reshard {

// What of a target piece an op writes, in the piece's own coordinates; nothing where they do not meet.
std::optional<Box> WrittenBox(const Part& part, const Piece& target, const Box& op);

// Bytes that an op writes to a target piece.
uint64_t BytesOf(const Part& part, const Piece& target, const Box& op);

// Calls take(task, bytes) for the tasks that write a box of a target piece, or what an op writes to one; several times
// for one where the file is cut.
template <typename Take>
void ForEachWriter(const Piece& target, const Box& box, const Shares& shares, Take take) {
  const uint64_t item = ItemSize(target.dtype);
  if (!shares.IsCut(target.file)) return take(shares.OwnerOf(target.file), ElementCount(box.shape) * item);
  for (RunCursor runs(target, box, box); !runs.done(); runs.Advance(runs.run().length)) {
    const uint64_t begin = target.offset + runs.run().file * item;
    shares.ForEachSlice(target.file, begin, begin + runs.run().length * item,
                        [&](uint32_t task, uint64_t from, uint64_t to) { take(task, to - from); });
  }
}
template <typename Take>
void ForEachWriter(const Part& part, const Piece& target, const Box& op, const Shares& shares, Take take) {
  if (const std::optional<Box> box = WrittenBox(part, target, op)) ForEachWriter(target, *box, shares, take);
}

// Bytes of a target piece that a task writes in an op.
uint64_t BytesOf(const Part& part, const Piece& target, const Box& op, const Shares& shares, uint32_t task);

// The same of all of a piece.
uint64_t BytesOf(const Piece& target, const Shares& shares, uint32_t task);

// Of an op the smallest box that has all a task needs; nothing where it writes nothing. A value op needs all of it.
std::optional<Box> NeededBox(const Part& part, const Box& op, const Shares& shares, uint32_t task);

// Bytes of sources that all tasks together read.
uint64_t BytesRead(const Plan& plan, const Shares& shares);

}  // namespace reshard
