#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "api/memory.h"
#include "api/open.h"
#include "api/progress.h"
#include "api/source_io.h"
#include "api/target_path.h"
#include "api/verify.h"
#include "base/bytes.h"
#include "base/hash.h"
#include "base/text.h"
#include "execute/compare.h"
#include "execute/execute.h"
#include "execute/op_bytes.h"
#include "execute/publish.h"
#include "models/kinds/kind.h"
#include "plan/planner.h"
#include "reshard/reshard.h"

namespace reshard {
namespace {

// The program with a plan that is small; a large one adds about as much again and again.
constexpr uint64_t kProgramMemory = 16 * kMiB;

// Spellings of --dtype, and those of the originals' --precision.
struct DtypeSpelling {
  std::string_view text;
  Dtype dtype;
};
constexpr DtypeSpelling kSpellings[] = {
    {"bf16", Dtype::kBF16}, {"bf16-mixed", Dtype::kBF16}, {"bfloat16", Dtype::kBF16}, {"fp16", Dtype::kF16},
    {"16", Dtype::kF16},    {"16-mixed", Dtype::kF16},    {"float16", Dtype::kF16},   {"fp32", Dtype::kF32},
    {"32", Dtype::kF32},    {"32-true", Dtype::kF32},     {"float32", Dtype::kF32},
};

std::optional<Dtype> ParseDtype(const std::string& text) {
  if (text.empty()) return std::nullopt;
  for (const DtypeSpelling& row : kSpellings)
    if (row.text == text) return row.dtype;
  throw Error(Code::kInvalidArgument, fmt::format("the dtype '{}' is not known, expected bf16, fp16 or fp32", text));
}

TrtllmOptions TrtllmOptionsOf(const ConvertOptions& given) {
  using Quantisation = TrtllmOptions::Quantisation;
  const TrtllmTarget& target = given.trtllm;
  TrtllmOptions options;
  options.tp = given.tp_size;
  options.pp = given.pp_size;
  options.moe_tp = target.moe_tp_size;
  options.moe_ep = target.moe_ep_size;
  options.parallel_embedding = target.use_parallel_embedding;
  options.embedding_axis = static_cast<uint8_t>(target.embedding_sharding_dim);
  options.share_embedding = target.use_embedding_sharing;
  options.version = target.version;
  if (target.quantisation == "int8") options.quantisation = Quantisation::kInt8;
  if (target.quantisation == "int4") options.quantisation = Quantisation::kInt4;
  if (target.quantisation == "fp8_rowwise") options.quantisation = Quantisation::kFp8Rowwise;
  if (target.quantisation == "int4_gptq") options.quantisation = Quantisation::kGptq;
  options.sm = target.sm;
  options.weight_only_plugin = !target.disable_weight_only_quant_plugin;
  options.fp8_kv_cache = target.fp8_kv_cache;
  options.fp8_reciprocal = target.fp8_reciprocal_scales;
  options.group_size = target.group_size;
  options.remove_duplicated_kv_heads = target.remove_duplicated_kv_heads;
  return options;
}

// The format that a target's weights are to have, as its kind names it.
std::string_view WeightsOf(const Kind& kind, const std::string& given) {
  if (given.empty()) return kind.weights.empty() ? "" : kind.weights[0];
  for (std::string_view weights : kind.weights)
    if (weights == given) return weights;
  throw Error(
      Code::kInvalidArgument,
      fmt::format("the weights of a {} target are to be in the format '{}', expected {}; --hf_weights is for hf, "
                  "--nemo_weights for the others",
                  kind.name, given,
                  kind.weights.empty() ? "the one that it has" : fmt::format("{}", fmt::join(kind.weights, ", "))));
}

TargetPlace PlaceOf(const ConvertOptions& given) {
  return IsPacked(given.to, given.output) ? TargetPlace::File(given.output) : TargetPlace::Folder(given.output);
}

TargetOptions TargetOptionsOf(const Kind& kind, const ConvertOptions& given) {
  TargetOptions target;
  target.packed = PlaceOf(given).file();
  target.dtype = ParseDtype(given.dtype);
  target.hf_model_name = given.hf_model_name;
  target.max_shard_size = given.max_shard_size;
  target.untie_embeddings = given.untie_embeddings;
  target.rope_config_only = given.rope_config_only;
  target.nemo2_context = given.nemo2_context;
  target.weights = WeightsOf(kind, given.weights);
  target.tp = given.tp_size;
  target.pp = given.pp_size;
  target.trtllm = TrtllmOptionsOf(given);
  return target;
}

std::vector<std::string> AllMarkers() {
  std::vector<std::string> markers;
  for (const Kind& kind : Kinds()) markers.insert(markers.end(), kind.markers.begin(), kind.markers.end());
  return markers;
}

// Appends where pieces lie; those of one tensor in one file are one place.
template <typename FileName>
void AddPlaces(const std::vector<Piece>& pieces, const std::vector<std::string>& tensors, FileName file_name,
               std::vector<PartReport::Place>& places) {
  for (const Piece& piece : pieces) {
    const std::string &tensor = tensors[piece.tensor], &file = file_name(piece.file);
    if (places.empty() || places.back().tensor != tensor || places.back().file != file)
      places.push_back({tensor, file, std::string(Row(piece.dtype).name), piece.minus_one, 0});
    places.back().bytes += ElementCount(piece.box.shape) * ItemSize(piece.dtype);
  }
}

PartReport ReportOf(const Plan& plan, const Part& part) {
  PartReport report{part.name, {}, {}};
  auto source = [&](uint32_t file) -> const std::string& { return plan.sources[file].relative; };
  auto target = [&](uint32_t file) -> const std::string& { return plan.files[file].path; };
  AddPlaces(part.sources, plan.source_tensors, source, report.sources);
  for (const Part& operand : part.operands) AddPlaces(operand.sources, plan.source_tensors, source, report.sources);
  AddPlaces(part.targets, plan.target_tensors, target, report.targets);
  return report;
}

}  // namespace

struct Conversion::State {
  ConvertOptions options;
  TargetOptions target;
  SourceIo source_io;
  Io& io;  // of the source and everything else
  OpenOptions open;
  Checkpoint source;
  Planned planned;
  ExecuteOptions execute;
  PlanReport report;
  std::optional<Error> obstacle;

