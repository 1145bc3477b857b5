// From an opened source and a target kind to a plan: a join of the two by logical part. No code here knows a pair of
// kinds.
#pragma once

#include <string>
#include <vector>

#include "models/kinds/kind.h"
#include "plan/plan.h"

namespace reshard {

// A plan with what people want to know of it besides.
struct Planned {
  Plan plan;
  std::vector<uint64_t> source_hashes;  // XXH3 of what each source's header said
  std::vector<Part> cut;  // parts without targets: source rows that are left out for padding if they are zero
  std::vector<std::string> copied, left, notes;
};

// Lays the source's model out as a checkpoint of `kind` and joins both. The audit has passed when it returns. Errors:
// all problems gathered into one kMismatch (a part that the source lacks or the target has no place for, stacked
// tensors of different dtypes), kUnsupported (a dtype that cannot be cast, what the kind has no place for).
Planned MakePlan(Io& io, const Checkpoint& source, const Kind& kind, const TargetOptions& options);

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
// Errors: kMismatch where a stores a part twice and in two dtypes.
Paired PairUp(const Checkpoint& a, const Checkpoint& b);

// Problems of a plan, a line each: bytes of target files that nothing gives or two things give (or one thing twice),
// pieces beyond a file's end or outside of their part or of no tensor, parts of which a target needs more than its
// sources have, sources of a part in two dtypes. Takes nothing that the plan says on trust, and knows no model.
std::vector<std::string> Audit(const Plan& plan);

// Numbers of a plan.
struct PlanTotals {
  uint64_t ops = 0, bytes_read = 0, bytes_written = 0;
};
PlanTotals TotalsOf(const Plan& plan);

}  // namespace reshard
