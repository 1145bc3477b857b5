#include "models/storage.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/bytes.h"
#include "base/error.h"

namespace reshard {
namespace {

constexpr std::string_view kLayerMark = "{L}", kExpertMark = "{E}";

// -- unpacking a tree -------------------------------------------------------------------------------------------------

struct Packed {
  Dims shape;
  size_t lead = 0;
  std::vector<View> views;
};

// One walk over the prefix order of a layout's tree, for one layer and one expert.
class Unpacker {
 public:
  Unpacker(const Model& model, const std::vector<ModelRow>& rows, const Rank& rank, const Tree& tree)
      : model_(model), rows_(rows), rank_(rank), tree_(tree) {}

  Packed Unpack(int32_t layer, int32_t expert) {
    next_ = 0;
    return Walk(layer, expert);
  }

 private:
  Packed Walk(int32_t layer, int32_t expert) {
    const Node& node = tree_.nodes[next_++];
    switch (node.type) {
      case Node::Type::kPart:
        return Share(node.role, layer, expert);
      case Node::Type::kInterleave:
        return Interleaved(node, layer, expert);
      case Node::Type::kStack:
        return Stacked(node, layer, expert);
    }
    throw Error(Code::kInternal, "a tree node without a case");
  }

  // The rank's share of a part: what it stores, and the box of the part that this is.
  Packed Share(std::string_view role, int32_t layer, int32_t expert) {
    auto row = std::find_if(rows_.begin(), rows_.end(), [&](const ModelRow& r) { return r.row->role == role; });
    const Box share = ShareOf(*row);
    Packed packed{share.shape, 0, {}};
    std::optional<Box> real = Intersect(WholeBox(row->shape), share);
    if (!real) return packed;  // nothing but padding
    View view;
    view.part.row = static_cast<uint32_t>(row - rows_.begin());
    view.part.layer = row->row->scope == Scope::kGlobal ? -1 : layer;
    view.part.expert = row->row->scope == Scope::kExpert ? expert : -1;
    view.origin = Dims::Filled(packed.shape.size(), 0);
    view.box = *real;
    view.minus_one = row->row->norm && rank_.zero_centred.value_or(model_.family->zero_centred);
    for (size_t axis = 0; axis < packed.shape.size(); ++axis) view.axes[axis] = {view.box.shape[axis], 0};
    packed.views = {view};
    if (row->row->split.unit == 'G' && rank_.kv_copies > 1) Repeat(row->row->split.axis, packed);
    return packed;
  }

  // Each group's elements along `axis`, several times.
  void Repeat(size_t axis, Packed& packed) {
    const uint64_t copies = rank_.kv_copies, group = packed.shape[axis] / model_.sizes['G'];
    View view = packed.views[0];
    packed.views.clear();
    packed.shape[axis] *= copies;
    view.axes[axis] = {group, copies * group};
    for (uint64_t copy = 0; copy < copies; ++copy, view.origin[axis] += group) packed.views.push_back(view);
  }

  // The rank's box of a row; it may reach beyond the row, into padding.
  Box ShareOf(const ModelRow& row) const {
    Box share = WholeBox(row.shape);
    const Split& split = row.row->split;
    if (split.unit == 'V') share.shape[split.axis] = rank_.vocab_rows;
    std::optional<uint8_t> axis = split.axis;
    if (row.row->role == "embed") axis = rank_.embedding_axis;
    if (!split.unit || !axis) return share;
    uint64_t& extent = share.shape[*axis];
    const Shard& shard = row.row->scope == Scope::kExpert ? rank_.expert_tensor : rank_.tensor;
    const uint64_t groups = model_.sizes['G'];
    if (split.unit == 'G' && shard.count > groups) {  // ranks that share a group hold it each
      extent /= groups;
      share.origin[*axis] = shard.index * groups / shard.count * extent;
      return share;
    }
    extent = CeilDiv(extent, shard.count);  // what is not a vocabulary divides
    share.origin[*axis] = shard.index * extent;
    return share;
  }

