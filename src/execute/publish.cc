#include "execute/publish.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <concepts>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "base/bytes.h"
#include "base/error.h"
#include "execute/owner.h"

namespace reshard {
namespace {

constexpr char kExecuted[] = "executed";
constexpr char kJournal[] = "journal";
constexpr char kRequest[] = "request";
constexpr char kPublishing[] = "publishing";
constexpr char kTask[] = "task.";
constexpr char kProgress[] = "progress.";
constexpr uint64_t kMaxRecordBytes = 64 * kMiB;
constexpr size_t kMostChanges = 5;  // that one line tells

struct Places {
  Places(const TargetPlace& place, const std::string& plan_id)
      : target(place),
        root(place.root()),
        plan(JoinPath(root, plan_id)),
        files(JoinPath(plan, "files")),
        old(JoinPath(plan, "old")) {}
  const TargetPlace target;
  const std::string root, plan, files, old;
};

struct SizedFile {
  std::string path;  // relative
  uint64_t size = 0;
};

std::string NameOf(TaskOf task) { return fmt::format("{}-of-{}", task.number, task.count); }
std::string TopEntry(const std::string& path) { return path.substr(0, path.find('/')); }
std::string Parent(const std::string& path) { return std::filesystem::path(path).parent_path().string(); }

// The form of Plan::id.
bool IsPlanId(const std::string& name) {
  return name.size() == 16 && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool IsRelativeInside(const std::string& path) {
  const std::filesystem::path parts(path);
  return !path.empty() && !parts.is_absolute() && std::find(parts.begin(), parts.end(), "..") == parts.end();
}

bool IsFile(Io& io, const std::string& path) {
  const std::optional<FileInfo> info = io.Stat(path);
  return info && info->type == FileInfo::Type::kFile;
}

bool IsFileOfSize(Io& io, const std::string& path, uint64_t size) {
  const std::optional<FileInfo> info = io.Stat(path);
  return info && info->type == FileInfo::Type::kFile && info->size == size;
}

Json ReadRecord(Io& io, const std::string& path) { return ParseJson(ReadWholeFile(io, path, kMaxRecordBytes), path); }

// Complete or not there, also after a power loss. The temporary name lies in the plan's folder, on the same file
// system.
void WriteRecord(Io& io, const Places& places, const Json& record, const std::string& folder, const std::string& name) {
  const std::string temporary = JoinPath(places.plan, "record.tmp");
  WriteWholeFile(io, temporary, record.dump(2) + "\n");
  io.OpenWrite(temporary)->Sync();
  io.Rename(temporary, JoinPath(folder, name));
  io.SyncDirectory(folder);
}

Error BadRecord(const std::string& path, const std::string& found) {
  return Error(Code::kCorrupt, found + "; delete the file and convert again").At("reading", path);
}

template <typename T>
T Field(const Json& record, const char* key, const std::string& path) {
  try {
    const Json& value = record.at(key);
    // The library would make a huge number of a negative one.
    if (!std::same_as<T, uint64_t> || value.is_number_unsigned()) return value.get<T>();
  } catch (const Json::exception&) {
  }
  throw BadRecord(path, fmt::format("found no valid '{}', expected a record of reshard", key));
}

// What `read` returns, or its empty value: a damaged record vouches for nothing.
template <typename Read>
auto UnlessDamaged(Read read) -> decltype(read()) {
  try {
    return read();
  } catch (const Error& error) {
    if (error.code() != Code::kCorrupt) throw;
    return {};
  }
}

// The "files" of a receipt or of an `executed` record.
std::vector<SizedFile> FilesOf(const Json& record, const std::string& path) {
  std::vector<SizedFile> files;
  for (const Json& row : Field<Json::array_t>(record, "files", path)) {
    files.push_back({Field<std::string>(row, "path", path), Field<uint64_t>(row, "size", path)});
    if (!IsRelativeInside(files.back().path)) {
      throw BadRecord(path, fmt::format("found the file '{}', expected a path inside the folder", files.back().path));
    }
  }
  return files;
}

bool AllThere(Io& io, const std::string& folder, const std::vector<SizedFile>& files) {
  return std::all_of(files.begin(), files.end(),
                     [&](const SizedFile& file) { return IsFileOfSize(io, JoinPath(folder, file.path), file.size); });
}

// A publication from its `publishing` record on. Every step may be repeated, so that it can go on from any point:
//   "old_moved": false   the target holds nothing of ours yet: what it does hold is moved into old/
//   "old_moved": true    the target holds nothing but what was renamed into place
// The record goes as soon as the receipt is there, so that what is complete is not rolled forward again.
class Publication {
 public:
  Publication(Io& io, const Places& places) : io_(io), places_(places) {}

  void Record(const Target& target, const Json& receipt) {
    record_ = {{"plan_id", target.plan_id}, {"replace", target.replace}, {"markers", target.markers},
               {"files", target.files},     {"old_moved", false},        {"receipt", receipt}};
    CheckRecord();
    Save();
  }

  void Load() {
    record_ = ReadRecord(io_, record_path_);
    CheckRecord();
  }

  void RollForward() {
    if (!old_moved_) MoveOldEntries();
    RenameFiles();
    WriteRecord(io_, places_, receipt_, places_.target.folder(), places_.target.receipt());
    io_.RemoveAll(record_path_);
    io_.RemoveAll(places_.plan);
  }

 private:
  void CheckRecord() {
    replace_ = Field<bool>(record_, "replace", record_path_);
    old_moved_ = Field<bool>(record_, "old_moved", record_path_);
    markers_ = Field<std::vector<std::string>>(record_, "markers", record_path_);
    receipt_ = Field<Json>(record_, "receipt", record_path_);
    std::map<std::string, uint64_t> sizes;
    for (const SizedFile& file : FilesOf(receipt_, record_path_)) sizes[file.path] = file.size;
    for (const std::string& path : Field<std::vector<std::string>>(record_, "files", record_path_)) {
      const auto found = sizes.find(path);
      if (found == sizes.end()) throw BadRecord(record_path_, "found no size of '" + path + "', expected one");
      files_.push_back({path, found->second});
    }
  }

  void Save() { WriteRecord(io_, places_, record_, places_.plan, kPublishing); }

  // The old receipt first: it must not vouch for what is half gone. Then what makes the old checkpoint one.
  void MoveOldEntries() {
    io_.MakeDirectories(places_.old);
    const TargetPlace& target = places_.target;
    std::vector<std::string> first = {target.receipt()};
    if (replace_ && !target.is_file()) {
      for (const std::string& marker : markers_) {
        if (io_.Stat(JoinPath(target.folder(), marker))) first.push_back(TopEntry(marker));
      }
    }
    MoveAway(first);
    // One file in another's place takes one rename.
    const bool renamed_over = target.is_file() && IsFile(io_, target.path());
    if (replace_ && !renamed_over) MoveAway(target.Entries(io_));
    record_["old_moved"] = true;
    Save();
  }

  void MoveAway(const std::vector<std::string>& entries) {
    const std::vector<std::string> listed = io_.List(places_.target.folder());
    std::set<std::string> there(listed.begin(), listed.end());
    for (const std::string& entry : entries) {
      if (there.erase(entry) == 0) continue;
      const std::string moved = JoinPath(places_.old, entry);
      io_.RemoveAll(moved);  // of a rename that a power loss cut, both names are left; another then does nothing
      io_.Rename(JoinPath(places_.target.folder(), entry), moved);
    }
    io_.SyncDirectory(places_.old);
    io_.SyncDirectory(places_.target.folder());
  }

  // All but the marker, made durable, then the marker.
  void RenameFiles() {
    std::set<std::string> folders = {""};  // relative ones
    for (const SizedFile& file : files_) {
      const std::string folder = Parent(file.path);
      if (folders.count(folder) == 0) io_.MakeDirectories(JoinPath(places_.target.folder(), folder));
      for (std::string up = folder; folders.insert(up).second;) up = Parent(up);
    }
    for (size_t i = 0; i + 1 < files_.size(); ++i) RenameFile(files_[i]);
    for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) {
      io_.SyncDirectory(JoinPath(places_.target.folder(), *folder));
    }
    if (files_.empty()) return;
    RenameFile(files_.back());
    io_.SyncDirectory(Parent(JoinPath(places_.target.folder(), files_.back().path)));
  }

  void RenameFile(const SizedFile& file) {
    const std::string staged = JoinPath(places_.files, file.path);
    const std::string published = JoinPath(places_.target.folder(), file.path);
    if (io_.Stat(staged)) {
      io_.Rename(staged, published);
    } else if (!IsFileOfSize(io_, published, file.size)) {
      throw Error(Code::kCorrupt,
                  fmt::format("found neither {} nor a published file of {} bytes, expected one of them; "
                              "delete {} and convert again",
                              staged, file.size, places_.root))
          .At("publishing", published);
    }
  }

  Io& io_;
  const Places& places_;
  const std::string record_path_ = JoinPath(places_.plan, kPublishing);
  Json record_, receipt_;
  bool replace_ = false, old_moved_ = false;
  std::vector<std::string> markers_;
  std::vector<SizedFile> files_;
};

bool IsComplete(Io& io, const Target& target) {
  const std::optional<Json> receipt = UnlessDamaged([&] { return ReadReceipt(io, target.place); });
  return receipt && receipt->at("plan_id") == target.plan_id &&
         AllThere(io, target.place.folder(), FilesOf(*receipt, target.place.path()));
}

std::string TargetRootIn(const std::string& folder, const std::string& root) {
  return JoinPath(folder, root.substr(root.rfind('/') + 1));
}

// Through a link, or in a folder that is somebody else's, nothing is written and nothing deleted.
void RefuseOddPlaces(Io& io, const Places& places) {
  const std::string& folder = places.target.folder();
  const std::optional<FileInfo> target = io.Stat(folder), root = io.Stat(places.root);
  if (target && target->type != FileInfo::Type::kDirectory) {
    throw Error(Code::kAlreadyExists, "found a file, expected a folder or nothing").At("writing", folder);
  }
  if (!root || (root->type == FileInfo::Type::kDirectory &&
                io.Canonical(places.root) == TargetRootIn(io.Canonical(folder), places.root))) {
    return;
  }
  throw Error(Code::kAlreadyExists,
              "found a file or a link, expected a folder that reshard made, or nothing; delete it")
      .At("claiming", places.root);
}

void RefuseOldEntries(Io& io, const Target& target) {
  const TargetPlace& place = target.place;
  if (target.replace || !io.Stat(place.folder())) return;
  const std::vector<std::string> entries = place.Entries(io);
  if (entries.empty()) return;
  const std::string found = place.is_file() ? "found it there already, expected no such file"
                                            : fmt::format("found '{}', expected an empty folder", entries[0]);
  throw Error(Code::kAlreadyExists, found + "; " + target.remedy).At("writing", place.path());
}

// Without looking into a folder that a run has worked on.
bool MayHaveWork(Io& io, const Target& target) {
  const Places places(target.place, target.plan_id);
  RefuseOddPlaces(io, places);
  if (io.Stat(places.root)) return true;
  if (IsComplete(io, target)) return false;
  RefuseOldEntries(io, target);
  return true;
}

// What MarkExecuted was given, where all the files it saw are staged still.
std::optional<Json> ReadExecuted(Io& io, const Places& places, const Target& target) {
  return UnlessDamaged([&]() -> std::optional<Json> {
    const std::string path = JoinPath(places.plan, kExecuted);
    if (!io.Stat(path)) return std::nullopt;
    const Json executed = ReadRecord(io, path);
    const std::vector<SizedFile> files = FilesOf(executed, path);
    const auto same = [](const SizedFile& file, const std::string& name) { return file.path == name; };
    if (!std::equal(files.begin(), files.end(), target.files.begin(), target.files.end(), same)) return std::nullopt;
    if (!AllThere(io, places.files, files)) return std::nullopt;
    return Field<Json>(executed, "record", path);
  });
}

// Whether there was one.
bool RollForwardAll(Io& io, const TargetPlace& place) {
  bool begun = false;
  for (const std::string& name : io.List(place.root())) {
    const Places places(place, name);
    if (!IsPlanId(name) || !io.Stat(JoinPath(places.plan, kPublishing))) continue;
    Publication publication(io, places);
    publication.Load();
    publication.RollForward();
    begun = true;
  }
  return begun;
}

// What is in one of two objects and not, or otherwise, in the other: `dtype was "bf16" and is "fp16"`.
void AddChanges(const std::string& what, const Json& before, const Json& now, std::vector<std::string>& changes) {
  for (const auto& [key, value] : before.items()) {
    if (!now.contains(key)) {
      changes.push_back(fmt::format("{} {} is gone", what, key));
    } else if (value.is_object() && now.at(key).is_object()) {
      AddChanges(fmt::format("{} {}:", what, key), value, now.at(key), changes);
    } else if (now.at(key) != value) {
      changes.push_back(fmt::format("{} {} was {} and is {}", what, key, value.dump(), now.at(key).dump()));
    }
  }
  for (const auto& [key, value] : now.items())
    if (!before.contains(key)) changes.push_back(fmt::format("{} {} is new", what, key));
}

// Why the staged data of another plan is of no use to this one.
std::string ChangesSince(Io& io, const Places& other, const Target& target) {
  const Json before = UnlessDamaged([&]() -> Json {
    const std::string path = JoinPath(other.plan, kRequest);
    return io.Stat(path) ? ReadRecord(io, path) : Json();
  });
  std::vector<std::string> changes;
  for (const auto& [key, what] : {std::pair{"options", "the option"}, std::pair{"sources", "the source"}})
    if (before.is_object() && before.contains(key) && before.at(key).is_object())
      AddChanges(what, before.at(key), target.request.at(key), changes);
  if (changes.empty()) return "it is of another version or damaged";
  if (changes.size() > kMostChanges) {
    const size_t more = changes.size() - kMostChanges;
    changes.resize(kMostChanges);
    changes.push_back(fmt::format("and {} more", more));
  }
  return fmt::format("{}", fmt::join(changes, "; "));
}

bool HoldsStaged(Io& io, const Places& places) { return io.Stat(places.files) && !io.List(places.files).empty(); }

// Staged data goes only where that is asked for.
void RefuseOthersStaged(Io& io, const Target& target) {
  if (target.replace) return;
  const std::vector<std::string> others = OthersStaged(io, target);
  if (others.empty()) return;
  throw Error(Code::kMismatch,
              fmt::format("what an earlier run has staged is not of this command: {}, expected the same input and "
                          "options; restore them, or give --override to discard what is staged and begin anew",
                          fmt::join(others, "; ")))
      .At("claiming", target.place.path());
}

// Deletes what earlier runs left in `.reshard`: of locks, and of plans but for `kept`. Data that another plan has
// staged stays unless it is to be replaced.
void DeleteLeftovers(Io& io, const Target& target, const OwnerLock& lock, const std::string& kept) {
  const std::string root = Places(target.place, "").root;
  for (const std::string& name : io.List(root)) {
    const Places places(target.place, name);
    const bool of_use = !target.replace && name != target.plan_id && HoldsStaged(io, places);
    if (name != kept && ((IsPlanId(name) && !of_use) || lock.IsLeftover(name))) io.RemoveAll(places.plan);
  }
}

// A folder that goes again unless it is kept, if it was made here: with all that is in it, or if it is empty.
class MadeFolder {
 public:
  enum class Contents { kNone, kAll };
  MadeFolder(Io& io, std::string path, Contents removed = Contents::kNone)
      : io_(io), path_(std::move(path)), removed_(removed), made_(!io.Stat(path_)) {
    io_.MakeDirectories(path_);
  }
  ~MadeFolder() {
    try {
      if (!made_ || kept_) return;
      if (removed_ == Contents::kAll) io_.RemoveAll(path_);
      io_.RemoveEmptyDirectory(path_);
    } catch (...) {  // an empty folder is left, in which the next run can work
    }
  }
  MadeFolder(const MadeFolder&) = delete;
  MadeFolder& operator=(const MadeFolder&) = delete;
  bool made() const { return made_; }
  void Keep() { kept_ = true; }

