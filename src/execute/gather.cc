#include "execute/gather.h"

#include <algorithm>

namespace reshard {
namespace {

// From this share of a window on, a run is moved by itself: a system call costs less than the copy that it saves.
constexpr uint64_t kLongShare = 16;

}  // namespace

StepCursor::StepCursor(const Box& box, uint64_t limit)
    : box_(box), extents_(box.shape), next_(box.origin), done_(ElementCount(box.shape) == 0) {
  if (done_) return;
  uint64_t rest = ElementCount(box.shape);  // elements of one index of the axes up to this one
  for (size_t axis = 0; axis < box.shape.size(); ++axis) {
    rest /= box.shape[axis];
    extents_[axis] = std::clamp<uint64_t>(limit / rest, 1, box.shape[axis]);
  }
}

bool StepCursor::Next(Box& step) {
  if (done_) return false;
  step = {next_, extents_};
  for (size_t axis = 0; axis < next_.size(); ++axis)
    step.shape[axis] = std::min(extents_[axis], box_.end(axis) - next_[axis]);
  size_t axis = next_.size();
  for (; axis > 0; --axis) {
    next_[axis - 1] += extents_[axis - 1];
    if (next_[axis - 1] < box_.end(axis - 1)) break;
    next_[axis - 1] = box_.origin[axis - 1];
  }
  done_ = axis == 0;
  return true;
}

// Indices [low, low + count) of an axis, or of several that have become one.
struct RunCursor::Span {
  Axis axis;
  uint64_t low, count;
  uint64_t dense;  // from one index to the next

  bool plain() const { return axis.block >= count && low == 0; }
};

RunCursor::RunCursor(const Piece& piece, const Box& common, const Box& step) {
  Dims strides = RowMajorStrides(step.shape);
  Span pending{{1, 1, 0}, 0, 1, 1};  // the axes behind this one that have become one
  bool have = false;
  for (size_t a = common.shape.size(); a-- > 0;) {
    Span span{piece.axes[a], common.origin[a] - piece.box.origin[a], common.shape[a], strides[a]};
    dense_ += (common.origin[a] - step.origin[a]) * strides[a];
    bool one_block = span.low / span.axis.block == (span.low + span.count - 1) / span.axis.block;
    if (one_block || span.axis.outer == span.axis.block * span.axis.inner) {
      file_ += span.axis.At(span.low);
      span.axis.block = span.count;
      span.low = 0;
    }
    if (span.count == 1) continue;
    bool joins = have && pending.plain() && span.axis.inner == pending.count * pending.axis.inner &&
                 span.dense == pending.count * pending.dense;
    if (joins) {
      span.axis.block *= pending.count;
      span.axis.inner = pending.axis.inner;
      span.low *= pending.count;
      span.count *= pending.count;
      span.dense = pending.dense;
    } else if (have) {
      AddLoops(pending);
    }
    pending = span;
    have = true;
  }
  if (have) AddLoops(pending);
  SortLoops();
  turning_ = count_ > 0 && loops_[count_ - 1].file == 1 && loops_[count_ - 1].dense == 1 ? count_ - 1 : count_;
  Enter(0);
  ahead_ = Here();
  FindRun();
}

void RunCursor::AddLoops(const Span& span) {
  const Axis& axis = span.axis;
  if (span.plain()) {
    loops_[count_++] = {axis.inner, span.dense, 0, span.count};
    return;
  }
  uint64_t high = span.low + span.count;
  loops_[count_++] = {axis.outer, span.dense * axis.block, span.low / axis.block, CeilDiv(high, axis.block)};
  loops_[count_] = {axis.inner, span.dense, 0, axis.block, 0, axis.block, span.low, high, count_ - 1};
  ++count_;
  dense_ -= span.low * span.dense;  // modulo 2^64: the loops' indices add it again
}

// Largest file stride first; the loop over an axis's blocks stays before the loop within them.
void RunCursor::SortLoops() {
  std::array<size_t, 2 * Dims::kMaxAxes> order;
  for (size_t i = 0; i < count_; ++i) order[i] = i;
  auto key = [&](size_t i) {
    bool has_second = i + 1 < count_ && loops_[i + 1].block > 0;
    return has_second ? std::max(loops_[i].file, loops_[i + 1].file) : loops_[i].file;
  };
  std::stable_sort(order.begin(), order.begin() + count_, [&](size_t a, size_t b) { return key(a) > key(b); });
  std::array<Loop, 2 * Dims::kMaxAxes> sorted;
  std::array<size_t, 2 * Dims::kMaxAxes> place;
  for (size_t i = 0; i < count_; ++i) {
    sorted[i] = loops_[order[i]];
    place[order[i]] = i;
    if (sorted[i].block > 0) sorted[i].blocks = place[sorted[i].blocks];
  }
  loops_ = sorted;
}

// Sets the loops from `first` on to their first index.
void RunCursor::Enter(size_t first) {
  for (size_t i = first; i < count_; ++i) {
    Loop& loop = loops_[i];
    if (loop.block > 0) {
      uint64_t start = loops_[loop.blocks].index * loop.block;
      loop.begin = std::max(loop.low, start) - start;
      loop.end = std::min(loop.high, start + loop.block) - start;
    }
    loop.index = loop.begin;
  }
}

bool RunCursor::Step() {
  for (size_t i = turning_; i-- > 0;) {
    if (++loops_[i].index < loops_[i].end) {
      Enter(i + 1);
      return true;
    }
  }
  return false;
}

ElementRun RunCursor::Here() const {
  ElementRun run{file_, dense_, 1};
  for (size_t i = 0; i < count_; ++i) {
    run.file += loops_[i].index * loops_[i].file;
    run.dense += loops_[i].index * loops_[i].dense;
  }
  if (turning_ < count_) run.length = loops_[turning_].end - loops_[turning_].begin;
  return run;
}

// Makes the run ahead, and all that continue it on both sides, the current one.
void RunCursor::FindRun() {
  if (!more_) {
    run_ = {};
    return;
  }
  run_ = ahead_;
  while ((more_ = Step())) {
    ahead_ = Here();
    bool continues = ahead_.file == run_.file + run_.length && ahead_.dense == run_.dense + run_.length;
    if (!continues) return;
    run_.length += ahead_.length;
  }
}

void RunCursor::Advance(uint64_t length) {
  run_.file += length;
  run_.dense += length;
  run_.length -= length;
  if (run_.length == 0) FindRun();
}

bool WindowCursor::Next() {
  begin_ = end_;
  length_ = 0;
  if (end_.done()) return false;
  const uint64_t long_run = std::max<uint64_t>(limit_ / kLongShare, 1);
  do {
    uint64_t taken = std::min(end_.run().length, limit_ - length_);
    bool was_long = end_.run().length >= long_run;
    length_ += taken;
    end_.Advance(taken);
    if (was_long) break;
  } while (!end_.done() && length_ < limit_ && end_.run().length < long_run && end_.run().file == file() + length_);
  return true;
}

RunCursor DenseRuns(const Box& common, const Box& step) {
  Piece piece;
  piece.box = step;
  Dims strides = RowMajorStrides(step.shape);
  for (size_t a = 0; a < step.shape.size(); ++a) piece.axes[a] = {step.shape[a], strides[a], 0};
  return RunCursor(piece, common, step);
}

Dims IndexAt(const Box& step, uint64_t dense) {
  Dims index = step.origin;
  for (size_t a = step.shape.size(); a-- > 0; dense /= step.shape[a]) index[a] += dense % step.shape[a];
  return index;
}

}  // namespace reshard
