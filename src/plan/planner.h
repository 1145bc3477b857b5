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

// Problems of a plan, a line each: bytes of target files that nothing gives or two things give (or one thing twice),
// pieces beyond a file's end or outside of their part or of no tensor, parts of which a target needs more than its
// sources have, sources of a part in two forms. Takes nothing that the plan says on trust, and knows no model.
std::vector<std::string> Audit(const Plan& plan);

// That norm weights are stored in another form than in the source: a line for each direction and dtype.
std::vector<std::string> NotesOfShifts(const Plan& plan);

// Numbers of a plan.
struct PlanTotals {
  uint64_t ops = 0, bytes_read = 0, bytes_written = 0;
};
PlanTotals TotalsOf(const Plan& plan);

}  // namespace reshard
