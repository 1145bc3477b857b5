// Which tensors a checkpoint of a model stores, and which box of which part each of their boxes is. Pure geometry:
// parts are shared out to the rank first and packed second.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
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

// What one rank of a checkpoint holds. HuggingFace and NeMo checkpoints have one rank, which holds all of it.
struct Rank {
  Range layers, experts;
  uint64_t vocab_rows = 0;     // stored rows of the vocabulary: V, or more where padded
  bool stores_head = true;     // false where a tied model keeps the embedding only
  bool stacks_layers = false;  // one tensor for all layers, with a leading axis; else one for each, numbered
};

// A box of a part within a stored tensor. Index i of the part's axis `a`, counted from the box, has the coordinate
// origin[lead + a] + i / block * step + i % block in the tensor; the tensor's `lead` first axes are at origin.
struct View {
  struct Axis {
    uint64_t block = 1, step = 0;
  };
  PartKey part;
  Box box;      // of the part, in elements
  Dims origin;  // of the stored tensor
  std::array<Axis, Dims::kMaxAxes> axes;

  size_t lead() const { return origin.size() - box.shape.size(); }
};

// A tensor that a rank must store. What its views leave out is padding: zeros when written, nothing when read.
struct TensorSpec {
  std::string name;
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

// For each block of the family the form of `layouts` whose tensors, for `model` on `rank`, are all `present`; the first
// form where none is. Errors: kUnsupported where the kind does not know a block ("nemo does not know ...").
std::vector<const Layout*> ChooseLayouts(const Model& model, const Rank& rank, Layouts Block::*layouts,
                                         std::string_view kind, const std::function<bool(const std::string&)>& present);

// Where the chunks of a stored tensor meet a view: calls `add` with a piece for each meeting.
void ForEachPiece(const StoredTensor& tensor, const View& view, const std::function<void(const Piece&)>& add);

// Where the chunks of a stored tensor meet no view of its spec: the padding, as pieces of a part of that shape each.
std::vector<Piece> PaddingPieces(const StoredTensor& tensor, const TensorSpec& spec);

// "q, layer 3".
std::string PartName(const std::vector<ModelRow>& rows, const PartKey& key);

}  // namespace reshard
