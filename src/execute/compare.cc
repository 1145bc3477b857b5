#include "execute/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <utility>

#include "base/error.h"
#include "execute/element.h"
#include "execute/op_queue.h"
#include "execute/transfer.h"
#include "tensor/cast.h"

namespace reshard {
namespace {

using Verdict = PartComparison::Verdict;

bool Precedes(const Difference& a, const Difference& b) { return a.index < b.index; }
bool IsWorse(const Difference& a, const Difference& b) { return a.ulps != b.ulps ? a.ulps > b.ulps : Precedes(a, b); }

// Adds what was found in one box of a part to what was found in others; the sum does not depend on the order.
void Merge(const PartComparison& found, PartComparison& sum) {
  sum.verdict = std::max(sum.verdict, found.verdict);
  sum.differing += found.differing;
  sum.overflows += found.overflows;
  if (found.first && (!sum.first || Precedes(*found.first, *sum.first))) sum.first = found.first;
  if (found.worst && (!sum.worst || IsWorse(*found.worst, *sum.worst))) sum.worst = found.worst;
}

class Comparison {
 public:
  Comparison(const std::vector<Part>& parts, const std::vector<SourceFile>& a_files,
             const std::vector<SourceFile>& b_files, Io& io, const ExecuteOptions& options);
  std::vector<PartComparison> Perform();

 private:
  class Worker;

  const std::vector<Part>& parts_;
  const std::vector<SourceFile>&a_files_, &b_files_;
  Io& io_;
  const ExecuteOptions& options_;
  const OpenFileLimit limit_;
  OpenFiles files_;  // a's, then b's
  std::mutex mutex_;
  std::vector<PartComparison> results_;  // one a part
};

// One thread with its buffers. The buffer for b serves also where sources of a are compared among themselves.
class Comparison::Worker {
 public:
  Worker(Comparison& comparison, Turn& turn)
      : comparison_(comparison),
        turn_(turn),
        dense_size_(std::min(comparison.options_.dense_buffer, kMaxOpBytes)),
        a_(dense_size_),
        b_(dense_size_),
        bounce_(kIoBuffer),
        b_reader_{comparison.files_, comparison.a_files_.size(), comparison.options_.drop_source_cache, bounce_.data()},
        a_reader_({comparison.files_, 0, comparison.options_.drop_source_cache, bounce_.data()},
                  {comparison.a_files_, nullptr}, b_.data()) {}

  void Work() {
    for (Op op; turn_.Next(op);) CompareOp(op);
  }

 private:
  void CompareOp(const Op& op);
  void CompareWithZeros(const Part& part, const Box& step, PartComparison& result);
  void ComparePiece(const ElementForm& from, const Piece& piece, const Box& common, const Box& step,
                    PartComparison& result);
  void CompareRun(const ElementForm& from, const ElementForm& to, const ElementRun& run, const Box& step,
                  PartComparison& result);
  void CompareElements(const ElementForm& from, const ElementForm& to, const std::byte* rounded, const ElementRun& run,
                       const Box& step, PartComparison& result);

