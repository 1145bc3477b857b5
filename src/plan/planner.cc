#include "plan/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/hash.h"

namespace reshard {
namespace {

using Pieces = std::map<PartKey, std::vector<Piece>>;

uint32_t RowNamed(const std::vector<ModelRow>& rows, std::string_view role) {
  auto row = std::find_if(rows.begin(), rows.end(), [&](const ModelRow& r) { return r.row->role == role; });
  return static_cast<uint32_t>(row - rows.begin());
}

// All that one side stores, by part. In a tied model the head is the embedding.
Pieces PiecesOf(const Model& model, const std::vector<ModelRow>& rows, const std::vector<TensorSpec>& specs,
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
  }
  return pieces;
}

// The tensors of a checkpoint that its specs ask for, in their order; OpenCheckpoint has checked that they are there.
std::vector<const StoredTensor*> TensorsFor(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs) {
  std::vector<const StoredTensor*> tensors;
  for (const TensorSpec& spec : specs)
    tensors.push_back(&*std::lower_bound(checkpoint.tensors.begin(), checkpoint.tensors.end(), spec.name,
                                         [](const StoredTensor& t, const std::string& name) { return t.name < name; }));
  return tensors;
}

// An opened checkpoint as parts.
struct Side {
  std::vector<ModelRow> rows;
  std::vector<TensorSpec> specs;
  std::vector<const StoredTensor*> tensors;
  std::vector<std::string> names;
  Pieces pieces;

  explicit Side(const Checkpoint& checkpoint)
      : rows(RowsOf(checkpoint.model)),
        specs(TensorsOf(checkpoint.model, checkpoint.rank, checkpoint.layouts)),
        tensors(TensorsFor(checkpoint, specs)),
        pieces(PiecesOf(checkpoint.model, rows, specs, tensors)) {
    std::string prefix(KindByName(checkpoint.kind).name_prefix);
    for (const TensorSpec& spec : specs) names.push_back(prefix + spec.name);
  }
};

Error PlanError(Code code, const Checkpoint& source, std::string message) {
  Error error(code, std::move(message));
  error.At("planning from", source.folder);
  return error;
}

// A hash of numbers and texts of which none can run into the next.
class Hasher {
 public:
  void Add(uint64_t value) { hash_.Update(&value, sizeof value); }
  void Add(const std::string& text) {
    Add(text.size());
    hash_.Update(text);
  }
  void Add(const Piece& piece) {
    for (uint64_t value :
         {uint64_t{piece.file}, uint64_t{piece.tensor}, piece.offset, static_cast<uint64_t>(piece.dtype)})
      Add(value);
    for (size_t axis = 0; axis < piece.box.shape.size(); ++axis)
      for (uint64_t value : {piece.box.origin[axis], piece.box.shape[axis], piece.axes[axis].block,
                             piece.axes[axis].inner, piece.axes[axis].outer})
        Add(value);
  }
  uint64_t Digest() const { return hash_.Digest(); }

 private:
  Xxh3 hash_;
};

// Joins a source with a target that is laid out for it.
class Planner {
 public:
  Planner(Io& io, const Checkpoint& source, const Kind& kind, const TargetOptions& options)
      : io_(io), source_(source), kind_(kind), options_(options), have_(source) {
    model_ = source.model;
    if (options.untie_embeddings) model_.tied = false;
  }

  Planned Make() {
    Rank rank = kind_.rank(model_, source_);
    auto layouts = ChooseLayouts(model_, rank, kind_.layouts, kind_.name, [](const std::string&) { return true; });
    specs_ = TensorsOf(model_, rank, layouts);
    TieSources();
    ChooseDtypes();
    Throw();
    LaidOut laid_out = kind_.lay_out(io_, source_, model_, options_, specs_, tensors_);
    AddCopies(laid_out);
    AddParts();
    Throw();
    Finish(laid_out);
    return std::move(planned_);
  }

 private:
  // An untied target of a tied source: the head is read where the embedding is.
  void TieSources() {
    if (model_.tied || !source_.model.tied) return;
    have_.pieces[{RowNamed(have_.rows, "head"), -1, -1}] = have_.pieces[{RowNamed(have_.rows, "embed"), -1, -1}];
  }

  const std::vector<Piece>& Have(PartKey key) {
    if (model_.tied && key.row == RowNamed(have_.rows, "head")) key.row = RowNamed(have_.rows, "embed");
    return have_.pieces[key];
  }