  State(ConvertOptions given, Io& files)
      : options(std::move(given)),
        target(Checked(options)),
        source_io(files, options.input, options.run, 1, BesideTarget(files, options.output)),
        io(*source_io) {
    const Kind& kind = KindByName(options.to);
    SourceHints hints{options.model_type, options.hf_model_name, options.vocab_size};
    open = OpenOptionsFor(io, options.input, hints, options.run, 1, options.from);
    open.weights_path = options.trtllm.quant_ckpt_path;
    if (options.trtllm.remove_duplicated_kv_heads) open.kv_copies = 2;
    CheckTargetPath(io, options.input, Place());
    source = OpenCheckpoint(io, options.input, options.from, open);
    CheckPlanFits(options.run, Pieces(), target.weights == "zarr" ? Pieces() + ExpertObjects() : 0);
    RefuseComparison();
    planned = MakePlan(io, source, kind, target);
    CheckNames();
    execute = FitWorkers(options.run, [&](uint64_t dense) { return WorkerBytes(planned.plan, dense); });
    execute.drop_source_cache = ExceedHalfOfRam(planned.plan.sources);
    if (options.task) execute.task = {*options.task, options.tasks};
    Describe(kind);
    FindObstacles();
  }

  // Before anything is read.
  static TargetOptions Checked(const ConvertOptions& options) {
    TargetOptions target = TargetOptionsOf(KindByName(options.to), options);
    FitWorkers(options.run, [](uint64_t dense) { return dense + kIoBuffer; });
    return target;
  }

  void RefuseComparison() const {
    if (options.verify && !source.quantised.tensors.empty())
      throw Error(Code::kUnsupported,
                  fmt::format("the linear weights are quantised ({}), expected plain ones to compare; leave "
                              "--verify out",
                              source.quantised.what))
          .At("reading", options.input);
  }

  // Of the plan that is to be made: one for each part, or for what the source cuts them into.
  uint64_t Pieces() const {
    return std::max({uint64_t{PartsOf(source.model)}, uint64_t{source.tensors.size()}, uint64_t{source.files.size()}});
  }

  // Files that Megatron's loaders ask for besides the weights, in formats with a file for each: two an expert.
  uint64_t ExpertObjects() const { return 2 * source.model.sizes['L'] * source.model.sizes['E']; }

