// NeMo 1 checkpoint folders: model_config.yaml and a distributed checkpoint in zarr (docs/formats/nemo.md).
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "archive/torch_zip.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "base/yaml.h"
#include "formats/zarr2/zarr2.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/kind.h"
#include "models/kinds/nemo_config.h"
#include "models/kinds/template.h"

namespace reshard {
namespace {

constexpr std::string_view kConfig = "model_config.yaml", kWeights = "model_weights", kMetadata = "metadata.json";
constexpr std::string_view kFormats[] = {"zarr"};
constexpr std::string_view kMarkers[] = {"model_weights/metadata.json"};
constexpr std::string_view kPrefix = "model.", kEmbedding = "embedding.word_embeddings.weight",
                           kHead = "output_layer.weight";

// Python's json.dump of mcore's CheckpointingConfig; an unknown key would make its loader fail.
constexpr std::string_view kMetadataText =
    R"({"sharded_backend": "zarr", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1})";

bool Detect(Io& io, const std::string& folder) { return Exists(io, folder, kConfig) || Exists(io, folder, kWeights); }

// -- reading ----------------------------------------------------------------------------------------------------------

std::string_view PrefixOf(std::string_view name) {
  for (std::string_view prefix : {"model.module.", "model.", "module."})
    if (name.starts_with(prefix)) return prefix;
  return "";
}

// decoder.layers.0.x, where the usual form is decoder.layers.x with a leading axis.
bool IsNumbered(std::string_view name) {
  constexpr std::string_view kLayers = "decoder.layers.";
  return name.starts_with(kLayers) && name.size() > kLayers.size() &&
         std::isdigit(static_cast<unsigned char>(name[kLayers.size()]));
}

class NemoReader {
 public:
  NemoReader(Io& io, const std::string& folder, const OpenOptions& options)
      : io_(io), options_(options), weights_(JoinPath(folder, std::string(kWeights))) {
    checkpoint_.folder = folder;
  }

  Checkpoint Open() {
    ReadConfig();
    CheckBackend();
    ReadArrays();
    Describe();
    ListSideFiles();
    return std::move(checkpoint_);
  }

 private:
  void ReadConfig() {
    checkpoint_.config_path = JoinPath(checkpoint_.folder, std::string(kConfig));
    if (!io_.Stat(checkpoint_.config_path))
      throw Error(Code::kCorrupt, fmt::format("there is no {}, expected one", kConfig))
          .At("reading", checkpoint_.folder);
    checkpoint_.config_text = ReadTreeText(io_, checkpoint_.config_path, options_);
    checkpoint_.config = YamlValue(ParseYaml(checkpoint_.config_text, checkpoint_.config_path));
    if (!checkpoint_.config.is_object())
      throw Error(Code::kCorrupt, "no mapping at the top, expected one").At("reading", checkpoint_.config_path);
    if (checkpoint_.config.contains("model") && checkpoint_.config["model"].is_object()) {
      Json inner = checkpoint_.config["model"];
      checkpoint_.config = std::move(inner);
    }
  }

  void CheckBackend() {
    for (const char* legacy : {"model_weights.ckpt", "mp_rank_00", "tp_rank_00_pp_rank_000"})
      if (Exists(io_, checkpoint_.folder, legacy))
        throw Error(Code::kUnsupported,
                    fmt::format("{} is the layout of old per-rank checkpoints, expected a distributed one in {}",
                                legacy, kWeights))
            .At("reading", checkpoint_.folder);
    std::string path = JoinPath(weights_, std::string(kMetadata));
    if (!io_.Stat(path))
      throw Error(
          Code::kCorrupt,
          "metadata.json is missing, which is written last; the checkpoint is incomplete, expected a finished one")
          .At("reading", weights_);
    Json metadata = ParseJson(ReadTreeText(io_, path, options_), path);
    auto backend = metadata.find("sharded_backend");
    if (backend == metadata.end() || !backend->is_string())
      throw Error(Code::kCorrupt, "no text 'sharded_backend', expected \"zarr\"").At("reading", path);
    bool has_torch_dist = Exists(io_, weights_, ".metadata");
    if (*backend == "torch_dist" && has_torch_dist)
      throw Error(Code::kUnsupported, "the weights are in torch_dist format, expected zarr").At("reading", path);
    if (*backend != "zarr" && *backend != "torch_dist")
      throw Error(Code::kUnsupported, fmt::format("sharded_backend is {}, expected \"zarr\"", backend->dump()))
          .At("reading", path);
    if (*backend == "torch_dist" || has_torch_dist)
      throw Error(
          Code::kCorrupt,
          fmt::format(
              "sharded_backend is {}, and the folder {} the .metadata file of torch_dist, expected both of one format",
              backend->dump(), has_torch_dist ? "has" : "lacks"))
          .At("reading", path);
  }

