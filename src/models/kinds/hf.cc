// HuggingFace folders: config.json, weights in one file or in shards with an index, tokenizer and readme files
// (docs/formats/huggingface.md).
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <set>

#include "base/error.h"
#include "formats/safetensors/safetensors.h"
#include "formats/safetensors/sharding.h"
#include "formats/torch_dist/torch_dist.h"
#include "formats/torch_pickle/torch_pickle.h"
#include "models/kinds/hf_config.h"
#include "models/kinds/hf_quantised.h"
#include "models/kinds/kind.h"

namespace reshard {
namespace {

// How weights are called: one file, or shards and their index.
struct WeightNames {
  std::string_view format, stem, extension, single, index;
};
constexpr WeightNames kSafetensors = {"safetensors", "model", ".safetensors", "model.safetensors",
                                      "model.safetensors.index.json"};
constexpr WeightNames kPickles = {"bin", "pytorch_model", ".bin", "pytorch_model.bin", "pytorch_model.bin.index.json"};
constexpr WeightNames kNames[] = {kSafetensors, kPickles};  // as transformers looks for them

// A torch distributed checkpoint, in which tensors are called as in the model, all behind one prefix.
constexpr std::string_view kDcp = "dcp", kDcpIndex = ".metadata", kEmbedding = "model.embed_tokens.weight";

constexpr std::string_view kWeights[] = {kSafetensors.format, kPickles.format, kDcp};
constexpr std::string_view kMarkers[] = {kSafetensors.index, kSafetensors.single, kPickles.index, kPickles.single,
                                         kDcpIndex};

// How a class that holds a text model beside others calls what the model calls `own`; the longest first.
struct TextPrefix {
  std::string_view stored, own, shown;  // shown: the checkpoint's name_prefix
};
constexpr TextPrefix kTextPrefixes[] = {
    {"model.language_model.model.", "model.", "model.language_model."},
    {kTextPrefix, "model.", kTextPrefix},
    {"language_model.model.", "model.", "language_model."},
    {"language_model.lm_head.", "lm_head.", "language_model."},
};

// What comes along with the weights, byte for byte.
constexpr std::string_view kCarried[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
    "preprocessor_config.json",
};
constexpr std::string_view kCarriedFolder = "additional_chat_templates";

bool IsCarried(std::string_view name) {
  return std::find(std::begin(kCarried), std::end(kCarried), name) != std::end(kCarried) ||
         name.starts_with(std::string(kCarriedFolder) + "/");
}

bool IsTorchFile(std::string_view path) {
  return path.ends_with(".bin") || path.ends_with(".pt") || path.ends_with(".pth") || path.ends_with(".ckpt");
}

// Buffers that old checkpoints have and no model reads.
bool IsIgnored(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".attention.bias") || name.ends_with(".masked_bias");
}

bool Detect(Io& io, const std::string& folder) {
  for (const WeightNames& names : kNames)
    if (Exists(io, folder, names.single) || Exists(io, folder, names.index)) return true;
  return Exists(io, folder, "config.json") && !kTrtllm.detect(io, folder);  // which has one, too
}

// What lies in the folder, with the files of the one folder that is carried.
std::vector<std::string> SideEntries(Io& io, const std::string& folder) {
  std::vector<std::string> entries;
  for (const std::string& name : Entries(io, folder)) {
    if (name.starts_with(".reshard")) continue;
    if (name != std::string(kCarriedFolder) + "/") {
      entries.push_back(name);
      continue;
    }
    for (const std::string& inner : Entries(io, JoinPath(folder, std::string(kCarriedFolder))))
      entries.push_back(name + inner);
  }
  return entries;
}

// -- reading ----------------------------------------------------------------------------------------------------------

class HfReader {
 public:
  HfReader(Io& io, const std::string& folder, const OpenOptions& options) : io_(io), options_(options) {
    checkpoint_.folder = folder;
  }

