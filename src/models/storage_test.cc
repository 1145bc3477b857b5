// The reference is arrays: every part is filled with numbers of its own, every tensor is put together element by
// element as schema.h says, its chunks are laid out in files, and the views' pieces must give the parts back.
#include "models/storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "base/error.h"
#include "tensor/testutil.h"

namespace reshard {
namespace {

using testing::HasSubstr;
using enum Scope;

// -- a toy family: every primitive, nested where it may be ------------------------------------------------------------

constexpr PartRow kRows[] = {
    {"embed", kGlobal, "V H", {0, 'V'}},
    {"q", kLayer, "A*D H", {0, 'A'}},
    {"k", kLayer, "G*D H", {0, 'G'}},
    {"v", kLayer, "G*D H", {0, 'G'}},
    {"q_bias", kLayer, "A*D", {0, 'A'}, "bias"},
    {"k_bias", kLayer, "G*D", {0, 'G'}, "bias"},
    {"v_bias", kLayer, "G*D", {0, 'G'}, "bias"},
    {"o", kLayer, "H A*D", {1, 'A'}},
    {"cross_q", kLayer, "A*D H"},
    {"cross_k", kLayer, "G*D H"},
    {"cross_o", kLayer, "A*D H"},
    {"final_norm", kGlobal, "H"},
    {"head", kGlobal, "V H", {0, 'V'}},
};
constexpr Layout kRowsApart[] = {
    {"embed.weight", "embed"},
    {"layers.{L}.q", "q"},
    {"layers.{L}.k", "k"},
    {"layers.{L}.v", "v"},
    {"layers.{L}.q.bias", "q_bias"},
    {"layers.{L}.k.bias", "k_bias"},
    {"layers.{L}.v.bias", "v_bias"},
    {"layers.{L}.o", "o"},
    {"layers.{L}.cross.q", "cross_q"},
    {"layers.{L}.cross.k", "cross_k"},
    {"layers.{L}.cross.o", "cross_o"},
    {"norm.weight", "final_norm"},
    {"head.weight", "head"},
};
constexpr Layout kRowsPacked[] = {
    {"embedding", "embed"},
    {"decoder.layers.{L}.qkv.weight", Grouped({"q", "k", "v"})},
    {"decoder.layers.{L}.qkv.bias", Grouped({"q_bias", "k_bias", "v_bias"})},
    {"decoder.layers.{L}.proj.weight", "o"},
    {"decoder.layers.{L}.cross.weight", Concat({Grouped({"cross_q", "cross_k"}), "cross_o"})},
    {"decoder.final_norm", "final_norm"},
    {"output", "head"},
};

constexpr PartRow kDenseRows[] = {
    {"gate", kLayer, "F H", {0, 'F'}}, {"up", kLayer, "F H", {0, 'F'}},    {"down", kLayer, "H F", {1, 'F'}},
    {"left", kLayer, "H F", {1, 'F'}}, {"right", kLayer, "H F", {1, 'F'}},
};
constexpr Layout kDenseApart[] = {
    {"layers.{L}.gate", "gate"}, {"layers.{L}.up", "up"},       {"layers.{L}.down", "down"},
    {"layers.{L}.left", "left"}, {"layers.{L}.right", "right"},
};
constexpr Layout kDensePacked[] = {
    {"decoder.layers.{L}.fc1", Concat({"gate", "up"}), 2},
    {"decoder.layers.{L}.fc2", "down"},
    {"decoder.layers.{L}.sides", Interleave(1, 2, {"left", "right"})},
};

constexpr PartRow kMoeRows[] = {
    {"router", kLayer, "E H"},
    {"expert_gate", kExpert, "F H", {0, 'F'}},
    {"expert_up", kExpert, "F H", {0, 'F'}},
    {"expert_down", kExpert, "H F", {1, 'F'}},
};
constexpr Layout kMoeApart[] = {
    {"layers.{L}.router", "router"},
    {"layers.{L}.experts.{E}.gate", "expert_gate"},
    {"layers.{L}.experts.{E}.up", "expert_up"},
    {"layers.{L}.experts.{E}.down", "expert_down"},
};
constexpr Layout kMoeFused[] = {
    {"layers.{L}.router", "router"},
    {"layers.{L}.experts.gate_up", Stack('E', Interleave(0, 2, {"expert_gate", "expert_up"}))},
    {"layers.{L}.experts.down", Stack('E', "expert_down")},
};
constexpr Layout kMoePacked[] = {
    {"decoder.layers.{L}.router", "router"},
    {"decoder.layers.{L}.experts.fc1", Stack('E', Concat({"expert_gate", "expert_up"}))},
    {"decoder.layers.{L}.experts.fc2", Stack('E', "expert_down")},
};

constexpr Block kRowsBlock = {kRows, Layouts(kRowsApart), Layouts(kRowsPacked)};
constexpr Block kDenseBlock = {kDenseRows, Layouts(kDenseApart), Layouts(kDensePacked), {}, {}, kDenseLayers};
constexpr Block kMoeBlock = {kMoeRows, Layouts(kMoeApart, kMoeFused), Layouts(kMoePacked), {}, {}, kMoeLayers};
constexpr const Block* kBlocks[] = {&kRowsBlock, &kDenseBlock, &kMoeBlock};

Family ToyFamily(LayerRule rule) {
  Family family;
  family.name = "toy";
  family.blocks = kBlocks;
  family.layers = rule;
  return family;
}

using Random = std::mt19937_64;

uint64_t Between(Random& random, uint64_t low, uint64_t high) { return low + random() % (high - low + 1); }

Model RandomModel(Random& random, const Family& family) {
  constexpr uint64_t kGroups[] = {1, 2, 3, 7};
  Model model;
  model.family = &family;
  Sizes& sizes = model.sizes;
  sizes['G'] = kGroups[random() % 4];
  sizes['A'] = sizes['G'] * Between(random, 1, 3);
  sizes['D'] = Between(random, 1, 3);
  sizes['H'] = Between(random, 1, 5);
  sizes['F'] = 2 * Between(random, 1, 4);
  sizes['E'] = Between(random, 1, 4);
  sizes['V'] = Between(random, 1, 9);
  sizes['L'] = Between(random, 1, 4);
  if (random() % 2) model.flags.push_back("bias");
  Json config = {{"first_k_dense_replace", random() % 3}, {"decoder_sparse_step", 1 + random() % 3}};
  model.layers = LayerPlan(family, sizes['L'], config, "config.json");
  return model;
}

Range RandomRange(Random& random, uint64_t size) {
  uint64_t begin = Between(random, 0, size - 1);
  return {begin, Between(random, begin + 1, size)};
}

Rank RandomRank(Random& random, const Model& model) {
  Rank rank;
  rank.layers = RandomRange(random, model.sizes['L']);
  rank.experts = RandomRange(random, model.sizes['E']);
  rank.vocab_rows = model.sizes['V'] + random() % 4;
  rank.stores_head = random() % 4 != 0;
  return rank;
}

// -- arrays -----------------------------------------------------------------------------------------------------------

struct Array {
  Dims shape;
  std::vector<uint32_t> values;

