#include "plan/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "plan/pack.h"
#include "plan/side.h"

namespace reshard {
namespace {

constexpr const char* kPlanning = "planning from";

// A hash of numbers and texts of which none can run into the next.
class Hasher {
 public:
  void Add(uint64_t value) { hash_.Update(&value, sizeof value); }
  void Add(const std::string& text) {
    Add(text.size());
    hash_.Update(text);
  }
  void Add(const Piece& piece) {
    for (uint64_t value : {uint64_t{piece.file}, uint64_t{piece.tensor}, piece.offset,
                           static_cast<uint64_t>(piece.dtype), uint64_t{piece.minus_one}, uint64_t{piece.output}})
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
    const std::vector<Rank> ranks = kind_.ranks(model_, source_, options_);
    auto layouts = ChooseLayouts(model_, ranks[0], kind_.layouts, kind_.name, [](const TensorSpec&) { return true; });
    specs_ = TensorsOf(model_, ranks, layouts);
    for (const TensorSpec& spec : specs_)
      names_.push_back(FullName(kind_.name_prefix, ranks.size(), spec.rank, spec.name));
    TieSources();
    CheckCastable();
    if (kind_.one_dtype && !options_.dtype) ChooseOneDtype();
    ChooseDtypes();
    Throw();
    LaidOut laid_out = kind_.lay_out(io_, source_, model_, options_, specs_, tensors_);
    AddCopies(laid_out);
    AddParts(laid_out);
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

  std::vector<Piece>& Have(PartKey key) {
    if (model_.tied && key.row == RowNamed(have_.rows, "head")) key.row = RowNamed(have_.rows, "embed");
    return have_.pieces[key];
  }

  void CheckTaken() const {
    if (have_.encoded.empty()) return;
    const QuantisedWeights& weights = source_.quantised;
    const auto instead = kind_.refuses ? kind_.refuses(weights, options_) : std::optional(weights.remedy);
    if (instead)
      throw Error(Code::kUnsupported, fmt::format("the linear weights are quantised ({}), expected plain ones for this "
                                                  "target; {}",
                                                  weights.what, *instead))
          .At(kPlanning, source_.folder);
  }

  void CheckCastable() const {
    CheckTaken();
    std::vector<std::string> problems;
    for (const auto& [key, pieces] : have_.pieces)
      if (!pieces.empty() && !IsCastable(pieces[0].dtype))
        problems.push_back(fmt::format("tensor '{}': {}, expected F32, F16 or BF16 weights",
                                       have_.names[pieces[0].tensor], reshard::Row(pieces[0].dtype).name));
    if (!problems.empty()) throw Gathered(Code::kUnsupported, std::move(problems)).At(kPlanning, source_.folder);
  }

  // Where all tensors must have one dtype and none is asked for: the one that all parts have.
  void ChooseOneDtype() {
    const Piece* first = nullptr;
    for (const auto& [key, pieces] : have_.pieces) {
      if (pieces.empty()) continue;
      if (!first) first = &pieces[0];
      if (pieces[0].dtype == first->dtype) continue;
      problems_.push_back(
          fmt::format("tensor '{}' is {} and '{}' is {}, expected one dtype in a {} checkpoint; give --dtype",
                      have_.names[first->tensor], reshard::Row(first->dtype).name, have_.names[pieces[0].tensor],
                      reshard::Row(pieces[0].dtype).name, kind_.name));
      return;
    }
    options_.dtype = first->dtype;
  }

  // Rows that the source's kind stores in a dtype of its own, whatever the model's is.
  std::set<uint32_t> RowsOfFixedDtype() const {
    std::set<uint32_t> rows;
    for (const Layout* layout : source_.layouts)
      for (size_t i = 0; layout->dtype && i < layout->tree.size; ++i)
        rows.insert(RowNamed(have_.rows, layout->tree.nodes[i].role));
    return rows;
  }

  // A stored tensor has one dtype: the one asked for, or the one that all its parts have; parts of which the source's
  // kind does not say have that of most of the model.
  void ChooseDtypes() {
    const std::set<uint32_t> fixed = RowsOfFixedDtype();
    const Dtype usual = MainDtype(source_.tensors);
    for (const TensorSpec& spec : specs_) {
      std::optional<Dtype> dtype;
      const View* first = nullptr;
      for (const View& view : spec.views) {
        if (have_.encoded.count(view.part)) continue;
        const std::vector<Piece>& pieces = Have(view.part);
        if (pieces.empty()) {
          problems_.push_back(fmt::format("{}: the source has no such part", PartName(have_.rows, view.part)));
          continue;
        }
        const Dtype own = fixed.count(view.part.row) ? usual : pieces[0].dtype;
        if (!dtype) {
          dtype = own;
          first = &view;
        } else if (*dtype != own && !Target(spec)) {
          problems_.push_back(
              fmt::format("tensor '{}': {} is {} and {} is {}, expected one dtype in a stacked tensor; give --dtype",
                          names_[tensors_.size()], PartName(have_.rows, first->part), reshard::Row(*dtype).name,
                          PartName(have_.rows, view.part), reshard::Row(own).name));
          break;
        }
      }
      tensors_.push_back(
          {spec.name, Target(spec).value_or(dtype.value_or(Dtype::kF32)), spec.shape, {}, {}, spec.rank});
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

  // The tensors that value ops make: a part for every box of a part that goes into one of them.
  void AddDerived(const LaidOut& laid_out) {
    const uint32_t target_shift = static_cast<uint32_t>(planned_.plan.target_tensors.size());
    const uint32_t source_shift = static_cast<uint32_t>(planned_.plan.source_tensors.size());
    for (const DerivedTensor& derived : laid_out.derived) {
      for (const View& view : specs_[derived.spec].views) {
        Part part{fmt::format("{} of {}", PartName(have_.rows, view.part), names_[derived.spec]),
                  have_.rows[view.part.row].shape,
                  Have(view.part),
                  {},
                  view.box,
                  derived.op};
        if (!TakeEncoded(view, part)) continue;
        CheckForms(part, have_.names, problems_);
        for (Piece& piece : part.sources) piece.tensor += source_shift;
        for (Part& operand : part.operands)
          for (Piece& piece : operand.sources) piece.tensor += source_shift;
        for (uint8_t output = 0; output < kValueOutputs; ++output) {
          if (ElementCount(derived.outputs[output].shape) == 0) continue;
          Piece piece = OutputPiece(derived.outputs[output], output, view);
          piece.tensor = target_shift + static_cast<uint32_t>(derived.spec);
          piece.file += file_shift_;
          part.targets.push_back(piece);
        }
        derived_.insert(view.part);
        planned_.plan.parts.push_back(std::move(part));
      }
    }
  }

  // Makes the part one of the source's own items, with operands, where its value op takes them so. False, with a
  // problem, where one of the two is plain and the other is not.
  bool TakeEncoded(const View& view, Part& part) {
    const auto stored = have_.encoded.find(view.part);
    const bool encoded = stored != have_.encoded.end(), takes = part.value->takes.encoding != Encoding::kPlain;
    if (encoded != takes) {
      problems_.push_back(fmt::format("{}: the source has it {}, expected {}", part.name,
                                      encoded ? source_.quantised.what : "plain",
                                      takes ? "it quantised as the others are" : "it plain"));
      return false;
    }
    if (!encoded) return true;
    const Dims whole = part.shape;
    const std::vector<ValueTensor> shapes = part.value->takes.Stored(whole[0], whole[1]);
    part.shape = shapes[0].shape;
    part.sources = stored->second[0];
    part.domain = Scaled(view.box, whole, part.shape);
    for (size_t i = 1; i < shapes.size(); ++i)
      part.operands.push_back({fmt::format("operand {} of {}", i, part.name), shapes[i].shape, stored->second[i], {}});
    return true;
  }

  // The rows of an output that a view makes.
  static Piece OutputPiece(const StoredTensor& stored, uint8_t output, const View& view) {
    const Chunk& chunk = stored.chunks[0];
    Piece piece;
    piece.output = output;
    piece.dtype = stored.dtype;
    piece.file = chunk.file;
    piece.offset = chunk.offset + view.origin[0] * chunk.strides[0] * ItemSize(stored.dtype);
    piece.box = WholeBox(chunk.box.shape);
    piece.box.shape[0] = view.box.shape[0];
    for (size_t axis = 0; axis < piece.box.shape.size(); ++axis)
      piece.axes[axis] = {std::max<uint64_t>(piece.box.shape[axis], 1), chunk.strides[axis], 0};
    return piece;
  }

  void AddParts(const LaidOut& laid_out) {
    std::vector<const StoredTensor*> tensors;
    for (StoredTensor& tensor : tensors_) {
      for (Chunk& chunk : tensor.chunks) chunk.file += file_shift_;
      tensors.push_back(&tensor);
    }
    AddDerived(laid_out);
    std::vector<Part> padding = Padding();
    Pieces want = PiecesOf(model_, have_.rows, specs_, tensors);
    std::vector<StoredTensor>().swap(tensors_);
    uint32_t source_shift = static_cast<uint32_t>(planned_.plan.source_tensors.size());
    uint32_t target_shift = static_cast<uint32_t>(planned_.plan.target_tensors.size());
    for (const std::string& name : have_.names) planned_.plan.source_tensors.push_back(name);
    planned_.plan.target_tensors.insert(planned_.plan.target_tensors.end(), names_.begin(), names_.end());
    planned_.plan.parts.reserve(planned_.plan.parts.size() + want.size() + padding.size());
    for (auto& [key, targets] : want) {
      if (have_.encoded.count(key)) {
        problems_.push_back(fmt::format("{}: the source has it {}, expected it plain", PartName(have_.rows, key),
                                        source_.quantised.what));
        continue;
      }
      Part part{PartName(have_.rows, key), have_.rows[key.row].shape, std::move(Have(key)), std::move(targets)};
      for (Piece& piece : part.sources) piece.tensor += source_shift;
      for (Piece& piece : part.targets) piece.tensor += target_shift;
      CheckForms(part, planned_.plan.source_tensors, problems_);
      planned_.plan.parts.push_back(std::move(part));
    }
    for (const auto& [key, pieces] : have_.pieces)
      if (!pieces.empty() && !want.count(key) && !derived_.count(key))
        problems_.push_back(
            fmt::format("{}: a {} checkpoint has no place for it", PartName(have_.rows, key), kind_.name));
    planned_.cut = std::move(have_.cut);
    for (Part& part : planned_.cut) part.sources[0].tensor += source_shift;
    for (Part& part : padding) {
      part.targets[0].tensor += target_shift;
      planned_.plan.parts.push_back(std::move(part));
    }
  }

  std::vector<Part> Padding() const {
    std::vector<Part> parts;
    for (size_t i = 0; i < specs_.size(); ++i) {
      if (tensors_[i].chunks.empty()) continue;  // derived
      for (Piece& piece : PaddingPieces(tensors_[i], specs_[i])) {
        piece.tensor = static_cast<uint32_t>(i);
        parts.push_back({fmt::format("padding of {}", names_[i]), piece.box.shape, {}, {piece}});
      }
    }
    return parts;
  }

  void Throw() {
    if (!problems_.empty()) throw Gathered(Code::kMismatch, std::move(problems_)).At(kPlanning, source_.folder);
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
    planned_.left.insert(planned_.left.end(), source_.ignored.begin(), source_.ignored.end());
    planned_.notes = source_.notes;
    std::move(laid_out.notes.begin(), laid_out.notes.end(), std::back_inserter(planned_.notes));
    for (std::string& note : NotesOfShifts(plan)) planned_.notes.push_back(std::move(note));
    if (!options_.packed.empty()) PackTar(plan, options_.packed);
    std::vector<std::string> problems = Audit(plan);
    if (!problems.empty())
      throw Error(
          Code::kInternal,
          "the plan does not add up, expected every byte once; please report this with the output of `reshard inspect`")
          .At(kPlanning, source_.folder)
          .Also(std::move(problems));
    planned_.source_hashes = SourceHashes(plan);
    plan.id = Id(plan);
  }

  // What the headers said of each source: its pieces.
  static std::vector<uint64_t> SourceHashes(const Plan& plan) {
    std::vector<Hasher> hashers(plan.sources.size());
    for (const Part& part : plan.parts) {
      for (const Piece& piece : part.sources) hashers[piece.file].Add(piece);
      for (const Part& operand : part.operands)
        for (const Piece& piece : operand.sources) hashers[piece.file].Add(piece);
    }
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
      for (const Checksum& checksum : file.checksums)
        for (uint64_t value : {checksum.offset, checksum.size, checksum.places[0], checksum.places[1]}) hash.Add(value);
    }
    for (const auto* names : {&plan.source_tensors, &plan.target_tensors})
      for (const std::string& name : *names) hash.Add(name);
    for (const Part& part : plan.parts) {
      for (const Piece& piece : part.targets) hash.Add(piece);
      if (part.value)
        for (uint64_t value : {static_cast<uint64_t>(part.value->kind), static_cast<uint64_t>(part.value->layout)})
          hash.Add(value);
    }
    return Hex(hash.Digest());
  }

  Io& io_;
  const Checkpoint& source_;
  const Kind& kind_;
  TargetOptions options_;
  Model model_;
  Side have_;
  std::vector<TensorSpec> specs_;
  std::vector<std::string> names_;  // of the specs, for messages
  std::vector<StoredTensor> tensors_;
  uint32_t file_shift_ = 0;
  std::set<PartKey> derived_;  // parts that go into derived tensors
  Planned planned_;
  std::vector<std::string> problems_;
};

}  // namespace

Planned MakePlan(Io& io, const Checkpoint& source, const Kind& kind, const TargetOptions& options) {
  return Planner(io, source, kind, options).Make();
}

// No dtype holds every sum: of a small difference to one bits are lost.
std::vector<std::string> NotesOfShifts(const Plan& plan) {
  std::set<std::pair<bool, std::string_view>> shifts;
  for (const Part& part : plan.parts)
    for (const Piece& target : part.targets)
      if (!part.sources.empty() && part.sources[0].minus_one != target.minus_one)
        shifts.emplace(target.minus_one, Row(target.dtype).name);
  std::vector<std::string> notes;
  for (const auto& [minus_one, dtype] : shifts)
    notes.push_back(
        fmt::format("norm weights are written {} one, rounded to {}: the way back may not give the same bits",
                    minus_one ? "minus" : "plus", dtype));
  return notes;
}

PlanTotals TotalsOf(const Plan& plan) {
  PlanTotals totals;
  Op op;
  for (OpCursor cursor(plan.parts); cursor.Next(op);) ++totals.ops;
  for (const Part& part : plan.parts) totals.bytes_read += SourceBytes(part, DomainOf(part));
  for (const FileLayout& file : plan.files) totals.bytes_written += file.size;
  return totals;
}

}  // namespace reshard