  // A stored tensor has one dtype: the one asked for, or the one that all its parts have.
  void ChooseDtypes() {
    for (const TensorSpec& spec : specs_) {
      std::optional<Dtype> dtype;
      const View* first = nullptr;
      for (const View& view : spec.views) {
        const std::vector<Piece>& pieces = Have(view.part);
        if (!pieces.empty() && !IsCastable(pieces[0].dtype)) {
          problems_.push_back(fmt::format("tensor '{}': {}, expected F32, F16 or BF16 weights",
                                          have_.names[pieces[0].tensor], reshard::Row(pieces[0].dtype).name));
          continue;
        }
        if (pieces.empty()) {
          problems_.push_back(fmt::format("{}: the source has no such part", PartName(have_.rows, view.part)));
          continue;
        }
        if (!dtype) {
          dtype = pieces[0].dtype;
          first = &view;
        } else if (*dtype != pieces[0].dtype && !Target(spec)) {
          problems_.push_back(
              fmt::format("tensor '{}': {} is {} and {} is {}, expected one dtype in a stacked tensor; give --dtype",
                          spec.name, PartName(have_.rows, first->part), reshard::Row(*dtype).name,
                          PartName(have_.rows, view.part), reshard::Row(pieces[0].dtype).name));
          break;
        }
      }
      tensors_.push_back({spec.name, Target(spec).value_or(dtype.value_or(Dtype::kF32)), spec.shape, {}, {}});
    }
  }

  std::optional<Dtype> Target(const TensorSpec& spec) const {
    return spec.layout->dtype ? spec.layout->dtype : options_.dtype;
  }

  // A whole file, as a part of bytes.
  void AddCopies(LaidOut& laid_out) {
    planned_.plan.files.clear();
    planned_.plan.sources = source_.files;
    for (const FileCopy& copy : laid_out.copies) {
      auto info = io_.Stat(copy.from);
      if (!info) throw Error(Code::kCorrupt, "there is no such file, expected one").At("reading", copy.from);
      if (info->type != FileInfo::Type::kFile) {
        laid_out.left.push_back(copy.to);
        continue;
      }
      Piece piece;
      piece.dtype = Dtype::kU8;
      piece.box = WholeBox({info->size});
      piece.axes[0] = {std::max<uint64_t>(info->size, 1), 1, 0};
      piece.file = static_cast<uint32_t>(planned_.plan.sources.size());
      piece.tensor = AddName(planned_.plan.source_tensors, copy.to);
      Part part{copy.to, {info->size}, {piece}, {piece}};
      part.targets[0].file = static_cast<uint32_t>(planned_.plan.files.size());
      part.targets[0].tensor = AddName(planned_.plan.target_tensors, copy.to);
      planned_.plan.sources.push_back({copy.from, copy.to, info->size, info->mtime_ns, info->inode});
      planned_.plan.files.push_back({copy.to, info->size, {}});
      planned_.copied.push_back(copy.to);
      if (info->size) planned_.plan.parts.push_back(std::move(part));
    }
    file_shift_ = static_cast<uint32_t>(planned_.plan.files.size());
    planned_.plan.files.insert(planned_.plan.files.end(), laid_out.files.begin(), laid_out.files.end());
  }

  static uint32_t AddName(std::vector<std::string>& names, std::string name) {
    names.push_back(std::move(name));
    return static_cast<uint32_t>(names.size() - 1);
  }

  void AddParts() {
    std::vector<const StoredTensor*> tensors;
    for (StoredTensor& tensor : tensors_) {
      for (Chunk& chunk : tensor.chunks) chunk.file += file_shift_;
      tensors.push_back(&tensor);
    }
    Pieces want = PiecesOf(model_, have_.rows, specs_, tensors);
    uint32_t source_shift = static_cast<uint32_t>(planned_.plan.source_tensors.size());
    uint32_t target_shift = static_cast<uint32_t>(planned_.plan.target_tensors.size());
    for (const std::string& name : have_.names) planned_.plan.source_tensors.push_back(name);
    for (const TensorSpec& spec : specs_)
      planned_.plan.target_tensors.push_back(std::string(kind_.name_prefix) + spec.name);
    for (auto& [key, targets] : want) {
      Part part{PartName(have_.rows, key), have_.rows[key.row].shape, Have(key), std::move(targets)};
      for (Piece& piece : part.sources) piece.tensor += source_shift;
      for (Piece& piece : part.targets) piece.tensor += target_shift;
      CheckDtypes(part);
      planned_.plan.parts.push_back(std::move(part));
    }
    for (const auto& [key, pieces] : have_.pieces)
      if (!pieces.empty() && !want.count(key))
        problems_.push_back(
            fmt::format("{}: a {} checkpoint has no place for it", PartName(have_.rows, key), kind_.name));
    for (size_t i = 0; i < specs_.size(); ++i) AddPadding(i, target_shift);
  }

