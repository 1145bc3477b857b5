// Moves a step's elements between files and dense buffers.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "execute/execute.h"
#include "execute/gather.h"
#include "execute/open_files.h"

namespace reshard {

// Page-aligned memory, not touched before it is used.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(uint64_t size);
  std::byte* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
};

// Elements of a step of the part whose dense buffer has `bytes`. Zeros are written as they are, so that each target's
// own item size must fit.
uint64_t StepElements(const Part& part, uint64_t bytes);

// Whether some elements of the part or of its operands have several sources.
bool SourcesOverlap(const Part& part);

// kInternal where the plan is none that can be executed: sources that leave elements open, dtypes of part of a byte,
// sources of several forms. kUnsupported where a target needs a cast that there is not.
void CheckPart(const Part& part);

// How one worker reads pieces.
struct PieceReader {
  OpenFiles& files;
  size_t first;       // the number in `files` of the pieces' file 0
  bool drop_cache;    // the page cache is to forget what was read
  std::byte* bounce;  // kIoBuffer bytes

  // Reads the elements of `common`, a box in both piece and step, into the step's dense buffer; returns the bytes read.
  uint64_t Read(const Piece& piece, const Box& common, const Box& step, std::byte* dense) const;
};

// What messages call the sources.
struct SourceNames {
  const std::vector<SourceFile>& files;
  const std::vector<std::string>* tensors;  // null: a part's name serves for its sources
};

// Reads all that the sources of a part hold, and compares where several hold the same. One per worker.
class SourceReader {
 public:
  // `second` is a dense buffer, or null where no sources overlap.
  SourceReader(PieceReader reader, SourceNames names, std::byte* second)
      : reader_(reader), names_(names), second_(second) {}

  // Fills `dense` with the step; returns the bytes read. kMismatch where two sources of an element differ.
  uint64_t Read(const Part& part, const Box& step, std::byte* dense) const;

 private:
  struct Mismatch;

  void Reconcile(const Part& part, size_t piece, const Box& common, const Box& step, std::byte* dense,
                 Mismatch& first) const;
  Error Explain(const Part& part, const Box& step, const Mismatch& mismatch) const;

  PieceReader reader_;
  SourceNames names_;
  std::byte* second_;
};

}  // namespace reshard