  // Records are JSON, in which every name has to be text.
  void CheckNames() const {
    auto check = [](const std::string& name) {
      if (!IsUtf8(name))
        throw Error(Code::kPermission, "the name is not UTF-8, expected UTF-8 as in the receipt; rename it")
            .At("planning with", name);
    };
    check(options.hf_model_name);
    for (const FileLayout& file : planned.plan.files) check(file.path);
  }

  void Describe(const Kind& kind) {
    const Plan& plan = planned.plan;
    PlanTotals totals = TotalsOf(plan);
    report.id = plan.id;
    report.source = options.input;
    report.source_kind = source.kind;
    report.source_format = source.format;
    report.family = source.model.family->name;
    report.hf_folder = source.kind == kHuggingFace.name ? options.input : open.template_path;
    report.target = options.output;
    report.target_kind = kind.name;
    const bool usual = kind.weights.empty() || target.weights == kind.weights[0];
    report.target_format = usual ? kind.format : target.weights;
    report.parameters = ParametersOf(source.model);
    for (const StoredTensor& tensor : source.tensors)
      report.source_bytes += ElementCount(tensor.shape) * ItemSize(tensor.dtype);
    for (const FileLayout& file : plan.files) report.files.push_back({file.path, file.size});
    report.ops = totals.ops;
    report.bytes_read = options.tasks == 1 ? totals.bytes_read : BytesRead(plan, Shares(plan.files, options.tasks));
    report.tasks = options.tasks;
    report.bytes_written = totals.bytes_written;
    // What is resident now varies by some pages from run to run, and what is planned must not.
    report.peak_memory =
        RoundUp(ResidentMemory(), kProgramMemory) + execute.workers * WorkerBytes(plan, execute.dense_buffer);
    report.copied = planned.copied;
    report.left = planned.left;
    report.notes = planned.notes;
    if (const uint64_t unpacked = source_io.unpacked())
      report.notes.push_back(fmt::format("the source is compressed: {} are unpacked beside the target while this runs",
                                         HumanBytes(unpacked)));
  }

  // What Run would refuse as things are now, and what it would discard.
  void FindObstacles() {
    try {
      const Target folder = TargetFolder();
      if (!CheckTarget(io, folder)) return;
      for (const std::string& changes : OthersStaged(io, folder))
        report.notes.push_back("--override discards what an earlier run has staged: " + changes);
      if (!options.discard) CheckSpace();
    } catch (const Error& error) {
      obstacle = error;
      report.obstacles.push_back(error.what());
    }
  }

  // For what an earlier run has not staged yet.
  void CheckSpace() const {
    const uint64_t staged = BytesStaged(planned.plan, io, JournalOf(TargetFolder()));
    CheckFreeSpace(io, planned.plan, Place(), options.replace, staged);
  }

  TargetPlace Place() const { return PlaceOf(options); }

  Target TargetFolder() const {
    const bool own = (options.again || options.take_foreign) && HoldsOneOfItsKind();
    const bool replace = options.replace || (options.again && own);
    Target folder{Place(), planned.plan.id, {}, replace, AllMarkers(), Request()};
    for (const FileLayout& file : planned.plan.files) folder.files.push_back(file.path);
    if (own) folder.remedy = "it is of another request, and --no_trt_reuse_tmp_engine or --override makes it anew";
    return folder;
  }

  // Whether a checkpoint of the target's kind is there, whole or not, and nothing else.
  bool HoldsOneOfItsKind() const {
    const Kind& kind = KindByName(options.to);
    if (!kind.owns || !io.Stat(options.output) || !kind.detect(io, options.output)) return false;
    const std::vector<std::string> entries = Place().Entries(io);
    return std::all_of(entries.begin(), entries.end(), kind.owns);
  }

  Json Request() const {
    Json sources = Json::object();
    for (const SourceFile& file : planned.plan.sources)
      sources[file.relative] = {{"size", file.size}, {"mtime_ns", file.mtime_ns}, {"inode", file.inode}};
    Json record = OptionsRecord();
    record.erase("allow_overflow");  // with it, what is staged is published
    return {{"options", record}, {"sources", sources}};
  }

