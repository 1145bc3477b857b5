#include "models/kinds/rank_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "formats/torch_pickle/torch_pickle.h"
#include "models/kinds/dist_weights.h"

namespace reshard {
namespace {

constexpr std::string_view kFile = kRankMarkers[0];

// -- reading ----------------------------------------------------------------------------------------------------------

// The tensor rank and the stage that a folder is of.
struct Place {
  uint64_t tensor = 0, stage = 0;
  bool staged = false;  // the name has both
};

std::string FolderOf(const Place& place) {
  return place.staged ? fmt::format("tp_rank_{:02}_pp_rank_{:03}", place.tensor, place.stage)
                      : fmt::format("mp_rank_{:02}", place.tensor);
}

// Only as we write it: no signs, no other widths.
std::optional<Place> PlaceOf(const std::string& name) {
  unsigned tensor = 0, stage = 0;
  Place place;
  if (std::sscanf(name.c_str(), "tp_rank_%4u_pp_rank_%4u", &tensor, &stage) == 2) {
    place = {tensor, stage, true};
  } else if (std::sscanf(name.c_str(), "mp_rank_%4u", &tensor) == 1) {
    place = {tensor, 0, false};
  }
  return name == FolderOf(place) ? std::optional(place) : std::nullopt;
}

std::vector<std::string> RankFolders(Io& io, const std::string& folder) {
  std::vector<std::string> names = io.List(folder);
  std::erase_if(names, [](const std::string& name) { return !PlaceOf(name); });
  return names;
}

RankGrid GridOf(Io& io, const std::string& folder) {
  const std::vector<std::string> names = RankFolders(io, folder);
  const bool whole = Exists(io, folder, kFile);
  if (whole && names.empty()) return {};
  RankGrid grid;
  bool staged = false, plain = whole;
  for (const std::string& name : names) {
    const Place place = *PlaceOf(name);
    (place.staged ? staged : plain) = true;
    grid.tp = std::max(grid.tp, place.tensor + 1);
    grid.pp = std::max(grid.pp, place.stage + 1);
  }
  if ((staged && plain) || (whole && !names.empty()))
    throw Error(Code::kCorrupt, fmt::format("there is {} and {}, expected the ranks of one checkpoint",
                                            whole ? kFile : "mp_rank_XX", names.back()))
        .At("reading", folder);
  return grid;
}

// A buffer that old checkpoints have and no model reads.
bool IsIgnored(std::string_view name) { return name.ends_with(".rotary_pos_emb.inv_freq"); }

// Of Transformer Engine: every model has its own.
bool IsObject(std::string_view name) { return name.ends_with("_extra_state"); }

void ReadRank(Io& io, const std::string& relative, uint32_t rank, const OpenOptions& options, Checkpoint& checkpoint) {
  const std::string path = JoinPath(checkpoint.folder, relative);
  const auto info = io.Stat(path);
  if (!info)
    throw Error(Code::kCorrupt, "the file of this rank is missing, expected those of all ranks; copy it here")
        .At("reading", path);
  const uint32_t number = static_cast<uint32_t>(checkpoint.files.size());
  std::vector<std::string> ignored;
  auto tensors = torch_pickle::ReadStateDict(
      io, path, number, {options.max_header, options.max_tensors - checkpoint.tensors.size()}, ignored);
  checkpoint.files.push_back({path, relative, info->size, info->mtime_ns, info->inode});
  for (StoredTensor& tensor : tensors) {
    const std::string_view prefix = KeyPrefixOf(tensor.name);
    if (IsIgnored(tensor.name)) {
      ignored.push_back(tensor.name);
      continue;
    }
    checkpoint.name_prefix = prefix;
    tensor.name.erase(0, prefix.size());
    tensor.rank = rank;
    checkpoint.tensors.push_back(std::move(tensor));
  }
  std::erase_if(ignored, IsObject);
  if (rank == 0) checkpoint.ignored = std::move(ignored);
}

// -- writing ----------------------------------------------------------------------------------------------------------

std::string WithExpert(std::string_view module, uint64_t expert) {
  constexpr std::string_view kMark = "{E}";
  std::string name(module);
  const size_t at = name.find(kMark);
  return at == name.npos ? name : name.replace(at, kMark.size(), std::to_string(expert));
}

std::vector<std::string> ObjectNames(std::string_view prefix, const Model& model, const Rank& rank) {
  std::vector<std::string> names;
  for (uint64_t layer = 0; layer < rank.layers.size(); ++layer) {
    const LayerKind kind = model.layers[rank.layers.begin + layer];
    for (const Block* block : model.family->blocks) {
      if (!(block->on & static_cast<LayerKinds>(kind))) continue;
      for (const NemoObject& object : block->nemo_objects) {
        const uint64_t copies = object.scope == Scope::kExpert ? rank.experts.size() : 1;
        for (uint64_t i = 0; i < copies; ++i)
          names.push_back(fmt::format("{}decoder.layers.{}.{}._extra_state", prefix, layer,
                                      object.by_module.empty() ? object.module : WithExpert(object.by_module, i)));
      }
    }
  }
  return names;
}

}  // namespace

std::string RankGrid::FileOf(uint64_t rank) const {
  if (count() == 1) return std::string(kFile);
  return fmt::format("{}/{}", FolderOf({rank % tp, rank / tp, pp > 1}), kFile);
}

bool HasRankWeights(Io& io, const std::string& folder) {
  return Exists(io, folder, kFile) || !RankFolders(io, folder).empty();
}

bool IsRankEntry(const std::string& entry) {
  return entry == kFile || (entry.ends_with('/') && PlaceOf(entry.substr(0, entry.size() - 1)));
}

RankGrid ReadRankWeights(Io& io, const OpenOptions& options, Checkpoint& checkpoint) {
  const RankGrid grid = GridOf(io, checkpoint.folder);
  for (uint64_t rank = 0; rank < grid.count(); ++rank)
    ReadRank(io, grid.FileOf(rank), static_cast<uint32_t>(rank), options, checkpoint);
  checkpoint.format = "ranks";
  return grid;
}

std::vector<Rank> RanksOfGrid(const Model& model, RankGrid grid, const RankTables& tables, const std::string& path) {
  const uint64_t layers = model.sizes['L'], groups = model.sizes['G'];
  std::vector<Rank> ranks;
  for (uint64_t number = 0; number < grid.count(); ++number) {
    const uint64_t stage = number / grid.tp;
    Rank rank;
    rank.layers = {stage * layers / grid.pp, (stage + 1) * layers / grid.pp};
    rank.experts = {0, model.sizes['E']};
    rank.vocab_rows = tables.vocab_rows;
    rank.stores_head = tables.stores_head;
    rank.zero_centred = tables.zero_centred;
    rank.tensor = rank.expert_tensor = {number % grid.tp, grid.tp};
    ranks.push_back(rank);
  }
  std::vector<std::string> problems = Indivisible(model, ranks[0]);
  if (layers % grid.pp != 0) problems.push_back(fmt::format("{} layers by {} stages", layers, grid.pp));
  if (problems.empty() && groups % grid.tp != 0)
    problems.push_back(fmt::format("{} query groups by {} ranks, which Megatron does not replicate", groups, grid.tp));
  if (problems.empty()) return ranks;
  problems[0] += ", expected sizes that divide; choose other --tp_size and --pp_size";
  throw Gathered(Code::kMismatch, std::move(problems)).At("reading", path);
}

void LayOutRankWeights(std::string_view prefix, const Model& model, const std::vector<Rank>& ranks, RankGrid grid,
                       const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors,
                       std::vector<FileLayout>& files) {
  std::vector<std::vector<StoredTensor*>> by_rank(ranks.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].name.insert(0, prefix);
    by_rank[specs[i].rank].push_back(&tensors[i]);
  }
  for (size_t rank = 0; rank < ranks.size(); ++rank)
    files.push_back(torch_pickle::LayOut(grid.FileOf(rank), by_rank[rank], static_cast<uint32_t>(files.size()),
                                         ObjectNames(prefix, model, ranks[rank])));
  for (StoredTensor& tensor : tensors) tensor.name.erase(0, prefix.size());
}

}  // namespace reshard
