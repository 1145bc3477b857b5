// safetensors files: headers to chunks, and tensors to a file layout. Layout and checks: FORMAT.md in this folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "archive/layout.h"
#include "base/io.h"
#include "tensor/box.h"

namespace reshard::safetensors {

// Tensors of one file in order of their data, each with one chunk of file number `file`. Reads the header only, by SAX:
// memory is the header's text plus the result; a header of more than `max_header` bytes, or of more than
// `max_tensors`, is kUnsupported and the message names --max_memory. Every check of the official parser is made
// (FORMAT.md lists them), and these besides: a name twice, a git-lfs pointer ("run git lfs pull"), more than
// Dims::kMaxAxes axes, names with control or bidi characters. Errors: kCorrupt, kUnsupported, with path, tensor, found
// and expected numbers.
std::vector<StoredTensor> ReadFile(Io& io, const std::string& path, uint32_t file, uint64_t max_header,
                                   uint64_t max_tensors);

// The same of bytes in memory, the size of the whole file given: for tests and the fuzzer.
std::vector<StoredTensor> ReadHeader(const std::string& header_and_length, uint64_t file_size, const std::string& path,
                                     uint32_t file);

// What stands in the header besides tensors: {"format":"pt"}, or nothing.
enum class Metadata : uint8_t { kFormatPt, kNone };

// One file with these tensors (name, dtype and shape count) and `metadata`: sorted by dtype and name and with
// the header text that the official writer gives, but padded so that data starts at a multiple of 4096. Fills in each
// tensor's one chunk (of file number `file`) and reorders nothing; the names differ. Errors: kUnsupported, a header
// that readers would refuse for its length, a name that is not UTF-8 or is __metadata__, a tensor that is not whole
// bytes.
FileLayout LayOut(std::string path, std::vector<StoredTensor*> tensors, uint32_t file,
                  Metadata metadata = Metadata::kFormatPt);

}  // namespace reshard::safetensors
