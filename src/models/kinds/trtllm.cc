// TensorRT-LLM checkpoints: config.json and a safetensors file for every rank (docs/formats/trtllm.md).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "formats/safetensors/safetensors.h"
#include "models/kinds/hf_config.h"
#include "models/kinds/kind.h"
#include "models/kinds/template.h"
#include "models/kinds/trtllm_config.h"

namespace reshard {
namespace {

constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kMarkers[] = {"config.json"};
constexpr std::string_view kKvScale = "attention.kv_cache_scaling_factor";

// Constants that some versions store among the weights and that the builder makes itself.
constexpr std::string_view kConstants[] = {"embed_positions", "rotary_inv_freq", "embed_positions_for_gpt_attention"};
constexpr std::string_view kConstantEndings[] = {kKvScale, ".clamp_val"};

bool IsConstant(std::string_view name) {
  return std::find(std::begin(kConstants), std::end(kConstants), name) != std::end(kConstants) ||
         std::any_of(std::begin(kConstantEndings), std::end(kConstantEndings),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

std::string RankFile(uint64_t rank) { return fmt::format("rank{}.safetensors", rank); }

// The number in "rank12.safetensors".
std::optional<uint64_t> RankOfFile(std::string_view name) {
  constexpr std::string_view kBegin = "rank", kEnd = ".safetensors";
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd)) return std::nullopt;
  const std::string_view digits = name.substr(kBegin.size(), name.size() - kBegin.size() - kEnd.size());
  uint64_t rank = 0;
  const char* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, rank);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return RankFile(rank) == name ? std::optional(rank) : std::nullopt;
}

bool Detect(Io& io, const std::string& folder) {
  for (const std::string& name : io.List(folder))
    if (RankOfFile(name)) return true;
  return false;
}

// -- reading ----------------------------------------------------------------------------------------------------------

class TrtllmReader {
 public:
  TrtllmReader(Io& io, const std::string& folder, const OpenOptions& options) : io_(io), options_(options) {
    checkpoint_.folder = folder;
  }

  Checkpoint Open() {
    ReadConfig();
    ListFiles();
    for (uint32_t rank = 0; rank < checkpoint_.ranks.size(); ++rank) ReadRank(rank);
    return std::move(checkpoint_);
  }

 private:
  void ReadConfig() {
    checkpoint_.config_path = JoinPath(checkpoint_.folder, std::string(kConfig));
    if (!io_.Stat(checkpoint_.config_path))
      throw Error(
          Code::kCorrupt,
          "there is no config.json, which is written last; the checkpoint is incomplete, expected a finished one")
          .At("reading", checkpoint_.folder);
    checkpoint_.config_text = ReadWholeFile(io_, checkpoint_.config_path, kMaxConfigBytes);
    checkpoint_.config = ParseJson(checkpoint_.config_text, checkpoint_.config_path);
    checkpoint_.model = ModelFromTrtllmConfig(checkpoint_.config, checkpoint_.config_path);
    const TrtllmOptions cut = CutOfTrtllmConfig(checkpoint_.config, checkpoint_.config_path);
    checkpoint_.unsaid = {"sliding_window"};
    if (!checkpoint_.config.contains("tie_word_embeddings")) checkpoint_.unsaid.push_back("tie_word_embeddings");
    if (!checkpoint_.config.contains("mapping")) checkpoint_.unsaid.push_back("vocabulary");
    ReadTemplate();
    if (cut.share_embedding) checkpoint_.model.tied = true;
    if (!checkpoint_.config.contains("mapping")) ReadVocabulary();
    checkpoint_.ranks = TrtllmRanks(checkpoint_.model, cut, checkpoint_.config_path);
  }

