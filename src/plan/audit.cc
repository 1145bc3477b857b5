// The audit knows no box of a model: it adds up runs of bytes, file by file.
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "plan/planner.h"

namespace reshard {
namespace {

struct Run {
  uint64_t begin, end;  // bytes of a file
};

// What a piece covers of its file: a box of strided axes, as contiguous runs.
struct Footprint {
  const Piece* piece;
  uint64_t begin, end;  // of the smallest range that holds it
};

// The extents of an axis as loops, outermost first: {count, stride in elements}.
struct Loop {
  uint64_t count, stride;
};

std::vector<Loop> LoopsOf(const Piece& piece) {
  std::vector<Loop> loops;
  for (size_t axis = 0; axis < piece.box.shape.size(); ++axis) {
    uint64_t length = piece.box.shape[axis];
    const Axis& a = piece.axes[axis];
    if (length > a.block && length % a.block == 0) {
      loops.push_back({length / a.block, a.outer});
      loops.push_back({a.block, a.inner});
    } else {
      loops.push_back({length, a.inner});
    }
  }
  std::erase_if(loops, [](const Loop& loop) { return loop.count == 1; });
  return loops;
}

uint64_t EndOf(const Piece& piece) {
  uint64_t last = 0;
  for (size_t axis = 0; axis < piece.box.shape.size(); ++axis) last += piece.axes[axis].At(piece.box.shape[axis] - 1);
  return piece.offset + (last + 1) * ItemSize(piece.dtype);
}

void AddRuns(const Piece& piece, std::vector<Run>& runs) {
  std::vector<Loop> loops = LoopsOf(piece);
  uint64_t run = 1;  // elements that the innermost loops cover without a gap
  while (!loops.empty() && loops.back().stride == run) {
    run *= loops.back().count;
    loops.pop_back();
  }
  uint32_t item = ItemSize(piece.dtype);
  std::function<void(size_t, uint64_t)> walk = [&](size_t level, uint64_t at) {
    if (level == loops.size()) {
      runs.push_back({at, at + run * item});
      return;
    }
    for (uint64_t i = 0; i < loops[level].count; ++i) walk(level + 1, at + i * loops[level].stride * item);
  };
  walk(0, piece.offset);
}

// Pieces that overlap nothing are one run if they are dense; only tangles are taken apart.
std::vector<Run> RunsOf(const FileLayout& file, std::vector<Footprint>& pieces) {
  std::vector<Run> runs;
  for (const Literal& literal : file.literals) runs.push_back({literal.offset, literal.offset + literal.bytes.size()});
  for (const Footprint& piece : pieces) {
    bool dense = piece.end - piece.begin == ElementCount(piece.piece->box.shape) * ItemSize(piece.piece->dtype);
    if (dense) {
      runs.push_back({piece.begin, piece.end});
    } else {
      AddRuns(*piece.piece, runs);
    }
  }
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
  return runs;
}

void CheckFile(const FileLayout& file, std::vector<Footprint>& pieces, std::vector<std::string>& problems) {
  uint64_t expected = 0;
  for (const Run& run : RunsOf(file, pieces)) {
    if (run.begin != expected) {
      problems.push_back(fmt::format("{}: {} at byte {}", file.path,
                                     run.begin > expected ? "nothing is written" : "something is written twice",
                                     std::min(run.begin, expected)));
      return;
    }
    expected = run.end;
  }
  if (expected != file.size)
    problems.push_back(fmt::format("{}: {} bytes are written, expected {}", file.path, expected, file.size));
}

// What of the part no source gives.
void CheckSources(const Part& part, std::vector<std::string>& problems) {
  if (part.sources.empty()) return;
  std::vector<Box> missing = {WholeBox(part.shape)};
  for (const Piece& piece : part.sources) {
    std::vector<Box> rest;
    for (const Box& hole : missing)
      for (const Box& box : Subtract(hole, piece.box)) rest.push_back(box);
    missing = std::move(rest);
  }
  for (const Box& box : missing)
    problems.push_back(
        fmt::format("{}: no source for {} from {} on", part.name, ToString(box.shape), ToString(box.origin)));
}

// A box that no op of the part would meet, wholly or in part.
bool LiesOutside(const Piece& piece, const Part& part) {
  return piece.box.shape.size() != part.shape.size() || !(Intersect(piece.box, WholeBox(part.shape)) == piece.box);
}

void CheckBoxes(const Part& part, std::vector<std::string>& problems) {
  for (const auto* pieces : {&part.sources, &part.targets})
    for (const Piece& piece : *pieces)
      if (LiesOutside(piece, part))
        problems.push_back(fmt::format("{}: {} from {} on lies outside of {}", part.name, ToString(piece.box.shape),
                                       ToString(piece.box.origin), ToString(part.shape)));
}

}  // namespace

std::vector<std::string> Audit(const Plan& plan) {
  std::vector<std::string> problems;
  std::vector<std::vector<Footprint>> by_file(plan.files.size());
  for (const Part& part : plan.parts) {
    CheckBoxes(part, problems);
    CheckSources(part, problems);
    for (const Piece& piece : part.sources)
      if (piece.file >= plan.sources.size() || EndOf(piece) > plan.sources[piece.file].size)
        problems.push_back(fmt::format("{}: a source piece lies beyond the end of its file", part.name));
    for (const Piece& piece : part.targets) {
      if (piece.file >= plan.files.size()) {
        problems.push_back(fmt::format("{}: a target piece in no file", part.name));
      } else {
        by_file[piece.file].push_back({&piece, piece.offset, EndOf(piece)});
      }
    }
  }
  for (size_t i = 0; i < plan.files.size(); ++i) CheckFile(plan.files[i], by_file[i], problems);
  return problems;
}

}  // namespace reshard