  Checkpoint Open() {
    checkpoint_.config_path = JoinPath(checkpoint_.folder, "config.json");
    if (!io_.Stat(checkpoint_.config_path))
      throw Error(Code::kNotFound, "there is no config.json, expected one; give the folder that has it")
          .At("reading", checkpoint_.folder);
    const std::string text = ReadTreeText(io_, checkpoint_.config_path, options_);
    checkpoint_.config_text = TextModelConfig(text, checkpoint_.config_path);
    checkpoint_.config = ParseJson(checkpoint_.config_text, checkpoint_.config_path);
    checkpoint_.model = ModelFromHfConfig(WithoutQuantisation(checkpoint_.config), checkpoint_.config_path);
    RemoveCopies();
    ReadWeights();
    if (checkpoint_.config_text != text) KeepTextModel();
    std::erase_if(checkpoint_.tensors, [&](const StoredTensor& tensor) {
      if (IsIgnored(tensor.name)) checkpoint_.ignored.push_back(tensor.name);
      return IsIgnored(tensor.name);
    });
    ListSideFiles();
    FillRank();
    FindQuantised(io_, options_, checkpoint_);
    return std::move(checkpoint_);
  }

 private:
  // The config counts each copy as a query group.
  void RemoveCopies() {
    uint64_t& groups = checkpoint_.model.sizes['G'];
    if (groups % options_.kv_copies != 0)
      throw Error(Code::kMismatch, fmt::format("{} key and value heads, expected a multiple of {} to remove copies",
                                               groups, options_.kv_copies))
          .At("reading", checkpoint_.config_path);
    groups /= options_.kv_copies;
  }

  void ReadWeights() {
    folder_ = checkpoint_.folder;
    if (!options_.weights_path.empty()) {
      const auto info = io_.Stat(options_.weights_path);
      if (!info)
        throw Error(Code::kNotFound, "there is no such file or folder, expected the quantised weights")
            .At("reading", options_.weights_path);
      if (info->type == FileInfo::Type::kFile) {
        folder_ = ParentOf(options_.weights_path);
        return ReadShard(options_.weights_path.substr(options_.weights_path.rfind('/') + 1));
      }
      folder_ = options_.weights_path;
    }
    for (const WeightNames& names : kNames) {
      checkpoint_.format = names.format;
      if (Exists(io_, folder_, names.single)) return ReadShard(std::string(names.single));
      if (Exists(io_, folder_, names.index)) return ReadShards(std::string(names.index));
    }
    checkpoint_.format = kDcp;
    if (Exists(io_, folder_, kDcpIndex)) return ReadDcp();
    NoWeights();
  }

  // Of a class that holds a text model beside others: its tensors, under their names without the prefix.
  void KeepTextModel() {
    std::map<std::string, size_t> others;  // how many, by what their names begin with
    std::erase_if(checkpoint_.tensors, [&](StoredTensor& tensor) {
      if (TakeTextName(tensor.name)) return false;
      ++others[tensor.name.substr(0, tensor.name.find('.', std::string_view("model.").size()))];
      return true;
    });
    for (const auto& [begin, count] : others)
      checkpoint_.ignored.push_back(fmt::format("{}.* ({} tensors)", begin, count));
    if (!others.empty())
      checkpoint_.notes.push_back(
          fmt::format("the source holds a text model beside others; the text model alone is "
                      "converted, and left are {}",
                      fmt::join(checkpoint_.ignored, ", ")));
  }

  bool TakeTextName(std::string& name) {
    for (const TextPrefix& row : kTextPrefixes) {
      if (!name.starts_with(row.stored)) continue;
      name.replace(0, row.stored.size(), row.own);
      if (row.own == "model.") checkpoint_.name_prefix = row.shown;
      return true;
    }
    return name == "lm_head.weight";
  }

