#include "models/model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/error.h"

namespace reshard {
namespace {

// Rows of all heads together: keeps products of sizes within 64 bits.
constexpr uint64_t kMaxHeadRows = uint64_t{1} << 23;

// "A*D H" over the model's sizes; a digit is itself.
Dims ShapeOf(std::string_view text, const Sizes& sizes) {
  Dims shape;
  uint64_t extent = 1;
  for (char symbol : text) {
    if (symbol == ' ') {
      shape.push_back(extent);
      extent = 1;
    } else if (symbol != '*') {
      extent *= symbol <= '9' ? static_cast<uint64_t>(symbol - '0') : sizes[symbol];
    }
  }
  shape.push_back(extent);
  return shape;
}

// A whole number of the rule; absent and null give `otherwise`.
uint64_t CountAt(const Json& config, const char* key, uint64_t otherwise, const std::string& path) {
  auto found = config.find(key);
  if (found == config.end() || found->is_null()) return otherwise;
  if (!found->is_number_integer() || *found < 0)
    throw Error(Code::kCorrupt, fmt::format("{} is {}, expected a whole number of at least 0", key, found->dump()))
        .At("reading", path);
  return found->get<uint64_t>();
}

LayerKind SparseStepKind(uint64_t layer, const Json& config, const std::string& path) {
  auto dense = config.find("mlp_only_layers");
  bool listed =
      dense != config.end() && dense->is_array() && std::find(dense->begin(), dense->end(), layer) != dense->end();
  uint64_t step = std::max<uint64_t>(CountAt(config, "decoder_sparse_step", 1, path), 1);
  return listed || (layer + 1) % step != 0 ? LayerKind::kDense : LayerKind::kMoe;
}

LayerKind KindOfLayer(LayerRule rule, uint64_t layer, const Json& config, const std::string& path) {
  switch (rule) {
    case LayerRule::kAllDense:
      return LayerKind::kDense;
    case LayerRule::kAllMoe:
      return LayerKind::kMoe;
    case LayerRule::kDenseFirst:
      return layer < CountAt(config, "first_k_dense_replace", 0, path) ? LayerKind::kDense : LayerKind::kMoe;
    case LayerRule::kSparseSteps:
      return SparseStepKind(layer, config, path);
  }
  throw Error(Code::kInternal, "a layer rule without a case");
}

// What a table says of an extent: the sum of what its members bring, each a product of sizes ("A*D").
using Extent = std::vector<std::string_view>;

// Whether every model can cut the extent into `count` equal parts. A number is up to the model, but 0 never can.
bool CanCut(const Extent& extent, char count) {
  if (count < ' ') return count > 0;
  return std::all_of(extent.begin(), extent.end(), [&](std::string_view product) {
    return product.find(count) != product.npos || (count == 'G' && product.find('A') != product.npos);  // G divides A
  });
}

std::string CountText(char count) { return count < ' ' ? std::to_string(count) : std::string(1, count); }

// One walk over a layout's tree, by the letters of sizes: all that can be checked without a model.
class TreeCheck {
 public:
  TreeCheck(const Block& block, const Tree& tree) : block_(block), tree_(tree) {}

  // Problems, in words that follow the layout's name.
  std::vector<std::string> Problems() {
    Walk();
    if (next_ < tree_.size) problems_.push_back("has nodes behind its tree");
    return std::move(problems_);
  }

 private:
  using Shape = std::vector<Extent>;  // of no axes where it cannot be told

  Shape Walk() {
    if (next_ == tree_.size) {
      problems_.push_back("ends within its tree");
      return {};
    }
    const Node& node = tree_.nodes[next_++];
    switch (node.type) {
      case Node::Type::kPart:
        return Part(node);
      case Node::Type::kInterleave:
        return Interleaved(node);
      case Node::Type::kStack:
        return Stacked(node);
    }
    throw Error(Code::kInternal, "a tree node without a case");
  }

  Shape Part(const Node& node) {
    auto row =
        std::find_if(block_.rows.begin(), block_.rows.end(), [&](const PartRow& r) { return r.role == node.role; });
    if (row == block_.rows.end()) {
      problems_.push_back(fmt::format("holds '{}', which is no row of its block", node.role));
      return {};
    }
    Shape shape;
    for (std::string_view rest = row->shape; !rest.empty();) {
      size_t blank = std::min(rest.find(' '), rest.size());
      shape.push_back({rest.substr(0, blank)});
      rest.remove_prefix(std::min(blank + 1, rest.size()));
    }
    return shape;
  }

  Shape Interleaved(const Node& node) {
    Shape whole;
    if (node.members == 0) problems_.push_back("interleaves no members");
    for (int i = 0; i < node.members; ++i) {
      Shape member = Walk();
      if (member.empty()) continue;
      if (node.axis >= member.size()) {
        problems_.push_back(fmt::format("interleaves along axis {} of {}", node.axis, member.size()));
        continue;
      }
      if (!CanCut(member[node.axis], node.count))
        problems_.push_back(fmt::format("cuts {} into {}", fmt::join(member[node.axis], " + "), CountText(node.count)));
      Join(std::move(member), node.axis, whole);
    }
    return whole;
  }

