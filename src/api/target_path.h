// Where a target may lie, and whether it fits there.
#pragma once

#include <string>

#include "base/io.h"
#include "plan/plan.h"

namespace reshard {

// Errors (kPermission): the target is the source, lies inside it, or holds it; the target is a file.
void CheckTargetPath(Io& io, const std::string& source, const std::string& target);

// Errors (kNoSpace, both numbers in the message): the file system of `target` lacks bytes or inodes for what of the
// plan is not yet `staged` (bytes). Where they would do but for an old checkpoint that `replace` keeps until the new
// one is there, the message says so.
void CheckFreeSpace(Io& io, const Plan& plan, const std::string& target, bool replace, uint64_t staged);

}  // namespace reshard
