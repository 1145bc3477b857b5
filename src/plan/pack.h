// One archive in place of a target's files.
#pragma once

#include <string>

#include "plan/plan.h"

namespace reshard {

// Makes the plan's files members of one tar, the file `name`: folders and files in the order in which Python's tarfile
// adds a folder. Pieces, literals and checksums lie in it then; nothing else of the plan changes.
void PackTar(Plan& plan, const std::string& name);

}  // namespace reshard
