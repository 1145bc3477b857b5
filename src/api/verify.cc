#include "api/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "api/memory.h"
#include "api/open.h"
#include "api/progress.h"
#include "api/source_io.h"
#include "base/hash.h"
#include "execute/compare.h"
#include "execute/op_queue.h"
#include "execute/publish.h"
#include "plan/pair_up.h"

namespace reshard {
namespace {

std::optional<TensorDifference::Element> ElementOf(const std::optional<Difference>& difference) {
  if (!difference) return std::nullopt;
  return TensorDifference::Element{difference->index, difference->a, difference->b, difference->ulps};
}

std::string VerdictName(PartComparison::Verdict verdict) {
  switch (verdict) {
    case PartComparison::Verdict::kEqual:
      return "equal";
    case PartComparison::Verdict::kEqualRounded:
      return "equal_rounded";
    case PartComparison::Verdict::kDiffers:
      return "differs";
  }
  throw Error(Code::kInternal, "a verdict without a name");
}

TensorDifference Describe(const Paired& paired, const Part& part, const PartComparison& compared) {
  const auto& pieces = part.sources.empty() ? part.targets : part.sources;
  const std::string& tensor = (part.sources.empty() ? paired.b_tensors : paired.a_tensors)[pieces[0].tensor];
  TensorDifference row;
  row.name = tensor;
  row.part = part.name;
  row.verdict = VerdictName(compared.verdict);
  if (!part.sources.empty()) row.dtype_a = Row(part.sources[0].dtype).name;
  if (!part.targets.empty()) row.dtype_b = Row(part.targets[0].dtype).name;
  row.minus_one_a = !part.sources.empty() && part.sources[0].minus_one;
  row.minus_one_b = !part.targets.empty() && part.targets[0].minus_one;
  row.differing = compared.differing;
  row.overflows = compared.overflows;
  row.first = ElementOf(compared.first);
  row.worst = ElementOf(compared.worst);
  return row;
}

bool IsUnsaid(const Checkpoint& checkpoint, const std::string& key) {
  return std::find(checkpoint.unsaid.begin(), checkpoint.unsaid.end(), key) != checkpoint.unsaid.end();
}

// Where a config does not say whether head and embedding are one, the other's word counts, and they must be equal.
void SettleTie(Checkpoint& a, Checkpoint& b) {
  if (IsUnsaid(a, "tie_word_embeddings")) a.model.tied |= b.model.tied;
  if (IsUnsaid(b, "tie_word_embeddings")) b.model.tied |= a.model.tied;
}

void CompareHyperParameters(const Checkpoint& a, const Checkpoint& b, VerifyReport& report) {
  std::vector<std::string> names;
  std::map<std::string, Json> left, right;  // what one does not have is null
  for (auto [model, values] : {std::pair{&a.model, &left}, std::pair{&b.model, &right}}) {
    for (auto& [name, value] : HyperParametersOf(*model)) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
      (*values)[name] = std::move(value);
    }
  }
  for (const std::string& name : names) {
    // Rows that only one vocabulary has are compared with zeros: as padding they do not count.
    if (left[name] == right[name] || name == "vocab_size" || IsUnsaid(a, name) || IsUnsaid(b, name)) continue;
    report.hyperparameters.push_back({name, left[name].dump(), right[name].dump()});
    report.equal = false;
  }
}

// What the size of a file says against its entry in a receipt; empty where it has that size.
std::string SizeProblem(Io& io, const std::string& folder, const Json& entry) {
  const std::string name = entry.at("path");
  const uint64_t size = entry.at("size");
  const auto info = io.Stat(JoinPath(folder, name));
  if (!info) return fmt::format("{}: missing, expected {} bytes", name, size);
  return info->size == size ? "" : fmt::format("{}: {} bytes, expected {}", name, info->size, size);
}

uint64_t HashOf(Io& io, const std::string& path, std::vector<char>& buffer, Turn& turn) {
  std::unique_ptr<File> file = io.OpenRead(path);
  Xxh3 hash;
  for (uint64_t at = 0, end = file->Info().size; at < end; at += buffer.size()) {
    turn.Check();
    uint64_t size = std::min<uint64_t>(buffer.size(), end - at);
    file->ReadAt(buffer.data(), size, at);
    hash.Update(buffer.data(), size);
    turn.Done(size);
  }
  return hash.Digest();
}

// A part that is one op: as many bytes are to be done for it as the file has.
Part PartOf(const NamedSize& file) {
  Piece bytes;
  bytes.box = WholeBox(Dims{file.size});
  bytes.dtype = Dtype::kU8;
  return {file.path, Dims{1}, {}, {bytes}};
}

// What only some families have.
std::vector<std::pair<std::string, Json>> OwnHyperParametersOf(const Model& model) {
  const HyperParameters& hyper = model.hyper;
  std::vector<std::pair<std::string, Json>> own;
  for (auto [name, letter] : {std::pair{"num_experts", 'E'}, std::pair{"moe_intermediate_size", 'M'},
                              std::pair{"shared_expert_intermediate_size", 'S'}})
    if (const uint64_t size = model.sizes[letter]) own.emplace_back(name, size);
  if (!model.IsUniform()) {
    Json dense = Json::array();
    for (size_t layer = 0; layer < model.layers.size(); ++layer)
      if (model.layers[layer] == LayerKind::kDense) dense.push_back(layer);
    own.emplace_back("layers_without_experts", std::move(dense));
  }
  if (!hyper.rope_local_theta.is_null()) own.emplace_back("rope_local_theta", hyper.rope_local_theta);
  if (hyper.rotary_percent != 1.0) own.emplace_back("partial_rotary_factor", hyper.rotary_percent);
  for (const ConfigKey& key : model.family->keys)
    if (!key.size && !key.of_training) own.emplace_back(std::string(key.hf), hyper.more.value(key.hf, Json()));
  return own;
}

}  // namespace

