// NeMo 1 checkpoint folders: model_config.yaml and a distributed checkpoint in zarr or torch_dist, or files of ranks
// (docs/formats/nemo.md).
#include <fmt/format.h>

#include <algorithm>

#include "archive/torch_zip.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "base/yaml.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/dist_weights.h"
#include "models/kinds/kind.h"
#include "models/kinds/nemo_config.h"
#include "models/kinds/rank_weights.h"
#include "models/kinds/template.h"

namespace reshard {
namespace {

constexpr std::string_view kConfig = "model_config.yaml", kWeights = "model_weights";
constexpr std::string_view kZarr = "zarr", kTorchDist = "torch_dist", kRanks = "ranks",
                           kFormats[] = {kZarr, kTorchDist, kRanks};
constexpr std::string_view kMarkers[] = {"model_weights/metadata.json", kRankMarkers[0], kRankMarkers[1],
                                         kRankMarkers[2]};
constexpr std::string_view kPrefix = "model.";

bool Detect(Io& io, const std::string& folder) { return Exists(io, folder, kConfig) || Exists(io, folder, kWeights); }

// -- reading ----------------------------------------------------------------------------------------------------------

class NemoReader {
 public:
  NemoReader(Io& io, const std::string& folder, const OpenOptions& options)
      : io_(io), options_(options), weights_(JoinPath(folder, std::string(kWeights))) {
    checkpoint_.folder = folder;
  }