  void CheckDtypes(const Part& part) {
    for (const Piece& piece : part.sources) {
      const std::string& name = planned_.plan.source_tensors[piece.tensor];
      if (piece.dtype != part.sources[0].dtype)
        problems_.push_back(fmt::format("tensor '{}': {}, expected {} as in '{}', which holds the same", name,
                                        reshard::Row(piece.dtype).name, reshard::Row(part.sources[0].dtype).name,
                                        planned_.plan.source_tensors[part.sources[0].tensor]));
    }
  }

  void AddPadding(size_t i, uint32_t target_shift) {
    for (Piece& piece : PaddingPieces(tensors_[i], specs_[i])) {
      piece.tensor = target_shift + static_cast<uint32_t>(i);
      planned_.plan.parts.push_back({fmt::format("padding of {}", specs_[i].name), piece.box.shape, {}, {piece}});
      Piece& only = planned_.plan.parts.back().targets[0];
      only.box.origin = Dims::Filled(only.box.shape.size(), 0);
    }
  }

  void Throw() {
    if (problems_.empty()) return;
    std::string first = problems_.front();
    std::vector<std::string> rest(problems_.begin() + 1, problems_.end());
    constexpr size_t kShown = 20;
    if (rest.size() > kShown) {
      rest[kShown] = fmt::format("and {} more", rest.size() - kShown);
      rest.resize(kShown + 1);
    }
    throw PlanError(Code::kMismatch, source_, std::move(first)).Also(std::move(rest));
  }

  void Finish(LaidOut& laid_out) {
    Plan& plan = planned_.plan;
    auto place = [](const Part& part) {
      return part.sources.empty() ? std::pair{UINT32_MAX, uint64_t{0}}
                                  : std::pair{part.sources[0].file, part.sources[0].offset};
    };
    std::stable_sort(plan.parts.begin(), plan.parts.end(),
                     [&](const Part& a, const Part& b) { return place(a) < place(b); });
    planned_.left = std::move(laid_out.left);
    planned_.notes = std::move(laid_out.notes);
    std::vector<std::string> problems = Audit(plan);
    if (!problems.empty())
      throw PlanError(
          Code::kInternal, source_,
          "the plan does not add up, expected every byte once; please report this with the output of `reshard inspect`")
          .Also(std::move(problems));
    planned_.source_hashes = SourceHashes(plan);
    plan.id = Id(plan);
  }

  // What the headers said of each source: its pieces.
  static std::vector<uint64_t> SourceHashes(const Plan& plan) {
    std::vector<Hasher> hashers(plan.sources.size());
    for (const Part& part : plan.parts)
      for (const Piece& piece : part.sources) hashers[piece.file].Add(piece);
    std::vector<uint64_t> hashes;
    for (const Hasher& hasher : hashers) hashes.push_back(hasher.Digest());
    return hashes;
  }

  // Headers do not tell two models of one shape apart, nor a file from what it is overwritten with: time and inode do.
  std::string Id(const Plan& plan) {
    Hasher hash;
    for (size_t i = 0; i < plan.sources.size(); ++i) {
      const SourceFile& source = plan.sources[i];
      hash.Add(source.relative);
      hash.Add(source.size);
      hash.Add(static_cast<uint64_t>(source.mtime_ns));
      hash.Add(source.inode);
      hash.Add(planned_.source_hashes[i]);
    }
    for (const FileLayout& file : plan.files) {
      hash.Add(file.path);
      hash.Add(file.size);
      for (const Literal& literal : file.literals) {
        hash.Add(literal.offset);
        hash.Add(literal.bytes);
      }
    }
    for (const auto* names : {&plan.source_tensors, &plan.target_tensors})
      for (const std::string& name : *names) hash.Add(name);
    for (const Part& part : plan.parts)
      for (const Piece& piece : part.targets) hash.Add(piece);
    return Hex(hash.Digest());
  }

  Io& io_;
  const Checkpoint& source_;
  const Kind& kind_;
  const TargetOptions& options_;
  Model model_;
  Side have_;
  std::vector<TensorSpec> specs_;
  std::vector<StoredTensor> tensors_;
  uint32_t file_shift_ = 0;
  Planned planned_;
  std::vector<std::string> problems_;
};

// Rows below `rows` on the part's first axis.
std::vector<Piece> Clip(const std::vector<Piece>& pieces, const Dims& shape) {
  std::vector<Piece> clipped;
  for (Piece piece : pieces) {
    auto common = Intersect(piece.box, WholeBox(shape));
    if (!common) continue;
    piece.box = *common;  // the vocabulary's rows are never in blocks, and the box begins where it did
    clipped.push_back(piece);
  }
  return clipped;
}

}  // namespace

