#include "models/kinds/dist_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <map>
#include <optional>

#include "archive/torch_zip.h"
#include "base/error.h"
#include "formats/torch_dist/torch_dist.h"
#include "formats/zarr2/zarr2.h"

namespace reshard {
namespace {

constexpr std::string_view kMetadata = "metadata.json", kEmbedding = "embedding.word_embeddings.weight",
                           kHead = "output_layer.weight", kLayers = "decoder.layers.";

// -- reading ----------------------------------------------------------------------------------------------------------

// decoder.layers.0.x, where the usual form is decoder.layers.x with a leading axis.
bool IsNumbered(std::string_view name) {
  return name.starts_with(kLayers) && name.size() > kLayers.size() &&
         std::isdigit(static_cast<unsigned char>(name[kLayers.size()]));
}

// What a stored key is to a reader of weights.
enum class Use { kTensor, kObject, kOptimizer };

Use UseOf(std::string_view key) {
  if (key.starts_with("optimizer.") || key.find(".optimizer.") != key.npos) return Use::kOptimizer;
  // Of Transformer Engine: every model has its own.
  return key.find("._extra_state") != key.npos ? Use::kObject : Use::kTensor;
}

bool LooksLikeTensor(std::string_view name) {
  return name.ends_with(".weight") || name.ends_with(".bias") || name.ends_with("layer_norm_weight");
}

class DistReader {
 public:
  DistReader(Io& io, const std::string& folder, const OpenOptions& options, Checkpoint& checkpoint)
      : io_(io), folder_(folder), options_(options), checkpoint_(checkpoint) {}

  void Read() { FormatOf() == DistFormat::kZarr ? ReadArrays() : ReadItems(); }

 private:
  // megatron-core writes metadata.json last; torch's own checkpoints have none, and .metadata is what they write last.
  DistFormat FormatOf() {
    const std::string path = JoinPath(folder_, std::string(kMetadata));
    const bool has_torch_dist = Exists(io_, folder_, ".metadata");
    if (!io_.Stat(path)) {
      if (has_torch_dist) return DistFormat::kTorchDist;
      throw Error(
          Code::kCorrupt,
          "metadata.json is missing, which is written last; the checkpoint is incomplete, expected a finished one")
          .At("reading", folder_);
    }
    const Json metadata = ParseJson(ReadTreeText(io_, path, options_), path);
    const auto backend = metadata.find("sharded_backend");
    if (backend == metadata.end() || !backend->is_string())
      throw Error(Code::kCorrupt, "no text 'sharded_backend', expected \"zarr\" or \"torch_dist\"").At("reading", path);
    if (*backend != "zarr" && *backend != "torch_dist")
      throw Error(Code::kUnsupported,
                  fmt::format("sharded_backend is {}, expected \"zarr\" or \"torch_dist\"", backend->dump()))
          .At("reading", path);
    if ((*backend == "torch_dist") != has_torch_dist)
      throw Error(
          Code::kCorrupt,
          fmt::format(
              "sharded_backend is {}, and the folder {} the .metadata file of torch_dist, expected both of one format",
              backend->dump(), has_torch_dist ? "has" : "lacks"))
          .At("reading", path);
    return has_torch_dist ? DistFormat::kTorchDist : DistFormat::kZarr;
  }

  // Every folder with a .zarray, but those of the optimizer; what else lies there is no tensor, or a broken one.
  void ReadArrays() {
    std::vector<zarr2::ChunkFile> files;
    for (const std::string& entry : io_.List(folder_)) {
      std::string path = JoinPath(folder_, entry);
      auto info = io_.Stat(path);
      if (!info || info->type != FileInfo::Type::kDirectory) continue;
      const bool is_array = Exists(io_, path, ".zarray");
      const Use use = UseOf(entry);
      if (use == Use::kObject) continue;
      if (use == Use::kOptimizer || (!is_array && !LooksLikeTensor(entry))) {
        checkpoint_.ignored.push_back(entry);
      } else if (!is_array) {
        throw Error(Code::kCorrupt, "there is no .zarray, expected one in the folder of an array")
            .At("reading", path)
            .Tensor(entry);
      } else {
        checkpoint_.tensors.push_back(zarr2::ReadArray(io_, path, NameOf(entry), files));
      }
    }
    for (const zarr2::ChunkFile& file : files) AddFile(file.path, file.size);
    checkpoint_.format = "zarr2";
  }