std::vector<uint64_t> HashFiles(Io& io, const std::vector<NamedSize>& files, const RunOptions& options) {
  std::vector<Part> parts;
  for (const NamedSize& file : files) parts.push_back(PartOf(file));
  ExecuteOptions execute = FitWorkers(options, [](uint64_t) { return kIoBuffer; });
  CallbackObserver observer(options, "checking");
  execute.observer = &observer;
  std::vector<uint64_t> hashes(files.size());
  OpQueue(parts, TargetBytes(parts), execute).Run(execute.workers, [&](Turn& turn) {
    std::vector<char> buffer(kIoBuffer);
    for (Op op; turn.Next(op);) hashes[op.part] = HashOf(io, files[op.part].path, buffer, turn);
  });
  return hashes;
}

std::vector<std::pair<std::string, Json>> HyperParametersOf(const Model& model) {
  const Sizes& sizes = model.sizes;
  const HyperParameters& hyper = model.hyper;
  std::vector<std::pair<std::string, Json>> all = {
      {"vocab_size", sizes['V']},
      {"hidden_size", sizes['H']},
      {"intermediate_size", sizes['F']},
      {"num_hidden_layers", sizes['L']},
      {"num_attention_heads", sizes['A']},
      {"num_key_value_heads", sizes['G']},
      {"head_dim", sizes['D']},
      {"max_position_embeddings", hyper.max_position_embeddings},
      {"rms_norm_eps", hyper.rms_norm_eps},
      {"rope_theta", hyper.rope_theta},
      {"rope_scaling", hyper.rope_scaling},
      {"sliding_window", hyper.sliding_window},
      {"hf_only", hyper.hf_only.empty() ? Json(nullptr) : Json(hyper.hf_only)},
      {"tie_word_embeddings", model.tied},
      {"qkv_bias", model.Has("qkv_bias")},
      {"o_bias", model.Has("o_bias")},
      {"mlp_bias", model.Has("mlp_bias")},
      {"qk_norm", model.Has("qk_norm")}};
  for (const auto& [name, value] : OwnHyperParametersOf(model)) all.emplace_back(name, value);
  return all;
}

