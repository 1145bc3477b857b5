#include "plan/side.h"

#include <fmt/format.h>

#include <algorithm>

namespace reshard {
namespace {

void AddEncoded(const EncodedTensor& encoded, uint32_t number, TensorSpec& spec, EncodedPieces& pieces) {
  for (const View& view : spec.views) {
    std::vector<std::vector<Piece>>& stored = pieces[view.part];
    stored.resize(encoded.stored.size());
    for (size_t i = 0; i < stored.size(); ++i)
      ForEachPiece(encoded.stored[i], Scaled(view, spec.shape, encoded.stored[i].shape), [&](const Piece& piece) {
        stored[i].push_back(piece);
        stored[i].back().tensor = number;
      });
  }
  spec.views.clear();
}

}  // namespace

uint32_t RowNamed(const std::vector<ModelRow>& rows, std::string_view role) {
  auto row = std::find_if(rows.begin(), rows.end(), [&](const ModelRow& r) { return r.row->role == role; });
  return static_cast<uint32_t>(row - rows.begin());
}

Pieces PiecesOf(const Model& model, const std::vector<ModelRow>& rows, std::vector<TensorSpec>& specs,
                const std::vector<const StoredTensor*>& tensors) {
  Pieces pieces;
  PartKey embed{RowNamed(rows, "embed"), -1, -1}, head{RowNamed(rows, "head"), -1, -1};
  for (size_t i = 0; i < specs.size(); ++i) {
    for (const View& view : specs[i].views) {
      const PartKey& key = model.tied && view.part == head ? embed : view.part;
      ForEachPiece(*tensors[i], view, [&](const Piece& piece) {
        pieces[key].push_back(piece);
        pieces[key].back().tensor = static_cast<uint32_t>(i);
      });
    }
    std::vector<View>().swap(specs[i].views);
  }
  return pieces;
}

Side::Side(const Checkpoint& checkpoint) : rows(RowsOf(checkpoint.model)) {
  std::vector<TensorSpec> specs = TensorsOf(checkpoint.model, checkpoint.ranks, checkpoint.layouts);
  std::vector<const StoredTensor*> tensors;
  for (TensorSpec& spec : specs) {
    const EncodedTensor* quantised = FindEncoded(checkpoint, spec.name);
    if (quantised) AddEncoded(*quantised, static_cast<uint32_t>(tensors.size()), spec, encoded);
    tensors.push_back(quantised ? &quantised->stored[0] : FindTensor(checkpoint, spec.rank, spec.name));
    names.push_back(FullName(checkpoint.name_prefix, checkpoint.ranks.size(), spec.rank,
                             quantised ? tensors.back()->name : spec.name));
  }
  if (!checkpoint.padding_doubt.empty()) AddCut(specs, tensors);
  pieces = PiecesOf(checkpoint.model, rows, specs, tensors);
}

void Side::AddCut(const std::vector<TensorSpec>& specs, const std::vector<const StoredTensor*>& tensors) {
  for (size_t i = 0; i < specs.size(); ++i) {
    for (Piece& piece : PaddingPieces(*tensors[i], specs[i])) {
      piece.tensor = static_cast<uint32_t>(i);
      cut.push_back({fmt::format("rows of {} behind the vocabulary", names[i]), piece.box.shape, {piece}, {}});
    }
  }
}

void CheckForms(const Part& part, const std::vector<std::string>& names, std::vector<std::string>& problems) {
  for (const Piece& piece : part.sources)
    if (piece.form() != part.sources[0].form())
      problems.push_back(fmt::format("tensor '{}': {}, expected {} as in '{}', which holds the same",
                                     names[piece.tensor], ToString(piece.form()), ToString(part.sources[0].form()),
                                     names[part.sources[0].tensor]));
}

}  // namespace reshard