 private:
  Io& io_;
  const std::string path_;
  const Contents removed_;
  const bool made_;
  bool kept_ = false;
};

// Tasks that are at work in the target, but for those that may be there together with `joining`.
void RefuseTasks(Io& io, const Places& places, OwnerLock& lock, TaskOf joining) {
  for (const std::string& plan : io.List(places.root)) {
    if (!IsPlanId(plan)) continue;
    const std::string folder = JoinPath(places.root, plan);
    for (const std::string& name : io.List(folder)) {
      const bool companion = joining.count > 1 && folder == places.plan && name != kTask + NameOf(joining) &&
                             name.ends_with(fmt::format("-of-{}", joining.count));
      if (name.starts_with(kTask) && !companion) lock.RefuseIfOwned(JoinPath(folder, name));
    }
  }
}

void WriteRequest(Io& io, const Places& places, const Target& target) {
  io.MakeDirectories(places.files);
  if (!io.Stat(JoinPath(places.plan, kRequest))) WriteRecord(io, places, target.request, places.plan, kRequest);
}

class TakenSeat : public Seat {
 public:
  TakenSeat(Io& io, const Places& places, TaskOf task)
      : folder_(places.files), lock_(io, JoinPath(places.plan, kTask + NameOf(task))) {}
  const std::string& folder() const override { return folder_; }