  Comparison& comparison_;
  Turn& turn_;
  const uint64_t dense_size_;
  Buffer a_, b_, bounce_;
  PieceReader b_reader_;
  SourceReader a_reader_;
};

void Comparison::Worker::CompareOp(const Op& op) {
  const Part& part = comparison_.parts_[op.part];
  PartComparison result;
  uint64_t read = 0;
  StepCursor steps(op.box, dense_size_ / WidestItem(part));
  for (Box step; steps.Next(step);) {
    turn_.Check();
    if (part.sources.empty()) std::memset(a_.data(), 0, ElementCount(step.shape) * WidestItem(part));
    a_reader_.Read(part, step, a_.data());
    if (part.targets.empty()) CompareWithZeros(part, step, result);
    for (const Piece& piece : part.targets) {
      std::optional<Box> common = Intersect(piece.box, step);
      if (!common) continue;
      read += b_reader_.Read(piece, *common, step, b_.data());
      // A part without sources is zeros, which every form spells alike.
      ComparePiece(part.sources.empty() ? piece.form() : part.sources[0].form(), piece, *common, step, result);
    }
  }
  {
    std::lock_guard lock(comparison_.mutex_);
    Merge(result, comparison_.results_[op.part]);
  }
  turn_.Done(read);
}

void Comparison::Worker::CompareWithZeros(const Part& part, const Box& step, PartComparison& result) {
  std::memset(b_.data(), 0, ElementCount(step.shape) * WidestItem(part));
  Piece zeros;
  zeros.box = step;
  zeros.dtype = part.sources[0].dtype;
  ComparePiece(zeros.form(), zeros, step, step, result);
}

void Comparison::Worker::ComparePiece(const ElementForm& from, const Piece& piece, const Box& common, const Box& step,
                                      PartComparison& result) {
  if (from != piece.form()) result.verdict = std::max(result.verdict, Verdict::kEqualRounded);
  const uint64_t most = kIoBuffer / ItemSize(piece.dtype);
  for (RunCursor runs = DenseRuns(common, step); !runs.done();) {
    ElementRun run = runs.run();
    run.length = std::min(run.length, most);
    CompareRun(from, piece.form(), run, step, result);
    runs.Advance(run.length);
  }
}

// Compares elements that are consecutive in both dense buffers, at most as many as the bounce buffer holds.
void Comparison::Worker::CompareRun(const ElementForm& from, const ElementForm& to, const ElementRun& run,
                                    const Box& step, PartComparison& result) {
  const std::byte* rounded = a_.data() + run.dense * ItemSize(from.dtype);
  if (from != to) {
    result.overflows += Cast(from, to, rounded, bounce_.data(), run.length);
    rounded = bounce_.data();
  }
  const uint64_t item = ItemSize(to.dtype);
  if (std::memcmp(rounded, b_.data() + run.dense * item, run.length * item) != 0)
    CompareElements(from, to, rounded, run, step, result);
}

void Comparison::Worker::CompareElements(const ElementForm& from, const ElementForm& to, const std::byte* rounded,
                                         const ElementRun& run, const Box& step, PartComparison& result) {
  const uint64_t item = ItemSize(to.dtype);
  PartComparison found;
  found.verdict = Verdict::kDiffers;
  for (uint64_t i = 0; i < run.length; ++i) {
    const std::byte *a = rounded + i * item, *b = b_.data() + (run.dense + i) * item;
    if (std::memcmp(a, b, item) == 0) continue;
    ++found.differing;
    const uint64_t ulps = UlpDistance(to.dtype, a, b);
    if (found.worst && ulps <= found.worst->ulps) continue;
    const Dims index = IndexAt(step, run.dense + i);
    found.worst = {{index.begin(), index.end()},
                   ElementValue(from.dtype, a_.data() + (run.dense + i) * ItemSize(from.dtype)) + from.ShiftTo(to),
                   ElementValue(to.dtype, b),
                   ulps};
    if (!found.first) found.first = found.worst;
  }
  Merge(found, result);
}

void CheckComparable(const Part& part) {
  uint64_t elements = 0;
  for (const Piece& piece : part.targets) elements += ElementCount(piece.box.shape);
  if (part.sources.empty() && part.targets.empty())
    throw Error(Code::kInternal, fmt::format("'{}' is on neither side of a comparison", part.name));
  if (!part.targets.empty() && elements < ElementCount(part.shape))
    throw Error(Code::kInternal, fmt::format("'{}' is not whole on both sides of a comparison", part.name));
  CheckPart(part);
}

Comparison::Comparison(const std::vector<Part>& parts, const std::vector<SourceFile>& a_files,
                       const std::vector<SourceFile>& b_files, Io& io, const ExecuteOptions& options)
    : parts_(parts),
      a_files_(a_files),
      b_files_(b_files),
      io_(io),
      options_(options),
      limit_(LimitOpenFiles(options.workers)),
      files_(limit_.cached, a_files.size() + b_files.size(),
             [this](size_t number) {
               const size_t count = a_files_.size();
               return OpenSource(io_, number < count ? a_files_[number] : b_files_[number - count]);
             }),
      results_(parts.size()) {
  for (size_t part = 0; part < parts.size(); ++part) {
    CheckComparable(parts[part]);
    results_[part].part = part;
  }
}

std::vector<PartComparison> Comparison::Perform() {
  OpQueue(parts_, TargetBytes(parts_), options_).Run(limit_.workers, [this](Turn& turn) {
    Worker(*this, turn).Work();
  });
  for (const auto* files : {&a_files_, &b_files_}) CheckUnchanged(io_, *files);
  return std::move(results_);
}

}  // namespace

std::vector<PartComparison> Compare(const std::vector<Part>& parts, const std::vector<SourceFile>& a_files,
                                    const std::vector<SourceFile>& b_files, Io& io, const ExecuteOptions& options) {
  return Comparison(parts, a_files, b_files, io, options).Perform();
}

uint64_t CompareWorkerBytes(uint64_t dense_buffer) { return 2 * std::min(dense_buffer, kMaxOpBytes) + kIoBuffer; }

}  // namespace reshard
