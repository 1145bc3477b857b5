// The weights that megatron-core's dist_checkpointing keeps in a folder: what NeMo 1, NeMo 2 and Megatron-LM have in
// common. Names are those of the families' `nemo` layouts behind a prefix.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "models/kinds/kind.h"

namespace reshard {

// What stands before a tensor's name in a checkpoint of Megatron's or NeMo's; empty where nothing does.
std::string_view KeyPrefixOf(std::string_view key);

enum class DistFormat : uint8_t { kZarr, kTorchDist };

// Reads the folder, whichever format its metadata.json or .metadata says, into the checkpoint's tensors (names without
// their prefix), files, ignored names, format and name_prefix. Optimizer state is not looked at; objects
// (_extra_state) are not listed. Errors: kCorrupt (an unfinished checkpoint, two formats at once, a tensor under two
// prefixes), kUnsupported, and those of the formats.
void ReadDistWeights(Io& io, const std::string& folder, const OpenOptions& options, Checkpoint& checkpoint);

// The table that says how many rows the vocabulary has, and the ranks that one of these checkpoints has: one, stacked
// or not as the names are. Errors: kMismatch where there is no such table.
const StoredTensor& EmbeddingOf(const Checkpoint& checkpoint, const std::string& folder);
bool HasHead(const Checkpoint& checkpoint);
Rank DistRank(const Checkpoint& checkpoint, uint64_t vocab_rows);

// The rank of a new one: layers are stacked where they are all of one kind, as megatron-core does.
Rank NewDistRank(const Model& model, uint64_t vocab_rows, bool stores_head, bool zero_centred);

// Lays the tensors out below `folder`, names behind `prefix`, with the _extra_state objects that loaders ask for,
// common.pt with `common_pickle` inside, and metadata.json last. Chunks count files from files.size() on.
void LayOutDistWeights(const std::string& folder, std::string_view prefix, DistFormat format, const Model& model,
                       const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors,
                       std::string_view common_pickle, std::vector<FileLayout>& files);

}  // namespace reshard