  explicit Array(Dims dims = {}) : shape(dims), values(ElementCount(dims)) {}
  uint32_t& At(const Dims& index) {
    uint64_t at = 0;
    for (size_t axis = 0; axis < shape.size(); ++axis) at = at * shape[axis] + index[axis];
    return values.at(at);
  }
};

// Copies all of `from` into `to`, its first element to `origin`.
void Paste(Array& from, Array& to, const Dims& origin) {
  ForEachIndex(from.shape, [&](const Dims& index) {
    Dims there = index;
    for (size_t axis = 0; axis < there.size(); ++axis) there[axis] += origin[axis];
    to.At(there) = from.At(index);
  });
}

Array Slice(Array& array, size_t axis, uint64_t begin, uint64_t size) {
  Dims shape = array.shape;
  shape[axis] = size;
  Array slice(shape);
  ForEachIndex(shape, [&](Dims index) {
    uint32_t& value = slice.At(index);
    index[axis] += begin;
    value = array.At(index);
  });
  return slice;
}

Array Join(std::vector<Array> arrays, size_t axis) {
  Dims shape = arrays[0].shape;
  shape[axis] = 0;
  for (const Array& array : arrays) shape[axis] += array.shape[axis];
  Array joined(shape);
  Dims origin = Dims::Filled(shape.size(), 0);
  for (Array& array : arrays) {
    Paste(array, joined, origin);
    origin[axis] += array.shape[axis];
  }
  return joined;
}

Array StackUp(std::vector<Array> arrays) {
  for (Array& array : arrays) {
    Dims shape{1};
    for (uint64_t extent : array.shape) shape.push_back(extent);
    array.shape = shape;
  }
  return Join(std::move(arrays), 0);
}

// -- what a rank should store -----------------------------------------------------------------------------------------

struct Named {
  std::string name;
  Array array;
};

class Reference {
 public:
  Reference(const Model& model, const Rank& rank) : model_(model), rank_(rank), rows_(RowsOf(model)) {
    for (uint32_t row = 0; row < rows_.size(); ++row) Fill(row);
  }