  // Every folder with a .zarray, but those of the optimizer; what else lies there is no tensor, or a broken one.
  void ReadArrays() {
    std::vector<zarr2::ChunkFile> files;
    std::map<std::string, std::string> entries;  // by name
    for (const std::string& entry : io_.List(weights_)) {
      std::string_view prefix = PrefixOf(entry);
      std::string path = JoinPath(weights_, entry), name = entry.substr(prefix.size());
      auto info = io_.Stat(path);
      if (!info || info->type != FileInfo::Type::kDirectory) continue;
      bool is_array = Exists(io_, path, ".zarray");
      if (name.ends_with("_extra_state")) continue;  // of Transformer Engine: every model has its own
      if (entry.starts_with("optimizer.") || (!is_array && !LooksLikeTensor(name))) {
        checkpoint_.ignored.push_back(entry);
      } else if (!is_array) {
        throw Error(Code::kCorrupt, "there is no .zarray, expected one in the folder of an array")
            .At("reading", path)
            .Tensor(entry);
      } else {
        auto [same, is_new] = entries.emplace(name, entry);
        if (!is_new)
          throw Error(
              Code::kCorrupt,
              fmt::format("'{}' and '{}' are one tensor under two prefixes, expected one of them", same->second, entry))
              .At("reading", weights_);
        if (name == kEmbedding) checkpoint_.name_prefix = prefix;
        checkpoint_.tensors.push_back(zarr2::ReadArray(io_, path, name, files));
      }
    }
    for (const zarr2::ChunkFile& file : files) {
      auto info = io_.Stat(file.path);
      if (!info) throw Error(Code::kMismatch, "the file vanished while it was read").At("reading", file.path);
      checkpoint_.files.push_back(
          {file.path, file.path.substr(checkpoint_.folder.size() + 1), file.size, info->mtime_ns, info->inode});
    }
  }

  static bool LooksLikeTensor(std::string_view name) {
    return name.ends_with(".weight") || name.ends_with(".bias") || name.ends_with("layer_norm_weight");
  }

  const StoredTensor* Find(std::string_view name) const {
    for (const StoredTensor& tensor : checkpoint_.tensors)
      if (tensor.name == name) return &tensor;
    return nullptr;
  }

  void Describe() {
    const StoredTensor* embedding = Find(kEmbedding);
    if (!embedding || embedding->shape.size() != 2)
      throw Error(Code::kMismatch, "it is not there with two axes, expected it in every model")
          .At("reading", weights_)
          .Tensor(std::string(kEmbedding));
    NemoHints hints{options_.model_type, nullptr, options_.vocab_size};
    Model known;
    if (!options_.template_path.empty()) {
      known = ReadTemplate(io_, options_, checkpoint_);
      hints.template_model = &known;
    }
    const uint64_t rows = embedding->shape[0], rows_of_rank = embedding->chunks[0].box.shape[0];
    NemoDoubts doubts;
    checkpoint_.model = ModelFromNemoConfig(checkpoint_.config, checkpoint_.config_path,
                                            {rows, CeilDiv(rows, rows_of_rank)}, hints, doubts);
    checkpoint_.vocabulary_doubt = std::move(doubts.vocabulary);
    checkpoint_.padding_doubt = std::move(doubts.padding);
    const Sizes& sizes = checkpoint_.model.sizes;
    bool numbered = std::any_of(checkpoint_.tensors.begin(), checkpoint_.tensors.end(),
                                [](const StoredTensor& tensor) { return IsNumbered(tensor.name); });
    checkpoint_.ranks = {{{0, sizes['L']}, {0, sizes['E']}, rows, Find(kHead) || !checkpoint_.model.tied, !numbered}};
  }

  void ListSideFiles() {
    for (const std::string& name : Entries(io_, checkpoint_.folder))
      if (!name.starts_with(".reshard") && name != std::string(kWeights) + "/") checkpoint_.side_files.push_back(name);
  }