  // Rows of a vocabulary that are no padding are not lost in silence.
  void CheckCutRows() {
    if (planned.cut.empty()) return;
    const ExecuteOptions within = FitWorkers(options.run, CompareWorkerBytes);
    for (const PartComparison& compared : Compare(planned.cut, planned.plan.sources, {}, io, within)) {
      if (compared.verdict != PartComparison::Verdict::kDiffers) continue;
      throw Error(Code::kMismatch, fmt::format("the rows behind the vocabulary are not zero, expected padding: {}",
                                               source.padding_doubt))
          .At("reading", options.input)
          .Tensor(planned.plan.source_tensors[planned.cut[compared.part].sources[0].tensor]);
    }
  }

  // Without a journal where nothing is written.
  ExecuteReport Move(Io& through, const std::string& folder, const std::string& journal) {
    CheckCutRows();
    CallbackObserver observer(options.run, "converting");
    ProgressFile file(observer, io, ProgressOf(TargetFolder(), execute.task), planned.plan, execute.task);
    ExecuteOptions with = execute;
    with.journal = journal;
    with.observer = journal.empty() ? static_cast<Observer*>(&observer) : &file;
    return Execute(planned.plan, folder, through, with);
  }

  // What a rerun needs to know of a finished execution.
  static Json Record(const ExecuteReport& done) {
    Json record = {{"bytes_read", done.bytes_read},
                   {"bytes_written", done.bytes_written},
                   {"hashes", done.hashes},
                   {"overflows", Json::array()}};
    for (const Overflow& overflow : done.overflows)
      record["overflows"].push_back({{"tensor", overflow.tensor}, {"count", overflow.count}});
    return record;
  }

  // Nothing where an earlier run staged nothing, or where record and files are not what they were.
  std::optional<ExecuteReport> Staged(const Stage& stage) const {
    if (!stage.executed()) return std::nullopt;
    ExecuteReport done;
    try {
      done = FromRecord(*stage.executed());
    } catch (const Json::exception&) {
      return std::nullopt;
    }
    const std::vector<FileLayout>& files = planned.plan.files;
    if (done.hashes.size() != files.size()) return std::nullopt;
    std::vector<NamedSize> staged;
    for (const FileLayout& file : files) staged.push_back({JoinPath(stage.folder(), file.path), file.size});
    if (HashFiles(io, staged, options.run) != done.hashes) return std::nullopt;
    return done;
  }

  static ExecuteReport FromRecord(const Json& record) {
    ExecuteReport done;
    done.bytes_read = record.at("bytes_read");
    done.bytes_written = record.at("bytes_written");
    done.hashes = record.at("hashes").get<std::vector<uint64_t>>();
    for (const Json& overflow : record.at("overflows"))
      done.overflows.push_back({overflow.at("tensor"), overflow.at("count")});
    return done;
  }

  void RefuseOverflow(const ExecuteReport& done) const {
    if (done.overflows.empty() || options.allow_overflow) return;
    uint64_t count = 0;
    std::vector<std::string> lines;
    for (const Overflow& overflow : done.overflows) {
      count += overflow.count;
      lines.push_back(fmt::format("tensor '{}': {} finite values became infinite", overflow.tensor, overflow.count));
    }
    throw Error(
        Code::kMismatch,
        fmt::format(
            "{} values of {} tensors are too large for {}, expected all to fit; --allow_overflow publishes what is "
            "staged, another --dtype with --override begins anew",
            count, done.overflows.size(), options.dtype))
        .At("casting", options.input)
        .Also(std::move(lines));
  }

  // The target's files, opened as a checkpoint, against the source.
  void VerifyFiles(const std::string& folder, const char* remedy) {
    OpenOptions again = open;
    const bool other_heads = open.kv_copies > 1;  // than the source's config says
    if (source.kind == kHuggingFace.name && !other_heads) again.template_path = options.input;
    again.kv_copies = 1;
    again.vocab_size = source.model.sizes['V'];
    const std::string path = target.packed.empty() ? folder : JoinPath(folder, target.packed);
    const SourceIo staged_io(io, path, options.run, 2, TemporaryFolder());
    Checkpoint staged = OpenCheckpoint(*staged_io, path, options.to, again);
    VerifyReport verified = VerifyCheckpoints(*staged_io, source, staged, options.run, {.hyperparameters = false});
    if (verified.equal) return;
    throw Error(Code::kMismatch,
                fmt::format("the files differ from the source in {} tensors, expected none; {}",
                            std::count_if(verified.tensors.begin(), verified.tensors.end(),
                                          [](const TensorDifference& tensor) { return tensor.verdict == "differs"; }),
                            remedy))
        .At("verifying", options.output);
  }