  // Weights that are not read because others are (an index beside model.safetensors) are side files too.
  void ListSideFiles() {
    std::set<std::string> read;
    if (folder_ == checkpoint_.folder) {
      for (const SourceFile& file : checkpoint_.files) read.insert(file.relative);
      read.insert(index_);
    }
    for (const std::string& name : SideEntries(io_, checkpoint_.folder))
      if (!read.count(name)) checkpoint_.side_files.push_back(name);
  }

  [[noreturn]] void NoWeights() {
    const std::vector<std::string> names = io_.List(folder_);
    auto has = [&](std::string_view end) {
      return std::any_of(names.begin(), names.end(), [&](const std::string& name) { return name.ends_with(end); });
    };
    if (has(".incomplete"))
      throw Error(Code::kNotFound,
                  "there are .incomplete files and no weights, expected model.safetensors; download the model again")
          .At("reading", folder_);
    throw Error(Code::kNotFound, fmt::format("there are no weights, expected one of {}", fmt::join(kMarkers, ", ")))
        .At("reading", folder_);
  }

  // Appends its tensors to those of the checkpoint.
  void ReadShard(const std::string& name) {
    std::string path = JoinPath(folder_, name);
    auto info = io_.Stat(path);
    if (!info) {
      bool partial = io_.Stat(path + ".incomplete").has_value();
      throw Error(Code::kCorrupt,
                  fmt::format("the index names this file and it is {}; download the model again",
                              partial ? "incomplete, expected a whole one" : "missing, expected it in the folder"))
          .At("reading", path);
    }
    uint32_t number = static_cast<uint32_t>(checkpoint_.files.size());
    auto tensors = ReadTensors(path, number, options_.max_tensors - checkpoint_.tensors.size());
    checkpoint_.files.push_back({path, name, info->size, info->mtime_ns, info->inode});
    std::move(tensors.begin(), tensors.end(), std::back_inserter(checkpoint_.tensors));
  }

  std::vector<StoredTensor> ReadTensors(const std::string& path, uint32_t number, uint64_t max_tensors) {
    if (!IsTorchFile(path)) return safetensors::ReadFile(io_, path, number, options_.max_header, max_tensors);
    return torch_pickle::ReadStateDict(io_, path, number, {options_.max_header, max_tensors}, checkpoint_.ignored);
  }

  // The keys first, whose prefix says which of the tensors are wanted.
  void ReadDcp() {
    index_ = kDcpIndex;
    const torch_pickle::Limits limits{options_.max_header, options_.max_tensors};
    std::vector<std::string> keys;
    torch_dist::Read(io_, folder_, limits, [&](std::string_view key) {
      keys.emplace_back(key);
      return false;
    });
    const std::string prefix = DcpPrefix(keys);
    auto wanted = [&](std::string_view key) { return key.starts_with(prefix) && !IsOptimizer(key); };
    torch_dist::Contents contents = torch_dist::Read(io_, folder_, limits, wanted);
    for (StoredTensor& tensor : contents.tensors) {
      tensor.name.erase(0, prefix.size());
      checkpoint_.tensors.push_back(std::move(tensor));
    }
    for (const torch_dist::DataFile& file : contents.files) {
      auto info = io_.Stat(file.path);
      if (!info) throw Error(Code::kMismatch, "the file vanished while it was read").At("reading", file.path);
      checkpoint_.files.push_back({file.path, file.relative, file.size, info->mtime_ns, info->inode});
    }
    for (std::string& key : keys)
      if (!wanted(key)) checkpoint_.ignored.push_back(std::move(key));
    std::move(contents.objects.begin(), contents.objects.end(), std::back_inserter(checkpoint_.ignored));
    checkpoint_.name_prefix = prefix;
  }

  static bool IsOptimizer(std::string_view key) {
    const std::string dotted = fmt::format(".{}", key);
    return dotted.find(".optimizer.") != dotted.npos || dotted.find(".optim.") != dotted.npos;
  }

