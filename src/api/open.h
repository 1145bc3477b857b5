// Opening a checkpoint with what the caller knows of it.
#pragma once

#include <string>

#include "models/kinds/kind.h"
#include "reshard/reshard.h"

namespace reshard {

// How to open `path`, one of `checkpoints` that are open at a time, of the kind `kind` where it is given. Errors: those
// of DetectKind; kNotFound where the template of a NeMo checkpoint is neither a folder nor in the local hub cache.
OpenOptions OpenOptionsFor(Io& io, const std::string& path, const SourceHints& hints, const RunOptions& run,
                           unsigned checkpoints, std::string_view kind = "");

}  // namespace reshard