  std::map<PartKey, Array>& parts() { return parts_; }

  std::vector<Named> Tensors(const std::vector<const Layout*>& layouts) {
    std::vector<Named> before, layered, after;
    for (const Layout* layout : layouts) {
      bool global = layout->name.find("{L}") == std::string_view::npos;
      if (global && Holds(*layout, 0))
        (AnyLayered(layouts, layout) ? after : before)
            .push_back({std::string(layout->name), Whole(layout->tree, -1, -1)});
      if (!global && rank_.stacks_layers && Holds(*layout, rank_.layers.begin)) AddStacked(*layout, layered);
    }
    for (uint64_t layer = rank_.layers.begin; layer < rank_.layers.end && !rank_.stacks_layers; ++layer)
      for (const Layout* layout : layouts)
        if (layout->name.find("{L}") != std::string_view::npos && Holds(*layout, layer))
          AddNumbered(*layout, layer, layered);
    for (auto* more : {&layered, &after}) before.insert(before.end(), more->begin(), more->end());
    return before;
  }

 private:
  // The parts that the rank stores of a row, numbered on from the last.
  void Fill(uint32_t row) {
    const PartRow& table = *rows_[row].row;
    if (table.role == "head" && !rank_.stores_head) return;
    const bool first_stage = rank_.layers.begin == 0, last_stage = rank_.layers.end == model_.layers.size();
    if (table.scope == kGlobal && !(table.role == "embed" ? first_stage : last_stage)) return;
    if (table.scope == kGlobal) return FillPart({row, -1, -1});
    for (uint64_t layer = rank_.layers.begin; layer < rank_.layers.end; ++layer) {
      if (!rows_[row].IsOn(model_.layers[layer])) continue;
      if (table.scope == kLayer) FillPart({row, static_cast<int32_t>(layer), -1});
      if (table.scope == kExpert)
        for (uint64_t expert = rank_.experts.begin; expert < rank_.experts.end; ++expert)
          FillPart({row, static_cast<int32_t>(layer), static_cast<int32_t>(expert)});
    }
  }

  void FillPart(const PartKey& key) {
    Array array(rows_[key.row].shape);
    for (uint32_t& value : array.values) value = ++last_;
    parts_[key] = array;
  }

  uint32_t RowOf(std::string_view role) const {
    uint32_t row = 0;
    while (row < rows_.size() && rows_[row].row->role != role) ++row;
    return row;
  }

  bool Holds(const Layout& layout, uint64_t layer) const {
    for (size_t i = 0; i < layout.tree.size; ++i) {
      if (layout.tree.nodes[i].type != Node::Type::kPart) continue;
      uint32_t row = RowOf(layout.tree.nodes[i].role);
      if (row == rows_.size()) return false;
      bool global = rows_[row].row->scope == kGlobal, expert = rows_[row].row->scope == kExpert;
      if (!parts_.count({row, global ? -1 : static_cast<int32_t>(layer),
                         expert ? static_cast<int32_t>(rank_.experts.begin) : -1}))
        return false;
    }
    return true;
  }

  static bool AnyLayered(const std::vector<const Layout*>& layouts, const Layout* end) {
    for (const Layout* layout : layouts) {
      if (layout == end) return false;
      if (layout->name.find("{L}") != std::string_view::npos) return true;
    }
    return false;
  }

  static std::string Replace(std::string text, const std::string& mark, const std::string& by) {
    size_t at = text.find(mark);
    return at == std::string::npos ? text : text.replace(at, mark.size(), by);
  }