  // Members of an interleave on the rank.
  uint64_t CountOf(const Node& node) const {
    if (node.count < ' ') return static_cast<uint64_t>(node.count);
    return std::max<uint64_t>(model_.sizes[node.count] / rank_.tensor.count, 1);
  }

  Packed Interleaved(const Node& node, int32_t layer, int32_t expert) {
    const uint64_t n = CountOf(node);
    std::vector<Packed> members;
    uint64_t step = 0;  // rows of one round of all members
    for (int i = 0; i < node.members; ++i) {
      members.push_back(Walk(layer, expert));
      step += members.back().shape[members.back().lead + node.axis] / n;
    }
    Packed packed{members[0].shape, members[0].lead, {}};
    packed.shape[packed.lead + node.axis] = step * n;
    uint64_t offset = 0;
    for (const Packed& member : members) {
      uint64_t block = member.shape[member.lead + node.axis] / n;
      for (const View& view : member.views) AddInterleaved(view, node.axis, {block, step}, offset, packed.views);
      offset += block;
    }
    return packed;
  }

  // `view` of a member whose rows go, `axis.block` at a time, to every `axis.step`-th row from `offset` on.
  static void AddInterleaved(View view, size_t axis, View::Axis round, uint64_t offset, std::vector<View>& out) {
    uint64_t& origin = view.origin[view.lead() + axis];
    uint64_t within = origin % round.block;
    bool in_one_block = within + view.box.shape[axis] <= round.block;
    if (!in_one_block && (view.axes[axis].block < view.box.shape[axis] || within != 0))
      throw Error(Code::kInternal, "an interleave within an interleave along the same axis");
    origin = origin / round.block * round.step + within + offset;
    if (!in_one_block) view.axes[axis] = round;
    out.push_back(view);
  }

  Packed Stacked(const Node& node, int32_t layer, int32_t expert) {
    Range range = node.index == 'L' ? rank_.layers : rank_.experts;
    size_t member = next_;
    Packed packed;
    for (uint64_t i = range.begin; i < range.end; ++i) {
      next_ = member;
      int32_t index = static_cast<int32_t>(i);
      Packed one = node.index == 'L' ? Walk(index, expert) : Walk(layer, index);
      if (i == range.begin) packed.shape = Prepend(range.size(), one.shape);
      packed.lead = one.lead + 1;
      for (View& view : one.views) {
        view.origin = Prepend(i - range.begin, view.origin);
        packed.views.push_back(view);
      }
    }
    return packed;
  }

  static Dims Prepend(uint64_t value, const Dims& dims) {
    Dims longer{value};
    for (uint64_t extent : dims) longer.push_back(extent);
    return longer;
  }

  const Model& model_;
  const std::vector<ModelRow>& rows_;
  const Rank& rank_;
  const Tree& tree_;
  size_t next_ = 0;
};

// -- which layouts exist where ----------------------------------------------------------------------------------------

std::string Replace(std::string text, std::string_view mark, const std::string& by) {
  size_t at = text.find(mark);
  return at == std::string::npos ? text : text.replace(at, mark.size(), by);
}

bool IsLayered(const Layout& layout) { return layout.name.find(kLayerMark) != std::string_view::npos; }

// All specs of a model's layouts on a rank; what TensorsOf promises.
class Specs {
 public:
  Specs(const Model& model, const Rank& rank) : model_(model), rank_(rank), rows_(RowsOf(model)) {}

  std::vector<TensorSpec> All(const std::vector<const Layout*>& layouts) {
    auto first_layered = std::find_if(layouts.begin(), layouts.end(), [](auto* layout) { return IsLayered(*layout); });
    const bool first_stage = rank_.layers.begin == 0, last_stage = rank_.layers.end == model_.layers.size();
    for (auto it = layouts.begin(); it != first_layered; ++it)
      if (first_stage) AddGlobal(**it);
    if (rank_.stacks_layers) {
      for (auto* layout : layouts)
        if (IsLayered(*layout)) AddStacked(*layout);
    } else {
      for (uint64_t layer = rank_.layers.begin; layer < rank_.layers.end; ++layer)
        for (auto* layout : layouts)
          if (IsLayered(*layout)) AddOfLayer(*layout, layer);
    }
    for (auto it = first_layered; it != layouts.end(); ++it)
      if (last_stage && !IsLayered(**it)) AddGlobal(**it);
    return std::move(specs_);
  }

