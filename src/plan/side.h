// One side of a join: an opened checkpoint by logical part.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "models/kinds/kind.h"
#include "plan/plan.h"

namespace reshard {

using Pieces = std::map<PartKey, std::vector<Piece>>;

// What is quantised, in tensors of other shapes than the specs have: the matrix, then its operands.
using EncodedPieces = std::map<PartKey, std::vector<std::vector<Piece>>>;

struct Side {
  std::vector<ModelRow> rows;
  std::vector<std::string> names;  // of the tensors, by Piece::tensor
  Pieces pieces;                   // plain ones
  EncodedPieces encoded;           // of the other parts
  std::vector<Part> cut;           // rows behind the vocabulary that must be zero: each piece a part without targets

  // OpenCheckpoint has checked that the tensors of all specs are there.
  explicit Side(const Checkpoint& checkpoint);

 private:
  void AddCut(const std::vector<TensorSpec>& specs, const std::vector<const StoredTensor*>& tensors);
};

// The number of a family's row; that behind the last where there is none.
uint32_t RowNamed(const std::vector<ModelRow>& rows, std::string_view role);

// All that one side stores, by part. In a tied model the head is the embedding. Takes the specs' views: both together
// would be the most memory that a plan ever needs.
Pieces PiecesOf(const Model& model, const std::vector<ModelRow>& rows, std::vector<TensorSpec>& specs,
                const std::vector<const StoredTensor*>& tensors);

// What is stored twice must be of one form: a problem each for that which is not.
void CheckForms(const Part& part, const std::vector<std::string>& names, std::vector<std::string>& problems);

}  // namespace reshard