  // All that a target's bytes depend on besides the source.
  Json OptionsRecord() const {
    Json record = {{"convert_from", source.kind},
                   {"convert_to", options.to},
                   {"model_type", options.model_type},
                   {"hf_model_name", options.hf_model_name},
                   {"dtype", options.dtype},
                   {"max_shard_size", options.max_shard_size},
                   {"weights", target.weights},
                   {"nemo2_context", options.nemo2_context},
                   {"tp_size", options.tp_size},
                   {"pp_size", options.pp_size},
                   {"vocab_size", options.vocab_size ? Json(*options.vocab_size) : Json(nullptr)},
                   {"untie_embeddings", options.untie_embeddings},
                   {"allow_rope_config_only", options.rope_config_only},
                   {"allow_overflow", options.allow_overflow}};
    if (options.to != kTrtllm.name) return record;
    const TrtllmTarget& cut = options.trtllm;
    record["trtllm"] = {{"moe_tp_size", cut.moe_tp_size},
                        {"moe_ep_size", cut.moe_ep_size},
                        {"use_parallel_embedding", cut.use_parallel_embedding},
                        {"embedding_sharding_dim", cut.embedding_sharding_dim},
                        {"use_embedding_sharing", cut.use_embedding_sharing},
                        {"version", cut.version},
                        {"quantisation", cut.quantisation},
                        {"sm", cut.sm},
                        {"disable_weight_only_quant_plugin", cut.disable_weight_only_quant_plugin},
                        {"fp8_kv_cache", cut.fp8_kv_cache},
                        {"fp8_reciprocal_scales", cut.fp8_reciprocal_scales},
                        {"group_size", cut.group_size ? Json(*cut.group_size) : Json(nullptr)},
                        {"quant_ckpt_path", cut.quant_ckpt_path},
                        {"remove_duplicated_kv_heads", cut.remove_duplicated_kv_heads}};
    return record;
  }

  Json Receipt(const ExecuteReport& done) const {
    Json receipt = {{"reshard", Version()}, {"plan_id", planned.plan.id}};
    receipt["options"] = OptionsRecord();
    receipt["sources"] = Json::array();
    for (size_t i = 0; i < planned.plan.sources.size(); ++i) {
      const SourceFile& file = planned.plan.sources[i];
      receipt["sources"].push_back(
          {{"path", file.relative}, {"size", file.size}, {"header", Hex(planned.source_hashes[i])}});
    }
    receipt["files"] = Json::array();
    for (size_t i = 0; i < planned.plan.files.size(); ++i) {
      const FileLayout& file = planned.plan.files[i];
      receipt["files"].push_back({{"path", file.path}, {"size", file.size}, {"xxh3", Hex(done.hashes[i])}});
    }
    return receipt;
  }

  ConvertReport ReportOf(const ExecuteReport& done) const {
    ConvertReport result;
    result.verified = options.verify && !options.task;
    result.bytes_read = done.bytes_read;
    result.bytes_written = done.bytes_written;
    result.bytes_staged = done.bytes_staged;
    result.files = planned.plan.files.size();
    for (const Overflow& overflow : done.overflows) result.overflows.emplace_back(overflow.tensor, overflow.count);
    return result;
  }

  // Reads and casts everything and writes nothing, into a folder that is gone afterwards.
  ConvertReport Discard() {
    std::unique_ptr<Io> discarding = DiscardingIo(io);
    std::unique_ptr<Stage> stage = Claim(io, TargetFolder());
    if (!stage) return {.already_complete = true};
    ExecuteReport done = OrDiscard(*stage, [&] { return Move(*discarding, stage->folder(), ""); });
    stage->Discard();
    return ReportOf(done);
  }

  // Whether the same command can go on with what is staged.
  static bool CanGoOn(const Error& error) {
    return error.code() == Code::kCancelled || error.code() == Code::kNoSpace || error.code() == Code::kIo;
  }