 private:
  const std::string folder_;
  OwnerLock lock_;
};

class ClaimedStage : public Stage {
 public:
  ClaimedStage(Io& io, Target target, std::unique_ptr<OwnerLock> lock, bool made_folder, std::optional<Json> executed)
      : io_(io),
        target_(std::move(target)),
        places_(target_.place, target_.plan_id),
        lock_(std::move(lock)),
        made_folder_(made_folder),
        executed_(std::move(executed)) {
    WriteRequest(io_, places_, target_);
  }

  const std::string& folder() const override { return places_.files; }
  const std::optional<Json>& executed() const override { return executed_; }

  void MarkExecuted(const Json& record) override {
    CheckHeld();
    Json files = Json::array();
    for (const std::string& path : target_.files) {
      const std::optional<FileInfo> info = io_.Stat(JoinPath(places_.files, path));
      if (!info) throw Error(Code::kInternal, "no such staged file").At("publishing", path);
      files.push_back({{"path", path}, {"size", info->size}});
    }
    io_.SyncFileSystem(places_.files);
    WriteRecord(io_, places_, {{"files", files}, {"record", record}}, places_.plan, kExecuted);
    executed_ = record;
  }

  void Publish(const Json& receipt) override {
    CheckHeld();
    RefuseOldEntries(io_, target_);
    io_.SyncFileSystem(places_.files);
    Publication publication(io_, places_);
    publication.Record(target_, receipt);
    publication.RollForward();
    lock_->Release();
  }

