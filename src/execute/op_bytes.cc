#include "execute/op_bytes.h"

#include <algorithm>
#include <vector>

#include "tensor/value_op.h"

namespace reshard {
namespace {

Box Hull(const Box& a, const Box& b) {
  Box hull = a;
  for (size_t axis = 0; axis < a.shape.size(); ++axis) {
    hull.origin[axis] = std::min(a.origin[axis], b.origin[axis]);
    hull.shape[axis] = std::max(a.end(axis), b.end(axis)) - hull.origin[axis];
  }
  return hull;
}

}  // namespace

std::optional<Box> WrittenBox(const Part& part, const Piece& target, const Box& op) {
  if (!part.value) return Intersect(target.box, op);
  Box box = WholeBox(OutputsOf(*part.value, op.shape[0], op.shape[1])[target.output].shape);
  box.origin[0] = op.origin[0] - DomainOf(part).origin[0];
  return Intersect(target.box, box);
}

uint64_t BytesOf(const Part& part, const Piece& target, const Box& op) {
  const std::optional<Box> box = WrittenBox(part, target, op);
  return box ? ElementCount(box->shape) * ItemSize(target.dtype) : 0;
}

uint64_t BytesOf(const Part& part, const Piece& target, const Box& op, const Shares& shares, uint32_t task) {
  uint64_t mine = 0;
  ForEachWriter(part, target, op, shares, [&](uint32_t writer, uint64_t bytes) { mine += writer == task ? bytes : 0; });
  return mine;
}

uint64_t BytesOf(const Piece& target, const Shares& shares, uint32_t task) {
  uint64_t mine = 0;
  ForEachWriter(target, target.box, shares,
                [&](uint32_t writer, uint64_t bytes) { mine += writer == task ? bytes : 0; });
  return mine;
}

std::optional<Box> NeededBox(const Part& part, const Box& op, const Shares& shares, uint32_t task) {
  std::optional<Box> needed;
  for (const Piece& target : part.targets) {
    if (BytesOf(part, target, op, shares, task) == 0) continue;
    if (part.value) return op;
    const Box box = *Intersect(target.box, op);
    needed = needed ? Hull(*needed, box) : box;
  }
  return needed;
}

uint64_t BytesRead(const Plan& plan, const Shares& shares) {
  uint64_t bytes = 0;
  Op op;
  for (OpCursor cursor(plan.parts); cursor.Next(op);) {
    const Part& part = plan.parts[op.part];
    std::vector<uint32_t> writers;
    for (const Piece& target : part.targets)
      ForEachWriter(part, target, op.box, shares, [&](uint32_t task, uint64_t) { writers.push_back(task); });
    std::sort(writers.begin(), writers.end());
    writers.erase(std::unique(writers.begin(), writers.end()), writers.end());
    for (uint32_t task : writers) bytes += SourceBytes(part, *NeededBox(part, op.box, shares, task));
  }
  return bytes;
}

}  // namespace reshard
