// Several safetensors files as one: how tensors are spread over shards, and the index that says where each is.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace reshard::safetensors {

// Which tensor goes into which shard: indices into `sizes` (bytes of each tensor, in state dict order), shard by shard.
// huggingface_hub's split_torch_state_dict_into_shards, its rule for tensors above the limit included.
std::vector<std::vector<size_t>> SplitIntoShards(const std::vector<uint64_t>& sizes, uint64_t max_shard_size);

// "model-00001-of-00003.safetensors", or "model.safetensors" where count is 1, of "model" and ".safetensors". `number`
// counts from 1.
std::string ShardName(std::string_view stem, std::string_view extension, size_t number, size_t count);

// Bytes of a size string: "10GB" (powers of 1000: KB MB GB TB; also KiB MiB GiB TiB), "1.5gb", or a plain number.
// Errors: kInvalidArgument that names `option`.
uint64_t ParseSize(std::string_view text, std::string_view option);

// model.safetensors.index.json as save_pretrained writes it now.
std::string IndexText(std::vector<std::pair<std::string, std::string>> weight_map, uint64_t total_parameters,
                      uint64_t total_size);

// Which file each tensor is in.
struct Index {
  struct Entry {
    std::string tensor;
    uint32_t shard = 0;  // of `shards`
  };
  std::vector<std::string> shards;  // by name
  std::vector<Entry> entries;       // by tensor
};

// Reads by SAX: memory is the result's. Errors (kCorrupt): no weight_map, values that are no strings, a path that is
// absolute or has "..", a tensor twice; kUnsupported: more than `max_tensors`. A missing or odd `metadata` is accepted.
Index ParseIndex(std::string_view text, const std::string& path, uint64_t max_tensors);

// The Error for more tensors than the memory limit bears; the message names --max_memory.
Error TooManyTensors(uint64_t max_tensors);

}  // namespace reshard::safetensors