  void Discard() override {
    CheckHeld();
    io_.RemoveAll(places_.plan);
    lock_->Release();
    if (made_folder_) io_.RemoveEmptyDirectory(target_.place.folder());
  }

 private:
  void CheckHeld() {
    if (lock_->Held()) return;
    throw Error(Code::kAlreadyExists, "another run took the folder over, expected to own it; run the command again")
        .At("publishing", target_.place.path());
  }

  Io& io_;
  const Target target_;
  const Places places_;
  const std::unique_ptr<OwnerLock> lock_;
  const bool made_folder_;
  std::optional<Json> executed_;
};

}  // namespace

std::string JournalOf(const Target& target) { return JoinPath(Places(target.place, target.plan_id).plan, kJournal); }

std::string ProgressOf(const Target& target, TaskOf task) {
  return JoinPath(Places(target.place, target.plan_id).plan, kProgress + NameOf(task));
}

std::vector<std::string> OthersStaged(Io& io, const Target& target) {
  const std::string root = Places(target.place, "").root;
  std::vector<std::string> others;
  if (!io.Stat(root)) return others;
  for (const std::string& name : io.List(root)) {
    const Places other(target.place, name);
    if (!IsPlanId(name) || name == target.plan_id || io.Stat(JoinPath(other.plan, kPublishing))) continue;
    if (HoldsStaged(io, other)) others.push_back(ChangesSince(io, other, target));
  }
  return others;
}

bool CheckTarget(Io& io, const Target& target) {
  if (!MayHaveWork(io, target)) return false;
  RefuseOthersStaged(io, target);
  return true;
}

std::unique_ptr<Stage> Claim(Io& io, const Target& target) {
  // Nothing is written before it is known that there is something to do.
  if (!MayHaveWork(io, target)) return nullptr;
  const Places places(target.place, target.plan_id);
  MadeFolder folder(io, target.place.folder()), root(io, places.root);
  auto lock = std::make_unique<OwnerLock>(io, places.root);
  RefuseTasks(io, places, *lock, {});
  RollForwardAll(io, target.place);
  if (IsComplete(io, target)) {
    DeleteLeftovers(io, target, *lock, "");
    return nullptr;
  }
  RefuseOldEntries(io, target);
  RefuseOthersStaged(io, target);
  std::optional<Json> executed = ReadExecuted(io, places, target);
  if (!executed) io.RemoveAll(JoinPath(places.plan, kExecuted));  // what it says is not so
  DeleteLeftovers(io, target, *lock, target.plan_id);
  MadeFolder plan(io, places.plan, MadeFolder::Contents::kAll);
  auto stage = std::make_unique<ClaimedStage>(io, target, std::move(lock), folder.made(), std::move(executed));
  for (MadeFolder* made : {&folder, &root, &plan}) made->Keep();
  return stage;
}

std::unique_ptr<Seat> Join(Io& io, const Target& target, TaskOf task) {
  if (!MayHaveWork(io, target)) return nullptr;
  const Places places(target.place, target.plan_id);
  MadeFolder folder(io, target.place.folder()), root(io, places.root);
  OwnerLock lock(io, places.root, OwnerLock::Stay::kPassing);
  RefuseTasks(io, places, lock, task);
  RollForwardAll(io, target.place);
  if (IsComplete(io, target)) {
    DeleteLeftovers(io, target, lock, "");
    return nullptr;
  }
  RefuseOldEntries(io, target);
  RefuseOthersStaged(io, target);
  DeleteLeftovers(io, target, lock, target.plan_id);
  MadeFolder plan(io, places.plan, MadeFolder::Contents::kAll);
  WriteRequest(io, places, target);
  auto seat = std::make_unique<TakenSeat>(io, places, task);
  lock.Release();  // all others wait for it
  for (MadeFolder* made : {&folder, &root, &plan}) made->Keep();
  return seat;
}

bool FinishPublication(Io& io, const TargetPlace& place) {
  const Places places(place, "");
  RefuseOddPlaces(io, places);
  if (!io.Stat(places.root)) return false;
  OwnerLock lock(io, places.root);
  return RollForwardAll(io, place);
}

void ForgetReceipt(Io& io, const TargetPlace& place) { io.RemoveAll(JoinPath(place.folder(), place.receipt())); }

std::optional<Json> ReadReceipt(Io& io, const TargetPlace& place) {
  const std::string path = JoinPath(place.folder(), place.receipt());
  if (!io.Stat(path)) return std::nullopt;
  Json receipt = ReadRecord(io, path);
  Field<std::string>(receipt, "plan_id", path);
  FilesOf(receipt, path);
  for (const Json& row : receipt["files"]) Field<std::string>(row, "xxh3", path);
  return receipt;
}

}  // namespace reshard
