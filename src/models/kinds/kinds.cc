#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "models/kinds/kind.h"

namespace reshard {
namespace {

// Checkpoints that people have and this version does not read: told apart, so that the message can say what it is.
struct Recognised {
  std::string_view entry;  // a name in the folder
  std::string_view what;
};

constexpr Recognised kRecognised[] = {
    {".metadata", "a torch distributed checkpoint"},
    {"params.json", "a checkpoint in the publisher's own layout (params.json)"},
    {"adapter_config.json", "a PEFT adapter"},
};

Error NotRead(const std::string& path, std::string_view what) {
  Error error(Code::kUnsupported,
              fmt::format("this is {}, expected a checkpoint of HuggingFace, NeMo, Megatron or TensorRT-LLM", what));
  error.At("reading", path);
  return error;
}

// What one layer of a model is in a checkpoint.
struct LayerCost {
  uint64_t tensors = 0, parts = 0;
  uint64_t stacked = 0;  // the most layers that a stacked tensor of the checkpoint has
};

bool Has(const Checkpoint& checkpoint, uint32_t rank, std::string_view name) {
  return FindTensor(checkpoint, rank, name) || FindEncoded(checkpoint, name);
}

// Of the first rank, in the cheapest of its layers to have, and the dearest to hold.
LayerCost CostOfLayer(const Checkpoint& checkpoint, const Kind& kind) {
  const Model& model = checkpoint.model;
  const Rank& first = checkpoint.ranks[0];
  auto present = [&](const TensorSpec& spec) { return Has(checkpoint, 0, spec.name); };
  auto layouts = ChooseLayouts(model, first, kind.layouts, kind.name, present);
  LayerCost cost;
  std::set<LayerKind> seen;
  for (uint64_t layer = first.layers.begin; layer < first.layers.end; ++layer) {
    if (!seen.insert(model.layers[layer]).second) continue;
    uint64_t tensors = 0, parts = 0;
    for (const TensorSpec& spec : TensorsOfLayer(model, first, layouts, layer)) {
      ++tensors;
      parts += spec.views.size();
      const StoredTensor* tensor = FindTensor(checkpoint, 0, spec.name);
      if (first.stacks_layers && tensor && !tensor->shape.empty())
        cost.stacked = std::max(cost.stacked, tensor->shape[0]);
    }
    cost.tensors = cost.tensors ? std::min(cost.tensors, tensors) : tensors;
    cost.parts = std::max(cost.parts, parts);
  }
  return cost;
}

// Before anything is made for each layer of the config: refuses many more than the files have, and more than memory
// bears. What differs less is told tensor by tensor.
constexpr uint64_t kFewLayers = 4;

void CheckLayers(const Checkpoint& checkpoint, const Kind& kind, const OpenOptions& options) {
  const LayerCost cost = CostOfLayer(checkpoint, kind);
  const uint64_t layers = checkpoint.model.sizes['L'], ranks = checkpoint.ranks[0].tensor.count;
  const uint64_t there =
      checkpoint.ranks[0].stacks_layers ? cost.stacked : checkpoint.tensors.size() / cost.tensors / ranks;
  if (layers > 2 * (there + kFewLayers))
    throw Error(Code::kMismatch,
                fmt::format("the config has {} layers, expected {} as the tensors have", layers, there))
        .At("reading", checkpoint.config_path);
  const uint64_t parts = cost.parts * ranks;  // of a layer
  if (layers * parts > 2 * options.max_tensors)
    throw Error(Code::kUnsupported, fmt::format("{} layers of {} parts, expected at most {} parts within the memory "
                                                "limit; give a larger --max_memory",
                                                layers, parts, 2 * options.max_tensors))
        .At("reading", checkpoint.config_path);
}

// What of a quantised weight is not as a plain one of `shape` is stored.
void AddProblems(const EncodedTensor& tensor, const Encoded& encoded, const Dims& shape,
                 std::vector<std::string>& problems) {
  const std::vector<ValueTensor> expected = encoded.Stored(shape[0], shape[1]);
  for (size_t i = 0; i < expected.size(); ++i) {
    const StoredTensor& found = tensor.stored[i];
    if (found.dtype == expected[i].dtype && found.shape == expected[i].shape) continue;
    auto in_file = [&](Dims dims) {
      if (encoded.encoding == Encoding::kGptq) std::swap(dims[0], dims[1]);
      return ToString(dims);
    };
    problems.push_back(fmt::format("tensor '{}': {} {}, expected {} {} by the config", found.name,
                                   Row(found.dtype).name, in_file(found.shape), Row(expected[i].dtype).name,
                                   in_file(expected[i].shape)));
  }
}

// All that is wrong between what a checkpoint stores and what its config makes it store.
std::vector<std::string> Problems(const Checkpoint& checkpoint, const std::vector<TensorSpec>& specs) {
  auto full = [&](uint32_t rank, const std::string& name) {
    return FullName(checkpoint.name_prefix, checkpoint.ranks.size(), rank, name);
  };
  std::set<const StoredTensor*> unexpected;
  for (const StoredTensor& tensor : checkpoint.tensors) unexpected.insert(&tensor);
  std::vector<std::string> problems;
  for (const TensorSpec& spec : specs) {
    if (const EncodedTensor* encoded = FindEncoded(checkpoint, spec.name)) {
      for (const StoredTensor& stored : encoded->stored) unexpected.erase(FindTensor(checkpoint, 0, stored.name));
      AddProblems(*encoded, checkpoint.quantised.encoded, spec.shape, problems);
      continue;
    }
    const StoredTensor* found = FindTensor(checkpoint, spec.rank, spec.name);
    if (!found) {
      bool head = spec.layout->tree.nodes[0].role == "head";
      problems.push_back(fmt::format("tensor '{}': missing, expected {}{}", full(spec.rank, spec.name),
                                     ToString(spec.shape),
                                     head ? " in a model whose embeddings are not tied (tie_word_embeddings)" : ""));
      continue;
    }
    if (!(found->shape == spec.shape))
      problems.push_back(fmt::format("tensor '{}': shape {}, expected {} by the config", full(spec.rank, spec.name),
                                     ToString(found->shape), ToString(spec.shape)));
    unexpected.erase(found);
  }
  for (const StoredTensor& tensor : checkpoint.tensors)
    if (unexpected.count(&tensor))
      problems.push_back(fmt::format("tensor '{}': unexpected {}, expected no such tensor in {}",
                                     full(tensor.rank, tensor.name), ToString(tensor.shape),
                                     checkpoint.model.family->name));
  return problems;
}

bool Before(const StoredTensor& a, const StoredTensor& b) {
  return std::tie(a.rank, a.name) < std::tie(b.rank, b.name);
}

}  // namespace

std::span<const Kind> Kinds() {
  static const Kind kKinds[] = {kHuggingFace, kNemo, kTrtllm, kNemo2, kMegatron};
  return kKinds;
}

std::string FullName(std::string_view prefix, size_t ranks, uint32_t rank, const std::string& name) {
  constexpr std::string_view kModel = "model.";
  std::string full = std::string(prefix) + name;
  if (prefix == kTextPrefix)  // it stands where the name's own "model." does, and before no other
    full = name.starts_with(kModel) ? std::string(prefix) + name.substr(kModel.size()) : name;
  return ranks > 1 ? fmt::format("rank{}/{}", rank, full) : full;
}

const EncodedTensor* FindEncoded(const Checkpoint& checkpoint, std::string_view name) {
  const std::vector<EncodedTensor>& tensors = checkpoint.quantised.tensors;
  auto found =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const EncodedTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

const StoredTensor* FindTensor(const Checkpoint& checkpoint, uint32_t rank, std::string_view name) {
  auto found = std::lower_bound(checkpoint.tensors.begin(), checkpoint.tensors.end(), std::pair(rank, name),
                                [](const StoredTensor& tensor, const std::pair<uint32_t, std::string_view>& wanted) {
                                  return std::pair(tensor.rank, std::string_view(tensor.name)) < wanted;
                                });
  return found != checkpoint.tensors.end() && found->rank == rank && found->name == name ? &*found : nullptr;
}

const Kind& KindByName(std::string_view name) {
  for (const Kind& kind : Kinds())
    if (kind.name == name) return kind;
  throw Error(Code::kInvalidArgument,
              fmt::format("the kind '{}' is not known, expected hf, nemo, nemo2, megatron or trtllm", name));
}

const Kind& DetectKind(Io& io, const std::string& path, std::string_view given) {
  auto info = io.Stat(path);
  if (!info) throw Error(Code::kNotFound, "there is no such folder or file, expected a checkpoint").At("reading", path);
  if (info->type != FileInfo::Type::kDirectory) {
    throw Error(Code::kNotFound, "this is a file, expected a checkpoint; give its folder, or one that is packed by tar")
        .At("reading", path);
  }
  if (!given.empty() && KindByName(given).detect(io, path)) return KindByName(given);
  for (const Kind& kind : Kinds()) {
    if (!kind.detect(io, path)) continue;
    if (given.empty()) return kind;
    throw Error(Code::kMismatch, fmt::format("this is a checkpoint of the kind {}, expected {} as --convert_from says",
                                             kind.name, given))
        .At("reading", path);
  }
  for (const Recognised& row : kRecognised)
    if (io.Stat(JoinPath(path, std::string(row.entry)))) throw NotRead(path, row.what);
  throw Error(Code::kNotFound, "there is no config.json and no model_config.yaml, expected the folder of a checkpoint")
      .At("reading", path);
}

Checkpoint OpenCheckpoint(Io& io, const std::string& path, std::string_view kind_name, const OpenOptions& options) {
  const Kind& kind = DetectKind(io, path, kind_name);
  if (kind.name != kHuggingFace.name && (!options.weights_path.empty() || options.kv_copies > 1))
    throw Error(Code::kInvalidArgument,
                fmt::format("this is a checkpoint of the kind {}, expected a HuggingFace folder for --{}", kind.name,
                            options.kv_copies > 1 ? "remove_duplicated_kv_heads" : "quant_ckpt_path"))
        .At("reading", path);
  Checkpoint checkpoint = kind.open(io, path, options);
  checkpoint.kind = kind.name;
  if (checkpoint.format.empty()) checkpoint.format = kind.format;
  const Family& family = *checkpoint.model.family;
  if (!options.model_type.empty() && family.group != options.model_type && family.name != options.model_type)
    throw Error(Code::kMismatch,
                fmt::format("the model is of the family {}, expected {}, or one of that group, as --model_type says",
                            family.name, options.model_type))
        .At("reading", checkpoint.config_path);
  std::sort(checkpoint.tensors.begin(), checkpoint.tensors.end(), Before);
  auto present = [&](const TensorSpec& spec) { return Has(checkpoint, spec.rank, spec.name); };
  CheckLayers(checkpoint, kind, options);
  checkpoint.layouts = ChooseLayouts(checkpoint.model, checkpoint.ranks[0], kind.layouts, kind.name, present);
  std::vector<std::string> problems =
      Problems(checkpoint, TensorsOf(checkpoint.model, checkpoint.ranks, checkpoint.layouts));
  if (!problems.empty()) throw Gathered(Code::kMismatch, std::move(problems)).At("reading", path);
  return checkpoint;
}

bool Exists(Io& io, const std::string& folder, std::string_view name) {
  return io.Stat(JoinPath(folder, std::string(name))).has_value();
}

std::string ReadTreeText(Io& io, const std::string& path, const OpenOptions& options) {
  std::string text = ReadWholeFile(io, path, kMaxTreeBytes);
  if (text.size() > options.max_tree)
    throw Error(Code::kUnsupported,
                fmt::format("a config of {} bytes, expected at most {} within the memory limit; give a larger "
                            "--max_memory",
                            text.size(), options.max_tree))
        .At("reading", path);
  return text;
}

std::vector<std::string> Entries(Io& io, const std::string& folder) {
  std::vector<std::string> entries;
  for (const std::string& name : io.List(folder)) {
    auto info = io.Stat(JoinPath(folder, name));
    if (!info)
      throw Error(Code::kCorrupt,
                  "a link to a file that is missing, expected the file; download the model again or remove the link")
          .At("reading", JoinPath(folder, name));
    entries.push_back(name + (info->type == FileInfo::Type::kDirectory ? "/" : ""));
  }
  return entries;
}

Dtype MainDtype(const std::vector<StoredTensor>& tensors) {
  std::map<Dtype, uint64_t> elements;
  for (const StoredTensor& tensor : tensors) elements[tensor.dtype] += ElementCount(tensor.shape);
  auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  return std::max_element(elements.begin(), elements.end(), less)->first;
}

}  // namespace reshard