VerifyReport VerifyCheckpoints(Io& io, Checkpoint a, Checkpoint b, const RunOptions& options,
                               const VerifyScope& scope) {
  VerifyReport report;
  SettleTie(a, b);
  if (scope.hyperparameters) CompareHyperParameters(a, b, report);
  Paired paired = PairUp(a, b);
  report.missing = paired.missing;
  report.extra = paired.extra;
  report.misshapen = paired.misshapen;
  report.equal = report.equal && paired.missing.empty() && paired.extra.empty() && paired.misshapen.empty();
  ExecuteOptions execute = FitWorkers(options, CompareWorkerBytes);
  CallbackObserver observer(options, "comparing");
  execute.observer = &observer;
  execute.drop_source_cache = ExceedHalfOfRam(a.files) || ExceedHalfOfRam(b.files);
  for (const PartComparison& compared : Compare(paired.parts, a.files, b.files, io, execute)) {
    const Part& part = paired.parts[compared.part];
    bool padding = part.sources.empty() || part.targets.empty();
    if (padding && compared.verdict != PartComparison::Verdict::kDiffers) continue;
    report.tensors.push_back(Describe(paired, part, compared));
    report.equal = report.equal && compared.verdict != PartComparison::Verdict::kDiffers;
  }
  return report;
}

VerifyReport Verify(const std::string& a, const std::string& b, const SourceHints& hints, const RunOptions& options) {
  const SourceIo first(PosixIo(), a, options, 2, TemporaryFolder());
  const SourceIo io(*first, b, options, 2, TemporaryFolder());
  auto open = [&](const std::string& path) {
    return OpenCheckpoint(*io, path, "", OpenOptionsFor(*io, path, hints, options, 2));
  };
  Checkpoint left = open(a), right = open(b);
  VerifyReport report = VerifyCheckpoints(*io, left, right, options, {});
  report.kind_a = left.kind;
  report.kind_b = right.kind;
  for (auto [name, checkpoint] : {std::pair{"A", &left}, std::pair{"B", &right}})
    if (!report.equal && !checkpoint->vocabulary_doubt.empty())
      report.notes.push_back(fmt::format("{}: {}", name, checkpoint->vocabulary_doubt));
  return report;
}

ReceiptReport VerifyReceipt(const std::string& path, const RunOptions& options) {
  Io& io = PosixIo();
  if (!io.Stat(path))
    throw Error(Code::kNotFound, "there is no such folder or file, expected a checkpoint").At("reading", path);
  const TargetPlace place = TargetPlace::Existing(io, path);
  const std::string& folder = place.folder();
  std::optional<Json> receipt = ReadReceipt(io, place);
  if (!receipt)
    throw Error(Code::kNotFound, fmt::format("there is no receipt {}, expected one; give a second checkpoint to "
                                             "compare with",
                                             place.receipt()))
        .At("reading", path);
  ReceiptReport report;
  std::vector<NamedSize> whole;  // of the size that they should have
  std::vector<const Json*> entries;
  for (const Json& entry : receipt->at("files")) {
    ++report.files;
    if (std::string problem = SizeProblem(io, folder, entry); !problem.empty()) {
      report.problems.push_back(std::move(problem));
      continue;
    }
    whole.push_back({JoinPath(folder, entry.at("path")), entry.at("size")});
    entries.push_back(&entry);
    report.bytes += whole.back().size;
  }
  const std::vector<uint64_t> hashes = HashFiles(io, whole, options);
  for (size_t i = 0; i < entries.size(); ++i)
    if (const std::string expected = entries[i]->at("xxh3"), found = Hex(hashes[i]); found != expected)
      report.problems.push_back(
          fmt::format("{}: XXH3 {}, expected {}", entries[i]->at("path").get<std::string>(), found, expected));
  report.equal = report.problems.empty();
  return report;
}

}  // namespace reshard