  // Numbers in names count what the rank holds.
  void AddNumbered(const Layout& layout, uint64_t layer, std::vector<Named>& out) {
    std::string name = Replace(std::string(layout.name), "{L}", std::to_string(layer - rank_.layers.begin));
    ForEachExpert(name, [&](const std::string& numbered, int32_t expert) {
      out.push_back({numbered, Whole(layout.tree, static_cast<int32_t>(layer), expert)});
    });
  }

  void AddStacked(const Layout& layout, std::vector<Named>& out) {
    ForEachExpert(Replace(std::string(layout.name), "{L}.", ""), [&](const std::string& numbered, int32_t expert) {
      std::vector<Array> layers;
      for (uint64_t layer = rank_.layers.begin; layer < rank_.layers.end; ++layer)
        layers.push_back(Whole(layout.tree, static_cast<int32_t>(layer), expert));
      out.push_back({numbered, StackUp(std::move(layers))});
    });
  }

  void ForEachExpert(const std::string& name, const std::function<void(const std::string&, int32_t)>& visit) {
    if (name.find("{E}") == std::string::npos) return visit(name, -1);
    for (uint64_t expert = rank_.experts.begin; expert < rank_.experts.end; ++expert)
      visit(Replace(name, "{E}", std::to_string(expert - rank_.experts.begin)), static_cast<int32_t>(expert));
  }

  Array Whole(const Tree& tree, int32_t layer, int32_t expert) {
    size_t next = 0;
    return Build(tree, next, layer, expert);
  }

  Array Build(const Tree& tree, size_t& next, int32_t layer, int32_t expert) {
    const Node& node = tree.nodes[next++];
    if (node.type == Node::Type::kPart) return Stored(node.role, layer, expert);
    std::vector<Array> members;
    if (node.type == Node::Type::kStack) {
      size_t member = next;
      for (uint64_t e = rank_.experts.begin; e < rank_.experts.end; ++e) {
        next = member;
        members.push_back(Build(tree, next, layer, static_cast<int32_t>(e)));
      }
      return StackUp(std::move(members));
    }
    for (int i = 0; i < node.members; ++i) members.push_back(Build(tree, next, layer, expert));
    uint64_t n = node.count < ' ' ? static_cast<uint64_t>(node.count) : model_.sizes[node.count];
    std::vector<Array> pieces;
    for (uint64_t i = 0; i < n; ++i) {
      for (Array& member : members) {
        uint64_t size = member.shape[node.axis] / n;
        pieces.push_back(Slice(member, node.axis, i * size, size));
      }
    }
    return Join(std::move(pieces), node.axis);
  }

  // A part, with rows of zeros behind a vocabulary.
  Array Stored(std::string_view role, int32_t layer, int32_t expert) {
    const ModelRow& row = rows_[RowOf(role)];
    PartKey key{RowOf(role), row.row->scope == kGlobal ? -1 : layer, row.row->scope == kExpert ? expert : -1};
    Dims shape = row.shape;
    if (row.row->split.unit == 'V') shape[row.row->split.axis] = rank_.vocab_rows;
    Array stored(shape);
    Paste(parts_.at(key), stored, Dims::Filled(shape.size(), 0));
    return stored;
  }

