// How a source is read, be it a folder or packed: the one way in for everything that opens a checkpoint.
#pragma once

#include <memory>
#include <string>

#include "base/io.h"
#include "reshard/reshard.h"

namespace reshard {

// Where a compressed archive is unpacked to, and what a user can do where there is no room.
struct SpoolPlace {
  std::string folder, remedy;
};
SpoolPlace TemporaryFolder();                                       // $TMPDIR, or /tmp
SpoolPlace BesideTarget(Io& io, const std::string& target_folder);  // in the nearest parent that exists

class SourceIo {
 public:
  // For `path`, one of `checkpoints` that are open at a time. Where it is a compressed archive it is unpacked here and
  // now, which takes as long as a copy of it. Errors: those of OpenArchive; kCancelled where the run is stopped.
  SourceIo(Io& base, const std::string& path, const RunOptions& run, unsigned checkpoints, const SpoolPlace& spool);

  // `base`, in which `path` is a folder.
  Io& operator*() const { return archive_ ? *archive_ : base_; }
  // Bytes that were unpacked, in `spool`; none is the rule.
  uint64_t unpacked() const { return unpacked_; }

 private:
  Io& base_;
  uint64_t unpacked_ = 0;
  std::unique_ptr<Io> archive_;
};

}  // namespace reshard
