// An archive as a folder: what is in a tar is read through an Io as files and folders below its path, so that no format
// and no kind of checkpoint knows of archives.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "archive/tar.h"
#include "base/io.h"

namespace reshard {

struct ArchiveOptions {
  TarLimits limits;
  // Where a compressed tar is unpacked to, into a file without a name that is gone with the Io, and what a user can do
  // where there is no room.
  std::string spool_folder, spool_remedy;
  // Told how many of the compressed bytes are done and how many they have become, about once a megabyte of those; what
  // it throws ends the unpacking.
  std::function<void(uint64_t done, uint64_t total, uint64_t unpacked)> progress = {};
};

// `base`, in which `path`, a tar or a gzip of one, is a folder that holds its members; everything else goes to `base`,
// which must outlive it. A member has the time, inode and device of the archive, as they are when they are asked for.
// Null where `path` is no such file; one whose name ends in ".nemo" has to be. Errors: those of ReadTar; kCorrupt where
// the gzip is damaged, cut off, followed by anything, no tar inside, or grows a thousandfold; kNoSpace, naming the
// folder.
std::unique_ptr<Io> OpenArchive(Io& base, const std::string& path, const ArchiveOptions& options);

}  // namespace reshard