  const Model& model_;
  const Rank& rank_;
  std::vector<ModelRow> rows_;
  std::map<PartKey, Array> parts_;
  uint32_t last_ = 0;
};

// -- files ------------------------------------------------------------------------------------------------------------

constexpr uint64_t kItem = 4;
using Place = std::pair<uint32_t, uint64_t>;  // file, byte

struct Files {
  StoredTensor tensor;
  std::map<Place, uint32_t> elements;  // of the tensor, by where they are
};

void AddChunk(Random& random, Array& array, const Box& box, const Dims& strides, Files& files) {
  Chunk chunk{box, strides, static_cast<uint32_t>(files.tensor.chunks.size() / 2), random() % 7};
  if (files.tensor.chunks.size() % 2) chunk.offset += uint64_t{1} << 20;  // two chunks in a file
  ForEachIndex(box.shape, [&](const Dims& index) {
    Dims there = index;
    uint64_t at = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) {
      there[axis] += box.origin[axis];
      at += index[axis] * strides[axis];
    }
    files.elements[{chunk.file, chunk.offset + at * kItem}] = array.At(there);
  });
  files.tensor.chunks.push_back(chunk);
}

// A regular grid; chunks at the edge are clipped, with the strides of a whole one.
void LayOutGrid(Random& random, Array& array, Files& files) {
  Dims cells = array.shape;
  files.tensor.grid = array.shape;
  for (size_t axis = 0; axis < cells.size(); ++axis) {
    files.tensor.grid[axis] = Between(random, 1, array.shape[axis] + 1);
    cells[axis] = (array.shape[axis] + files.tensor.grid[axis] - 1) / files.tensor.grid[axis];
  }
  ForEachIndex(cells, [&](const Dims& cell) {
    Box box{cell, files.tensor.grid};
    for (size_t axis = 0; axis < cell.size(); ++axis) box.origin[axis] *= files.tensor.grid[axis];
    AddChunk(random, array, *Intersect(box, WholeBox(array.shape)), RowMajorStrides(files.tensor.grid), files);
  });
}

// Chunks of any height, in any order.
void LayOutFreely(Random& random, Array& array, Files& files) {
  std::vector<Box> boxes;
  for (uint64_t begin = 0; begin < array.shape[0];) {
    Box box = WholeBox(array.shape);
    box.origin[0] = begin;
    box.shape[0] = Between(random, 1, array.shape[0] - begin);
    begin += box.shape[0];
    boxes.push_back(box);
  }
  std::shuffle(boxes.begin(), boxes.end(), random);
  for (const Box& box : boxes) AddChunk(random, array, box, RowMajorStrides(box.shape), files);
}

Files LayOut(Random& random, Named& named) {
  Files files;
  files.tensor = {named.name, Dtype::kF32, named.array.shape, {}, {}};
  random() % 3 ? LayOutGrid(random, named.array, files) : LayOutFreely(random, named.array, files);
  return files;
}

// Calls `visit` with each element of a piece: its index in the part, its place.
void ForEachElement(const Piece& piece, const std::function<void(const Dims&, const Place&)>& visit) {
  ForEachIndex(piece.box.shape, [&](const Dims& index) {
    Dims there = index;
    uint64_t at = 0;
    for (size_t axis = 0; axis < index.size(); ++axis) {
      there[axis] += piece.box.origin[axis];
      at += piece.axes[axis].At(index[axis]);
    }
    visit(there, {piece.file, piece.offset + at * kItem});
  });
}

// -- the comparison ---------------------------------------------------------------------------------------------------

// How often each element was met.
using Counts = std::map<PartKey, Array>;

void CheckView(const View& view, const Files& files, Array& part, Array& met, std::set<Place>& used) {
  uint64_t elements = 0;
  ForEachPiece(files.tensor, view, [&](const Piece& piece) {
    EXPECT_EQ(piece.dtype, files.tensor.dtype);
    EXPECT_EQ(Intersect(piece.box, view.box), piece.box);
    elements += ElementCount(piece.box.shape);
    ForEachElement(piece, [&](const Dims& index, const Place& place) {
      ++met.At(index);
      EXPECT_TRUE(used.insert(place).second);
      auto found = files.elements.find(place);
      ASSERT_NE(found, files.elements.end());
      EXPECT_EQ(found->second, part.At(index));
    });
  });
  EXPECT_EQ(elements, ElementCount(view.box.shape));
}

void CheckTensor(const TensorSpec& spec, const Files& files, std::map<PartKey, Array>& parts, Counts& met) {
  std::set<Place> used;
  for (const View& view : spec.views) {
    auto part = parts.find(view.part);
    ASSERT_NE(part, parts.end());
    CheckView(view, files, part->second, met.try_emplace(view.part, Array(part->second.shape)).first->second, used);
  }
  for (const Piece& piece : PaddingPieces(files.tensor, spec)) {
    ForEachElement(piece, [&](const Dims&, const Place& place) {
      EXPECT_TRUE(used.insert(place).second);
      auto found = files.elements.find(place);
      ASSERT_NE(found, files.elements.end());
      EXPECT_EQ(found->second, 0u);
    });
  }
  EXPECT_EQ(used.size(), files.elements.size());
}

void CheckStorage(Random& random, const Model& model, const Rank& rank, const std::vector<const Layout*>& layouts) {
  Reference reference(model, rank);
  std::vector<Named> expected = reference.Tensors(layouts);
  std::vector<TensorSpec> specs = TensorsOf(model, rank, layouts);
  ASSERT_EQ(specs.size(), expected.size());
  Counts met;
  for (size_t i = 0; i < specs.size(); ++i) {
    SCOPED_TRACE(specs[i].name);
    ASSERT_EQ(specs[i].name, expected[i].name);
    ASSERT_EQ(specs[i].shape, expected[i].array.shape);
    CheckTensor(specs[i], LayOut(random, expected[i]), reference.parts(), met);
  }
  ASSERT_EQ(met.size(), reference.parts().size());
  for (auto& [key, counts] : met)
    EXPECT_EQ(counts.values, std::vector<uint32_t>(counts.values.size(), 1)) << PartName(RowsOf(model), key);
}

std::vector<const Layout*> Choose(const Model& model, const Rank& rank, Layouts Block::*layouts,
                                  const std::set<std::string>& absent = {}) {
  return ChooseLayouts(model, rank, layouts, "toy", [&](const TensorSpec& spec) { return !absent.count(spec.name); });
}

void CheckRandomModels(LayerRule rule, Layouts Block::*layouts, bool stacks_layers) {
  const Family family = ToyFamily(rule);
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Model model = RandomModel(random, family);
    Rank rank = RandomRank(random, model);
    rank.stacks_layers = stacks_layers;
    CheckStorage(random, model, rank, Choose(model, rank, layouts));
    if (testing::Test::HasFailure()) return;
  }
}

