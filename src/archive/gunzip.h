// gzip files (RFC 1952), one member behind the other, decompressed as a stream.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/io.h"

namespace reshard {

bool IsGzip(std::string_view begin);

// Gives what a file decompresses to, in order and in pieces of at most 1 MiB, each valid during the call, with the
// number of compressed bytes that are done. Errors, with `path`: kCorrupt (damaged, cut off, followed by anything, more
// than a thousand bytes of each).
void Gunzip(File& file, const std::string& path,
            const std::function<void(std::string_view piece, uint64_t done)>& take);

}  // namespace reshard