  // What the config has no key for comes from the template, which must be of the same model.
  void ReadTemplate() {
    if (options_.template_path.empty()) return;
    checkpoint_.template_path = options_.template_path;
    const std::string path = JoinPath(options_.template_path, "config.json");
    checkpoint_.template_text = ReadWholeFile(io_, path, kMaxConfigBytes);
    checkpoint_.template_files = CarriedFiles(io_, options_.template_path);
    const Model known = ModelFromHfConfig(ParseJson(checkpoint_.template_text, path), path);
    CheckTemplate(checkpoint_.model, known, checkpoint_.unsaid, checkpoint_.config_path);
    checkpoint_.model.tied = known.tied;
    checkpoint_.model.hyper.sliding_window = known.hyper.sliding_window;
    checkpoint_.model.hyper.layered_window = known.hyper.layered_window;
    checkpoint_.model.hyper.initializer_range = known.hyper.initializer_range;
  }

  // NeMo's exporter, whose configs have no `mapping`, counts padding in the vocabulary.
  void ReadVocabulary() {
    uint64_t& rows = checkpoint_.model.sizes['V'];
    if (options_.vocab_size) {
      rows = *options_.vocab_size;
    } else if (checkpoint_.template_path.empty()) {
      checkpoint_.vocabulary_doubt = fmt::format(
          "vocab_size {} may count padding in a config of NeMo's exporter, expected to be told how many rows are the "
          "vocabulary's; give --vocab_size or --hf_model_name",
          rows);
    }
  }

  void ListFiles() {
    for (const std::string& name : io_.List(checkpoint_.folder)) {
      const std::optional<uint64_t> rank = RankOfFile(name);
      if (rank && *rank >= checkpoint_.ranks.size())
        throw Error(Code::kMismatch,
                    fmt::format("the config has {} ranks, expected no file of rank {}; it may be of another run",
                                checkpoint_.ranks.size(), *rank))
            .At("reading", JoinPath(checkpoint_.folder, name));
      if (rank || name == kConfig || name.starts_with(".reshard")) continue;
      const auto info = io_.Stat(JoinPath(checkpoint_.folder, name));
      if (info) checkpoint_.side_files.push_back(name + (info->type == FileInfo::Type::kDirectory ? "/" : ""));
    }
  }

  void ReadRank(uint32_t rank) {
    const std::string name = RankFile(rank), path = JoinPath(checkpoint_.folder, name);
    const auto info = io_.Stat(path);
    if (!info)
      throw Error(Code::kCorrupt, fmt::format("it is missing, expected a file for each of {} ranks (config.json)",
                                              checkpoint_.ranks.size()))
          .At("reading", path);
    const uint32_t number = static_cast<uint32_t>(checkpoint_.files.size());
    checkpoint_.files.push_back({path, name, info->size, info->mtime_ns, info->inode});
    for (StoredTensor& tensor : safetensors::ReadFile(io_, path, number, options_.max_header)) {
      if (IsConstant(tensor.name)) {
        checkpoint_.ignored.push_back(FullName(kTrtllm, checkpoint_.ranks.size(), rank, tensor.name));
        continue;
      }
      if (!IsCastable(tensor.dtype))
        throw Error(Code::kUnsupported, fmt::format("{}, expected plain F32, F16 or BF16 weights; convert the "
                                                    "unquantised model",
                                                    Row(tensor.dtype).name))
            .At("reading", path)
            .Tensor(tensor.name);
      tensor.rank = rank;
      checkpoint_.tensors.push_back(std::move(tensor));
    }
  }

