// The weights that NeMo 1 kept before distributed checkpoints: a torch file for every tensor and pipeline rank, whose
// names count layers from the rank's first (docs/formats/nemo.md).
//
//   model_weights.ckpt                              one rank
//   mp_rank_01/model_weights.ckpt                   several tensor ranks
//   tp_rank_01_pp_rank_002/model_weights.ckpt       several pipeline stages
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "models/kinds/kind.h"

namespace reshard {

// How many there are of each.
struct RankGrid {
  uint64_t tp = 1, pp = 1;

  uint64_t count() const { return tp * pp; }
  // The file of a rank, relative to the checkpoint; ranks count tensor ranks first.
  std::string FileOf(uint64_t rank) const;
};

// Entries that make a folder such a checkpoint, and files of its first rank.
constexpr std::array<std::string_view, 3> kRankMarkers = {"model_weights.ckpt", "mp_rank_00", "tp_rank_00_pp_rank_000"};

// Whether a folder has them.
bool HasRankWeights(Io& io, const std::string& folder);

// Whether an entry of a folder, folders ending in '/', is one of theirs.
bool IsRankEntry(const std::string& entry);

// Reads the files of all ranks of checkpoint.folder into its tensors (names without their prefix, and its rank), files,
// ignored names, format and name_prefix. Errors: kCorrupt (a rank that is missing, folders of two layouts), and those
// of torch_pickle.
RankGrid ReadRankWeights(Io& io, const OpenOptions& options, Checkpoint& checkpoint);

// What of all ranks is alike, as in Rank.
struct RankTables {
  uint64_t vocab_rows = 0;  // padded to a multiple of the tensor ranks
  bool stores_head = true, zero_centred = false;
};

// The ranks of a model that is cut so. Errors: kMismatch where sizes do not divide.
std::vector<Rank> RanksOfGrid(const Model& model, RankGrid grid, const RankTables& tables, const std::string& path);

// The files of all ranks, to be published in this order; names behind `prefix`, with the _extra_state that modules ask
// for. Chunks count files from files.size() on.
void LayOutRankWeights(std::string_view prefix, const Model& model, const std::vector<Rank>& ranks, RankGrid grid,
                       const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors,
                       std::vector<FileLayout>& files);

}  // namespace reshard
