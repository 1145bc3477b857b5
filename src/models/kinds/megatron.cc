// Checkpoints of Megatron-LM and Megatron-Bridge: iter_0000001/ with a distributed checkpoint and what says what the
// model is, and beside it the file that names it (docs/formats/megatron.md).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "models/kinds/config_reader.h"
#include "models/kinds/dist_weights.h"
#include "models/kinds/kind.h"
#include "models/kinds/mcore_kind.h"
#include "models/kinds/megatron_config.h"

namespace reshard {
namespace {

constexpr std::string_view kTracker = "latest_checkpointed_iteration.txt", kRelease = "release",
                           kTokenizerFolder = "tokenizer";
constexpr std::string_view kFormats[] = {"torch_dist", "zarr"};
constexpr std::string_view kMarkers[] = {kTracker};
// Megatron-LM before 0.16 and Megatron-Bridge take 0 for no checkpoint.
constexpr uint64_t kIteration = 1;

// The folder of one iteration itself.
bool IsIteration(Io& io, const std::string& folder) {
  return Exists(io, folder, "metadata.json") &&
         (Exists(io, folder, "run_config.yaml") || Exists(io, folder, "common.pt"));
}

std::string IterationName(uint64_t iteration) { return fmt::format("iter_{:07}", iteration); }

bool HasIterations(Io& io, const std::string& folder) {
  const std::vector<std::string> names = io.List(folder);
  return std::any_of(names.begin(), names.end(), [](const std::string& name) { return name.starts_with("iter_0"); });
}

bool Detect(Io& io, const std::string& folder) {
  return Exists(io, folder, kTracker) || IsIteration(io, folder) || HasIterations(io, folder);
}

// -- reading ----------------------------------------------------------------------------------------------------------

// The folder within a checkpoint's that its tracker names; empty where the checkpoint is the iteration itself.
std::string IterationOf(Io& io, const std::string& folder) {
  const std::string path = JoinPath(folder, std::string(kTracker));
  if (!io.Stat(path)) {
    if (IsIteration(io, folder)) return "";
    throw Error(Code::kCorrupt,
                fmt::format("there is no {}, which is written last, expected one that names an iteration; or give that "
                            "iteration's folder itself",
                            kTracker))
        .At("reading", folder);
  }
  constexpr uint64_t kMaxBytes = 64;
  std::string text = ReadWholeFile(io, path, kMaxBytes);
  const char* blanks = " \t\r\n";
  text.erase(text.find_last_not_of(blanks) + 1);
  text.erase(0, text.find_first_not_of(blanks));
  uint64_t iteration = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), iteration);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  if (!is_number && text != kRelease)
    throw Error(Code::kCorrupt, fmt::format("'{}' is no iteration, expected a whole number or release", text))
        .At("reading", path);
  std::string name = is_number ? IterationName(iteration) : std::string(kRelease);
  if (!Exists(io, folder, name))
    throw Error(Code::kCorrupt, fmt::format("it names {}, which is not there, expected that folder", name))
        .At("reading", path);
  return name;
}

void RefuseRanks(Io& io, const std::string& folder) {
  for (const std::string& name : io.List(folder))
    if (name.starts_with("mp_rank_"))
      throw Error(Code::kUnsupported,
                  fmt::format("{} is the layout of old per-rank checkpoints, expected a distributed one", name))
          .At("reading", folder);
}

Checkpoint Open(Io& io, const std::string& folder, const OpenOptions& options) {
  Checkpoint checkpoint;
  checkpoint.folder = folder;
  const std::string name = IterationOf(io, folder);
  const std::string iteration = name.empty() ? folder : JoinPath(folder, name);
  RefuseRanks(io, iteration);
  MegatronConfig config = ReadMegatronConfig(io, iteration, options);
  checkpoint.config_path = std::move(config.path);
  checkpoint.config_text = std::move(config.text);
  checkpoint.config = std::move(config.config);
  ReadDistWeights(io, iteration, options, checkpoint);
  DescribeMcore(io, iteration, MegatronDialect(config.family), options, checkpoint);
  const ConfigReader reader(checkpoint.config, checkpoint.config_path);
  const uint64_t rows = checkpoint.ranks[0].vocab_rows;
  if (uint64_t padded = reader.Size("padded_vocab_size", rows); padded != rows)
    throw Error(Code::kMismatch, fmt::format("embedding.word_embeddings.weight has {} rows, expected {} as "
                                             "padded_vocab_size says",
                                             rows, padded))
        .At("reading", checkpoint.config_path);
  const std::string tokenizer =
      name.empty() ? std::string(kTokenizerFolder) : JoinPath(name, std::string(kTokenizerFolder));
  if (Exists(io, folder, tokenizer)) {
    const std::vector<std::string> files = NamesBelow(io, JoinPath(folder, tokenizer));
    for (const std::string& file : files) checkpoint.side_files.push_back(JoinPath(tokenizer, file));
    AddTokenizerFiles(tokenizer, files, checkpoint);
  }
  return checkpoint;
}

std::vector<Rank> RanksOf(const Model& model, const Checkpoint&, const TargetOptions&) {
  return {
      NewDistRank(model, model.sizes['V'], !model.tied, WritesZeroCentred(*model.family, MegatronDialectOf::kMcore))};
}

// -- writing ----------------------------------------------------------------------------------------------------------

LaidOut LayOut(Io& io, const Checkpoint& source, const Model& model, const TargetOptions& options,
               const std::vector<TensorSpec>& specs, std::vector<StoredTensor>& tensors) {
  RequireVocabulary(source, "");
  LaidOut out;
  KeptTokenizer tokenizer = TokenizerToKeep(io, source, options, out);
  const std::string folder = IterationName(kIteration);
  MegatronConfigTexts texts;
  try {
    texts = MegatronConfigOf(model, {MainDtype(tensors), tokenizer.name, kIteration, options.rope_config_only});
  } catch (Error& error) {
    throw error.At("reading", source.config_path);
  }
  if (tokenizer.name.empty())
    out.notes.push_back(
        fmt::format("the config names no tokenizer, whose files are in {}/{}; --hf_model_name names one", folder,
                    kTokenizerFolder));
  for (FileCopy& copy : tokenizer.files)
    out.copies.push_back({std::move(copy.from), fmt::format("{}/{}/{}", folder, kTokenizerFolder, copy.to)});
  out.files.push_back(LiteralFile(JoinPath(folder, "run_config.yaml"), std::move(texts.run_config)));
  LayOutDistWeights(folder, "", DistFormatOf(options), model, specs, tensors, texts.common_pickle, out.files);
  out.files.push_back(LiteralFile(std::string(kTracker), std::to_string(kIteration)));
  return out;
}

}  // namespace

const Kind kMegatron = {
    .name = "megatron",
    .title = "Megatron-LM or Megatron-Bridge folder: iter_0000001, weights in torch_dist or zarr",
    .format = "torch_dist",
    .layouts = &Block::nemo,
    .name_prefix = "",
    .detect = Detect,
    .open = Open,
    .ranks = RanksOf,
    .lay_out = LayOut,
    .weights = kFormats,
    .markers = kMarkers,
};

}  // namespace reshard
