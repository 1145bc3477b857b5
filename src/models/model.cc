#include "models/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "base/error.h"

namespace reshard {
namespace {

// Rows of all heads together: keeps products of sizes within 64 bits.
constexpr uint64_t kMaxHeadRows = uint64_t{1} << 23;

// "A*D H" over the model's sizes.
Dims ShapeOf(std::string_view text, const Sizes& sizes) {
  Dims shape;
  uint64_t extent = 1;
  for (char symbol : text) {
    if (symbol == ' ') {
      shape.push_back(extent);
      extent = 1;
    } else if (symbol != '*') {
      extent *= sizes[symbol];
    }
  }
  shape.push_back(extent);
  return shape;
}

uint64_t UnsignedAt(const Json& config, const char* key, uint64_t otherwise) {
  auto found = config.find(key);
  return found != config.end() && found->is_number_unsigned() ? found->get<uint64_t>() : otherwise;
}

LayerKind SparseStepKind(uint64_t layer, const Json& config) {
  auto dense = config.find("mlp_only_layers");
  bool listed =
      dense != config.end() && dense->is_array() && std::find(dense->begin(), dense->end(), layer) != dense->end();
  uint64_t step = std::max<uint64_t>(UnsignedAt(config, "decoder_sparse_step", 1), 1);
  return listed || (layer + 1) % step != 0 ? LayerKind::kDense : LayerKind::kMoe;
}

LayerKind KindOfLayer(LayerRule rule, uint64_t layer, const Json& config) {
  switch (rule) {
    case LayerRule::kAllDense:
      return LayerKind::kDense;
    case LayerRule::kAllMoe:
      return LayerKind::kMoe;
    case LayerRule::kDenseFirst:
      return layer < UnsignedAt(config, "first_k_dense_replace", 0) ? LayerKind::kDense : LayerKind::kMoe;
    case LayerRule::kSparseSteps:
      return SparseStepKind(layer, config);
  }
  throw Error(Code::kInternal, "a layer rule without a case");
}

void CheckLayouts(const char* kind, const Block& block, std::span<const Layout> layouts,
                  std::span<const std::string_view> lacks, std::vector<std::string>& out) {
  std::map<std::string_view, int> held;
  for (const PartRow& row : block.rows) held[row.role] = 0;
  for (std::string_view role : lacks) ++held[role];  // and so by no layout
  for (const Layout& layout : layouts) {
    for (size_t i = 0; i < layout.tree.size; ++i) {
      const Node& node = layout.tree.nodes[i];
      if (node.type != Node::Type::kPart) continue;
      auto row = held.find(node.role);
      if (row == held.end()) {
        out.push_back(fmt::format("{}: '{}' holds '{}', which is no row of its block", kind, layout.name, node.role));
      } else {
        ++row->second;
      }
    }
  }
  for (auto [role, times] : held)
    if (times != 1) out.push_back(fmt::format("{}: '{}' is held {} times, expected once", kind, role, times));
}

}  // namespace

bool Model::Has(std::string_view flag) const { return std::find(flags.begin(), flags.end(), flag) != flags.end(); }

std::vector<ModelRow> RowsOf(const Model& model) {
  std::vector<ModelRow> rows;
  for (const Block* block : model.family->blocks)
    for (const PartRow& row : block->rows)
      if (row.when.empty() || model.Has(row.when)) rows.push_back({&row, ShapeOf(row.shape, model.sizes)});
  return rows;
}

std::vector<LayerKind> LayerPlan(const Family& family, uint64_t layers, const Json& config) {
  std::vector<LayerKind> kinds;
  for (uint64_t layer = 0; layer < layers; ++layer) kinds.push_back(KindOfLayer(family.layers, layer, config));
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
