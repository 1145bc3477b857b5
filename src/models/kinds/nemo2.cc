// NeMo 2 checkpoint folders: context/, which says what the model is, and weights/, a distributed checkpoint
// (docs/formats/nemo2.md).
#include <fmt/format.h>

#include <algorithm>

#include "archive/torch_zip.h"
#include "base/error.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/dist_weights.h"
#include "models/kinds/kind.h"
#include "models/kinds/mcore_kind.h"
#include "models/kinds/nemo2_config.h"

namespace reshard {
namespace {

constexpr std::string_view kContext = "context", kWeights = "weights", kPrefix = "module.",
                           kTokenizerFolder = "nemo_tokenizer";
constexpr std::string_view kFormats[] = {"torch_dist", "zarr"};
constexpr std::string_view kMarkers[] = {"weights/metadata.json"};

bool Detect(Io& io, const std::string& folder) {
  for (const char* name : {"context/io.json", "context/model.yaml", "weights/metadata.json", "weights/.metadata"})
    if (Exists(io, folder, name)) return true;
  return false;
}

std::string InContext(std::string_view name) { return fmt::format("{}/{}", kContext, name); }

// -- reading ----------------------------------------------------------------------------------------------------------

// The first releases put the weights beside the context.
std::string WeightsOf(Io& io, const std::string& folder) {
  const std::string weights = JoinPath(folder, std::string(kWeights));
  return io.Stat(weights) ? weights : folder;
}

Checkpoint Open(Io& io, const std::string& folder, const OpenOptions& options) {
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  const std::string context_folder = JoinPath(folder, std::string(kContext)), weights = WeightsOf(io, folder);
  if (!io.Stat(context_folder))
    throw Error(Code::kCorrupt,
                "there is no context, expected the folder that says what the model is; copy it from a checkpoint of "
                "the same model")
        .At("reading", folder);
  if (Exists(io, weights, "adapter_metadata.json"))
    throw Error(Code::kUnsupported, "the weights are a PEFT adapter, expected a whole model; merge it first")
        .At("reading", weights);
  Nemo2Context context = ReadNemo2Context(io, context_folder, options);
  checkpoint.config_path = std::move(context.path);
  checkpoint.config_text = std::move(context.text);
  checkpoint.config = std::move(context.config);
  ReadDistWeights(io, weights, options, checkpoint);
  DescribeMcore(io, weights, Nemo2Dialect(context.family), options, checkpoint);
  for (const std::string& name : NamesBelow(io, context_folder)) checkpoint.side_files.push_back(InContext(name));
  const std::string tokenizer = JoinPath(context_folder, std::string(kTokenizerFolder));
  if (io.Stat(tokenizer)) AddTokenizerFiles(InContext(kTokenizerFolder), NamesBelow(io, tokenizer), checkpoint);
  return checkpoint;
}

// Whether the target has the context of its source, which is of this kind and says nothing that is not so any more.
bool KeepsContext(const Checkpoint& source, const Model& model, const TargetOptions& options) {
  if (source.kind != kNemo2.name || !options.nemo2_context.empty()) return false;
  if (options.dtype && *options.dtype != MainDtype(source.tensors)) return false;
  return model.tied ==
         ConfigReader(source.config, source.config_path).Bool("share_embeddings_and_output_weights", true);
}

// Rows that pad the vocabulary stay where the context does that counts them.
std::vector<Rank> RanksOf(const Model& model, const Checkpoint& source, const TargetOptions& options) {
  if (KeepsContext(source, model, options))
    return {NewDistRank(model, source.ranks[0].vocab_rows, !model.tied || source.ranks[0].stores_head,
                        *source.ranks[0].zero_centred)};
  return {
      NewDistRank(model, model.sizes['V'], !model.tied, WritesZeroCentred(*model.family, MegatronDialectOf::kMcore))};
}

// -- writing ----------------------------------------------------------------------------------------------------------

// A context that is given must be of a model with the same tensors.
void CheckContext(const Json& config, const std::string& path, const Model& model) {
  ConfigReader reader(config, path);
  std::vector<std::string> problems;
  for (auto [key, symbol] :
       {std::pair{"num_layers", 'L'}, std::pair{"hidden_size", 'H'}, std::pair{"ffn_hidden_size", 'F'},
        std::pair{"num_attention_heads", 'A'}, std::pair{"num_query_groups", 'G'}, std::pair{"kv_channels", 'D'},
        std::pair{"vocab_size", 'V'}})
    if (uint64_t said = reader.Size(key, model.sizes[symbol]); said != model.sizes[symbol])
      problems.push_back(fmt::format("{} is {}, expected {} as the model has", key, said, model.sizes[symbol]));
  if (bool tied = reader.Bool("share_embeddings_and_output_weights", true); tied != model.tied)
    problems.push_back(
        fmt::format("share_embeddings_and_output_weights is {}, expected {} as the model has", tied, model.tied));
  if (!problems.empty()) throw Gathered(Code::kMismatch, std::move(problems)).At("reading", path);
}

void CopyContext(Io& io, const std::string& from, LaidOut& out) {
  for (const std::string& name : NamesBelow(io, from)) out.copies.push_back({JoinPath(from, name), InContext(name)});
}

void AddGivenContext(Io& io, const Checkpoint& source, const Model& model, const std::string& from, LaidOut& out) {
  if (!io.Stat(from))
    throw Error(Code::kNotFound, "there is no such folder, expected the context of a NeMo 2 checkpoint")
        .At("reading", from);
  if (!Exists(io, from, "io.json"))
    throw Error(Code::kNotFound, "there is no io.json, expected the context of a NeMo 2 checkpoint")
        .At("reading", from);
  const Nemo2Context context = ReadNemo2Context(io, from, OpenOptions());
  CheckContext(context.config, context.path, model);
  CopyContext(io, from, out);
  for (const std::string& name : source.side_files)
    if (name != "config.json") out.left.push_back(name);
}

void AddContext(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options, Dtype dtype,
                LaidOut& out) {
  if (KeepsContext(source, model, options)) return CopyContext(io, JoinPath(source.folder, std::string(kContext)), out);
  if (!options.nemo2_context.empty()) return AddGivenContext(io, source, model, options.nemo2_context, out);
  KeptTokenizer tokenizer = TokenizerToKeep(io, source, options, out);
  const bool kept = !tokenizer.files.empty();
  Nemo2ContextTexts texts;
  try {
    texts = Nemo2ContextOf(model, {dtype, kept ? std::string(kTokenizerFolder) : tokenizer.name, kept});
  } catch (Error& error) {
    throw error.At("reading", source.config_path);
  }
  for (FileCopy& copy : tokenizer.files)
    out.copies.push_back({std::move(copy.from), InContext(fmt::format("{}/{}", kTokenizerFolder, copy.to))});
  out.files.push_back(LiteralFile(InContext("io.json"), std::move(texts.io_json)));
  out.files.push_back(LiteralFile(InContext("model.yaml"), std::move(texts.model_yaml)));
}

LaidOut LayOut(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options,
               const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors) {
  RequireVocabulary(source, kNemo2.name);
  LaidOut out;
  AddContext(io, source, model, options, MainDtype(tensors), out);
  LayOutDistWeights(std::string(kWeights), kPrefix, DistFormatOf(options), model, specs, tensors, kPickledEmptyDict,
                    out.files);
  return out;
}

}  // namespace

const Kind kNemo2 = {
    .name = "nemo2",
    .title = "NeMo 2 folder: context, weights in torch_dist or zarr",
    .format = "torch_dist",
    .layouts = &Block::nemo,
    .name_prefix = kPrefix,
    .detect = Detect,
    .open = Open,
    .ranks = RanksOf,
    .lay_out = LayOut,
    .weights = kFormats,
    .markers = kMarkers,
    .knows = [](const Family& family) { return !family.megatron.config.empty(); },
};

}  // namespace reshard
