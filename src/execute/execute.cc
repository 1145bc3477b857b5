#include "execute/execute.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "execute/checksums.h"
#include "execute/journals.h"
#include "execute/op_bytes.h"
#include "execute/op_queue.h"
#include "execute/sync_marks.h"
#include "execute/transfer.h"
#include "execute/write_behind.h"
#include "tensor/cast.h"

namespace reshard {
namespace {

// "" and all folders that lie between it and the file: "a", "a/b" of "a/b/c".
void AddFolders(const std::string& path, std::set<std::string>& folders) {
  folders.insert("");
  for (size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1))
    folders.insert(path.substr(0, slash));
}

bool AnySourcesOverlap(const std::vector<Part>& parts) {
  return std::any_of(parts.begin(), parts.end(), SourcesOverlap);
}

// Dense buffers for what value ops make and take besides: an output each, and one for all operands, which are smaller
// than the matrix that they go with.
struct ValueBuffers {
  uint64_t outputs = 0, operands = 0;

  explicit ValueBuffers(const Plan& plan) {
    for (const Part& part : plan.parts) {
      if (!part.value) continue;
      for (const Piece& target : part.targets) outputs = std::max<uint64_t>(outputs, target.output + 1);
      if (!part.operands.empty()) operands = 1;
    }
  }
};

// Bytes of a dense buffer: those asked for, but at least the largest tile of a value op.
uint64_t DenseBytes(const Plan& plan, uint64_t asked) {
  uint64_t bytes = std::min(asked, kMaxOpBytes);
  for (const Part& part : plan.parts)
    if (part.value) bytes = std::max(bytes, TileRows(*part.value) * DomainOf(part).shape[1] * WidestItem(part));
  return bytes;
}

class Execution {
 public:
  Execution(const Plan& plan, const std::string& staging, Io& io, const ExecuteOptions& options);
  ExecuteReport Perform();

 private:
  class Worker;

  std::string StagedPath(size_t file) const { return JoinPath(staging_, plan_.files[file].path); }
  uint32_t self() const { return options_.task.number; }
  uint64_t MissingBytes() const;
  void MakeFolders();
  void CheckFiles();
  bool IsFresh(size_t file) const;
  void ForgetGone();
  void MakeFiles();
  void MakeFile(size_t file);
  void Hash(size_t file, std::byte* buffer, const Turn* turn);
  uint64_t HashOf(size_t file, std::byte* buffer, const Turn* turn);
  void SyncAll();
  template <typename Call>
  void WriteBack(Call call);
  void ReportOverflows();

  const Plan& plan_;
  const std::string& staging_;
  Io& io_;
  const ExecuteOptions& options_;
  const OpenFileLimit limit_;
  OpenFiles files_;  // the sources, then the target's
  WriteBehind behind_;
  const bool overlapping_;
  Journals journals_;
  Journal* const journal_;  // the own one, or null
  const Shares& shares_;
  std::optional<SyncMarks> marks_;
  std::set<std::string> folders_;
  std::vector<std::atomic<uint64_t>> missing_;  // bytes of data that a file waits for from here
  std::vector<uint64_t> inodes_;                // of staged files that were there before, in their size; or 0

  ExecuteReport report_;                  // hashes: each by the worker that completed the file
  std::mutex mutex_;                      // of the rest of the report and of what follows
  std::map<size_t, uint64_t> overflows_;  // by part
};

// One thread with its buffers.
class Execution::Worker {
 public:
  Worker(Execution& execution, Turn& turn)
      : execution_(execution),
        turn_(turn),
        dense_size_(DenseBytes(execution.plan_, execution.options_.dense_buffer)),
        dense_(dense_size_),
        second_(execution.overlapping_ ? Buffer(dense_size_) : Buffer()),
        outputs_(Buffer(ValueBuffers(execution.plan_).outputs * dense_size_)),
        operands_(Buffer(ValueBuffers(execution.plan_).operands * dense_size_)),
        bounce_(kIoBuffer),
        reader_({execution.files_, 0, execution.options_.drop_source_cache, bounce_.data()},
                {execution.plan_.sources, &execution.plan_.source_tensors}, second_.data()) {}