  // What stands before the embedding's name.
  std::string DcpPrefix(const std::vector<std::string>& keys) const {
    std::vector<std::string> prefixes;
    for (const std::string& key : keys) {
      const bool is_whole = key.size() == kEmbedding.size() || key.ends_with(fmt::format(".{}", kEmbedding));
      if (is_whole && key.ends_with(kEmbedding) && !IsOptimizer(key))
        prefixes.push_back(key.substr(0, key.size() - kEmbedding.size()));
    }
    if (prefixes.size() == 1) return prefixes[0];
    throw Error(Code::kMismatch,
                prefixes.empty()
                    ? fmt::format("no key ends in {}, expected the names of a HuggingFace model", kEmbedding)
                    : fmt::format("{} is there behind each of the prefixes '{}', expected one model", kEmbedding,
                                  fmt::join(prefixes, "', '")))
        .At("reading", JoinPath(folder_, index_));
  }

  safetensors::Index ReadIndex() {
    std::string path = JoinPath(folder_, index_);
    if (uint64_t size = io_.Stat(path)->size; size > options_.max_header)
      throw Error(Code::kUnsupported, fmt::format("an index of {} bytes, expected at most {} within the memory limit; "
                                                  "give a larger --max_memory",
                                                  size, options_.max_header))
          .At("reading", path);
    return safetensors::ParseIndex(ReadWholeFile(io_, path, options_.max_header), path, options_.max_tensors);
  }

  // The index and the shards must say the same of every tensor.
  void ReadShards(const std::string& index_name) {
    index_ = index_name;
    const safetensors::Index index = ReadIndex();
    std::vector<bool> seen(index.entries.size());
    for (uint32_t shard = 0; shard < index.shards.size(); ++shard) {
      size_t begin = checkpoint_.tensors.size();
      ReadShard(index.shards[shard]);
      for (size_t i = begin; i < checkpoint_.tensors.size(); ++i)
        seen[FindInIndex(index, shard, checkpoint_.tensors[i].name)] = true;
    }
    size_t missing = std::count(seen.begin(), seen.end(), false);
    if (missing == 0) return;
    const auto& first = index.entries[std::find(seen.begin(), seen.end(), false) - seen.begin()];
    throw Error(
        Code::kCorrupt,
        fmt::format("it is not there, though the index maps it ({} such), expected it; download the model again",
                    missing))
        .At("reading", JoinPath(folder_, index.shards[first.shard]))
        .Tensor(first.tensor);
  }

  // The number of the entry of a tensor that `shard` has.
  size_t FindInIndex(const safetensors::Index& index, uint32_t shard, const std::string& name) const {
    auto entry = std::lower_bound(index.entries.begin(), index.entries.end(), name,
                                  [](const auto& e, const std::string& wanted) { return e.tensor < wanted; });
    bool mapped = entry != index.entries.end() && entry->tensor == name;
    if (mapped && entry->shard == shard) return entry - index.entries.begin();
    throw Error(Code::kCorrupt,
                mapped ? fmt::format("the index has it in {} and this file has it too, expected it in one of the two",
                                     index.shards[entry->shard])
                       : "it is not in the index, expected it in both")
        .At("reading", JoinPath(folder_, index.shards[shard]))
        .Tensor(name);
  }

  void FillRank() {
    const Sizes& sizes = checkpoint_.model.sizes;
    bool has_head = std::any_of(checkpoint_.tensors.begin(), checkpoint_.tensors.end(),
                                [](const StoredTensor& tensor) { return tensor.name == "lm_head.weight"; });
    checkpoint_.ranks = {{{0, sizes['L']}, {0, sizes['E']}, sizes['V'], has_head || !checkpoint_.model.tied, false}};
    checkpoint_.ranks[0].kv_copies = options_.kv_copies;
  }