  // Does `work`. Where it fails for good, what is staged goes, and if that fails too the next run tries again.
  template <typename Work>
  static auto OrDiscard(Stage& stage, Work work) -> decltype(work()) {
    try {
      return work();
    } catch (const Error& error) {
      if (CanGoOn(error)) throw;
      try {
        stage.Discard();
      } catch (const Error&) {
      }
      throw;
    } catch (...) {
      try {
        stage.Discard();
      } catch (const Error&) {
      }
      throw;
    }
  }

  ExecuteReport Fill(Stage& stage) {
    CheckSpace();
    ExecuteReport done = Move(io, stage.folder(), JournalOf(TargetFolder()));
    stage.MarkExecuted(Record(done));
    return done;
  }

  // Whether another program has written a checkpoint whose config and headers are what the plan says.
  bool IsThereFromAnother() {
    const std::string path = JoinPath(options.output, "config.json");
    if (options.to != kTrtllm.name || !io.Stat(path) || ReadReceipt(io, Place())) return false;
    const auto config = std::find_if(planned.plan.files.begin(), planned.plan.files.end(),
                                     [](const FileLayout& file) { return file.path == "config.json"; });
    if (ReadWholeFile(io, path, kMaxTreeBytes) != config->literals[0].bytes) return false;
    try {
      Checkpoint there = OpenCheckpoint(io, options.output, options.to, open);
      const std::string dtype = there.config.at("dtype");
      return std::all_of(there.tensors.begin(), there.tensors.end(),
                         [&](const StoredTensor& tensor) { return Row(tensor.dtype).torch == dtype; });
    } catch (const Error&) {
      return false;  // which Claim will say more of
    }
  }

  // What is to be said of a target that was complete before.
  ConvertReport Complete() {
    if (options.verify && !options.task) VerifyFiles(Place().folder(), "move them away and run again");
    return {.already_complete = true, .verified = options.verify, .files = planned.plan.files.size()};
  }

  // Its share, for a run that publishes to find.
  ConvertReport RunTask() {
    if (options.again && TargetFolder().replace) ForgetReceipt(io, Place());
    const std::unique_ptr<Seat> seat = Join(io, TargetFolder(), execute.task);
    if (!seat) return Complete();
    CheckSpace();
    return ReportOf(Move(io, seat->folder(), JournalOf(TargetFolder())));
  }

  ConvertReport Run() {
    if (options.discard) return Discard();
    if (options.take_foreign && IsThereFromAnother()) return Complete();
    if (options.task) return RunTask();
    if (options.again && TargetFolder().replace) ForgetReceipt(io, Place());
    std::unique_ptr<Stage> stage = Claim(io, TargetFolder());
    std::optional<ExecuteReport> done;
    if (stage && stage->executed() && !(done = Staged(*stage))) {
      stage->Discard();
      stage = Claim(io, TargetFolder());
    }
    if (!stage) return Complete();
    if (!done) done = OrDiscard(*stage, [&] { return Fill(*stage); });
    RefuseOverflow(*done);
    if (options.verify) OrDiscard(*stage, [&] { VerifyFiles(stage->folder(), "nothing is published"); });
    stage->Publish(Receipt(*done));
    return ReportOf(*done);
  }
};

Conversion::Conversion(ConvertOptions options) : Conversion(std::move(options), PosixIo()) {}
Conversion::Conversion(ConvertOptions options, Io& io) : state_(std::make_unique<State>(std::move(options), io)) {}
Conversion::~Conversion() = default;
const PlanReport& Conversion::plan() const { return state_->report; }
void Conversion::ForEachPart(const std::function<void(const PartReport&)>& tell) const {
  for (const Part& part : state_->planned.plan.parts) tell(reshard::ReportOf(state_->planned.plan, part));
}
void Conversion::RefuseObstacles() const {
  if (state_->obstacle) throw *state_->obstacle;
}
ConvertReport Conversion::Run() { return state_->Run(); }

bool IsPacked(const std::string& kind, const std::string& path) {
  const std::string_view suffix = KindByName(kind).packed_as;
  return !suffix.empty() && path.ends_with(suffix);
}

bool Commit(const std::string& path) { return FinishPublication(PosixIo(), TargetPlace::Existing(PosixIo(), path)); }

}  // namespace reshard