  void Join(Shape member, size_t axis, Shape& whole) {
    if (whole.empty()) {
      whole = std::move(member);
      return;
    }
    Extent sum = whole[axis];
    sum.insert(sum.end(), member[axis].begin(), member[axis].end());
    if (member.size() == whole.size()) member[axis] = whole[axis];
    if (member != whole) problems_.push_back("interleaves members that differ along other axes");
    whole[axis] = std::move(sum);
  }

  Shape Stacked(const Node& node) {
    if (node.members != 1) problems_.push_back(fmt::format("stacks {} members, expected one", node.members));
    if (node.index != 'L' && node.index != 'E')
      problems_.push_back(fmt::format("stacks over {}, expected L or E", CountText(node.index)));
    Shape shape = Walk();
    if (!shape.empty()) shape.insert(shape.begin(), {node.index == 'L' ? "L" : "E"});
    return shape;
  }

  const Block& block_;
  const Tree& tree_;
  size_t next_ = 0;
  std::vector<std::string> problems_;
};

void CheckLayouts(const char* kind, const Block& block, std::span<const Layout> layouts,
                  std::span<const std::string_view> lacks, std::vector<std::string>& out) {
  std::map<std::string_view, int> held;
  for (const PartRow& row : block.rows) held[row.role] = 0;
  for (std::string_view role : lacks) ++held[role];  // and so by no layout
  for (const Layout& layout : layouts) {
    for (const std::string& problem : TreeCheck(block, layout.tree).Problems())
      out.push_back(fmt::format("{}: '{}' {}", kind, layout.name, problem));
    for (size_t i = 0; i < layout.tree.size; ++i) {
      const Node& node = layout.tree.nodes[i];
      if (node.type == Node::Type::kPart && held.count(node.role)) ++held[node.role];
    }
  }
  for (auto [role, times] : held)
    if (times != 1) out.push_back(fmt::format("{}: '{}' is held {} times, expected once", kind, role, times));
}

}  // namespace

bool Model::Has(std::string_view flag) const { return std::find(flags.begin(), flags.end(), flag) != flags.end(); }

bool Model::IsUniform() const {
  return std::all_of(layers.begin(), layers.end(), [&](LayerKind kind) { return kind == layers[0]; });
}

std::vector<ModelRow> RowsOf(const Model& model) {
  std::vector<ModelRow> rows;
  for (const Block* block : model.family->blocks)
    for (const PartRow& row : block->rows)
      if (row.when.empty() || model.Has(row.when)) rows.push_back({&row, ShapeOf(row.shape, model.sizes), block->on});
  return rows;
}

namespace {

// How many parts a row is of.
uint64_t PartsOf(const ModelRow& row, const Model& model) {
  if (row.row->scope == Scope::kGlobal) return 1;
  const auto layers = std::count_if(model.layers.begin(), model.layers.end(), [&](LayerKind k) { return row.IsOn(k); });
  return static_cast<uint64_t>(layers) * (row.row->scope == Scope::kExpert ? model.sizes['E'] : 1);
}

}  // namespace

uint64_t PartsOf(const Model& model) {
  uint64_t parts = 0;
  for (const ModelRow& row : RowsOf(model)) parts += PartsOf(row, model);
  return parts;
}

uint64_t ParametersOf(const Model& model) {
  uint64_t parameters = 0;
  for (const ModelRow& row : RowsOf(model))
    if (!(model.tied && row.row->role == "head")) parameters += PartsOf(row, model) * ElementCount(row.shape);
  return parameters;
}

std::vector<LayerKind> LayerPlan(const Family& family, uint64_t layers, const Json& config, const std::string& path) {
  std::vector<LayerKind> kinds;
  for (uint64_t layer = 0; layer < layers; ++layer) kinds.push_back(KindOfLayer(family.layers, layer, config, path));
  return kinds;
}

void CompleteSizes(Model& model, std::string_view heads_key, std::string_view groups_key, const std::string& path) {
  Sizes& sizes = model.sizes;
  auto refuse = [&](std::string message) { throw Error(Code::kMismatch, std::move(message)).At("reading", path); };
  if (sizes['A'] % sizes['G'] != 0)
    refuse(fmt::format("{} is {}, expected a multiple of {} {}", heads_key, sizes['A'], groups_key, sizes['G']));
  if (sizes['D'] == 0 && sizes['H'] % sizes['A'] != 0)
    refuse(fmt::format("hidden_size is {}, expected a multiple of {} {} where no head size is given", sizes['H'],
                       heads_key, sizes['A']));
  if (sizes['D'] == 0) sizes['D'] = sizes['H'] / sizes['A'];
  if (sizes['A'] * sizes['D'] > kMaxHeadRows)
    refuse(fmt::format("{} heads of {} elements, expected at most {} together", sizes['A'], sizes['D'], kMaxHeadRows));
}

std::vector<std::string> CheckBlock(const Block& block) {
  std::vector<std::string> problems;
  for (auto [kind, layouts] :
       {std::pair{"hf", &block.hf}, std::pair{"nemo", &block.nemo}, std::pair{"trtllm", &block.trtllm}})
    for (std::span<const Layout> form : layouts->forms)
      if (!form.empty()) CheckLayouts(kind, block, form, layouts->lacks, problems);
  return problems;
}

}  // namespace reshard
