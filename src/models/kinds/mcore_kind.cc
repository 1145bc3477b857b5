#include "models/kinds/mcore_kind.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/bytes.h"
#include "base/error.h"
#include "base/text.h"
#include "models/kinds/hf_config.h"
#include "models/kinds/template.h"

namespace reshard {
namespace {

constexpr std::string_view kTokenizer[] = {"tokenizer.json",    "tokenizer_config.json", "special_tokens_map.json",
                                           "added_tokens.json", "tokenizer.model",       "vocab.json",
                                           "merges.txt",        "chat_template.jinja",   "chat_template.json"};
constexpr std::string_view kTemplates = "additional_chat_templates/";
// One of these holds the vocabulary.
constexpr std::string_view kVocabularies[] = {"tokenizer.json", "tokenizer.model", "vocab.json"};

template <typename Names>
bool IsOneOf(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool IsOfTokenizer(std::string_view name) { return IsOneOf(kTokenizer, name) || name.starts_with(kTemplates); }

constexpr size_t kMaxDepth = 8;

void AddNamesBelow(Io& io, const std::string& folder, const std::string& prefix, size_t depth,
                   std::vector<std::string>& files) {
  if (depth > kMaxDepth)
    throw Error(Code::kUnsupported, fmt::format("folders within more than {} others, expected fewer", kMaxDepth))
        .At("reading", folder);
  for (const std::string& name : Entries(io, folder)) {
    if (name.ends_with("/")) {
      AddNamesBelow(io, JoinPath(folder, name.substr(0, name.size() - 1)), prefix + name, depth + 1, files);
    } else {
      files.push_back(prefix + name);
    }
  }
}

std::vector<FileCopy> FilesOfSource(Io& io, const Checkpoint& source) {
  if (source.kind == kHuggingFace.name) return CarriedFiles(io, source.folder);
  return source.template_path.empty() ? source.tokenizer_files : source.template_files;
}

}  // namespace

void DescribeMcore(Io& io, const std::string& weights, const McoreDialect& dialect, const OpenOptions& options,
                   Checkpoint& checkpoint) {
  const StoredTensor& embedding = EmbeddingOf(checkpoint, weights);
  const uint64_t rows = embedding.shape[0], rows_of_rank = embedding.chunks[0].box.shape[0];
  NemoHints hints{options.model_type, nullptr, options.vocab_size};
  Model known;
  if (!options.template_path.empty()) {
    known = ReadTemplate(io, options, checkpoint);
    hints.template_model = &known;
  }
  NemoDoubts doubts;
  checkpoint.model = ModelFromMcoreConfig(checkpoint.config, checkpoint.config_path, dialect,
                                          {rows, CeilDiv(rows, rows_of_rank)}, hints, doubts);
  checkpoint.vocabulary_doubt = std::move(doubts.vocabulary);
  checkpoint.padding_doubt = std::move(doubts.padding);
  checkpoint.ranks = {DistRank(checkpoint, rows)};
  checkpoint.ranks[0].zero_centred = ReadsZeroCentred({checkpoint.config, checkpoint.config_path});
}

std::vector<std::string> NamesBelow(Io& io, const std::string& folder) {
  std::vector<std::string> files;
  AddNamesBelow(io, folder, "", 0, files);
  return files;
}

void AddTokenizerFiles(std::string_view folder, const std::vector<std::string>& names, Checkpoint& checkpoint) {
  for (const std::string& name : names)
    if (IsOfTokenizer(name))
      checkpoint.tokenizer_files.push_back({JoinPath(JoinPath(checkpoint.folder, std::string(folder)), name), name});
}

KeptTokenizer TokenizerToKeep(Io& io, const Checkpoint& source, const TargetOptions& options, LaidOut& out) {
  KeptTokenizer kept;
  for (FileCopy& copy : FilesOfSource(io, source))
    if (IsOfTokenizer(copy.to)) kept.files.push_back(std::move(copy));
  if (std::none_of(kept.files.begin(), kept.files.end(),
                   [](const FileCopy& copy) { return IsOneOf(kVocabularies, copy.to); }))
    kept.files.clear();
  for (const std::string& name : source.side_files) {
    const std::string path = JoinPath(source.folder, name);
    if (std::none_of(kept.files.begin(), kept.files.end(), [&](const FileCopy& copy) { return copy.from == path; }) &&
        name != "config.json")
      out.left.push_back(name);
  }
  kept.name = options.hf_model_name;
  if (kept.name.empty() && kept.files.empty()) {
    if (source.kind != kHuggingFace.name)
      throw Error(Code::kInvalidArgument,
                  fmt::format("a {} checkpoint has no tokenizer, expected --hf_model_name to name one", source.kind))
          .At("reading", source.folder);
    kept.name = source.folder;
    out.notes.push_back("the tokenizer is named by the source's folder; --hf_model_name names another");
  }
  if (auto info = kept.name.empty() ? std::nullopt : io.Stat(kept.name);
      info && info->type == FileInfo::Type::kDirectory)
    kept.name = io.Canonical(kept.name);  // whoever reads it later stands somewhere else
  if (!IsUtf8(kept.name))
    throw Error(Code::kPermission,
                "the name of the tokenizer's folder is not UTF-8, expected UTF-8; --hf_model_name names another")
        .At("planning with", kept.name);
  return kept;
}

void RequireVocabulary(const Checkpoint& source, std::string_view kind) {
  if (source.kind != kind && !source.vocabulary_doubt.empty())
    throw Error(Code::kMismatch, source.vocabulary_doubt).At("reading", source.config_path);
}

DistFormat DistFormatOf(const TargetOptions& options) {
  return options.weights == "zarr" ? DistFormat::kZarr : DistFormat::kTorchDist;
}

}  // namespace reshard
