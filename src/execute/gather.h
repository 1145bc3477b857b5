// The geometry between a piece of a file and a dense buffer: which elements lie one behind the other in both.
//
// A step is a box of a part; its dense buffer holds the step's elements in row-major order. All numbers are elements.
#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "plan/plan.h"

namespace reshard {

// Cuts a box into boxes of at most `limit` elements (at least one), each a stretch of the box in row-major order, in
// that order: rows first, and parts of a row only where one alone is larger.
class StepCursor {
 public:
  StepCursor(const Box& box, uint64_t limit);
  bool Next(Box& step);

 private:
  Box box_;
  Dims extents_;  // of a step, but at the edge
  Dims next_;     // origin of the next step
  bool done_;
};

// Elements that are consecutive in the file and in the dense buffer.
struct ElementRun {
  uint64_t file = 0;   // behind the piece's offset
  uint64_t dense = 0;  // from the start of the buffer
  uint64_t length = 0;
};

// Walks the elements of `common`, a box in both `piece` and `step`, as maximal runs. They come in the order of the
// file, unless an axis of the piece has blocks that lie closer than the elements within one: then in some order.
class RunCursor {
 public:
  RunCursor(const Piece& piece, const Box& common, const Box& step);

  bool done() const { return run_.length == 0; }
  const ElementRun& run() const { return run_; }
  // Passes over the first `length` elements of the run, and over to the next run where that was all of it.
  void Advance(uint64_t length);

 private:
  // A loop of the nest. The two loops of an axis that is cut within its blocks depend on each other: the second runs
  // over the indices of the block, the first's index, that are in [low, high).
  struct Loop {
    uint64_t file = 0, dense = 0;  // from one index to the next
    uint64_t begin = 0, end = 0, index = 0;
    uint64_t block = 0, low = 0, high = 0;  // of the second loop of an axis; block is 0 in all others
    size_t blocks = 0;                      // of the second loop: the number of the first
  };
  struct Span;

  void AddLoops(const Span& span);
  void SortLoops();
  void Enter(size_t first);
  bool Step();
  ElementRun Here() const;
  void FindRun();

  std::array<Loop, 2 * Dims::kMaxAxes> loops_;
  size_t count_ = 0;
  size_t turning_ = 0;  // loops that Step turns: all but an innermost one whose elements are consecutive
  uint64_t file_ = 0, dense_ = 0;
  bool more_ = true;
  ElementRun run_, ahead_;
};

// Walks the runs of a RunCursor in windows: elements that are adjacent in the file, at most `limit` of them, so that
// one system call moves them. Long runs stand alone, to be moved without a copy.
class WindowCursor {
 public:
  WindowCursor(const RunCursor& runs, uint64_t limit) : end_(runs), limit_(limit) {}

  bool Next();

  uint64_t file() const { return begin_.run().file; }
  uint64_t dense() const { return begin_.run().dense; }  // of the first element
  uint64_t length() const { return length_; }
  bool single() const { return length_ <= begin_.run().length; }  // the window is one run

  // Calls take(run) for each run of the window, cut to it.
  template <typename Take>
  void ForEachRun(Take take) const {
    RunCursor runs = begin_;
    for (uint64_t left = length_; left > 0;) {
      ElementRun run = runs.run();
      if (run.length > left) run.length = left;
      take(run);
      runs.Advance(run.length);
      left -= run.length;
    }
  }

 private:
  RunCursor end_, begin_ = end_;
  uint64_t limit_, length_ = 0;
};

// The runs that a box within a step has in the step's own dense buffer: `file` and `dense` are the same.
RunCursor DenseRuns(const Box& common, const Box& step);

// The index in the part of the element at `dense` of the step's buffer.
Dims IndexAt(const Box& step, uint64_t dense);

}  // namespace reshard
