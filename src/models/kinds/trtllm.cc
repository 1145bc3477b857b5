// TensorRT-LLM checkpoints: config.json and a safetensors file for every rank (docs/formats/trtllm.md).
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <span>

#include "base/bytes.h"
#include "base/error.h"
#include "formats/safetensors/safetensors.h"
#include "models/kinds/kind.h"
#include "models/kinds/template.h"
#include "models/kinds/trtllm_config.h"

namespace reshard {
namespace {

constexpr std::string_view kConfig = "config.json";
constexpr std::string_view kMarkers[] = {"config.json"};
constexpr std::string_view kHead = "lm_head.weight";
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

bool Owns(std::string_view name) { return name == kConfig || RankOfFile(name); }

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
    checkpoint_.config_text = ReadTreeText(io_, checkpoint_.config_path, options_);
    checkpoint_.config = ParseJson(checkpoint_.config_text, checkpoint_.config_path);
    checkpoint_.model = ModelFromTrtllmConfig(checkpoint_.config, checkpoint_.config_path);
    const TrtllmOptions cut = CutOfTrtllmConfig(checkpoint_.config, checkpoint_.config_path);
    checkpoint_.unsaid = {"sliding_window"};
    if (!checkpoint_.config.contains("tie_word_embeddings")) checkpoint_.unsaid.push_back("tie_word_embeddings");
    const uint64_t stored_rows = checkpoint_.model.sizes['V'];
    AskTemplate();
    if (cut.share_embedding) checkpoint_.model.tied = true;
    ReadVocabulary(stored_rows);
    checkpoint_.ranks = TrtllmRanks(checkpoint_.model, stored_rows, cut, checkpoint_.config_path,
                                    "the config is of another run, or was changed");
  }

  // What the config has no key for comes from the template, which must be of the same model.
  void AskTemplate() {
    if (options_.template_path.empty()) return;
    const Model known = ReadTemplate(io_, options_, checkpoint_);
    checkpoint_.model.sizes['V'] = std::min(checkpoint_.model.sizes['V'], known.sizes['V']);
    CheckTemplate(checkpoint_.model, known, checkpoint_.unsaid, checkpoint_.config_path);
    checkpoint_.model.tied = known.tied;
    checkpoint_.model.hyper.sliding_window = known.hyper.sliding_window;
    checkpoint_.model.hyper.hf_only = known.hyper.hf_only;
    checkpoint_.model.hyper.initializer_range = known.hyper.initializer_range;
    checkpoint_.model.hyper.more = known.hyper.more;
  }

  // A writer may have padded its tables before TensorRT-LLM does, and count that in the config's vocab_size: then only
  // the template or the user knows the vocabulary.
  void ReadVocabulary(uint64_t stored_rows) {
    uint64_t& rows = checkpoint_.model.sizes['V'];
    const bool by_template = !checkpoint_.template_path.empty();
    if (options_.vocab_size && (by_template ? *options_.vocab_size != rows : *options_.vocab_size > rows))
      throw Error(Code::kMismatch,
                  fmt::format("the vocabulary has {} rows by --vocab_size, expected {} {}; correct it or leave it out",
                              *options_.vocab_size,
                              by_template ? "as the template says:" : "at most as many as vocab_size counts:", rows))
          .At("reading", checkpoint_.config_path);
    rows = options_.vocab_size.value_or(rows);
    if (!options_.vocab_size && !by_template && IsOfNemoExporter(checkpoint_.config))
      checkpoint_.vocabulary_doubt = fmt::format(
          "vocab_size {} may count padding in a config of NeMo's exporter, expected to be told how many rows are the "
          "vocabulary's; give --vocab_size or --hf_model_name",
          rows);
    if (rows < stored_rows)
      checkpoint_.padding_doubt =
          fmt::format("{} rows by {}, {} by config.json; give the vocabulary that the weights have", rows,
                      by_template ? "the template" : "--vocab_size", stored_rows);
  }