TEST(TensorsOf, StoresPartsApart) {
  for (LayerRule rule : {LayerRule::kAllDense, LayerRule::kAllMoe, LayerRule::kDenseFirst, LayerRule::kSparseSteps})
    CheckRandomModels(rule, &Block::hf, false);
}

TEST(TensorsOf, PacksPartsInNumberedLayers) {
  for (LayerRule rule : {LayerRule::kAllDense, LayerRule::kAllMoe, LayerRule::kDenseFirst, LayerRule::kSparseSteps})
    CheckRandomModels(rule, &Block::nemo, false);
}

TEST(TensorsOf, PacksPartsInStackedLayers) {
  for (LayerRule rule : {LayerRule::kAllDense, LayerRule::kAllMoe}) CheckRandomModels(rule, &Block::nemo, true);
}

// One tensor an expert, with an axis for the layers.
TEST(TensorsOf, StacksTheLayersOfNumberedExperts) {
  for (LayerRule rule : {LayerRule::kAllDense, LayerRule::kAllMoe}) CheckRandomModels(rule, &Block::hf, true);
  const Family family = ToyFamily(LayerRule::kAllMoe);
  Random random(1);
  Model model = RandomModel(random, family);
  model.sizes['E'] = 3;
  Rank rank{{0, model.sizes['L']}, {1, 3}, model.sizes['V'], true, true};
  std::vector<std::string> names;
  for (const TensorSpec& spec : TensorsOf(model, rank, Choose(model, rank, &Block::hf))) names.push_back(spec.name);
  EXPECT_THAT(names, testing::IsSupersetOf({"layers.experts.0.gate", "layers.experts.1.gate"}));
  EXPECT_THAT(names, testing::Each(testing::Not(HasSubstr("{"))));
}

TEST(TensorsOf, RefusesToStackLayersThatDiffer) {
  const Family family = ToyFamily(LayerRule::kDenseFirst);
  Random random(1);
  Model model = RandomModel(random, family);
  model.sizes['L'] = 3;
  model.layers = LayerPlan(family, 3, Json::parse(R"({"first_k_dense_replace": 1})"), "config.json");
  Rank rank{{0, 3}, {0, model.sizes['E']}, model.sizes['V'], true, true};
  try {
    TensorsOf(model, rank, Choose(model, {{0, 3}, rank.experts, rank.vocab_rows}, &Block::nemo));
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("exists on 1 of 3 layers"));
  }
}