  Io& io_;
  const OpenOptions& options_;
  Checkpoint checkpoint_;
};

Checkpoint Open(Io& io, const std::string& folder, const OpenOptions& options) {
  return TrtllmReader(io, folder, options).Open();
}

// -- writing ----------------------------------------------------------------------------------------------------------

void CheckSharing(const Model& model, const TrtllmOptions& options, const std::string& path) {
  if (!options.share_embedding) return;
  std::string problem;
  if (!model.tied) problem = "the embeddings are not tied (tie_word_embeddings)";
  if (options.pp > 1) problem = fmt::format("there are {} pipeline stages, of which one has both", options.pp);
  if (options.tp > 1 && options.embedding_axis != 0)
    problem = "the embedding is not cut by rows like the head (--use_parallel_embedding --embedding_sharding_dim=0)";
  if (!problem.empty())
    throw Error(Code::kMismatch, problem + ", expected tensors that --use_embedding_sharing can make one")
        .At("reading", path);
}

std::vector<Rank> RanksOf(const Model& model, const Checkpoint& source, const TargetOptions& options) {
  CheckSharing(model, options.trtllm, source.config_path);
  return TrtllmRanks(model, options.trtllm, source.config_path);
}

// A scale of 1 for the key and value cache of each of the rank's layers, which the builder expects with an FP8 cache.
std::vector<StoredTensor> KvScales(uint64_t layers) {
  std::vector<StoredTensor> scales;
  for (uint64_t layer = 0; layer < layers; ++layer)
    scales.push_back({fmt::format("transformer.layers.{}.{}", layer, kKvScale), Dtype::kF32, Dims{1}, {}, {}});
  return scales;
}

FileLayout LayOutRank(uint32_t rank, std::vector<StoredTensor*> tensors, std::vector<StoredTensor> scales) {
  for (StoredTensor& scale : scales) tensors.push_back(&scale);
  FileLayout file = safetensors::LayOut(RankFile(rank), std::move(tensors), rank, safetensors::Metadata::kNone);
  std::string one;
  AppendLittle<uint32_t>(one, 0x3f800000);
  for (const StoredTensor& scale : scales) file.literals.push_back({scale.chunks[0].offset, one});
  return file;
}

// The config whose order of keys the rope scaling keeps.
Json RopeOrder(const Checkpoint& source) {
  if (source.kind == kHuggingFace.name) return source.config;
  if (!source.template_text.empty()) return ParseJson(source.template_text, source.template_path);
  Json order = Json::object();
  if (source.config.contains("rotary_scaling")) order["rope_scaling"] = source.config["rotary_scaling"];
  return order;
}

LaidOut LayOut(Io&, const Checkpoint& source, const Model& model, const TargetOptions& options,
               const std::vector<TensorSpec>&, std::vector<StoredTensor>& tensors) {
  if (!source.vocabulary_doubt.empty())
    throw Error(Code::kMismatch, source.vocabulary_doubt).At("reading", source.config_path);
  const TrtllmOptions& cut = options.trtllm;
  std::string config = TrtllmConfigText(model, cut, *options.dtype, RopeOrder(source), source.config_path);
  LaidOut out;
  if (!model.hyper.sliding_window.is_null())
    out.notes.push_back(fmt::format(
        "a TensorRT-LLM checkpoint has no key for the sliding window of {}: beyond it attention will see more",
        model.hyper.sliding_window.dump()));
  for (uint32_t rank = 0; rank < cut.tp * cut.pp; ++rank) {
    std::vector<StoredTensor*> members;
    for (StoredTensor& tensor : tensors)
      if (tensor.rank == rank) members.push_back(&tensor);
    out.files.push_back(
        LayOutRank(rank, std::move(members),
                   cut.fp8_kv_cache ? KvScales(model.sizes['L'] / cut.pp) : std::vector<StoredTensor>()));
  }
  out.files.push_back(LiteralFile(std::string(kConfig), std::move(config)));
  for (const std::string& name : source.side_files)
    if (source.kind == kNemo.name || name != kConfig) out.left.push_back(name);
  return out;
}

}  // namespace

const Kind kTrtllm = {
    .name = "trtllm",
    .title = "TensorRT-LLM checkpoint: config.json, rank0.safetensors and on",
    .format = "safetensors",
    .layouts = &Block::trtllm,
    .name_prefix = "",
    .detect = Detect,
    .open = Open,
    .ranks = RanksOf,
    .lay_out = LayOut,
    .one_dtype = true,
    .markers = kMarkers,
};

}  // namespace reshard
