// Keeping the promise of --max_memory: what is left for workers once everything else has its share.
#pragma once

#include <cstdint>
#include <functional>

#include "execute/execute.h"
#include "models/kinds/kind.h"
#include "reshard/reshard.h"

namespace reshard {

// Resident memory of this process now, in bytes.
uint64_t ResidentMemory();

// Whether reading the files would leave nothing else in the page cache: then it should forget them.
bool ExceedHalfOfRam(const std::vector<SourceFile>& files);

// Workers and dense buffers within options.max_memory. `worker_bytes` says what one worker takes with a dense buffer of
// so many bytes. Smaller buffers rather than fewer workers, fewer workers rather than none; a number of workers that
// the user gave is kept. Errors: kInvalidArgument with the memory that would do.
ExecuteOptions FitWorkers(const RunOptions& options, const std::function<uint64_t(uint64_t)>& worker_bytes);

// Refuses a plan before it is made, of so many stored pieces and files. Errors: kInvalidArgument with the memory that
// would do.
void CheckPlanFits(const RunOptions& options, uint64_t pieces, uint64_t files);

// What readers may hold of one of `checkpoints` that are open at a time.
OpenOptions OpenWithin(const RunOptions& options, unsigned checkpoints);

}  // namespace reshard