  void ReadItems() {
    auto wanted = [&](std::string_view key) {
      const Use use = UseOf(key);
      if (use == Use::kOptimizer) checkpoint_.ignored.emplace_back(key);
      return use == Use::kTensor;
    };
    const torch_pickle::Limits limits{options_.max_header, options_.max_tensors};
    torch_dist::Contents contents = torch_dist::Read(io_, folder_, limits, wanted);
    for (StoredTensor& tensor : contents.tensors) {
      tensor.name = NameOf(tensor.name);
      for (Chunk& chunk : tensor.chunks) chunk.file += static_cast<uint32_t>(checkpoint_.files.size());
      checkpoint_.tensors.push_back(std::move(tensor));
    }
    std::move(contents.objects.begin(), contents.objects.end(), std::back_inserter(checkpoint_.ignored));
    for (const torch_dist::DataFile& file : contents.files) AddFile(file.path, file.size);
    checkpoint_.format = "torch_dist";
  }

  // The key without its prefix, which the checkpoint takes over from the embedding.
  std::string NameOf(const std::string& key) {
    std::string_view prefix = KeyPrefixOf(key);
    std::string name = key.substr(prefix.size());
    auto [same, is_new] = keys_.emplace(name, key);
    if (!is_new)
      throw Error(Code::kCorrupt, fmt::format("'{}' and '{}' are one tensor under two prefixes, expected one of them",
                                              same->second, key))
          .At("reading", folder_);
    if (name == kEmbedding) checkpoint_.name_prefix = prefix;
    return name;
  }

  void AddFile(const std::string& path, uint64_t size) {
    auto info = io_.Stat(path);
    if (!info) throw Error(Code::kMismatch, "the file vanished while it was read").At("reading", path);
    checkpoint_.files.push_back({path, path.substr(checkpoint_.folder.size() + 1), size, info->mtime_ns, info->inode});
  }

  Io& io_;
  const std::string& folder_;
  const OpenOptions& options_;
  Checkpoint& checkpoint_;
  std::map<std::string, std::string> keys_;  // by name
};

// A tensor by name, before the checkpoint's are sorted.
const StoredTensor* Find(const Checkpoint& checkpoint, std::string_view name) {
  auto found = std::find_if(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                            [&](const StoredTensor& tensor) { return tensor.name == name; });
  return found == checkpoint.tensors.end() ? nullptr : &*found;
}

// -- writing ----------------------------------------------------------------------------------------------------------

// Python's json.dump of mcore's CheckpointingConfig; an unknown key would make its loader fail.
std::string MetadataText(DistFormat format) {
  return fmt::format(R"({{"sharded_backend": "{}", "sharded_backend_version": 1, "common_backend": "torch", )"
                     R"("common_backend_version": 1}})",
                     format == DistFormat::kZarr ? "zarr" : "torch_dist");
}

// Stacked axes by one, the first axis of a part in the layout's fragments: the chunks that one Megatron rank writes.
Dims GridOf(const TensorSpec& spec) {
  Dims grid = spec.shape;
  for (size_t axis = 0; axis < spec.lead; ++axis) grid[axis] = 1;
  grid[spec.lead] /= spec.layout->fragments;
  return grid;
}

// Where an object is among its like: "/shard_3_32", of layer and expert "/shard_3.1_32.8".
struct Place {
  std::string index, count;

