// Which tensors a checkpoint of a model stores, and which box of which part each of their boxes is. Pure geometry:
// parts are shared out to the rank first and packed second.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/model.h"
#include "plan/plan.h"
#include "tensor/box.h"

namespace reshard {

struct Range {
  uint64_t begin = 0, end = 0;
  uint64_t size() const { return end - begin; }
};

// One of `count` ranks that divide something.
struct Shard {
  uint64_t index = 0, count = 1;
};

// What one rank of a checkpoint holds. HuggingFace and NeMo checkpoints have one rank, which holds all of it. Of what
// is no layer's, the first pipeline stage holds what comes before the layers and the last what comes behind them.
struct Rank {
  Range layers, experts;
  uint64_t vocab_rows = 0;     // of a table that is not cut by rows: V, or more where padded
  bool stores_head = true;     // false where a tied model keeps the embedding only
  bool stacks_layers = false;  // one tensor for all layers, with a leading axis; else one for each, numbered
  uint64_t kv_copies = 1;      // of each group's key and value heads, one behind the other
  Shard tensor = {};           // of heads, query groups, ffn columns and vocabulary rows
  Shard expert_tensor = {};    // of the ffn columns of each expert
  // The axis along which tensor ranks cut the embedding: 0 its rows, 1 its columns; none: each holds it whole. Rows
  // that are cut are padded to a multiple of the ranks.
  std::optional<uint8_t> embedding_axis = 0;
  // What the weights of norms are stored as: minus one, or as they are; nothing: as HuggingFace has the family's.
  std::optional<bool> zero_centred = {};
  bool by_module = false;  // in a new checkpoint, tensors are called as modules are
};

// A box of a part within a stored tensor. Index i of the part's axis `a`, counted from the box, has the coordinate
// origin[lead + a] + i / block * step + i % block in the tensor; the tensor's `lead` first axes are at origin.
struct View {
  struct Axis {
    uint64_t block = 1, step = 0;
  };
  PartKey part;
  bool minus_one = false;  // the tensor stores the part's values minus one
  Box box;                 // of the part, in elements
  Dims origin;             // of the stored tensor
  std::array<Axis, Dims::kMaxAxes> axes;

  size_t lead() const { return origin.size() - box.shape.size(); }
};

// The view of a tensor of the shape `scaled`, an element of which stands for several of one of the shape `whole`.
View Scaled(const View& view, const Dims& whole, const Dims& scaled);

// A tensor that a rank must store. Names count layers and experts from the rank's first. What its views leave out is
// padding: zeros when written, nothing when read.
struct TensorSpec {
  std::string name;
  uint32_t rank = 0;
  const Layout* layout = nullptr;
  Dims shape;
  size_t lead = 0;  // leading axes that come from stacking
  std::vector<View> views;
};

// The tensors of `layouts` on a rank, in the order: layouts for the whole model up to the first layered one, then layer
// by layer, then the other layouts for the whole model. Numbers in names count from the begin of the rank's layers and
// experts: the first layer of every rank is 0. Rows that the model lacks leave their layouts out; stacked layouts need
// all layers to be alike (kUnsupported).
std::vector<TensorSpec> TensorsOf(const Model& model, const Rank& rank, const std::vector<const Layout*>& layouts);

// The same of all ranks, one after the other.
std::vector<TensorSpec> TensorsOf(const Model& model, const std::vector<Rank>& ranks,
                                  const std::vector<const Layout*>& layouts);

// Those of one layer of a rank that have its number in their names, or would have it were layers not stacked; stacked
// ones as if the rank held no other.
std::vector<TensorSpec> TensorsOfLayer(const Model& model, const Rank& rank, const std::vector<const Layout*>& layouts,
                                       uint64_t layer);

// What of the model the tensor ranks do not divide, in words with both numbers ("6 attention heads by 4 ranks"). Query
// groups may also be fewer than the ranks that replicate them; a vocabulary is padded.
std::vector<std::string> Indivisible(const Model& model, const Rank& rank);

// For each block of the family the first form of `layouts` whose tensors, for the first layer of `rank` that has the
// block, are all `present`; where none is, that of which the most are. Errors: kUnsupported where the kind has no place
// for a row that the model has.
std::vector<const Layout*> ChooseLayouts(const Model& model, const Rank& rank, Layouts Block::*layouts,
                                         std::string_view kind, const std::function<bool(const TensorSpec&)>& present);

// Where the chunks of a stored tensor meet a view: calls `add` with a piece for each meeting.
void ForEachPiece(const StoredTensor& tensor, const View& view, const std::function<void(const Piece&)>& add);

// Where the chunks of a stored tensor meet no view of its spec: the padding, each piece the whole of a part of its own.
std::vector<Piece> PaddingPieces(const StoredTensor& tensor, const TensorSpec& spec);

// "q, layer 3".
std::string PartName(const std::vector<ModelRow>& rows, const PartKey& key);

}  // namespace reshard