  std::vector<TensorSpec> OfLayer(const std::vector<const Layout*>& layouts, uint64_t layer) {
    for (auto* layout : layouts) {
      if (!IsLayered(*layout) || !Exists(*layout, layer)) continue;
      if (rank_.stacks_layers) {
        AddNumbered(*layout, layout->tree, StackedName(*layout), static_cast<int32_t>(layer));
      } else {
        AddOfLayer(*layout, layer);
      }
    }
    return std::move(specs_);
  }

 private:
  static std::string StackedName(const Layout& layout) { return Replace(std::string(layout.name), "{L}.", ""); }

  // Whether the rank has all parts of the layout; for layered ones, in layer `layer`.
  bool Exists(const Layout& layout, uint64_t layer) const {
    for (size_t i = 0; i < layout.tree.size; ++i) {
      const Node& node = layout.tree.nodes[i];
      if (node.type != Node::Type::kPart) continue;
      auto row = std::find_if(rows_.begin(), rows_.end(), [&](const ModelRow& r) { return r.row->role == node.role; });
      if (row == rows_.end() || (node.role == "head" && !rank_.stores_head)) return false;
      if (row->row->scope != Scope::kGlobal && !row->IsOn(model_.layers[layer])) return false;
    }
    return true;
  }

  void AddGlobal(const Layout& layout) {
    if (Exists(layout, 0)) Add(layout, layout.tree, std::string(layout.name), -1, -1);
  }

  void AddOfLayer(const Layout& layout, uint64_t layer) {
    if (!Exists(layout, layer)) return;
    std::string name = Replace(std::string(layout.name), kLayerMark, std::to_string(layer - rank_.layers.begin));
    AddNumbered(layout, layout.tree, name, static_cast<int32_t>(layer));
  }

  void AddStacked(const Layout& layout) {
    uint64_t count = 0;
    for (uint64_t layer = rank_.layers.begin; layer < rank_.layers.end; ++layer) count += Exists(layout, layer);
    if (count == 0) return;
    if (count != rank_.layers.size())
      throw Error(Code::kUnsupported, fmt::format("'{}' exists on {} of {} layers, and stacked tensors hold all layers",
                                                  layout.name, count, rank_.layers.size()));
    AddNumbered(layout, Stack('L', layout.tree), StackedName(layout), -1);
  }

  // One for each expert where the name says so.
  void AddNumbered(const Layout& layout, const Tree& tree, const std::string& name, int32_t layer) {
    if (name.find(kExpertMark) == std::string::npos) return Add(layout, tree, name, layer, -1);
    for (uint64_t expert = rank_.experts.begin; expert < rank_.experts.end; ++expert)
      Add(layout, tree, Replace(name, kExpertMark, std::to_string(expert - rank_.experts.begin)), layer,
          static_cast<int32_t>(expert));
  }

  void Add(const Layout& layout, const Tree& tree, std::string name, int32_t layer, int32_t expert) {
    Packed packed = Unpacker(model_, rows_, rank_, tree).Unpack(layer, expert);
    specs_.push_back({std::move(name), 0, &layout, packed.shape, packed.lead, std::move(packed.views)});
  }