  void Work() {
    for (Op op; turn_.Next(op);) {
      const std::optional<Box> needed =
          NeededBox(execution_.plan_.parts[op.part], op.box, execution_.shares_, execution_.self());
      if (!needed) continue;
      if (execution_.journals_.IsDone(turn_.op(), op)) {
        Skip(op, execution_.journals_.OverflowsOf(turn_.op()));
      } else {
        Move(op, *needed);
      }
    }
  }

 private:
  void Move(const Op& op, const Box& needed);
  void Skip(const Op& op, uint64_t overflows);
  uint64_t Write(const Part& part, const Piece& target, const Box& common, const Box& step);
  using Operands = std::array<const std::byte*, kMaxOperands>;
  Operands ReadOperands(const Part& part, const Box& step, uint64_t& bytes_read);
  uint64_t WriteValues(const Part& part, const Box& step, const Operands& operands);
  struct Written {
    uint64_t bytes = 0, overflows = 0;
  };
  Written WriteWindows(const Piece& target, const ElementForm& from, const std::byte* dense, const RunCursor& runs);
  uint64_t WriteSlice(const Piece& target, const ElementForm& from, const std::byte* dense, const WindowCursor& window,
                      uint64_t begin, uint64_t end);
  bool CountsValues(const Part& part, const Box& op) const;
  bool Repeats(const Part& part, const Piece& target) const;
  uint64_t CompleteAll(const Part& part, const Box& op);
  void Complete(size_t file, uint64_t bytes);

