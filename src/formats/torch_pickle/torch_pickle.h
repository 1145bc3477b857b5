// What torch.save writes: a zip with a pickle and storages, or the older stream (.bin, .pt, .pth, .ckpt). Layout and
// checks: FORMAT.md in this folder.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "archive/layout.h"
#include "archive/zip.h"
#include "base/io.h"
#include "formats/torch_pickle/pickle.h"
#include "tensor/box.h"

namespace reshard::torch_pickle {

struct Limits {
  uint64_t max_header = 0;   // bytes of one zip directory, or of one pickle with its tree, that may be held
  uint64_t max_tensors = 0;  // of one file
};

// An opened file: the pickled object, and where its storages lie.
class TorchFile {
 public:
  // Errors, all with `path`: kCorrupt, kUnsupported (a big-endian file, TorchScript, the tar of torch 0.1, a git-lfs
  // pointer, ...), those of ReadZip and of pickle::Tree.
  TorchFile(File& file, const std::string& path, ByteRange range, const Limits& limits);
  ~TorchFile();

  const pickle::Node& root() const;

  // The tensor that a node stands for: one chunk of `file`, with the strides and the offset it has in its storage, not
  // named. Nothing where the node is no tensor. Errors: kCorrupt (it reaches beyond its storage, a storage that is
  // missing or of another size than the pickle says), kUnsupported (sparse, quantised, negative strides, more axes than
  // Dims has).
  std::optional<StoredTensor> TensorOf(const pickle::Node& node, uint32_t file) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The state dict of a file: tensors by name. It is the object itself, or what that has under "state_dict", "model" or
// "module" where it holds no tensor itself. Names of other entries go to `ignored`. Errors: those of TorchFile;
// kCorrupt where the same name is there twice; kUnsupported where no tensor is found in what is no empty dict, or where
// one is what a call of another function gives (named: nothing is called).
std::vector<StoredTensor> ReadStateDict(Io& io, const std::string& path, uint32_t file, const Limits& limits,
                                        std::vector<std::string>& ignored);

// A file with a plain dict of these tensors in their order, as torch.save of contiguous CPU tensors writes it; behind
// them, names whose value is None. Fills in each tensor's one chunk, of file number `file`.
FileLayout LayOut(std::string path, const std::vector<StoredTensor*>& tensors, uint32_t file,
                  const std::vector<std::string>& nones = {});

// Puts a whole torch zip of one tensor at the end of a file, as torch.save to a stream does ("archive"), and returns
// the offset of its data.
uint64_t AppendTensor(FileLayout& file, const StoredTensor& tensor, const Dims& shape);

}  // namespace reshard::torch_pickle