  Io& io_;
  const OpenOptions& options_;
  std::string weights_;
  Checkpoint checkpoint_;
};

Checkpoint Open(Io& io, const std::string& folder, const OpenOptions& options) {
  return NemoReader(io, folder, options).Open();
}

// Rows that pad a NeMo source's vocabulary stay when the target is NeMo again, and so does a head that is stored twice.
std::vector<Rank> RanksOf(const Model& model, const Checkpoint& source, const TargetOptions&) {
  const Sizes& sizes = model.sizes;
  bool from_nemo = source.kind == kNemo.name;
  return {{{0, sizes['L']},
           {0, sizes['E']},
           from_nemo ? source.ranks[0].vocab_rows : sizes['V'],
           !model.tied || (from_nemo && source.ranks[0].stores_head),
           true}};
}

// -- writing ----------------------------------------------------------------------------------------------------------

struct Tokenizer {
  std::string name, artifact;
};

// The path of a tokenizer's file in the source's folder, or its template's; empty where there is none.
std::string TokenizerFile(const Checkpoint& source, const std::string& name) {
  if (source.kind == kHuggingFace.name) {
    auto found = std::find(source.side_files.begin(), source.side_files.end(), name);
    return found == source.side_files.end() ? "" : JoinPath(source.folder, name);
  }
  for (const FileCopy& copy : source.template_files)
    if (copy.to == name) return copy.from;
  return "";
}

// The file that the converters keep in the checkpoint: tokenizer.model for Llama, vocab.json for Qwen. Its name begins
// with a hash of its content, so that the same input gives the same checkpoint.
Tokenizer TokenizerOf(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options,
                      LaidOut& out) {
  Tokenizer tokenizer{options.hf_model_name, ""};
  std::string file = model.family->nemo_base == NemoBase::kQwen ? "vocab.json" : "tokenizer.model";
  std::string path = TokenizerFile(source, file);
  bool has_file = !path.empty();
  if (has_file) {
    Sha256 hash;
    ReadInPieces(io, path, [&](std::string_view piece) { hash.Update(piece); });
    tokenizer.artifact = hash.Hex().substr(0, 32) + "_" + file;
    out.copies.push_back({path, tokenizer.artifact});
  }
  if (tokenizer.name.empty() && source.kind != kHuggingFace.name)
    throw Error(Code::kInvalidArgument,
                fmt::format("a {} checkpoint has no tokenizer, expected --hf_model_name to name one", source.kind))
        .At("reading", source.folder);
  if (tokenizer.name.empty()) {
    tokenizer.name = io.Canonical(source.folder);
    if (!has_file || model.family->nemo_base == NemoBase::kQwen)
      out.notes.push_back(
          fmt::format("the tokenizer is named by its folder, {}; --hf_model_name names another", tokenizer.name));
  } else if (auto info = io.Stat(tokenizer.name); info && info->type == FileInfo::Type::kDirectory) {
    tokenizer.name = io.Canonical(tokenizer.name);  // whoever reads it later stands somewhere else
  }
  if (!IsUtf8(tokenizer.name))
    throw Error(Code::kPermission,
                "the name of the tokenizer's folder is not UTF-8, expected UTF-8 in model_config.yaml; --hf_model_name "
                "names another")
        .At("planning with", tokenizer.name);
  for (const std::string& name : source.side_files)
    if (name != file && name != "config.json") out.left.push_back(name);
  return tokenizer;
}

std::string ConfigText(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options, Dtype dtype,
                       LaidOut& out) {
  if (source.kind != kNemo.name) {
    Tokenizer tokenizer = TokenizerOf(io, source, model, options, out);
    try {
      return NemoConfigText(model, {dtype, tokenizer.name, tokenizer.artifact, options.rope_config_only});
    } catch (Error& error) {
      throw error.At("reading", source.config_path);
    }
  }
  for (const std::string& name : source.side_files) {
    if (name == kConfig) continue;
    if (name.ends_with("/")) {
      out.left.push_back(name);
    } else {
      out.copies.push_back({JoinPath(source.folder, name), name});
    }
  }
  std::string text = source.config_text;
  if (options.dtype) text = WithNemoPrecision(text, dtype, source.config_path);
  if (!model.tied && ConfigReader(source.config, source.config_path).Bool(kShareEmbeddings, false))
    text = WithNemoUntied(text, source.config_path);
  return text;
}

// Stacked axes by one, the first axis of a part in the layout's fragments: the chunks that one Megatron rank writes.
Dims GridOf(const TensorSpec& spec) {
  Dims grid = spec.shape;
  for (size_t axis = 0; axis < spec.lead; ++axis) grid[axis] = 1;
  grid[spec.lead] /= spec.layout->fragments;
  return grid;
}

void AddObjects(const Model& model, std::vector<FileLayout>& files) {
  uint64_t layers = model.sizes['L'];
  for (const Block* block : model.family->blocks) {
    for (std::string_view module : block->nemo_objects) {
      for (uint64_t layer = 0; layer < layers; ++layer) {
        std::string stem = fmt::format("shard_{}_{}", layer, layers);
        files.push_back(
            LiteralFile(fmt::format("{}/{}decoder.layers.{}._extra_state/{}.pt", kWeights, kPrefix, module, stem),
                        TorchZip(stem, kPickledNone)));
      }
    }
  }
}

LaidOut LayOut(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options,
               const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors) {
  LaidOut out;
  out.files.push_back(
      LiteralFile(std::string(kConfig), ConfigText(io, source, model, options, MainDtype(tensors), out)));
  for (size_t i = 0; i < tensors.size(); ++i)
    zarr2::LayOut(fmt::format("{}/{}{}", kWeights, kPrefix, tensors[i].name), GridOf(specs[i]), tensors[i], out.files);
  AddObjects(model, out.files);
  out.files.push_back(LiteralFile(std::string(kWeights) + "/common.pt", TorchZip("common", kPickledEmptyDict)));
  out.files.push_back(LiteralFile(std::string(kMarkers[0]), std::string(kMetadataText)));
  return out;
}

}  // namespace

const Kind kNemo = {
    .name = "nemo",
    .title = "NeMo 1 folder: model_config.yaml, model_weights in zarr",
    .format = "zarr2",
    .layouts = &Block::nemo,
    .name_prefix = kPrefix,
    .detect = Detect,
    .open = Open,
    .ranks = RanksOf,
    .lay_out = LayOut,
    .weights = kFormats,
    .packed_as = ".nemo",
    .markers = kMarkers,
};

}  // namespace reshard