  Execution& execution_;
  Turn& turn_;
  const uint64_t dense_size_;
  Buffer dense_, second_, outputs_, operands_, bounce_;
  SourceReader reader_;
  uint64_t overflows_ = 0;  // of the op in work
};

void Execution::Worker::Move(const Op& op, const Box& needed) {
  const Part& part = execution_.plan_.parts[op.part];
  uint64_t read = 0, written = 0;
  overflows_ = 0;
  if (part.sources.empty())
    std::memset(dense_.data(), 0, std::min(dense_size_, ElementCount(needed.shape) * WidestItem(part)));
  StepCursor steps(needed, StepElements(part, dense_size_));
  for (Box step; steps.Next(step);) {
    turn_.Check();
    read += reader_.Read(part, step, dense_.data());
    if (part.value) {
      const Operands operands = ReadOperands(part, step, read);
      written += WriteValues(part, step, operands);
      continue;
    }
    for (const Piece& target : part.targets)
      if (std::optional<Box> common = Intersect(target.box, step)) written += Write(part, target, *common, step);
  }
  if (part.value && !CountsValues(part, op.box)) overflows_ = 0;
  {
    std::lock_guard lock(execution_.mutex_);
    execution_.report_.bytes_read += read;
    execution_.report_.bytes_written += written;
    if (overflows_ > 0) execution_.overflows_[op.part] += overflows_;
  }
  if (execution_.journal_) execution_.journal_->AddOp(turn_.op(), overflows_);
  if (execution_.marks_) execution_.marks_->Wrote(written);
  CompleteAll(part, op.box);
  turn_.Done(written);
}

// Counts in what an earlier run did.
void Execution::Worker::Skip(const Op& op, uint64_t overflows) {
  const Part& part = execution_.plan_.parts[op.part];
  turn_.Check();
  if (overflows > 0) {
    std::lock_guard lock(execution_.mutex_);
    execution_.overflows_[op.part] += overflows;
  }
  const uint64_t bytes = CompleteAll(part, op.box);
  turn_.Spared(bytes);
  std::lock_guard lock(execution_.mutex_);
  execution_.report_.bytes_staged += bytes;
}

// Counts the op's bytes in; returns how many they are.
uint64_t Execution::Worker::CompleteAll(const Part& part, const Box& op) {
  uint64_t all = 0;
  for (const Piece& target : part.targets) {
    const uint64_t bytes = BytesOf(part, target, op, execution_.shares_, execution_.self());
    if (bytes > 0) Complete(target.file, bytes);
    all += bytes;
  }
  return all;
}

// Returns the bytes written.
uint64_t Execution::Worker::Write(const Part& part, const Piece& target, const Box& common, const Box& step) {
  // Zeros are stored as zeros in every form.
  const ElementForm from = part.sources.empty() ? target.form() : part.sources[0].form();
  const Written written = WriteWindows(target, from, dense_.data(), RunCursor(target, common, step));
  if (written.overflows > 0 && !Repeats(part, target)) overflows_ += written.overflows;
  return written.bytes;
}

// What of the operands goes with the step, one behind the other.
Execution::Worker::Operands Execution::Worker::ReadOperands(const Part& part, const Box& step, uint64_t& bytes_read) {
  Operands operands{};
  std::byte* free = operands_.data();
  for (size_t i = 0; i < part.operands.size(); ++i) {
    const Part& operand = part.operands[i];
    const Box along = Scaled(step, part.shape, operand.shape);
    operands[i] = free;
    bytes_read += reader_.Read(operand, along, free);
    free += ElementCount(along.shape) * ItemSize(operand.sources[0].dtype);
  }
  return operands;
}

// What the part's value op makes of the rows of the step. Returns the bytes written.
uint64_t Execution::Worker::WriteValues(const Part& part, const Box& step, const Operands& operands) {
  const uint64_t rows = step.shape[0], columns = step.shape[1];
  const auto outputs = OutputsOf(*part.value, rows, columns);
  std::array<std::byte*, kValueOutputs> dense;
  for (size_t i = 0; i < dense.size(); ++i) dense[i] = outputs_.data() + i * dense_size_;
  const ValueReport done = Apply(*part.value, part.sources[0].dtype, dense_.data(), rows, columns, operands, dense);
  overflows_ += done.overflows;
  if (done.not_a_number)
    throw Error(Code::kMismatch, fmt::format("row {} of '{}' has NaN or infinity, expected finite values to quantise",
                                             step.origin[0] + *done.not_a_number, part.name))
        .At("reading", execution_.plan_.sources[part.sources[0].file].relative)
        .Tensor(execution_.plan_.source_tensors[part.sources[0].tensor]);
  uint64_t written = 0;
  for (const Piece& target : part.targets) {
    Box box = WholeBox(outputs[target.output].shape);
    box.origin[0] = step.origin[0] - DomainOf(part).origin[0];
    std::optional<Box> common = Intersect(target.box, box);
    if (!common) continue;
    written += WriteWindows(target, target.form(), dense[target.output], RunCursor(target, *common, box)).bytes;
  }
  return written;
}

// All outputs of a value op are made by every task that writes one of them; the first one's writer counts.
bool Execution::Worker::CountsValues(const Part& part, const Box& op) const {
  std::optional<uint32_t> first;
  for (const Piece& target : part.targets)
    ForEachWriter(part, target, op, execution_.shares_, [&](uint32_t task, uint64_t) { first = first.value_or(task); });
  return first == execution_.self();
}

// What of it is to be written here.
Execution::Worker::Written Execution::Worker::WriteWindows(const Piece& target, const ElementForm& from,
                                                           const std::byte* dense, const RunCursor& runs) {
  const uint64_t item = ItemSize(target.dtype);
  Written written;
  for (WindowCursor window(runs, kIoBuffer / item); window.Next();) {
    const uint64_t offset = target.offset + window.file() * item;
    execution_.shares_.ForEachSlice(target.file, offset, offset + window.length() * item,
                                    [&](uint32_t task, uint64_t begin, uint64_t end) {
                                      if (task != execution_.self()) return;
                                      written.overflows += WriteSlice(target, from, dense, window, begin, end);
                                      written.bytes += end - begin;
                                    });
  }
  return written;
}

// Bytes [begin, end) of the file, which lie in the window. Either may lie within an element, of which another task
// writes the rest: where a piece begins at any byte. Returns how many finite values became infinite, of those that
// begin here.
uint64_t Execution::Worker::WriteSlice(const Piece& target, const ElementForm& from, const std::byte* dense,
                                       const WindowCursor& window, uint64_t begin, uint64_t end) {
  const uint64_t item = ItemSize(target.dtype), from_item = ItemSize(from.dtype);
  const uint64_t first = (begin - target.offset) / item, last = CeilDiv(end - target.offset, item);
  const uint64_t within = (begin - target.offset) % item;  // the first element
  const std::byte* bytes = dense + (window.dense() + first - window.file()) * item;
  uint64_t overflows = 0;
  if (from != target.form() || !window.single()) {
    window.ForEachRun([&](const ElementRun& run) {
      const uint64_t low = std::max(run.file, first), high = std::min(run.file + run.length, last);
      if (low >= high) return;
      const std::byte* source = dense + (run.dense + low - run.file) * from_item;
      std::byte* made = bounce_.data() + (low - first) * item;
      overflows += Cast(from, target.form(), source, made, high - low);
      if (low == first && within > 0) overflows -= Cast(from, target.form(), source, made, 1);
    });
    bytes = bounce_.data();
  }
  execution_.files_.Get(execution_.plan_.sources.size() + target.file)->WriteAt(bytes + within, end - begin, begin);
  execution_.WriteBack([&] { execution_.behind_.Wrote(target.file, begin, end - begin); });
  return overflows;
}

// Whether an earlier target has all the elements of this one in the same form: then their overflows are counted there.
bool Execution::Worker::Repeats(const Part& part, const Piece& target) const {
  for (const Piece& earlier : part.targets) {
    if (&earlier == &target) return false;
    if (earlier.form() == target.form() && Intersect(earlier.box, target.box) == target.box) return true;
  }
  return false;
}

// Counts bytes of data in; with the last ones, hashes the file.
void Execution::Worker::Complete(size_t file, uint64_t bytes) {
  if (execution_.missing_[file].fetch_sub(bytes) != bytes) return;
  execution_.Hash(file, bounce_.data(), &turn_);
}

Execution::Execution(const Plan& plan, const std::string& staging, Io& io, const ExecuteOptions& options)
    : plan_(plan),
      staging_(staging),
      io_(io),
      options_(options),
      limit_(LimitOpenFiles(options.workers)),
      files_(limit_.cached, plan.sources.size() + plan.files.size(),
             [this](size_t number) {
               const size_t sources = plan_.sources.size();
               return number < sources ? OpenSource(io_, plan_.sources[number])
                                       : io_.OpenWrite(StagedPath(number - sources));
             }),
      behind_(files_, plan.sources.size(), plan.files),
      overlapping_(AnySourcesOverlap(plan.parts)),
      journals_(plan, io, options.journal, options.task),
      journal_(journals_.own()),
      shares_(journals_.shares()),
      missing_(plan.files.size()),
      inodes_(plan.files.size()) {
  report_.hashes.resize(plan.files.size());
  for (const Part& part : plan.parts) {
    CheckPart(part);
    for (const Piece& target : part.targets) missing_[target.file] += BytesOf(target, shares_, self());
  }
}

ExecuteReport Execution::Perform() {
  MakeFolders();
  CheckFiles();
  ForgetGone();
  MakeFiles();
  if (journal_) marks_.emplace(io_, staging_, *journal_);
  OpQueue(plan_.parts, MissingBytes(), options_).Run(limit_.workers, [this](Turn& turn) {
    Worker(*this, turn).Work();
  });
  if (marks_) marks_->Stop();
  CheckUnchanged(io_, plan_.sources);
  SyncAll();
  ReportOverflows();
  return std::move(report_);
}

uint64_t Execution::MissingBytes() const { return std::accumulate(missing_.begin(), missing_.end(), uint64_t{0}); }

void Execution::MakeFolders() {
  for (const FileLayout& file : plan_.files) AddFolders(file.path, folders_);
  for (const std::string& folder : folders_) io_.MakeDirectories(JoinPath(staging_, folder));
}

// What earlier runs left of the files.
void Execution::CheckFiles() {
  if (!journal_) return;
  for (size_t file = 0; file < plan_.files.size(); ++file) {
    const std::optional<FileInfo> info = io_.Stat(StagedPath(file));
    if (info && info->size == plan_.files[file].size) inodes_[file] = info->inode;
  }
  journals_.Check(inodes_);
}

// Whether a journal is kept and does not know the file, or no longer.
bool Execution::IsFresh(size_t file) const {
  return journal_ && (inodes_[file] == 0 || journal_->InodeOf(file) != inodes_[file]);
}

// A new file may have the inode of one that is gone. So it is not made before what journals say of that one is void, on
// the disk as well: there they are believed up to their last mark.
void Execution::ForgetGone() {
  bool known = journals_.deleted();
  for (size_t file = 0; file < plan_.files.size(); ++file) {
    if (!shares_.Has(self(), file) || !IsFresh(file)) continue;
    journal_->AddFile(file, 0);
    known = known || journal_->InodeOf(file).value_or(0) != 0;
  }
  if (!known) return;
  const uint64_t records = journal_->count();
  WriteBack([&] { io_.SyncFileSystem(staging_); });
  journal_->AddSynced(records);
}

void Execution::MakeFiles() {
  for (size_t file = 0; file < plan_.files.size(); ++file)
    if (shares_.Has(self(), file)) MakeFile(file);
  Buffer buffer(kIoBuffer);
  for (size_t file = 0; file < plan_.files.size(); ++file)
    if (shares_.Has(self(), file) && missing_[file] == 0) Hash(file, buffer.data(), nullptr);
}

void Execution::MakeFile(size_t file) {
  if (journals_.HashOf(file)) return;  // it is complete, checksums too
  const FileLayout& layout = plan_.files[file];
  std::shared_ptr<File> open = files_.Get(plan_.sources.size() + file);
  CheckStop(options_);
  open->Truncate(layout.size);
  for (const Literal& literal : layout.literals) {
    auto write = [&](uint32_t task, uint64_t begin, uint64_t end) {
      if (task != self()) return;
      open->WriteAt(literal.bytes.data() + (begin - literal.offset), end - begin, begin);
      WriteBack([&] { behind_.Wrote(file, begin, end - begin); });
      report_.bytes_written += end - begin;
    };
    shares_.ForEachSlice(file, literal.offset, literal.offset + literal.bytes.size(), write);
  }
  if (IsFresh(file)) journal_->AddFile(file, open->Info().inode);
}

// Hashes a file that has all its data, through a buffer of kIoBuffer bytes, and fills in its checksums. One that is cut
// is complete when all tasks have ended.
void Execution::Hash(size_t file, std::byte* buffer, const Turn* turn) {
  if (!shares_.IsCut(file)) {
    const std::optional<uint64_t> known = journals_.HashOf(file);
    report_.hashes[file] = known ? *known : HashOf(file, buffer, turn);
    if (journal_ && !known) journal_->AddHash(file, report_.hashes[file]);
  }
  WriteBack([&] { behind_.Completed(file); });
}

uint64_t Execution::HashOf(size_t file, std::byte* buffer, const Turn* turn) {
  const uint64_t size = plan_.files[file].size;
  std::unique_ptr<File> open = io_.OpenRead(StagedPath(file));
  std::shared_ptr<File> filled = files_.Get(plan_.sources.size() + file);
  ChecksumFiller checksums(plan_.files[file].checksums);
  Xxh3 hash;
  for (uint64_t offset = 0; offset < size; offset += kIoBuffer) {
    turn ? turn->Check() : CheckStop(options_);
    const uint64_t count = std::min(kIoBuffer, size - offset);
    open->ReadAt(buffer, count, offset);
    checksums.Pass(offset, buffer, count, *filled);
    hash.Update(buffer, count);
  }
  return hash.Digest();
}

// Does what may tell that data did not reach the disk: the next run would not be told again.
template <typename Call>
void Execution::WriteBack(Call call) {
  try {
    call();
  } catch (...) {
    if (journal_) journal_->TakeBack();
    throw;
  }
}

void Execution::SyncAll() {
  WriteBack([&] {
    io_.SyncFileSystem(staging_);
    behind_.ForgetRest();
    for (auto folder = folders_.rbegin(); folder != folders_.rend(); ++folder)
      io_.SyncDirectory(JoinPath(staging_, *folder));
  });
  // The other tasks' machines, and the one that publishes, believe what is marked.
  if (journal_ && options_.task.count > 1) journal_->AddSynced(journal_->count());
}

void Execution::ReportOverflows() {
  std::map<uint32_t, size_t> places;  // of a source tensor in the report
  for (auto [part, count] : overflows_) {
    const uint32_t tensor = plan_.parts[part].sources[0].tensor;
    auto [place, added] = places.try_emplace(tensor, report_.overflows.size());
    if (added) report_.overflows.push_back({plan_.source_tensors[tensor]});
    report_.overflows[place->second].count += count;
  }
}

}  // namespace

ExecuteReport Execute(const Plan& plan, const std::string& staging, Io& io, const ExecuteOptions& options) {
  return Execution(plan, staging, io, options).Perform();
}

uint64_t BytesStaged(const Plan& plan, Io& io, const std::string& path) {
  return Journals(plan, io, path, {}).BytesDone();
}

uint64_t WorkerBytes(const Plan& plan, uint64_t dense_buffer) {
  const ValueBuffers values(plan);
  const uint64_t buffers = 1 + (AnySourcesOverlap(plan.parts) ? 1 : 0) + values.outputs + values.operands;
  return DenseBytes(plan, dense_buffer) * buffers + kIoBuffer;
}

}  // namespace reshard
