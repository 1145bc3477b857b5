// A plan: every byte that a conversion reads and writes, decided before the first one is. It is data: deterministic,
// printable, audited. The executor needs nothing else; it knows no model, no format and no kind.
//
// A part is a logical tensor (q of layer 3), or any other box of elements that moves as one. Its sources say where its
// elements lie in the source's files and its targets where they go. An op is one box of a part, at most 16 MiB, cut on
// a grid that depends on the plan alone: read each source piece that meets it, then write each target piece that meets
// it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "archive/layout.h"
#include "tensor/box.h"
#include "tensor/cast.h"
#include "tensor/value_op.h"

namespace reshard {

// Where the indices of one axis lie: index i is at (i / block) * outer + (i % block) * inner, in elements. Blocks are
// what an interleave leaves of an axis: the rows of q, grouped, have block = rows of a group. `block` is at least 1; an
// axis that is not cut has block >= its length, and its `outer` means nothing.
struct Axis {
  uint64_t block = 1, inner = 0, outer = 0;

  uint64_t At(uint64_t i) const { return i / block * outer + i % block * inner; }
};

// A box of a part that lies in one file. `axes` count from the box's origin: element (i0, i1, ...) of the box is at
// byte offset + (axes[0].At(i0) + axes[1].At(i1) + ...) * item size.
struct Piece {
  Box box;  // of the part
  std::array<Axis, Dims::kMaxAxes> axes;
  uint32_t file = 0;    // of Plan::sources or Plan::files
  uint32_t tensor = 0;  // of Plan::source_tensors or Plan::target_tensors: for messages
  uint64_t offset = 0;  // bytes
  Dtype dtype = Dtype::kF32;
  bool minus_one = false;  // what is stored is the value minus one: norm weights of some kinds
  uint8_t output = 0;      // of the part's value op: then the box is of that output

  ElementForm form() const { return {dtype, minus_one}; }
};

struct Part {
  std::string name;  // "q, layer 3"
  Dims shape;
  std::vector<Piece> sources;         // all of one form; none: the part is zeros. Where two overlap they must be equal
  std::vector<Piece> targets;         // disjoint in their files; may repeat boxes of the part
  std::optional<Box> domain = {};     // what of the part is moved; nothing: all of it
  std::optional<ValueOp> value = {};  // makes of the domain, a matrix, the outputs that the targets take
  std::vector<Part> operands = {};    // of the value op, in its order: sources only; extents divide the part's
};

Box DomainOf(const Part& part);

struct SourceFile {
  std::string path;      // as to be opened
  std::string relative;  // to the source folder: what messages, the plan's text and its id use
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  uint64_t inode = 0;
};

struct Plan {
  // 16 hex digits, a hash of all that is below but the sources' paths, and of the sources' headers. Another model of
  // the same shape, and a source that was written anew, give another id, because time or inode differ.
  std::string id;
  std::vector<SourceFile> sources;
  std::vector<FileLayout> files;  // the target's, in the order of publication: the marker last
  std::vector<std::string> source_tensors, target_tensors;
  std::vector<Part> parts;  // in source order: by file and offset of the first source piece; zeros last
};

constexpr uint64_t kMaxOpBytes = uint64_t{16} << 20;

// One step of work: `box` of parts[part].
struct Op {
  uint32_t part = 0;
  Box box;
};

// Walks the ops of a plan in order, without a list of them. Not thread-safe.
class OpCursor {
 public:
  explicit OpCursor(const std::vector<Part>& parts) : parts_(parts) {}
  bool Next(Op& op);

 private:
  const std::vector<Part>& parts_;
  size_t part_ = 0;
  uint64_t index_ = 0;  // of the op within the part
};

// The most bytes that an element of the part takes on either side.
uint32_t WidestItem(const Part& part);

// Bytes of sources, operands too, that go with a box of a part.
uint64_t SourceBytes(const Part& part, const Box& box);

// The rows of a value part's domain, a multiple of its op's tile, of which sources and outputs have at most `bytes`
// each; at least one tile.
uint64_t RowsWithin(const Part& part, uint64_t bytes);

}  // namespace reshard
