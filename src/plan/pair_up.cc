#include "plan/pair_up.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "plan/side.h"

namespace reshard {
namespace {

// Pairs the parts of two checkpoints. A family numbers its rows, so a key goes from one side to the other by its role.
class Pairing {
 public:
  Pairing(const Checkpoint& a, const Checkpoint& b) : a_checkpoint_(a), b_checkpoint_(b), a_(a), b_(b) {}

  Paired Pair() {
    std::set<uint32_t> missing, extra;  // a tensor that holds several parts counts once
    for (const auto& [key, pieces] : a_.pieces) {
      PartKey there = Across(key, a_, b_, b_checkpoint_.model.tied);
      if (b_.pieces.count(there)) {
        Join(key, there, PartName(a_.rows, key));
      } else {
        for (const Piece& piece : pieces) missing.insert(piece.tensor);
      }
    }
    for (const auto& [key, pieces] : b_.pieces) {
      PartKey there = Across(key, b_, a_, a_checkpoint_.model.tied);
      if (!a_.pieces.count(there)) {
        for (const Piece& piece : pieces) extra.insert(piece.tensor);
      } else if (Across(there, a_, b_, b_checkpoint_.model.tied) != key) {
        Join(there, key, PartName(b_.rows, key));  // b's own head and a's tied embedding
      }
    }
    if (!problems_.empty()) throw Gathered(Code::kMismatch, std::move(problems_)).At("reading", a_checkpoint_.folder);
    AddCut();
    for (uint32_t tensor : missing) paired_.missing.push_back(a_.names[tensor]);
    for (uint32_t tensor : extra) paired_.extra.push_back(b_.names[tensor]);
    paired_.a_tensors = std::move(a_.names);
    paired_.b_tensors = std::move(b_.names);
    return std::move(paired_);
  }

 private:
  static PartKey Across(PartKey key, const Side& from, const Side& to, bool to_is_tied) {
    std::string_view role = from.rows[key.row].row->role;
    key.row = RowNamed(to.rows, to_is_tied && role == "head" ? "embed" : role);
    return key;
  }

  void Join(const PartKey& a_key, const PartKey& b_key, std::string name) {
    Dims shape = a_.rows[a_key.row].shape, theirs = b_.rows[b_key.row].shape;
    const Dims a_shape = shape, b_shape = theirs;
    const Split& split = a_.rows[a_key.row].row->split;
    if (split.unit == 'V') shape[split.axis] = theirs[split.axis] = std::min(shape[split.axis], theirs[split.axis]);
    if (!(shape == theirs)) {
      paired_.misshapen.push_back(fmt::format("{}: {} in A, {} in B", name, ToString(a_shape), ToString(b_shape)));
      return;
    }
    AddPadding(a_, a_.pieces[a_key], shape, &Part::sources);
    AddPadding(b_, b_.pieces[b_key], shape, &Part::targets);
    paired_.parts.push_back({std::move(name), shape, Clip(a_.pieces[a_key], shape), Clip(b_.pieces[b_key], shape)});
    CheckForms(paired_.parts.back(), a_.names, problems_);
  }

  // The rows of a vocabulary behind those of `shape`, a part for each piece.
  void AddPadding(const Side& side, const std::vector<Piece>& pieces, const Dims& shape,
                  std::vector<Piece> Part::*where) {
    for (const Piece& piece : pieces)
      for (const Box& box : Subtract(piece.box, WholeBox(shape))) {
        Piece pad = piece;
        pad.offset += (box.origin[0] - piece.box.origin[0]) * piece.axes[0].inner * ItemSize(piece.dtype);
        pad.box = WholeBox(box.shape);
        Part part{fmt::format("padding of {} from row {}", side.names[piece.tensor], box.origin[0]), box.shape, {}, {}};
        (part.*where).push_back(pad);
        paired_.parts.push_back(std::move(part));
      }
  }

  // What each side leaves out for padding without being sure of it.
  void AddCut() {
    for (Part& part : a_.cut) paired_.parts.push_back(std::move(part));
    for (Part& part : b_.cut) {
      part.targets.swap(part.sources);
      paired_.parts.push_back(std::move(part));
    }
  }

  static std::vector<Piece> Clip(const std::vector<Piece>& pieces, const Dims& shape) {
    std::vector<Piece> clipped;
    for (Piece piece : pieces) {
      auto common = Intersect(piece.box, WholeBox(shape));
      if (!common) continue;
      piece.box = *common;  // the vocabulary's rows are never in blocks, and the box begins where it did
      clipped.push_back(piece);
    }
    return clipped;
  }

  const Checkpoint &a_checkpoint_, &b_checkpoint_;
  Side a_, b_;
  Paired paired_;
  std::vector<std::string> problems_;
};

}  // namespace

Paired PairUp(const Checkpoint& a, const Checkpoint& b) {
  for (const Checkpoint* checkpoint : {&a, &b})
    if (!checkpoint->quantised.tensors.empty())
      throw Error(Code::kUnsupported,
                  fmt::format("the linear weights are quantised ({}), expected plain ones to compare",
                              checkpoint->quantised.what))
          .At("reading", checkpoint->folder);
  return Pairing(a, b).Pair();
}

}  // namespace reshard
