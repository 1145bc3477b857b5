// Two opened checkpoints as parts that hold the same on both sides: what is compared to verify one with the other.
#pragma once

#include <string>
#include <vector>

#include "models/kinds/kind.h"
#include "plan/plan.h"

namespace reshard {

// The parts that two checkpoints share, `a` as sources and `b` as targets, whole on both sides, and the names of
// tensors that only one has. Padding rows of a vocabulary that only one side has are parts without sources, or without
// targets: they must be zero, and so must what a side leaves out without being sure that it is padding. A head that one
// side stores is compared with the embedding of a side that is tied.
struct Paired {
  std::vector<Part> parts;
  std::vector<std::string> a_tensors, b_tensors;  // names by Piece::tensor
  std::vector<std::string> missing, extra;        // tensors of a that b lacks; of b that a lacks; each once
  std::vector<std::string> misshapen;             // "down, layer 0: [8, 12] in A, [8, 10] in B": parts of other shapes
};
// Errors: kMismatch where a stores a part twice and in two forms.
Paired PairUp(const Checkpoint& a, const Checkpoint& b);

}  // namespace reshard
