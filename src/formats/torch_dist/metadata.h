// .metadata: the pickle that says what a torch distributed checkpoint stores, and where. Layout and checks: FORMAT.md
// in this folder.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "archive/zip.h"
#include "formats/torch_pickle/torch_pickle.h"
#include "tensor/box.h"

namespace reshard::torch_dist {

// The chunks have their boxes and files; strides and offsets are the items' to say. `items` are theirs, one each.
struct Tensor {
  StoredTensor stored;
  std::vector<ByteRange> items;
};

struct Object {
  std::string key;
  uint32_t file = 0;  // this and the item only when written
  ByteRange item = {};
};

struct Metadata {
  std::vector<Tensor> tensors;
  std::vector<Object> objects;
  std::vector<std::string> files;  // relative to the folder, counted by the chunks
};

// Errors, all with `path`: kCorrupt (another object than Metadata, fields that are missing or of another type, a tensor
// twice, chunks that overlap, leave a gap or are not stored, a file outside the folder), kUnsupported (a dtype that is
// not known, more axes than Dims has, more tensors than the limits allow, transformed items), those of pickle::Tree.
// What `wanted` does not want is not looked at.
Metadata ParseMetadata(std::string_view bytes, const std::string& path, const torch_pickle::Limits& limits,
                       const std::function<bool(std::string_view key)>& wanted);

// As Python 3's pickle of protocol 4 has it, in terms that torch since 2.1 and megatron-core since 0.8 know.
std::string MetadataText(const Metadata& metadata);

}  // namespace reshard::torch_dist