  const Model& model_;
  const Rank& rank_;
  std::vector<ModelRow> rows_;
  std::vector<TensorSpec> specs_;
};

// The first layer of the rank that has the block; the end of its layers where none has.
uint64_t FirstLayerOf(const Model& model, const Rank& rank, const Block& block) {
  uint64_t layer = rank.layers.begin;
  while (layer < rank.layers.end && !(block.on & static_cast<LayerKinds>(model.layers[layer]))) ++layer;
  return layer;
}

bool IsAnywhere(const Model& model, const Block& block) {
  return std::any_of(model.layers.begin(), model.layers.end(),
                     [&](LayerKind kind) { return (block.on & static_cast<LayerKinds>(kind)) != 0; });
}

// The first row of the block that the model has and the kind has no place for; empty where there is none.
std::string_view RowWithoutPlace(const Model& model, const Block& block, const Layouts& layouts) {
  if (!IsAnywhere(model, block)) return {};
  for (const PartRow& row : block.rows) {
    bool exists = row.when.empty() || model.Has(row.when);
    bool lacks = std::find(layouts.lacks.begin(), layouts.lacks.end(), row.role) != layouts.lacks.end();
    if (exists && (!layouts.known || lacks)) return row.role;
  }
  return {};
}

std::vector<const Layout*> Pointers(std::span<const Layout> layouts) {
  std::vector<const Layout*> pointers;
  for (const Layout& layout : layouts) pointers.push_back(&layout);
  return pointers;
}

// -- views and chunks -------------------------------------------------------------------------------------------------

// What a view's axis and a chunk's axis have in common, in up to three runs: blocks that the chunk holds whole, and
// those that its borders cut.
struct Segment {
  uint64_t begin, size;  // of the view's axis
  Axis axis;             // within the chunk
  uint64_t start;        // elements from the chunk's first to the segment's first
};

struct AxisMeeting {
  uint64_t length, origin;  // of the view: its extent, the tensor coordinate of its first index
  View::Axis axis;
  uint64_t low, high, stride;  // of the chunk: coordinates that it holds, elements from one to the next
};

std::vector<Segment> Meet(const AxisMeeting& m) {
  std::vector<Segment> segments;
  auto add = [&](uint64_t begin, uint64_t size, uint64_t coordinate) {
    uint64_t block = std::min(m.axis.block, size);
    segments.push_back({begin, size, {block, m.stride, m.axis.step * m.stride}, (coordinate - m.low) * m.stride});
  };
  uint64_t blocks = CeilDiv(m.length, m.axis.block);
  for (uint64_t i = 0; i < blocks; ++i) {
    uint64_t first = m.origin + i * m.axis.step;
    uint64_t rows = std::min(m.axis.block, m.length - i * m.axis.block);
    uint64_t low = std::max(first, m.low), high = std::min(first + rows, m.high);
    if (low >= high) continue;
    uint64_t begin = i * m.axis.block + (low - first);
    bool whole = low == first && high == first + m.axis.block;
    Segment* last = segments.empty() ? nullptr : &segments.back();
    // A whole block behind whole blocks makes their run longer.
    if (whole && last && last->begin + last->size == begin && last->size % m.axis.block == 0) {
      last->size += m.axis.block;
    } else {
      add(begin, high - low, low);
    }
  }
  return segments;
}

void AddPieces(const StoredTensor& tensor, const View& view, const Chunk& chunk,
               const std::function<void(const Piece&)>& add) {
  Piece piece;
  piece.file = chunk.file;
  piece.dtype = tensor.dtype;
  piece.minus_one = view.minus_one;
  uint64_t lead_start = 0;
  for (size_t axis = 0; axis < view.lead(); ++axis) {
    uint64_t at = view.origin[axis];
    if (at < chunk.box.origin[axis] || at >= chunk.box.end(axis)) return;
    lead_start += (at - chunk.box.origin[axis]) * chunk.strides[axis];
  }
  // The product of the axes' segments, axis by axis.
  std::function<void(size_t, uint64_t)> walk = [&](size_t axis, uint64_t start) {
    if (axis == view.box.shape.size()) {
      piece.offset = chunk.offset + start * ItemSize(tensor.dtype);
      add(piece);
      return;
    }
    size_t stored = view.lead() + axis;
    for (const Segment& segment : Meet({view.box.shape[axis], view.origin[stored], view.axes[axis],
                                        chunk.box.origin[stored], chunk.box.end(stored), chunk.strides[stored]})) {
      piece.box.origin[axis] = view.box.origin[axis] + segment.begin;
      piece.box.shape[axis] = segment.size;
      piece.axes[axis] = segment.axis;
      walk(axis + 1, start + segment.start);
    }
  };
  piece.box = view.box;
  walk(0, lead_start);
}

// Calls `visit` with each chunk that may meet `box` of the tensor: by grid cell where there is a grid.
void ForEachChunk(const StoredTensor& tensor, const Box& box, const std::function<void(const Chunk&)>& visit) {
  if (tensor.grid.empty()) {
    for (const Chunk& chunk : tensor.chunks)
      if (Intersect(chunk.box, box)) visit(chunk);
    return;
  }
  std::function<void(size_t, uint64_t)> walk = [&](size_t axis, uint64_t cell) {
    if (axis == tensor.grid.size()) return visit(tensor.chunks[cell]);
    uint64_t cells = CeilDiv(tensor.shape[axis], tensor.grid[axis]);
    for (uint64_t i = box.origin[axis] / tensor.grid[axis]; i * tensor.grid[axis] < box.end(axis); ++i)
      walk(axis + 1, cell * cells + i);
  };
  walk(0, 0);
}

// The smallest box of the stored tensor that holds the view.
Box BoundsOf(const View& view) {
  Box bounds{view.origin, Dims::Filled(view.origin.size(), 1)};
  for (size_t axis = 0; axis < view.box.shape.size(); ++axis) {
    uint64_t last = view.box.shape[axis] - 1;
    const View::Axis& a = view.axes[axis];
    bounds.shape[view.lead() + axis] = last / a.block * a.step + (a.block > last ? last : a.block - 1) + 1;
  }
  return bounds;
}

}  // namespace

std::vector<TensorSpec> TensorsOf(const Model& model, const Rank& rank, const std::vector<const Layout*>& layouts) {
  return Specs(model, rank).All(layouts);
}

std::vector<TensorSpec> TensorsOf(const Model& model, const std::vector<Rank>& ranks,
                                  const std::vector<const Layout*>& layouts) {
  std::vector<TensorSpec> all;
  for (uint32_t rank = 0; rank < ranks.size(); ++rank) {
    for (TensorSpec& spec : TensorsOf(model, ranks[rank], layouts)) {
      spec.rank = rank;
      all.push_back(std::move(spec));
    }
  }
  return all;
}

std::vector<TensorSpec> TensorsOfLayer(const Model& model, const Rank& rank, const std::vector<const Layout*>& layouts,
                                       uint64_t layer) {
  return Specs(model, rank).OfLayer(layouts, layer);
}

std::vector<std::string> Indivisible(const Model& model, const Rank& rank) {
  struct Divided {
    uint64_t size;
    const char* what;
    uint64_t ranks;
  };
  const uint64_t ranks = rank.tensor.count;
  std::vector<Divided> all = {{model.sizes['A'], "attention heads", ranks}};
  const auto has = [&](LayerKind kind) { return std::count(model.layers.begin(), model.layers.end(), kind) > 0; };
  if (has(LayerKind::kDense)) all.push_back({model.sizes['F'], "ffn columns", ranks});
  if (has(LayerKind::kMoe)) all.push_back({model.sizes['M'], "ffn columns of an expert", rank.expert_tensor.count});
  if (has(LayerKind::kMoe)) all.push_back({model.sizes['S'], "ffn columns of the shared expert", ranks});
  const uint64_t groups = model.sizes['G'];
  std::vector<std::string> problems;
  if (rank.embedding_axis == 1) all.push_back({model.sizes['H'], "embedding columns", ranks});
  if (groups >= ranks) all.push_back({groups, "query groups", ranks});
  for (const Divided& row : all)
    if (row.size % row.ranks != 0) problems.push_back(fmt::format("{} {} by {} ranks", row.size, row.what, row.ranks));
  if (groups < ranks && ranks % groups != 0)
    problems.push_back(fmt::format("{} query groups copied to {} ranks, no multiple of them", groups, ranks));
  return problems;
}

std::vector<const Layout*> ChooseLayouts(const Model& model, const Rank& rank, Layouts Block::*layouts,
                                         std::string_view kind, const std::function<bool(const TensorSpec&)>& present) {
  std::vector<const Layout*> chosen;
  for (const Block* block : model.family->blocks) {
    const Layouts& known = block->*layouts;
    if (std::string_view role = RowWithoutPlace(model, *block, known); !role.empty())
      throw Error(Code::kUnsupported,
                  fmt::format("a {} checkpoint has no place for '{}' of {}", kind, role, model.family->name));
    const uint64_t layer = FirstLayerOf(model, rank, *block);
    if (rank.by_module) {
      for (const Layout* layout : Pointers(known.forms[known.by_module])) chosen.push_back(layout);
      continue;
    }
    std::vector<const Layout*> best = Pointers(known.forms[0]);
    ptrdiff_t most = 0;
    for (std::span<const Layout> form : known.forms) {
      if (layer == rank.layers.end) break;
      std::vector<const Layout*> candidate = Pointers(form);
      std::vector<TensorSpec> specs = TensorsOfLayer(model, rank, candidate, layer);
      const ptrdiff_t found = std::count_if(specs.begin(), specs.end(), present);
      const bool all = !specs.empty() && found == static_cast<ptrdiff_t>(specs.size());
      if (all || found > most) {
        most = found;
        best = std::move(candidate);
      }
      if (all) break;
    }
    chosen.insert(chosen.end(), best.begin(), best.end());
  }
  return chosen;
}

View Scaled(const View& view, const Dims& whole, const Dims& scaled) {
  View seen = view;
  for (size_t axis = 0; axis < view.box.shape.size(); ++axis) {
    const uint64_t per = whole[view.lead() + axis] / scaled[view.lead() + axis];
    seen.box.origin[axis] /= per;
    seen.box.shape[axis] = CeilDiv(view.box.end(axis), per) - seen.box.origin[axis];
    seen.origin[view.lead() + axis] /= per;
    seen.axes[axis] = {CeilDiv(view.axes[axis].block, per), view.axes[axis].step / per};
  }
  return seen;
}

void ForEachPiece(const StoredTensor& tensor, const View& view, const std::function<void(const Piece&)>& add) {
  ForEachChunk(tensor, BoundsOf(view), [&](const Chunk& chunk) { AddPieces(tensor, view, chunk, add); });
}

std::vector<Piece> PaddingPieces(const StoredTensor& tensor, const TensorSpec& spec) {
  std::vector<Box> holes = {WholeBox(spec.shape)};
  for (const View& view : spec.views) {
    Box bounds = BoundsOf(view);
    if (ElementCount(bounds.shape) != ElementCount(view.box.shape)) return {};  // interleaved parts leave no padding
    std::vector<Box> rest;
    for (const Box& hole : holes)
      for (const Box& box : Subtract(hole, bounds)) rest.push_back(box);
    holes = std::move(rest);
  }
  std::vector<Piece> pieces;
  for (const Box& hole : holes) {
    View view;
    view.box = WholeBox(hole.shape);
    view.origin = hole.origin;
    for (size_t axis = 0; axis < hole.shape.size(); ++axis) view.axes[axis] = {hole.shape[axis], 0};
    ForEachPiece(tensor, view, [&](const Piece& piece) {
      pieces.push_back(piece);
      pieces.back().box = WholeBox(piece.box.shape);
    });
  }
  return pieces;
}

std::string PartName(const std::vector<ModelRow>& rows, const PartKey& key) {
  std::string name(rows[key.row].row->role);
  if (key.layer >= 0) name += fmt::format(", layer {}", key.layer);
  if (key.expert >= 0) name += fmt::format(", expert {}", key.expert);
  return name;
}

}  // namespace reshard
