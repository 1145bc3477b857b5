// The audit knows no box of a model: it adds up runs of bytes, file by file.
#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/bytes.h"
#include "plan/planner.h"

namespace reshard {
namespace {

struct Run {
  uint64_t begin, end;  // bytes of a file
};

// Beyond 64 bits is beyond the end of every file.
uint64_t Sum(uint64_t a, uint64_t b) { return CheckedAdd(a, b).value_or(UINT64_MAX); }
uint64_t Product(uint64_t a, uint64_t b) { return CheckedMultiply(a, b).value_or(UINT64_MAX); }

// Elements from an axis's first index to the farthest of its first `length`.
uint64_t Reach(const Axis& axis, uint64_t length) {
  auto at = [&](uint64_t i) { return Sum(Product(i / axis.block, axis.outer), Product(i % axis.block, axis.inner)); };
  uint64_t whole = length / axis.block * axis.block;  // the last block may be cut short, and may lie among the others
  return std::max(at(length - 1), whole ? at(whole - 1) : 0);
}

// The byte behind a piece's last.
uint64_t EndOf(const Piece& piece) {
  uint64_t elements = 1;
  for (size_t axis = 0; axis < piece.box.shape.size(); ++axis)
    elements = Sum(elements, Reach(piece.axes[axis], piece.box.shape[axis]));
  return Sum(piece.offset, Product(elements, ItemSize(piece.dtype)));
}

uint64_t BytesOf(const Piece& piece) {
  uint64_t bytes = ItemSize(piece.dtype);
  for (uint64_t extent : piece.box.shape) bytes = Product(bytes, extent);
  return bytes;
}

// The extents of an axis as loops, outermost first: {count, stride in elements}.
struct Loop {
  uint64_t count, stride;
};

// Of a piece whose blocks are all whole.
std::vector<Loop> LoopsOf(const Piece& piece) {
  std::vector<Loop> loops;
  for (size_t axis = 0; axis < piece.box.shape.size(); ++axis) {
    uint64_t length = piece.box.shape[axis], block = std::min(piece.axes[axis].block, length);
    loops.push_back({length / block, piece.axes[axis].outer});
    loops.push_back({block, piece.axes[axis].inner});
  }
  std::erase_if(loops, [](const Loop& loop) { return loop.count == 1; });
  return loops;
}

// Whether the loops cover one range, each element of it once: then each steps over just what the finer ones cover.
bool IsDense(std::vector<Loop> loops) {
  std::sort(loops.begin(), loops.end(), [](const Loop& a, const Loop& b) { return a.stride < b.stride; });
  uint64_t covered = 1;
  for (const Loop& loop : loops) {
    if (loop.stride != covered) return false;
    covered *= loop.count;
  }
  return true;
}

void AddLoops(std::vector<Loop> loops, const Piece& piece, std::vector<Run>& runs) {
  uint64_t run = ItemSize(piece.dtype);  // bytes that the innermost loops cover without a gap
  while (!loops.empty() && loops.back().stride * ItemSize(piece.dtype) == run) {
    run *= loops.back().count;
    loops.pop_back();
  }
  std::function<void(size_t, uint64_t)> walk = [&](size_t level, uint64_t at) {
    if (level == loops.size()) {
      runs.push_back({at, at + run});
      return;
    }
    for (uint64_t i = 0; i < loops[level].count; ++i)
      walk(level + 1, at + i * loops[level].stride * ItemSize(piece.dtype));
  };
  walk(0, piece.offset);
}

// What a piece covers of its file, which it fits into. Only tangles are taken apart.
void AddRuns(const Piece& piece, std::vector<Run>& runs) {
  for (size_t axis = 0; axis < piece.box.shape.size(); ++axis) {
    uint64_t rest = piece.box.shape[axis] % piece.axes[axis].block;
    if (rest == 0 || rest == piece.box.shape[axis]) continue;
    Piece whole = piece, cut = piece;  // the blocks, and the one at the end that is cut short
    whole.box.shape[axis] -= rest;
    cut.box.shape[axis] = rest;
    cut.offset += piece.axes[axis].At(whole.box.shape[axis]) * ItemSize(piece.dtype);
    AddRuns(whole, runs);
    AddRuns(cut, runs);
    return;
  }
  std::vector<Loop> loops = LoopsOf(piece);
  if (IsDense(loops)) {
    runs.push_back({piece.offset, piece.offset + BytesOf(piece)});
  } else {
    AddLoops(std::move(loops), piece, runs);
  }
}

std::vector<Run> RunsOf(const FileLayout& file, const std::vector<const Piece*>& pieces) {
  std::vector<Run> runs;
  for (const Literal& literal : file.literals) runs.push_back({literal.offset, literal.offset + literal.bytes.size()});
  for (const Piece* piece : pieces) AddRuns(*piece, runs);
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
  return runs;
}

void CheckFile(const FileLayout& file, const std::vector<const Piece*>& pieces, std::vector<std::string>& problems) {
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

// Whether literals of the file give zeros for a checksum that is yet to come.
bool IsZeros(const FileLayout& file, uint64_t place) {
  const auto behind = std::upper_bound(file.literals.begin(), file.literals.end(), place,
                                       [](uint64_t at, const Literal& literal) { return at < literal.offset; });
  if (behind == file.literals.begin()) return false;
  const Literal& literal = *(behind - 1);
  const std::string& text = literal.bytes;
  return text.compare(place - literal.offset, sizeof(uint32_t), std::string(sizeof(uint32_t), '\0')) == 0;
}

// The places of a checksum lie behind its range, so that one pass over the file can fill them in.
void CheckChecksums(const FileLayout& file, std::vector<std::string>& problems) {
  uint64_t end = 0;
  for (const Checksum& checksum : file.checksums) {
    const uint64_t begin = checksum.offset;
    const bool in_order = begin >= end && checksum.size <= file.size && begin <= file.size - checksum.size;
    end = begin + checksum.size;
    for (uint64_t place : checksum.places)
      if (!in_order || place < end || place >= file.size || !IsZeros(file, place))
        problems.push_back(fmt::format("{}: no place for the checksum of bytes {} to {}", file.path, begin, end));
  }
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

// One side of the plan: how large its files are, and what its tensors are called.
struct Files {
  const char* side;
  std::vector<uint64_t> sizes;
  size_t tensors;
  bool of_outputs;  // whether pieces are of what value ops make, where a part has one
};

// What a piece's box is of.
ValueTensor WholeOf(const Piece& piece, const Part& part, const Files& files) {
  if (!part.value || !files.of_outputs) return {part.shape, piece.dtype};
  const Dims shape = DomainOf(part).shape;
  return OutputsOf(*part.value, shape[0], shape[1])[piece.output];
}

// What a value op takes beside the matrix is as it is stored, and goes with the domain and nothing else, but for one
// element for all of an axis.
std::string ProblemOfOperands(const Part& part) {
  const Encoded& takes = part.value->takes;
  const std::vector<ValueTensor> stored = takes.Stored(part.shape[0], part.shape[1] * takes.columns_an_item());
  if (part.operands.size() + 1 != std::max<size_t>(stored.size(), 1))
    return fmt::format("{} operands of a value op", part.operands.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    const Part& found = i == 0 ? part : part.operands[i - 1];
    if (!(found.shape == stored[i].shape) || found.sources.empty() || found.sources[0].form() != stored[i].dtype)
      return fmt::format("operand {} is not what the value op takes", i);
    for (size_t axis = 0; axis < part.shape.size(); ++axis) {
      const uint64_t extent = found.shape[axis], per = extent ? part.shape[axis] / extent : 0;
      const Box domain = DomainOf(part);
      if (!per || part.shape[axis] % extent) return fmt::format("operand {} has a part of an element", i);
      if (extent > 1 && (domain.origin[axis] % per || domain.shape[axis] % per))
        return fmt::format("operand {} goes with elements outside of the domain", i);
    }
  }
  return "";
}

// A value op takes the rows of a matrix whole, from a multiple of its tile on.
std::string ProblemOfValue(const Part& part) {
  if (part.domain &&
      !(part.domain->shape.size() == part.shape.size() && Intersect(*part.domain, WholeBox(part.shape)) == part.domain))
    return "its domain lies outside of it";
  if (!part.value) return "";
  if (part.shape.size() != 2 || part.sources.empty()) return "a value op of no matrix";
  for (const Piece& piece : part.targets)
    if (piece.output >= kValueOutputs) return fmt::format("output {} of a value op", piece.output);
  return ProblemOfOperands(part);
}

// What is wrong with a piece by itself; empty where nothing is. A box that leaves its part, wholly or in part, is one
// that no op meets.
std::string ProblemOf(const Piece& piece, const Part& part, const Files& files) {
  const Box& box = piece.box;
  const ValueTensor whole = WholeOf(piece, part, files);
  if (box.shape.size() != whole.shape.size() || !(Intersect(box, WholeBox(whole.shape)) == box))
    return fmt::format("{} from {} on lies outside of {}", ToString(box.shape), ToString(box.origin),
                       ToString(whole.shape));
  if (piece.dtype != whole.dtype)
    return fmt::format("{}, and the value op gives {}", Row(piece.dtype).name, Row(whole.dtype).name);
  if (piece.minus_one && (part.value || !IsCastable(piece.dtype)))
    return fmt::format("{}, which is for values that are only cast", ToString(piece.form()));
  for (size_t axis = 0; axis < box.shape.size(); ++axis)
    if (piece.axes[axis].block == 0) return fmt::format("blocks of 0 along axis {}", axis);
  if (ItemSize(piece.dtype) == 0) return fmt::format("elements of {}, less than a byte", Row(piece.dtype).name);
  if (piece.tensor >= files.tensors) return fmt::format("a {} piece of no tensor", files.side);
  if (piece.file >= files.sizes.size()) return fmt::format("a {} piece in no file", files.side);
  if (EndOf(piece) > files.sizes[piece.file])
    return fmt::format("a {} piece lies beyond the end of its file", files.side);
  return "";
}

// The pieces that nothing is wrong with.
std::vector<const Piece*> Sound(const Part& part, const std::vector<Piece>& pieces, const Files& files,
                                std::vector<std::string>& problems) {
  std::vector<const Piece*> sound;
  for (const Piece& piece : pieces) {
    std::string problem = ProblemOf(piece, part, files);
    if (problem.empty()) {
      sound.push_back(&piece);
    } else {
      problems.push_back(fmt::format("{}: {}", part.name, problem));
    }
  }
  return sound;
}

void CheckForms(const Part& part, std::vector<std::string>& problems) {
  for (const Piece& piece : part.sources)
    if (piece.form() != part.sources[0].form()) {
      problems.push_back(fmt::format("{}: sources of {} and of {}", part.name, ToString(part.sources[0].form()),
                                     ToString(piece.form())));
      return;
    }
}

void CheckSourcesOf(const Part& part, const Files& sources, std::vector<std::string>& problems) {
  CheckSources(part, problems);
  CheckForms(part, problems);
  Sound(part, part.sources, sources, problems);
}

}  // namespace

std::vector<std::string> Audit(const Plan& plan) {
  std::vector<std::string> problems;
  Files sources{"source", {}, plan.source_tensors.size(), false};
  Files targets{"target", {}, plan.target_tensors.size(), true};
  for (const SourceFile& file : plan.sources) sources.sizes.push_back(file.size);
  for (const FileLayout& file : plan.files) targets.sizes.push_back(file.size);
  std::vector<std::vector<const Piece*>> by_file(plan.files.size());
  for (const Part& part : plan.parts) {
    if (std::string problem = ProblemOfValue(part); !problem.empty()) {
      problems.push_back(fmt::format("{}: {}", part.name, problem));
      continue;
    }
    CheckSourcesOf(part, sources, problems);
    for (const Part& operand : part.operands) CheckSourcesOf(operand, sources, problems);
    for (const Piece* piece : Sound(part, part.targets, targets, problems)) {
      // Taken apart, such a piece could have any number of runs.
      if (BytesOf(*piece) > targets.sizes[piece->file]) {
        problems.push_back(fmt::format("{}: a target piece is larger than its file", part.name));
      } else {
        by_file[piece->file].push_back(piece);
      }
    }
  }
  for (size_t i = 0; i < plan.files.size(); ++i) {
    CheckFile(plan.files[i], by_file[i], problems);
    CheckChecksums(plan.files[i], problems);
  }
  return problems;
}

}  // namespace reshard