  Checkpoint Open() {
    ReadConfig();
    if (HasRankWeights(io_, checkpoint_.folder)) {
      DescribeRanks(ReadRankWeights(io_, options_, checkpoint_));
    } else {
      ReadDistWeights(io_, weights_, options_, checkpoint_);
      Describe();
    }
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

  void Describe() {
    const StoredTensor& embedding = EmbeddingOf(checkpoint_, weights_);
    const uint64_t rows = embedding.shape[0], rows_of_rank = embedding.chunks[0].box.shape[0];
    ReadModel({rows, CeilDiv(rows, rows_of_rank)});
    checkpoint_.ranks = {DistRank(checkpoint_, rows)};
    checkpoint_.ranks[0].zero_centred = IsZeroCentred();
  }

  bool IsZeroCentred() const { return ReadsZeroCentred({checkpoint_.config, checkpoint_.config_path}); }

  void DescribeRanks(RankGrid grid) {
    const StoredTensor& embedding = EmbeddingOf(checkpoint_, checkpoint_.folder);
    const uint64_t rows = embedding.shape[0] * grid.tp;
    ReadModel({rows, grid.tp});
    const bool stores_head = HasHead(checkpoint_) || !checkpoint_.model.tied;
    checkpoint_.ranks =
        RanksOfGrid(checkpoint_.model, grid, {rows, stores_head, IsZeroCentred()}, checkpoint_.config_path);
  }

  void ReadModel(const NemoEmbedding& embedding) {
    NemoHints hints{options_.model_type, nullptr, options_.vocab_size};
    Model known;
    if (!options_.template_path.empty()) {
      known = ReadTemplate(io_, options_, checkpoint_);
      hints.template_model = &known;
    }
    NemoDoubts doubts;
    checkpoint_.model = ModelFromNemoConfig(checkpoint_.config, checkpoint_.config_path, embedding, hints, doubts);
    checkpoint_.vocabulary_doubt = std::move(doubts.vocabulary);
    checkpoint_.padding_doubt = std::move(doubts.padding);
  }

  void ListSideFiles() {
    for (const std::string& name : Entries(io_, checkpoint_.folder))
      if (!name.starts_with(".reshard") && name != std::string(kWeights) + "/" && !IsRankEntry(name))
        checkpoint_.side_files.push_back(name);
  }

  Io& io_;
  const OpenOptions& options_;
  std::string weights_;
  Checkpoint checkpoint_;
};

Checkpoint Open(Io& io, const std::string& folder, const OpenOptions& options) {
  return NemoReader(io, folder, options).Open();
}

// Of a table that is cut over tensor ranks: as many as NeMo makes of the config that goes with them.
uint64_t RowsOfRanks(const Model& model, const Checkpoint& source, uint64_t rows, uint64_t tp) {
  const bool from_nemo = source.kind == kNemo.name;
  const ConfigReader config(source.config, source.config_path);
  const bool fixed = from_nemo ? config.Size("override_vocab_size", 0) > 0
                               : rows % tp == 0 || model.family->nemo_base == NemoBase::kQwen;
  const uint64_t divisor = from_nemo ? config.Size("make_vocab_size_divisible_by", 128) : VocabularyDivisor(rows);
  if (!fixed) return RoundUp(rows, divisor * tp);
  if (rows % tp == 0) return rows;
  throw Error(Code::kMismatch, fmt::format("a vocabulary of {} rows, which NeMo does not pad, by {} tensor ranks, "
                                           "expected a number that divides; choose another --tp_size",
                                           rows, tp))
      .At("reading", source.config_path);
}

// Rows that pad a NeMo source's vocabulary stay when the target is NeMo again, and so does a head that is stored twice.
std::vector<Rank> RanksOf(const Model& model, const Checkpoint& source, const TargetOptions& options) {
  const Sizes& sizes = model.sizes;
  const bool from_nemo = source.kind == kNemo.name;
  const uint64_t vocab_rows = from_nemo ? source.ranks[0].vocab_rows : sizes['V'];
  const bool stores_head = !model.tied || (from_nemo && source.ranks[0].stores_head);
  const bool zero_centred =
      from_nemo ? *source.ranks[0].zero_centred : WritesZeroCentred(*model.family, MegatronDialectOf::kNemo);
  if (options.weights != kRanks) return {NewDistRank(model, vocab_rows, stores_head, zero_centred)};
  // The last of several stages has the tied table, too.
  const RankTables tables{RowsOfRanks(model, source, vocab_rows, options.tp), stores_head || options.pp > 1,
                          zero_centred};
  std::vector<Rank> ranks = RanksOfGrid(model, {options.tp, options.pp}, tables, source.config_path);
  for (Rank& rank : ranks) rank.by_module = true;
  return ranks;
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
  for (const FileCopy& copy : source.template_path.empty() ? source.tokenizer_files : source.template_files)
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
                fmt::format("no tokenizer is taken over from a {} checkpoint, expected --hf_model_name to name one",
                            source.kind))
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

// Of distributed weights.
std::string_view FormatOf(const TargetOptions& options) { return options.weights == kTorchDist ? kTorchDist : kZarr; }

// Old megatron-core loads torch_dist tables with exactly as many rows as are stored, and NeMo, unless it is told the
// number, tables of ranks with as many as it would pad them to.
bool IsExact(const Model& model, const TargetOptions& options) {
  return options.weights == kTorchDist || (options.weights == kRanks && model.sizes['V'] % options.tp == 0);
}

std::string ConfigText(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options, Dtype dtype,
                       LaidOut& out) {
  if (source.kind != kNemo.name) {
    Tokenizer tokenizer = TokenizerOf(io, source, model, options, out);
    try {
      return NemoConfigText(model, {dtype, tokenizer.name, tokenizer.artifact, options.rope_config_only,
                                    FormatOf(options), IsExact(model, options), options.tp, options.pp});
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
  if (source.config.contains(kDistFormat) && source.config[kDistFormat] != FormatOf(options))
    text = WithNemoDistFormat(text, FormatOf(options), source.config_path);
  if (options.weights == kRanks || source.format == kRanks)
    text = WithNemoRanks(text, options.tp, options.pp, source.config_path);
  if (!model.tied && ConfigReader(source.config, source.config_path).Bool(kShareEmbeddings, false))
    text = WithNemoUntied(text, source.config_path);
  return text;
}

LaidOut LayOut(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options,
               const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors) {
  LaidOut out;
  out.files.push_back(
      LiteralFile(std::string(kConfig), ConfigText(io, source, model, options, MainDtype(tensors), out)));
  if (options.weights == kRanks) {
    LayOutRankWeights(kPrefix, model, RanksOf(model, source, options), {options.tp, options.pp}, specs, tensors,
                      out.files);
    return out;
  }
  const DistFormat format = options.weights == kTorchDist ? DistFormat::kTorchDist : DistFormat::kZarr;
  LayOutDistWeights(std::string(kWeights), kPrefix, format, model, specs, tensors, kPickledEmptyDict, out.files);
  return out;
}

}  // namespace

const Kind kNemo = {
    .name = "nemo",
    .title = "NeMo 1 folder: model_config.yaml, model_weights in zarr or torch_dist, or files of ranks",
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
