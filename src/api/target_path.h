// Where a target may lie, and whether it fits there.
#pragma once

#include <string>

#include "base/io.h"
#include "base/target_place.h"
#include "plan/plan.h"

namespace reshard {

// The nearest of `path` and its parents that exists.
std::string ExistingParent(Io& io, std::string path);

// Errors (kPermission): the target is the source, lies inside it, or is a folder that holds it; kAlreadyExists: a file
// is where a folder is to be, or otherwise.
void CheckTargetPath(Io& io, const std::string& source, const TargetPlace& target);

// Errors (kNoSpace, both numbers in the message): the file system of `target` lacks bytes or inodes for what of the
// plan is not yet `staged` (bytes). Where they would do but for an old checkpoint that `replace` keeps until the new
// one is there, the message says so.
void CheckFreeSpace(Io& io, const Plan& plan, const TargetPlace& target, bool replace, uint64_t staged);

}  // namespace reshard
