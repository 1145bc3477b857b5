#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "api/open.h"
#include "api/source_io.h"
#include "api/verify.h"
#include "formats/safetensors/sharding.h"
#include "models/families/families.h"
#include "reshard/reshard.h"

namespace reshard {
namespace {

Json TreeJson(const Tree& tree, size_t& next) {
  const Node& node = tree.nodes[next++];
  if (node.type == Node::Type::kPart) return node.role;
  Json members = Json::array();
  for (int i = 0; i < node.members; ++i) members.push_back(TreeJson(tree, next));
  if (node.type == Node::Type::kStack) return {{"stack", std::string(1, node.index)}, {"of", members[0]}};
  Json count = node.count < ' ' ? Json(static_cast<int>(node.count)) : Json(std::string(1, node.count));
  return {{"interleave", count}, {"axis", node.axis}, {"of", members}};
}

Json LayoutsJson(const Layouts& layouts) {
  if (!layouts.known) return nullptr;
  Json forms = Json::array();
  for (std::span<const Layout> form : layouts.forms) {
    if (form.empty()) continue;
    Json rows = Json::array();
    for (const Layout& layout : form) {
      size_t next = 0;
      rows.push_back({{"name", layout.name}, {"holds", TreeJson(layout.tree, next)}, {"fragments", layout.fragments}});
      if (layout.dtype) rows.back()["dtype"] = Row(*layout.dtype).name;
    }
    forms.push_back(rows);
  }
  return forms;
}

Json BlockJson(const Block& block) {
  static constexpr const char* kScopes[] = {"model", "layer", "expert"};
  Json rows = Json::array();
  for (const PartRow& row : block.rows) {
    Json json = {{"role", row.role}, {"scope", kScopes[static_cast<size_t>(row.scope)]}, {"shape", row.shape}};
    if (row.split.unit) json["split"] = {{"axis", row.split.axis}, {"unit", std::string(1, row.split.unit)}};
    if (!row.when.empty()) json["when"] = row.when;
    if (row.norm) json["norm"] = true;
    rows.push_back(json);
  }
  Json json = {{"rows", rows}};
  if (block.on != kAllLayers) json["layers"] = block.on == kMoeLayers ? "moe" : "dense";
  for (auto [kind, layouts] :
       {std::pair{"hf", &block.hf}, std::pair{"nemo", &block.nemo}, std::pair{"trtllm", &block.trtllm}}) {
    json[kind] = LayoutsJson(*layouts);
    if (!layouts->lacks.empty()) json["lacks"][kind] = layouts->lacks;
  }
  return json;
}

std::string GroupsOf(const Encoded& encoded) {
  return encoded.group ? fmt::format(", in groups of {} columns", encoded.group) : "";
}

// The kinds that have a place for models of the family.
std::vector<std::string_view> KindsOf(const Family& family) {
  std::vector<std::string_view> kinds;
  for (const Kind& kind : Kinds())
    if (!kind.knows || kind.knows(family)) kinds.push_back(kind.name);
  return kinds;
}

}  // namespace

const char* Version() { return RESHARD_VERSION; }

InspectReport Inspect(const std::string& path, const SourceHints& hints, const RunOptions& options) {
  const SourceIo io(PosixIo(), path, options, 1, TemporaryFolder());
  Checkpoint checkpoint = OpenCheckpoint(*io, path, "", OpenOptionsFor(*io, path, hints, options, 1));
  InspectReport report;
  report.path = path;
  report.kind = checkpoint.kind;
  report.format = checkpoint.format;
  report.family = checkpoint.model.family->name;
  report.architecture = checkpoint.model.family->class_name;
  for (const auto& [key, value] : HyperParametersOf(checkpoint.model))
    report.hyperparameters.emplace_back(key, value.dump());
  report.parameters = ParametersOf(checkpoint.model);
  std::map<std::string, uint64_t> dtypes;
  for (const StoredTensor& tensor : checkpoint.tensors) {
    report.bytes += ElementCount(tensor.shape) * ItemSize(tensor.dtype);
    std::string dtype(Row(tensor.dtype).name);
    ++dtypes[dtype];
    report.tensors.push_back({FullName(checkpoint.name_prefix, checkpoint.ranks.size(), tensor.rank, tensor.name),
                              dtype,
                              {tensor.shape.begin(), tensor.shape.end()}});
  }
  report.dtypes.assign(dtypes.begin(), dtypes.end());
  for (const SourceFile& file : checkpoint.files) report.shards.push_back({file.relative, file.size});
  if (!checkpoint.quantised.tensors.empty())
    report.notes.push_back(fmt::format("the linear weights are quantised ({}{}); {}", checkpoint.quantised.what,
                                       GroupsOf(checkpoint.quantised.encoded), checkpoint.quantised.remedy));
  if (!checkpoint.vocabulary_doubt.empty()) report.notes.push_back(checkpoint.vocabulary_doubt);
  if (!checkpoint.ignored.empty())
    report.notes.push_back(fmt::format("stored, and no part of the model: {}", fmt::join(checkpoint.ignored, ", ")));
  return report;
}

std::vector<TableRow> FamilyTable() {
  std::vector<TableRow> rows;
  for (const Family* family : Families())
    rows.push_back({std::string(family->name),
                    fmt::format("{}: {}", family->class_name, fmt::join(KindsOf(*family), ", ")),
                    {std::string(family->group)}});
  return rows;
}

std::vector<TableRow> FormatTable() {
  std::vector<TableRow> rows;
  for (const Kind& kind : Kinds())
    rows.push_back({std::string(kind.name), std::string(kind.title), {std::string(kind.format)}});
  return rows;
}

std::string FamiliesJson() {
  Json all = Json::array();
  for (const Family* family : Families()) {
    Json json = {{"name", family->name}, {"group", family->group}, {"class", family->class_name}};
    json["model_types"] = Json::array({family->name});
    for (const Wrapper& wrapper : family->wrappers) json["model_types"].push_back(wrapper.model_type);
    json["classes"] = Json::array({family->class_name});
    if (!family->other_class.empty()) json["classes"].push_back(family->other_class);
    for (const Wrapper& wrapper : family->wrappers) json["classes"].push_back(wrapper.class_name);
    json["kinds"] = KindsOf(*family);
    json["defaults"] = Json::object();
    for (const ConfigDefault& row : family->defaults) json["defaults"][std::string(row.key)] = Json::parse(row.value);
    json["flags"] = Json::object();
    for (const Flag& flag : family->flags)
      json["flags"][std::string(flag.flag)] = flag.key.empty() ? Json(true) : Json(flag.key);
    json["blocks"] = Json::array();
    for (const Block* block : family->blocks) json["blocks"].push_back(BlockJson(*block));
    all.push_back(json);
  }
  return all.dump(2);
}

uint64_t ParseSize(const std::string& text, const std::string& option) { return safetensors::ParseSize(text, option); }

}  // namespace reshard