// Megatron-core's fused QKV of two query groups, three heads each: per group its heads' q, then k, then v.
TEST(TensorsOf, GroupsByQueryGroup) {
  const Family family = ToyFamily(LayerRule::kAllDense);
  Random random(1);
  Model model = RandomModel(random, family);
  for (auto [letter, size] : {std::pair{'G', 2}, {'A', 6}, {'D', 1}, {'H', 1}}) model.sizes[letter] = size;
  Rank rank{{0, 1}, {0, 1}, model.sizes['V']};
  Reference reference(model, rank);
  std::vector<Named> tensors = reference.Tensors(Choose(model, rank, &Block::nemo));
  ASSERT_EQ(tensors[1].name, "decoder.layers.0.qkv.weight");
  const uint32_t q = reference.parts().at({1, 0, -1}).values[0];  // k and v are numbered on
  EXPECT_EQ(tensors[1].array.values,
            (std::vector<uint32_t>{q, q + 1, q + 2, q + 6, q + 8, q + 3, q + 4, q + 5, q + 7, q + 9}));
  CheckStorage(random, model, rank, Choose(model, rank, &Block::nemo));
}

TEST(ForEachPiece, SaysWhatIsStoredMinusOne) {
  StoredTensor tensor{"norms", Dtype::kF32, {2, 4}, {}, {}};
  for (uint32_t file : {0, 1}) tensor.chunks.push_back({{{0, file * 2}, {2, 2}}, {2, 1}, file, 0});
  View view;
  view.origin = {1, 0};
  view.box = WholeBox({4});
  view.axes[0] = {4, 0};
  for (bool minus_one : {false, true}) {
    view.minus_one = minus_one;
    std::vector<bool> found;
    ForEachPiece(tensor, view, [&](const Piece& piece) { found.push_back(piece.minus_one); });
    EXPECT_EQ(found, std::vector<bool>(2, minus_one));
    EXPECT_EQ(Scaled(view, {2, 4}, {2, 2}).minus_one, minus_one);
  }
  TensorSpec spec{"norms", 0, nullptr, {2, 4}, 1, {view}};
  for (const Piece& piece : PaddingPieces(tensor, spec)) EXPECT_FALSE(piece.minus_one);
}

TEST(ChooseLayouts, TakesTheFirstFormWhoseNamesAreAllThere) {
  const Family family = ToyFamily(LayerRule::kAllMoe);
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Model model = RandomModel(random, family);
    Rank rank = RandomRank(random, model);
    auto first = Choose(model, rank, &Block::hf);
    EXPECT_NE(std::find(first.begin(), first.end(), &kMoeApart[3]), first.end());
    auto second = Choose(model, rank, &Block::hf, {"layers.0.experts.0.down"});
    ASSERT_NE(std::find(second.begin(), second.end(), &kMoeFused[2]), second.end());
    EXPECT_EQ(std::find(second.begin(), second.end(), &kMoeApart[3]), second.end());
    CheckStorage(random, model, rank, second);
    EXPECT_EQ(Choose(model, rank, &Block::hf, {"layers.0.router"}), first);  // neither form: the first
  }
}

TEST(ChooseLayouts, RefusesABlockThatTheKindDoesNotKnow) {
  static constexpr Block kUnknown = {kMoeRows, Layouts(kMoeApart), Layouts()};
  static constexpr const Block* kUnknownBlocks[] = {&kRowsBlock, &kUnknown};
  Family family = ToyFamily(LayerRule::kAllMoe);
  family.blocks = kUnknownBlocks;
  Random random(1);
  Model model = RandomModel(random, family);
  Rank rank = RandomRank(random, model);
  EXPECT_FALSE(Choose(model, rank, &Block::hf).empty());
  try {
    Choose(model, rank, &Block::nemo);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kUnsupported);
  }
}

TEST(PartName, NamesLayerAndExpert) {
  const Family family = ToyFamily(LayerRule::kAllMoe);
  Random random(1);
  Model model = RandomModel(random, family);
  model.flags = {"bias"};
  std::vector<ModelRow> rows = RowsOf(model);
  EXPECT_EQ(PartName(rows, {0, -1, -1}), "embed");
  EXPECT_EQ(PartName(rows, {1, 3, -1}), "q, layer 3");
  EXPECT_EQ(PartName(rows, {19, 2, 5}), "expert_gate, layer 2, expert 5");
}

TEST(ToyFamily, HasBlocksThatAreRight) {
  for (const Block* block : kBlocks) EXPECT_THAT(CheckBlock(*block), testing::IsEmpty());
}

}  // namespace
}  // namespace reshard