Planned MakePlan(Io& io, const Checkpoint& source, const Kind& kind, const TargetOptions& options) {
  return Planner(io, source, kind, options).Make();
}

Paired PairUp(const Checkpoint& a, const Checkpoint& b) {
  Side left(a), right(b);
  Paired paired;
  paired.a_tensors = left.names;
  paired.b_tensors = right.names;
  // Keys of b by the row's role, for families number their rows apart.
  auto key_in = [](const std::vector<ModelRow>& rows, const std::vector<ModelRow>& of, PartKey key) {
    key.row = RowNamed(rows, of[key.row].row->role);
    return key;
  };
  auto find = [&](Side& side, const Model& model, PartKey key) -> const std::vector<Piece>* {
    if (key.row == side.rows.size()) return nullptr;
    if (model.tied && side.rows[key.row].row->role == "head") key.row = RowNamed(side.rows, "embed");
    auto found = side.pieces.find(key);
    return found == side.pieces.end() ? nullptr : &found->second;
  };
  auto add_padding = [&](const Side& side, const std::vector<Piece>& pieces, const Dims& shape, bool is_a) {
    for (const Piece& piece : pieces)
      for (const Box& box : Subtract(piece.box, WholeBox(shape))) {
        Piece pad = piece;
        pad.offset += (box.origin[0] - piece.box.origin[0]) * piece.axes[0].inner * ItemSize(piece.dtype);
        pad.box = WholeBox(box.shape);
        std::string name = "padding of " + side.names[piece.tensor];
        if (is_a) {
          paired.parts.push_back({name, box.shape, {pad}, {}});
        } else {
          paired.parts.push_back({name, box.shape, {}, {pad}});
        }
      }
  };
  for (const auto& [key, pieces] : left.pieces) {
    PartKey other = key_in(right.rows, left.rows, key);
    const std::vector<Piece>* found = find(right, b.model, other);
    if (!found) {
      paired.missing.push_back(left.names[pieces[0].tensor]);
      continue;
    }
    Dims shape = left.rows[key.row].shape;
    const Dims& theirs = right.rows[other.row].shape;
    if (shape.size() == theirs.size()) shape[0] = std::min(shape[0], theirs[0]);
    add_padding(left, pieces, shape, true);
    add_padding(right, *found, shape, false);
    paired.parts.push_back({PartName(left.rows, key), shape, Clip(pieces, shape), Clip(*found, shape)});
  }
  for (const auto& [key, pieces] : right.pieces) {
    PartKey other = key_in(left.rows, right.rows, key);
    const std::vector<Piece>* found = find(left, a.model, other);
    if (!found) {
      paired.extra.push_back(right.names[pieces[0].tensor]);
    } else if (!left.pieces.count(other)) {  // b's own head against a's tied embedding
      paired.parts.push_back(
          {PartName(right.rows, key), right.rows[key.row].shape, Clip(*found, right.rows[key.row].shape), pieces});
    }
  }
  return paired;
}

PlanTotals TotalsOf(const Plan& plan) {
  PlanTotals totals;
  Op op;
  for (OpCursor cursor(plan.parts); cursor.Next(op);) ++totals.ops;
  for (const Part& part : plan.parts)
    for (const Piece& piece : part.sources) totals.bytes_read += ElementCount(piece.box.shape) * ItemSize(piece.dtype);
  for (const FileLayout& file : plan.files) totals.bytes_written += file.size;
  return totals;
}

uint64_t MemoryOf(const Plan& plan) {
  uint64_t bytes = plan.sources.size() * sizeof(SourceFile) + plan.files.size() * sizeof(FileLayout);
  for (const auto* names : {&plan.source_tensors, &plan.target_tensors})
    for (const std::string& name : *names) bytes += sizeof name + name.capacity();
  for (const FileLayout& file : plan.files)
    for (const Literal& literal : file.literals) bytes += sizeof literal + literal.bytes.capacity();
  for (const Part& part : plan.parts)
    bytes += sizeof part + part.name.capacity() + (part.sources.capacity() + part.targets.capacity()) * sizeof(Piece);
  return bytes;
}

}  // namespace reshard
