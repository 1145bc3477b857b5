// zarr version 2 arrays as Megatron's dist_checkpointing writes them: one folder an array, one file a chunk, no codec.
// Layout and checks: FORMAT.md in this folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "archive/layout.h"
#include "base/io.h"
#include "tensor/box.h"

namespace reshard::zarr2 {

// What a .zarray says.
struct Header {
  Dtype dtype = Dtype::kF32;
  Dims shape, chunks;
  char separator = '.';  // between the indices of a chunk's name: '.' or '/'
};

// Errors: kCorrupt (no JSON, missing or odd fields, another number of axes, a zero chunk), kUnsupported (a compressor,
// filters, order F, a dtype that is not F32, F16 or BF16: bfloat16, <V2, |V2, zarr_format 3).
Header ParseHeader(std::string_view text, const std::string& path);

// The bytes of .zarray: zarr-python 2's text, keys sorted, four blanks, no newline at the end.
std::string HeaderText(const Header& header);

// A file of the source: its path and its size in bytes.
struct ChunkFile {
  std::string path;
  uint64_t size = 0;
};

// The array in folder `path`, named `name`; its chunk files are appended to `files`, and chunks count files from there.
// Every chunk file must be there and have exactly the bytes of a whole chunk, whatever fill_value says (kCorrupt: names
// the first one missing and how many are). Other files in the folder are ignored.
StoredTensor ReadArray(Io& io, const std::string& path, std::string name, std::vector<ChunkFile>& files);

// `tensor` (name, dtype, shape) stored in folder `path` in chunks of shape `grid`: appends .zarray and the chunk files
// to `files` and fills in tensor.grid and tensor.chunks. Every extent of grid is at least 1; edge chunks are whole
// files. Errors: kUnsupported, another dtype than F32, F16 and BF16, a path with empty parts, "." or "..".
void LayOut(const std::string& path, const Dims& grid, StoredTensor& tensor, std::vector<FileLayout>& files);

}  // namespace reshard::zarr2