  void ListFiles() {
    for (const std::string& name : Entries(io_, checkpoint_.folder)) {
      const std::optional<uint64_t> rank = RankOfFile(name);
      if (rank && *rank >= checkpoint_.ranks.size())
        throw Error(Code::kMismatch,
                    fmt::format("a file of rank {}, expected ranks below {} as config.json says; it may be of another "
                                "run",
                                *rank, checkpoint_.ranks.size()))
            .At("reading", JoinPath(checkpoint_.folder, name));
      if (!rank && name != kConfig && !name.starts_with(".reshard")) checkpoint_.side_files.push_back(name);
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
    for (StoredTensor& tensor : safetensors::ReadFile(io_, path, number, options_.max_header,
                                                      options_.max_tensors - checkpoint_.tensors.size())) {
      if (IsConstant(tensor.name)) {
        checkpoint_.ignored.push_back(FullName("", checkpoint_.ranks.size(), rank, tensor.name));
        continue;
      }
      if (!IsCastable(tensor.dtype))
        throw Error(Code::kUnsupported, fmt::format("{}, expected plain F32, F16 or BF16 weights; convert the "
                                                    "unquantised model",
                                                    Row(tensor.dtype).name))
            .At("reading", path)
            .Tensor(tensor.name);
      if (!checkpoint_.ranks[rank].stores_head && tensor.name == kHead)
        throw Error(Code::kMismatch, "it is there, expected none as config.json says (share_embedding_table)")
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
  if (options.tp > 1 && !(options.parallel_embedding && options.embedding_axis == 0))
    problem = "the embedding is not cut by rows like the head (--use_parallel_embedding --embedding_sharding_dim=0)";
  if (!problem.empty())
    throw Error(Code::kMismatch, problem + ", expected tensors that --use_embedding_sharing can make one")
        .At("reading", path);
}

std::vector<Rank> RanksOf(const Model& model, const Checkpoint& source, const TargetOptions& options) {
  CheckSharing(model, options.trtllm, source.config_path);
  return TrtllmRanks(model, model.sizes['V'], options.trtllm, source.config_path,
                     "choose another --tp_size or --pp_size");
}

// A tensor whose bytes are known.
struct Constant {
  StoredTensor tensor;
  std::string bytes;
};

Constant Floats(std::string name, std::initializer_list<float> values) {
  Constant constant{{std::move(name), Dtype::kF32, Dims{values.size()}, {}, {}}, ""};
  for (float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    AppendLittle<uint32_t>(constant.bytes, bits);
  }
  return constant;
}

// Modules of a layer whose weights a quantisation changes; in the last, inputs are what ranks share out.
constexpr std::string_view kAttention[] = {"attention.qkv.weight", "attention.dense.weight"};
constexpr std::string_view kMlp[] = {"mlp.fc.weight", "mlp.gate.weight", "mlp.proj.weight"};
constexpr std::string_view kByInputs[] = {"attention.dense.weight", "mlp.proj.weight"};

bool EndsWithAny(std::string_view name, std::span<const std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

// Lays out the files of a target's ranks.
class TrtllmWriter {
 public:
  TrtllmWriter(const Model& model, const TargetOptions& options, const std::vector<TensorSpec>& specs,
               const QuantisedWeights& source, std::vector<StoredTensor>& tensors, LaidOut& out)
      : model_(model),
        cut_(options.trtllm),
        dtype_(*options.dtype),
        specs_(specs),
        source_(source),
        tensors_(tensors),
        out_(out) {}

  void LayOut(const std::string& path) {
    for (uint32_t rank = 0; rank < cut_.tp * cut_.pp; ++rank) LayOutRank(rank);
    if (!problems_.empty()) throw Gathered(Code::kMismatch, std::move(problems_)).At("quantising the model of", path);
  }

 private:
  // What a quantised tensor becomes in the file: stored under names and shapes that say nothing of the layout.
  struct Quantised {
    size_t spec;
    ValueOp op;
    std::array<StoredTensor, kValueOutputs> stored;
  };

  void LayOutRank(uint32_t rank) {
    std::vector<Quantised> quantised;
    std::vector<StoredTensor*> members;
    for (size_t i = 0; i < specs_.size(); ++i) {
      if (specs_[i].rank != rank) continue;
      if (std::optional<ValueOp> op = OpOf(specs_[i])) {
        quantised.push_back({i, *op, StoredAs(specs_[i], *op)});
      } else {
        members.push_back(&tensors_[i]);
      }
    }
    std::vector<Constant> constants = ConstantsOf(rank);
    for (Quantised& tensor : quantised)
      for (StoredTensor& stored : tensor.stored)
        if (ElementCount(stored.shape) > 0) members.push_back(&stored);
    for (Constant& constant : constants) members.push_back(&constant.tensor);
    out_.files.push_back(safetensors::LayOut(RankFile(rank), std::move(members), rank, safetensors::Metadata::kNone));
    for (const Constant& constant : constants)
      out_.files.back().literals.push_back({constant.tensor.chunks[0].offset, constant.bytes});
    for (const Quantised& tensor : quantised) AddDerived(tensor);
  }

  std::optional<ValueOp> OpOf(const TensorSpec& spec) const {
    const bool linear = EndsWithAny(spec.name, kAttention) || EndsWithAny(spec.name, kMlp);
    if (!linear) return std::nullopt;
    switch (cut_.quantisation) {
      case TrtllmOptions::Quantisation::kNone:
        return std::nullopt;
      case TrtllmOptions::Quantisation::kInt8:
      case TrtllmOptions::Quantisation::kInt4:
        return cut_.sm ? std::optional(WeightOnly()) : std::nullopt;
      case TrtllmOptions::Quantisation::kFp8Rowwise:
        if (!HasFp8(spec.views[0].part.layer, EndsWithAny(spec.name, kAttention))) return std::nullopt;
        if (source_.encoded.encoding == Encoding::kFp8Rows)
          return ValueOp{ValueOp::Kind::kFp8AsIs, GemmLayout::kPlain, dtype_, source_.encoded};
        return ValueOp{cut_.fp8_reciprocal ? ValueOp::Kind::kFp8RowsReciprocal : ValueOp::Kind::kFp8Rows,
                       GemmLayout::kPlain, dtype_};
      case TrtllmOptions::Quantisation::kGptq:
        return ValueOp{ValueOp::Kind::kGptq, *GemmLayoutOf(cut_.sm), Dtype::kF16, source_.encoded};
    }
    throw Error(Code::kInternal, "a quantisation without a value op");
  }

  ValueOp WeightOnly() const {
    const bool int4 = cut_.quantisation == TrtllmOptions::Quantisation::kInt4;
    const ValueOp::Kind packed = int4 ? ValueOp::Kind::kInt4 : ValueOp::Kind::kInt8;
    return {cut_.weight_only_plugin ? packed : ValueOp::Kind::kInt8Scales, *GemmLayoutOf(cut_.sm), dtype_};
  }

  // Up to 0.14, and in what is published so, the MLPs of all layers but the model's first and last, then all linear
  // layers.
  bool HasFp8(int32_t layer, bool attention) const {
    if (cut_.version >= 15 && source_.encoded.encoding == Encoding::kPlain) return true;
    return !attention && layer != 0 && static_cast<uint64_t>(layer) + 1 != model_.sizes['L'];
  }

  std::array<StoredTensor, kValueOutputs> StoredAs(const TensorSpec& spec, const ValueOp& op) {
    const uint64_t rows = spec.shape[0], columns = spec.shape[1];
    Check(spec, op);
    const auto outputs = OutputsOf(op, rows, columns / op.takes.columns_an_item());
    const std::string stem = spec.name.substr(0, spec.name.size() - std::string_view("weight").size());
    const bool gptq = op.kind == ValueOp::Kind::kGptq;
    const std::string names[] = {spec.name, stem + (gptq ? "weights_scaling_factor" : "per_channel_scale"),
                                 stem + "zero"};
    std::array<StoredTensor, kValueOutputs> stored;
    for (size_t i = 0; i < kValueOutputs; ++i) stored[i] = {names[i], outputs[i].dtype, outputs[i].shape, {}, {}};
    if (gptq)
      for (StoredTensor& tensor : stored) tensor.shape = {tensor.shape[1], tensor.shape[0]};
    if (outputs[0].dtype != Dtype::kF8E4M3)  // as if it were [inputs, outputs]
      stored[0].shape = {columns, rows * outputs[0].shape[1] / columns};
    return stored;
  }

  void Check(const TensorSpec& spec, const ValueOp& op) {
    std::string problem = WhyNot(op, spec.shape[0], spec.shape[1]);
    const bool gptq = op.kind == ValueOp::Kind::kGptq;
    const bool packs = op.kind == ValueOp::Kind::kInt8 || op.kind == ValueOp::Kind::kInt4 || gptq;
    const uint64_t whole = spec.shape[EndsWithAny(spec.name, kByInputs) ? 0 : 1];
    const uint64_t padded = std::max<uint64_t>(64, op.takes.group) * cut_.tp;
    if (problem.empty() && packs && cut_.version >= 13 && whole % padded != 0)
      problem = fmt::format("{} features on all ranks, expected a multiple of {}: TensorRT-LLM 0.{} would pad them",
                            whole, padded, cut_.version);
    for (const View& view : spec.views)
      if (problem.empty() && (view.origin[0] % TileRows(op) != 0 || view.box.shape[0] % TileRows(op) != 0))
        problem =
            fmt::format("{} output channels of one part, expected a multiple of {}", view.box.shape[0], TileRows(op));
    if (!problem.empty()) problems_.push_back(fmt::format("tensor '{}': {}", spec.name, problem));
  }

  // The stored tensors as what the value op's outputs are: rows first.
  void AddDerived(const Quantised& tensor) {
    const Dims& shape = specs_[tensor.spec].shape;
    const auto outputs = OutputsOf(tensor.op, shape[0], shape[1] / tensor.op.takes.columns_an_item());
    DerivedTensor derived{tensor.spec, tensor.op, tensor.stored};
    for (size_t output = 0; output < kValueOutputs; ++output) {
      StoredTensor& stored = derived.outputs[output];
      stored.shape = outputs[output].shape;
      if (ElementCount(stored.shape) == 0) continue;
      const bool transposed = tensor.op.kind == (output == 0 ? ValueOp::Kind::kInt8Scales : ValueOp::Kind::kGptq);
      stored.chunks[0].strides = transposed ? Dims{1, shape[0]} : RowMajorStrides(stored.shape);
      stored.chunks[0].box = WholeBox(stored.shape);
    }
    out_.derived.push_back(std::move(derived));
  }

  // What the builder expects beside the weights: a scale of 1 for an FP8 cache of keys and values, the bounds of FP8
  // activations.
  std::vector<Constant> ConstantsOf(uint32_t rank) const {
    std::vector<Constant> constants;
    const uint64_t layers = model_.sizes['L'] / cut_.pp, first = rank / cut_.tp * layers;
    for (uint64_t layer = 0; layer < layers; ++layer) {
      auto add = [&](std::string_view name, std::initializer_list<float> values) {
        constants.push_back(Floats(fmt::format("transformer.layers.{}.{}", layer, name), values));
      };
      if (cut_.fp8_kv_cache) add(kKvScale, {1.0f});
      if (cut_.quantisation != TrtllmOptions::Quantisation::kFp8Rowwise) continue;
      const int32_t global = static_cast<int32_t>(first + layer);
      const float bound = static_cast<float>(source_.fp8_bound);
      if (HasFp8(global, false))
        for (const char* name : {"mlp.clamp_val", "post_layernorm.clamp_val"}) add(name, {-bound, bound});
      if (HasFp8(global, true))
        for (const char* name : {"attention.clamp_val", "input_layernorm.clamp_val"}) add(name, {-bound, bound});
    }
    return constants;
  }

  const Model& model_;
  const TrtllmOptions& cut_;
  const Dtype dtype_;
  const std::vector<TensorSpec>& specs_;
  const QuantisedWeights& source_;
  std::vector<StoredTensor>& tensors_;
  LaidOut& out_;
  std::vector<std::string> problems_;
};

std::optional<std::string> Refuses(const QuantisedWeights& weights, const TargetOptions& options) {
  using Quantisation = TrtllmOptions::Quantisation;
  const Quantisation asked = options.trtllm.quantisation;
  if (weights.encoded.encoding == Encoding::kGptq)
    return asked == Quantisation::kGptq ? std::nullopt : std::optional(weights.remedy);
  if (asked == Quantisation::kNone || asked == Quantisation::kFp8Rowwise) return std::nullopt;
  return "leave --use_weight_only and --weight_only_precision out, and they are carried over as they are";
}

void RefuseQuantisedExperts(const Model& model, const TrtllmOptions& cut, const std::string& path) {
  using Quantisation = TrtllmOptions::Quantisation;
  const bool weight_only = cut.quantisation == Quantisation::kInt8 || cut.quantisation == Quantisation::kInt4;
  if (!model.sizes['E'] || cut.quantisation == Quantisation::kNone || (weight_only && !cut.sm)) return;
  throw Error(
      Code::kUnsupported,
      fmt::format("{} has experts, expected a dense model to quantise; leave --sm out with --use_weight_only, and "
                  "trtllm-build quantises them",
                  model.family->class_name))
      .At("reading", path);
}

// What the source's own quantisation decides.
void Settle(const Checkpoint& source, TargetOptions& options) {
  TrtllmOptions& cut = options.trtllm;
  const Encoded& encoded = source.quantised.encoded;
  if (source.kind == kTrtllm.name) KeepDeferred(source.config, source.config_path, cut);
  if (encoded.encoding == Encoding::kFp8Rows) cut.quantisation = TrtllmOptions::Quantisation::kFp8Rowwise;
  if (cut.quantisation != TrtllmOptions::Quantisation::kGptq) return;
  std::string problem;
  if (encoded.encoding != Encoding::kGptq) {
    problem = "the linear weights are plain, expected GPTQ int4 as --weight_only_precision=int4_gptq says";
  } else if (cut.group_size && *cut.group_size != encoded.group) {
    problem = fmt::format("groups of {} columns, expected {} as --group_size says", encoded.group, *cut.group_size);
  } else if (cut.version >= 13 && *options.dtype != Dtype::kF16) {
    problem = fmt::format(
        "GPTQ in a model of {}, expected F16 for TensorRT-LLM 0.{}, whose releases do not agree on "
        "its scales; give --dtype=fp16 or --trtllm_version=0.12",
        Row(*options.dtype).name, cut.version);
  }
  if (!problem.empty()) throw Error(Code::kMismatch, std::move(problem)).At("reading", source.folder);
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
               const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors) {
  if (!source.vocabulary_doubt.empty())
    throw Error(Code::kMismatch, source.vocabulary_doubt).At("reading", source.config_path);
  TargetOptions settled = options;
  Settle(source, settled);
  SettleExperts(settled.trtllm, source.config_path);
  RefuseQuantisedExperts(model, settled.trtllm, source.config_path);
  std::string config =
      TrtllmConfigText(model, settled.trtllm, source.quantised, *options.dtype, RopeOrder(source), source.config_path);
  LaidOut out;
  if (!model.hyper.sliding_window.is_null())
    out.notes.push_back(fmt::format(
        "a TensorRT-LLM checkpoint has no key for the sliding window of {}: beyond it attention will see more",
        model.hyper.sliding_window.dump()));
  TrtllmWriter(model, settled, specs, source.quantised, tensors, out).LayOut(source.folder);
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
    .refuses = Refuses,
    .one_dtype = true,
    .markers = kMarkers,
    .knows = [](const Family& family) { return family.trtllm_config != TrtllmConfig::kNone; },
    .owns = Owns,
};

}  // namespace reshard