  Io& io_;
  const OpenOptions& options_;
  std::string folder_;  // of the weights
  std::string index_;   // its name there; empty where there is one file
  Checkpoint checkpoint_;
};

Checkpoint Open(Io& io, const std::string& folder, const OpenOptions& options) {
  return HfReader(io, folder, options).Open();
}

std::vector<Rank> RanksOf(const Model& model, const Checkpoint&, const TargetOptions&) {
  const Sizes& sizes = model.sizes;
  return {{{0, sizes['L']}, {0, sizes['E']}, sizes['V'], !model.tied, false}};
}

// -- writing ----------------------------------------------------------------------------------------------------------

// transformers' state dict order: within a layer, tensors right below it (the norms) come after those of its modules.
std::vector<size_t> StateDictOrder(const std::vector<TensorSpec>& specs) {
  auto layer_of = [](std::string_view name) -> std::string_view {
    size_t begin = name.find(".layers.");
    return begin == std::string_view::npos ? "" : name.substr(0, name.find('.', begin + 8));
  };
  auto is_direct = [&](std::string_view name) {
    std::string_view rest = name.substr(layer_of(name).size());
    return std::count(rest.begin(), rest.end(), '.') == 2;
  };
  std::vector<size_t> order, held;
  for (size_t i = 0; i < specs.size(); ++i) {
    std::string_view layer = layer_of(specs[i].name);
    if (!held.empty() && layer_of(specs[held[0]].name) != layer) {
      order.insert(order.end(), held.begin(), held.end());
      held.clear();
    }
    (!layer.empty() && is_direct(specs[i].name) ? held : order).push_back(i);
  }
  order.insert(order.end(), held.begin(), held.end());
  return order;
}

FileLayout LayOutShard(const WeightNames& names, std::string path, std::vector<StoredTensor*> tensors, uint32_t file) {
  return names.format == kPickles.format ? torch_pickle::LayOut(std::move(path), tensors, file)
                                         : safetensors::LayOut(std::move(path), std::move(tensors), file);
}

void LayOutDcp(const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors,
               std::vector<FileLayout>& files) {
  std::vector<StoredTensor*> ordered;
  for (size_t i : StateDictOrder(specs)) {
    tensors[i].grid = tensors[i].shape;
    ordered.push_back(&tensors[i]);
  }
  torch_dist::LayOut("", ordered, {}, files);
}

void LayOutWeights(const WeightNames& names, const std::vector<TensorSpec>& specs, uint64_t max_shard_size,
                   std::vector<StoredTensor>& tensors, std::vector<FileLayout>& files) {
  std::vector<size_t> order = StateDictOrder(specs);
  std::vector<uint64_t> sizes;
  uint64_t parameters = 0, bytes = 0;
  for (size_t i : order) {
    sizes.push_back(ElementCount(tensors[i].shape) * ItemSize(tensors[i].dtype));
    parameters += ElementCount(tensors[i].shape);
    bytes += sizes.back();
  }
  auto shards = safetensors::SplitIntoShards(sizes, max_shard_size);
  std::vector<std::pair<std::string, std::string>> map;
  for (size_t n = 0; n < shards.size(); ++n) {
    std::string name = safetensors::ShardName(names.stem, names.extension, n + 1, shards.size());
    std::vector<StoredTensor*> members;
    for (size_t i : shards[n]) {
      members.push_back(&tensors[order[i]]);
      map.emplace_back(members.back()->name, name);
    }
    files.push_back(LayOutShard(names, name, std::move(members), static_cast<uint32_t>(files.size())));
  }
  if (shards.size() > 1)
    files.push_back(LiteralFile(std::string(names.index), safetensors::IndexText(std::move(map), parameters, bytes)));
}

// The source's own config, or the template's, or one that is derived. In the first two only what is not so any more
// changes: the dtype where one was asked for, the embeddings' tie, the positions that a NeMo config knows better.
std::string ConfigText(const Checkpoint& source, const Model& model, const TargetOptions& options, Dtype dtype,
                       LaidOut& out) {
  bool from_hf = source.kind == kHuggingFace.name;
  if (!from_hf && source.template_path.empty()) {
    out.notes.push_back(
        "config.json is derived: token ids are the class defaults; --hf_model_name carries over the original's");
    return HfConfigText(model, dtype);
  }
  std::string text = from_hf ? source.config_text : source.template_text;
  const Model said =
      from_hf ? source.model : ModelFromHfConfig(ParseJson(text, source.template_path), source.template_path);
  if (options.dtype) {
    text = WithHfDtype(text, dtype);
  } else if (!from_hf && WithHfDtype(text, dtype) != text) {
    out.notes.push_back(fmt::format(
        "config.json says of the dtype what the template says, and most weights are {}; --dtype changes both",
        Row(dtype).name));
  }
  if (const Json& positions = model.hyper.max_position_embeddings; positions != said.hyper.max_position_embeddings)
    text = WithTopLevelValue(text, "max_position_embeddings", positions.dump());
  if (model.tied != said.tied) text = WithTopLevelValue(text, "tie_word_embeddings", model.tied ? "true" : "false");
  return text;
}

// Files that a NeMo checkpoint keeps of a tokenizer: <32 hex digits>_tokenizer.model.
std::string ArtifactName(const std::string& name) {
  size_t bar = name.find('_');
  bool artifact = bar == 32 && name.find_first_not_of("0123456789abcdef") == 32;
  return artifact ? name.substr(bar + 1) : "";
}

void AddCopies(const Checkpoint& source, LaidOut& out) {
  const bool use_template = source.kind != kHuggingFace.name && !source.template_path.empty();
  out.copies = use_template ? source.template_files : source.tokenizer_files;
  for (const std::string& name : source.side_files) {
    if (name == "config.json") continue;
    const std::string path = JoinPath(source.folder, name);
    if (std::any_of(out.copies.begin(), out.copies.end(), [&](const FileCopy& copy) { return copy.from == path; }))
      continue;
    std::string to = source.kind == kHuggingFace.name ? (IsCarried(name) ? name : "") : ArtifactName(name);
    if (to.empty() || use_template) {
      out.left.push_back(name);
    } else {
      out.copies.push_back({path, to});
    }
  }
}

LaidOut LayOut(Io&, const Checkpoint& source, const Model& model, const TargetOptions& options,
               const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors) {
  if (!source.vocabulary_doubt.empty())
    throw Error(Code::kMismatch, source.vocabulary_doubt).At("reading", source.config_path);
  LaidOut out;
  AddCopies(source, out);
  // Weights count files from 0, and come before the marker; config.json is put before them at the end.
  const WeightNames& names = options.weights == kPickles.format ? kPickles : kSafetensors;
  if (options.weights == kDcp) {
    LayOutDcp(specs, tensors, out.files);
  } else {
    LayOutWeights(names, specs, options.max_shard_size, tensors, out.files);
  }
  std::string config = ConfigText(source, model, options, MainDtype(tensors), out);
  out.files.insert(out.files.begin(), LiteralFile("config.json", std::move(config)));
  for (StoredTensor& tensor : tensors)
    for (Chunk& chunk : tensor.chunks) ++chunk.file;
  return out;
}

}  // namespace

std::vector<FileCopy> CarriedFiles(Io& io, const std::string& folder) {
  std::vector<FileCopy> copies;
  for (const std::string& name : SideEntries(io, folder))
    if (IsCarried(name)) copies.push_back({JoinPath(folder, name), name});
  return copies;
}

const Kind kHuggingFace = {
    .name = "hf",
    .title =
        "HuggingFace folder: config.json, safetensors or PyTorch pickles, whole or in shards with an index, or a "
        "torch distributed checkpoint",
    .format = "safetensors",
    .layouts = &Block::hf,
    .name_prefix = "",
    .detect = Detect,
    .open = Open,
    .ranks = RanksOf,
    .lay_out = LayOut,
    .weights = kWeights,
    .markers = kMarkers,
};

}  // namespace reshard
