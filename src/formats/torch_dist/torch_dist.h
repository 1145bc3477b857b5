// torch distributed checkpoints (DCP) and megatron-core's torch_dist, which is the same: a folder with .metadata, a
// pickle, and .distcp files, in which each chunk of a tensor is a torch zip of its own. Layout and checks: FORMAT.md in
// this folder.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "archive/layout.h"
#include "base/io.h"
#include "formats/torch_pickle/torch_pickle.h"
#include "tensor/box.h"

namespace reshard::torch_dist {

// A file of the checkpoint: its path and size in bytes. Chunks count them.
struct DataFile {
  std::string path, relative;
  uint64_t size = 0;
};

struct Contents {
  std::vector<StoredTensor> tensors;  // in the order of .metadata
  std::vector<std::string> objects;   // keys of what is no tensor
  std::vector<DataFile> files;
};

// Reads .metadata of old and new torch, and of each item the head and the end of its zip: a chunk may be a view into a
// larger storage. `wanted` says which keys are read; the others are listed in neither. Errors: kCorrupt (an item beyond
// its file, a chunk that is not stored, chunks that overlap or leave a gap, an item of another shape or dtype than
// .metadata says, a path that leaves the folder), kUnsupported, those of pickle::Tree and of TorchFile.
Contents Read(Io& io, const std::string& folder, const torch_pickle::Limits& limits,
              const std::function<bool(std::string_view key)>& wanted);

// Tensors (name, dtype, shape, and grid: the shape of their chunks) and objects (keys, each stored as [None]) as a
// checkpoint of megatron-core and torch: .distcp files of at most 512 MiB, or of one chunk, and, behind them,
// .metadata. Fills in the chunks, counted from files.size() on. `folder` is relative to the target.
void LayOut(const std::string& folder, const std::vector<StoredTensor*>& tensors,
            const std::vector<std::string>& objects, std::vector<FileLayout>& files);

}  // namespace reshard::torch_dist