  void Add(uint64_t at, uint64_t of) {
    const char* dot = index.empty() ? "" : ".";
    index += fmt::format("{}{}", dot, at);
    count += fmt::format("{}{}", dot, of);
  }
  std::string Shard() const { return index.empty() ? "/shard_0_1" : fmt::format("/shard_{}_{}", index, count); }
};

// The keys of the _extra_state objects that loaders ask for, without the prefix.
std::vector<std::string> ObjectKeys(const Model& model) {
  std::vector<std::string> keys;
  const uint64_t layers = model.sizes['L'];
  auto add = [&](const NemoObject& object, uint64_t layer, std::optional<uint64_t> expert) {
    Place place;
    if (model.IsUniform()) place.Add(layer, layers);
    if (expert) place.Add(*expert, model.sizes['E']);
    const std::string number = model.IsUniform() ? "" : fmt::format("{}.", layer);
    keys.push_back(fmt::format("{}{}{}._extra_state{}", kLayers, number, object.module, place.Shard()));
  };
  for (const Block* block : model.family->blocks) {
    for (const NemoObject& object : block->nemo_objects) {
      for (uint64_t layer = 0; layer < layers; ++layer) {
        if (!(block->on & static_cast<LayerKinds>(model.layers[layer]))) continue;
        if (object.scope != Scope::kExpert) add(object, layer, std::nullopt);
        for (uint64_t expert = 0; object.scope == Scope::kExpert && expert < model.sizes['E']; ++expert)
          add(object, layer, expert);
      }
    }
  }
  return keys;
}

FileLayout ObjectFile(const std::string& path, std::string_view pickle) {
  return LiteralFile(path + ".pt", TorchZip(path.substr(path.rfind('/') + 1), pickle));
}

}  // namespace

std::string_view KeyPrefixOf(std::string_view key) {
  // Before megatron-core all lay in a language model.
  for (std::string_view prefix : {"model.module.", "model.language_model.", "model.", "module."})
    if (key.starts_with(prefix)) return prefix;
  return "";
}

void ReadDistWeights(Io& io, const std::string& folder, const OpenOptions& options, Checkpoint& checkpoint) {
  DistReader(io, folder, options, checkpoint).Read();
}

const StoredTensor& EmbeddingOf(const Checkpoint& checkpoint, const std::string& folder) {
  const StoredTensor* embedding = Find(checkpoint, kEmbedding);
  if (embedding && embedding->shape.size() == 2) return *embedding;
  throw Error(Code::kMismatch, "it is not there with two axes, expected it in every model")
      .At("reading", folder)
      .Tensor(std::string(kEmbedding));
}

bool HasHead(const Checkpoint& checkpoint) { return Find(checkpoint, kHead) != nullptr; }

Rank DistRank(const Checkpoint& checkpoint, uint64_t vocab_rows) {
  const Sizes& sizes = checkpoint.model.sizes;
  bool numbered = std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(),
                              [](const StoredTensor& tensor) { return IsNumbered(tensor.name); });
  return {{0, sizes['L']}, {0, sizes['E']}, vocab_rows, HasHead(checkpoint) || !checkpoint.model.tied, !numbered};
}

Rank NewDistRank(const Model& model, uint64_t vocab_rows, bool stores_head, bool zero_centred) {
  const Sizes& sizes = model.sizes;
  Rank rank{{0, sizes['L']}, {0, sizes['E']}, vocab_rows, stores_head, model.IsUniform()};
  rank.zero_centred = zero_centred;
  return rank;
}

void LayOutDistWeights(const std::string& folder, std::string_view prefix, DistFormat format, const Model& model,
                       const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors,
                       std::string_view common_pickle, std::vector<FileLayout>& files) {
  std::vector<std::string> objects = ObjectKeys(model);
  for (std::string& key : objects) key.insert(0, prefix);
  if (format == DistFormat::kZarr) {
    for (size_t i = 0; i < tensors.size(); ++i)
      zarr2::LayOut(JoinPath(folder, std::string(prefix) + tensors[i].name), GridOf(specs[i]), tensors[i], files);
    for (const std::string& key : objects) files.push_back(ObjectFile(JoinPath(folder, key), kPickledNone));
  } else {
    std::vector<StoredTensor*> stored;
    for (size_t i = 0; i < tensors.size(); ++i) {
      tensors[i].grid = GridOf(specs[i]);
      tensors[i].name.insert(0, prefix);
      stored.push_back(&tensors[i]);
    }
    torch_dist::LayOut(folder, stored, objects, files);
    for (StoredTensor& tensor : tensors) tensor.name.erase(0, prefix.size());
  }
  files.push_back(ObjectFile(JoinPath(folder, "common"), common_pickle));
  files.push_back(LiteralFile(JoinPath(folder, std::string(kMetadata)), MetadataText(format)));
}

}  // namespace reshard
