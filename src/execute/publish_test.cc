#include "execute/publish.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "execute/owner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fault/faulty_io.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using Files = std::map<std::string, std::string>;  // path to content

const std::vector<std::string> kMarkers = {"model.safetensors.index.json", "model.safetensors",
                                           "model_weights/metadata.json"};
constexpr char kPlan[] = "0123456789abcdef";

std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void Spit(const std::string& path, const std::string& bytes) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

void SpitAll(const std::string& folder, const Files& files) {
  for (const auto& [path, bytes] : files) Spit(JoinPath(folder, path), bytes);
}

// A checkpoint of a kind as a target: old and new ones have files of the same names and sizes, and other bytes.
struct Checkpoint {
  std::vector<std::string> order;  // the marker last
  Files files;
};

Checkpoint Make(const std::vector<std::string>& order, const std::string& age) {
  Checkpoint made{order, {}};
  for (const std::string& path : order) made.files[path] = age + " " + path;
  return made;
}

Checkpoint Hf(const std::string& age) {
  return Make({"config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
               "model.safetensors.index.json"},
              age);
}

Checkpoint Nemo(const std::string& age) {
  return Make({"model_config.yaml", "tokenizer.json", "model_weights/common.pt", "model_weights/w/.zarray",
               "model_weights/w/0.0", "model_weights/metadata.json"},
              age);
}

Json ReceiptOf(const std::string& plan_id, const Files& files) {
  Json receipt = {{"plan_id", plan_id}, {"files", Json::array()}};
  for (const auto& [path, bytes] : files) {
    receipt["files"].push_back({{"path", path}, {"size", bytes.size()}, {"xxh3", "0"}});
  }
  return receipt;
}

Target TargetFor(const std::string& folder, const Checkpoint& checkpoint, bool replace = false) {
  return Target{TargetPlace::Folder(folder), kPlan, checkpoint.order, replace, kMarkers};
}

void StageFiles(Io& io, const Stage& stage, const Checkpoint& checkpoint) {
  for (const auto& [path, bytes] : checkpoint.files) {
    const std::string staged = JoinPath(stage.folder(), path);
    io.MakeDirectories(fs::path(staged).parent_path().string());
    WriteWholeFile(io, staged, bytes);
  }
}

// A whole run: what `convert` does with the layers above left out.
void Convert(Io& io, const Target& target, const Checkpoint& checkpoint) {
  const std::unique_ptr<Stage> stage = Claim(io, target);
  if (!stage) return;
  if (!stage->executed()) {
    StageFiles(io, *stage, checkpoint);
    stage->MarkExecuted({{"overflows", 0}});
  }
  stage->Publish(ReceiptOf(kPlan, checkpoint.files));
}

// The target's files without those of ours.
Files Published(const std::string& folder) {
  Files files;
  if (!fs::exists(folder)) return files;
  for (auto entry = fs::recursive_directory_iterator(folder); entry != fs::recursive_directory_iterator(); ++entry) {
    const std::string name = entry->path().filename().string();
    if (entry.depth() == 0 && (name == ".reshard" || name == ".reshard.json" || name == "conversion-logs")) {
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file()) {
      files[fs::relative(entry->path(), folder).string()] = Slurp(entry->path().string());
    }
  }
  return files;
}

void ExpectPublished(const std::string& folder, const Checkpoint& checkpoint) {
  EXPECT_EQ(Published(folder), checkpoint.files);
  EXPECT_FALSE(fs::exists(JoinPath(folder, ".reshard")));
  const std::optional<Json> receipt = ReadReceipt(PosixIo(), TargetPlace::Folder(folder));
  ASSERT_TRUE(receipt.has_value());
  EXPECT_EQ(*receipt, ReceiptOf(kPlan, checkpoint.files));
}

void EditOwners(const std::string& folder, const std::string& key, const Json& value) {
  const std::string root = JoinPath(folder, ".reshard");
  if (!fs::exists(root)) return;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (entry.path().filename().string().rfind("owner", 0) != 0) continue;
    Json owner = Json::parse(Slurp(entry.path().string()));
    owner[key] = value;
    Spit(entry.path().string(), owner.dump());
  }
}

// What a test's own process left behind is to look like that of a process that was killed.
void LetOwnersDie(const std::string& folder) { EditOwners(folder, "boot", "an earlier boot"); }

template <typename Call>
Error ErrorOf(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(Code::kInternal, "nothing was thrown");
}

TEST(Publish, MakesTheCheckpointAndItsReceiptAndNothingElse) {
  for (const Checkpoint& checkpoint : {Hf("new"), Nemo("new")}) {
    const ScratchFolder scratch;
    const std::string out = scratch / "deep/out";
    const Target target = TargetFor(out + "/", checkpoint);
    const std::unique_ptr<Stage> stage = Claim(PosixIo(), target);
    ASSERT_TRUE(stage);
    EXPECT_FALSE(stage->executed());
    EXPECT_THAT(PosixIo().List(stage->folder()), IsEmpty());
    StageFiles(PosixIo(), *stage, checkpoint);
    stage->MarkExecuted({{"overflows", 0}});
    EXPECT_THAT(Published(out), IsEmpty());
    stage->Publish(ReceiptOf(kPlan, checkpoint.files));
    ExpectPublished(out, checkpoint);
  }
}

TEST(Publish, MovesAwayAllThatWasThereUnderOverride) {
  const ScratchFolder scratch;
  SpitAll(scratch / "out", Nemo("old").files);
  Spit(scratch / "out/conversion-logs/log", "log");
  Spit(scratch / "out/notes\xff.txt", "a name that is no UTF-8");
  fs::create_directory_symlink(scratch.path(), scratch / "out/link");
  fs::create_symlink("nowhere", scratch / "out/dangling");
  Convert(PosixIo(), TargetFor(scratch / "out", Hf("new"), true), Hf("new"));
  ExpectPublished(scratch / "out", Hf("new"));
  EXPECT_EQ(Slurp(scratch / "out/conversion-logs/log"), "log");
}

TEST(Publish, RefusesWhatAppearedInTheTargetMeanwhile) {
  const ScratchFolder scratch;
  const auto stage = Claim(PosixIo(), TargetFor(scratch / "out", Hf("new")));
  StageFiles(PosixIo(), *stage, Hf("new"));
  Spit(scratch / "out/config.json", "somebody's");
  const Error error = ErrorOf([&] { stage->Publish(ReceiptOf(kPlan, Hf("new").files)); });
  EXPECT_EQ(error.code(), Code::kAlreadyExists);
  EXPECT_EQ(Published(scratch / "out"), (Files{{"config.json", "somebody's"}}));
}

TEST(Claim, SaysAlreadyCompleteOnlyWhileSizesAreRight) {
  const ScratchFolder scratch;
  const Target target = TargetFor(scratch / "out", Nemo("new"));
  Convert(PosixIo(), target, Nemo("new"));
  EXPECT_FALSE(Claim(PosixIo(), target));
  EXPECT_FALSE(fs::exists(scratch / "out/.reshard"));

  Target other = target;
  other.plan_id = "another";
  EXPECT_EQ(ErrorOf([&] { Claim(PosixIo(), other); }).code(), Code::kAlreadyExists);

  Spit(scratch / "out/model_weights/w/0.0", "short");
  EXPECT_EQ(ErrorOf([&] { Claim(PosixIo(), target); }).code(), Code::kAlreadyExists);
  Convert(PosixIo(), TargetFor(scratch / "out", Nemo("new"), true), Nemo("new"));
  ExpectPublished(scratch / "out", Nemo("new"));
}

TEST(Claim, RefusesAFolderThatHoldsAnythingAndLeavesNoTrace) {
  const ScratchFolder scratch;
  Spit(scratch / "out/mine.txt", "mine");
  const Error error = ErrorOf([&] { Claim(PosixIo(), TargetFor(scratch / "out", Hf("new"))); });
  EXPECT_EQ(error.code(), Code::kAlreadyExists);
  EXPECT_EQ(error.path(), scratch / "out");
  EXPECT_THAT(error.what(), HasSubstr("found 'mine.txt', expected an empty folder"));
  EXPECT_THAT(error.what(), HasSubstr("--override"));
  EXPECT_THAT(PosixIo().List(scratch / "out"), testing::ElementsAre("mine.txt"));

  const Error file = ErrorOf([&] { Claim(PosixIo(), TargetFor(scratch / "out/mine.txt", Hf("new"), true)); });
  EXPECT_EQ(file.code(), Code::kAlreadyExists);
}

TEST(Claim, AllowsLogsAndAnUnreadableReceipt) {
  const ScratchFolder scratch;
  Spit(scratch / "out/conversion-logs/log", "log");
  Spit(scratch / "out/.reshard.json", "{");
  Convert(PosixIo(), TargetFor(scratch / "out", Hf("new")), Hf("new"));
  ExpectPublished(scratch / "out", Hf("new"));
}

TEST(Claim, KeepsWhatWasExecutedAndDeletesOtherLeftovers) {
  const ScratchFolder scratch;
  const Target target = TargetFor(scratch / "out", Hf("new"));
  {
    const auto stage = Claim(PosixIo(), target);
    StageFiles(PosixIo(), *stage, Hf("new"));
    stage->MarkExecuted({{"overflows", 3}});
  }
  Spit(scratch / "out/.reshard/fedcba9876543210/request", "left, with nothing staged");
  Spit(scratch / "out/.reshard/claim.0", "left");
  Spit(scratch / "out/.reshard/notes", "somebody's");
  {
    const auto stage = Claim(PosixIo(), target);
    ASSERT_TRUE(stage->executed());
    EXPECT_EQ(*stage->executed(), (Json{{"overflows", 3}}));
    EXPECT_THAT(PosixIo().List(scratch / "out/.reshard"), testing::ElementsAre(kPlan, "notes", "owner"));
    Spit(JoinPath(stage->folder(), "config.json"), "cut");
  }
  {
    const auto stage = Claim(PosixIo(), target);
    EXPECT_FALSE(stage->executed());
    EXPECT_THAT(PosixIo().List(stage->folder()), Not(IsEmpty()));  // for the journal to judge
    StageFiles(PosixIo(), *stage, Hf("new"));
  }
  EXPECT_FALSE(Claim(PosixIo(), target)->executed());  // staged, but never marked
}

// A target in which a run of another plan was stopped, and what that one was asked for.
constexpr char kOtherPlan[] = "fedcba9876543210";

Json RequestOf(const char* dtype, uint64_t size) {
  return {{"options", {{"dtype", dtype}, {"trtllm", {{"tp_size", size}, {"pp_size", 1}}}}},
          {"sources", {{"a", {{"size", size}, {"inode", 7}}}, {"b", {{"size", 1}}}}}};
}

void StageOther(const std::string& folder) {
  Target other = TargetFor(folder, Hf("other"));
  other.plan_id = kOtherPlan;
  other.request = RequestOf("bf16", 1);
  StageFiles(PosixIo(), *Claim(PosixIo(), other), Hf("other"));
}

// All files below a folder, in any place.
Files AllBelow(const std::string& folder) {
  Files files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[fs::relative(entry.path(), folder).string()] = Slurp(entry.path().string());
  return files;
}

TEST(Claim, RefusesWhatAnotherPlanHasStagedAndSaysWhatChanged) {
  const ScratchFolder scratch;
  StageOther(scratch / "out");
  const Files before = AllBelow(scratch / "out");
  Target target = TargetFor(scratch / "out", Hf("new"));
  target.request = RequestOf("fp16", 2);
  target.request["sources"].erase("b");
  target.request["sources"]["c"] = {{"size", 1}};
  const std::function<void()> calls[] = {[&] { Claim(PosixIo(), target); },
                                         [&] {
                                           Join(PosixIo(), target, {1, 2});
                                         },
                                         [&] { CheckTarget(PosixIo(), target); }};
  for (const auto& call : calls) {
    const Error error = ErrorOf(call);
    EXPECT_EQ(error.code(), Code::kMismatch);
    EXPECT_EQ(error.path(), scratch / "out");
    EXPECT_THAT(error.what(),
                HasSubstr("the option dtype was \"bf16\" and is \"fp16\"; the option trtllm: tp_size was 1 and is 2; "
                          "the source a: size was 1 and is 2; the source b is gone; the source c is new, expected"));
    EXPECT_THAT(error.what(), HasSubstr("--override"));
    EXPECT_EQ(AllBelow(scratch / "out"), before);
  }
  // The one that was stopped goes on.
  target.plan_id = kOtherPlan;
  EXPECT_FALSE(PosixIo().List(Claim(PosixIo(), target)->folder()).empty());
}

TEST(Claim, BeginsAnewUnderOverride) {
  const ScratchFolder scratch;
  StageOther(scratch / "out");
  Target target = TargetFor(scratch / "out", Hf("new"), true);
  target.request = RequestOf("bf16", 2);
  EXPECT_TRUE(CheckTarget(PosixIo(), target));
  EXPECT_THAT(OthersStaged(PosixIo(), target),
              testing::ElementsAre("the option trtllm: tp_size was 1 and is 2; the source a: size was 1 and is 2"));
  EXPECT_TRUE(Claim(PosixIo(), target));
  EXPECT_FALSE(fs::exists(scratch / "out/.reshard" / fs::path(kOtherPlan)));
  EXPECT_THAT(OthersStaged(PosixIo(), target), IsEmpty());
}

TEST(Claim, DoesNotTellEveryChange) {
  const ScratchFolder scratch;
  StageOther(scratch / "out");
  Target target = TargetFor(scratch / "out", Hf("new"));
  target.request = {{"options", Json::object()}, {"sources", Json::object()}};
  for (int i = 0; i < 100; ++i) target.request["sources"][std::to_string(i)] = 0;
  const std::vector<std::string> others = OthersStaged(PosixIo(), target);
  ASSERT_EQ(others.size(), 1u);
  EXPECT_THAT(others[0], HasSubstr("; and 99 more"));  // two options and two sources are gone
}

TEST(Claim, TakesAStageWithoutARecordForOneOfAnotherVersion) {
  const ScratchFolder scratch;
  Spit(scratch / "out/.reshard" / fs::path(kOtherPlan) / "files/config.json", "left");
  const Error error = ErrorOf([&] { Claim(PosixIo(), TargetFor(scratch / "out", Hf("new"))); });
  EXPECT_EQ(error.code(), Code::kMismatch);
  EXPECT_THAT(error.what(), HasSubstr("it is of another version or damaged"));
}

TEST(Claim, KeepsWhatAnotherPlanHasStagedWhereItsOwnIsComplete) {
  const ScratchFolder scratch;
  const Target target = TargetFor(scratch / "out", Hf("new"));
  Convert(PosixIo(), target, Hf("new"));
  Target other = TargetFor(scratch / "out", Hf("other"), true);
  other.plan_id = kOtherPlan;
  StageFiles(PosixIo(), *Claim(PosixIo(), other), Hf("other"));
  const Files before = AllBelow(scratch / "out");
  EXPECT_FALSE(Claim(PosixIo(), target));
  EXPECT_FALSE(Join(PosixIo(), target, {0, 2}));
  EXPECT_EQ(AllBelow(scratch / "out"), before);
}

TEST(Claim, ThatIsRefusedLosesNothingWhereACallFails) {
  const ScratchFolder scratch;
  StageOther(scratch / "out");
  const Files before = AllBelow(scratch / "out/.reshard" / fs::path(kOtherPlan));
  Target target = TargetFor(scratch / "out", Hf("new"));
  target.request = RequestOf("fp16", 1);
  uint64_t call = 0;
  for (bool more = true; more;) {
    FaultyIo io(PosixIo());
    io.FailAt(++call, EIO);
    ErrorOf([&] { Claim(io, target); });
    more = io.calls() >= call;
    EXPECT_EQ(AllBelow(scratch / "out/.reshard" / fs::path(kOtherPlan)), before) << "call " << call;
    LetOwnersDie(scratch / "out");
  }
  EXPECT_GT(call, 20u);
}

TEST(Claim, LeavesNoTraceWhereACallFails) {
  for (uint64_t call = 1;; ++call) {
    const ScratchFolder scratch;
    FaultyIo io(PosixIo());
    io.FailAt(call, EIO);
    try {
      const auto stage = Claim(io, TargetFor(scratch / "out", Hf("new")));
      if (io.calls() < call) break;
      continue;  // what failed can be done without
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(std::strerror(EIO)));
    }
    EXPECT_FALSE(fs::exists(scratch / "out")) << "call " << call;
  }
}

TEST(Claim, IsRefusedThroughALink) {
  const ScratchFolder scratch;
  Spit(scratch / ("precious/" + std::string(kPlan) + "/executed"), "mine");
  fs::create_directory(scratch / "out");
  fs::create_directory_symlink("../precious", scratch / "out/.reshard");
  const Target target = TargetFor(scratch / "out", Hf("new"));
  EXPECT_EQ(ErrorOf([&] { CheckTarget(PosixIo(), target); }).code(), Code::kAlreadyExists);
  EXPECT_EQ(ErrorOf([&] { Claim(PosixIo(), target); }).code(), Code::kAlreadyExists);
  EXPECT_EQ(Slurp(scratch / ("precious/" + std::string(kPlan) + "/executed")), "mine");

  // A target that is a link itself is where it leads to.
  fs::create_directory(scratch / "elsewhere");
  fs::create_directory_symlink("elsewhere", scratch / "link");
  Convert(PosixIo(), TargetFor(scratch / "link", Hf("new")), Hf("new"));
  ExpectPublished(scratch / "elsewhere", Hf("new"));
}

TEST(Claim, TakesADamagedRecordOfExecutionForNone) {
  const ScratchFolder scratch;
  const Target target = TargetFor(scratch / "out", Hf("new"));
  for (const char* text : {"", "{", "[]", "{}", R"({"files": [{"path": "config.json", "size": -1}], "record": {}})"}) {
    Spit(scratch / ("out/.reshard/" + std::string(kPlan) + "/executed"), text);
    EXPECT_FALSE(Claim(PosixIo(), target)->executed()) << text;
  }
}

TEST(Discard, DeletesTheFolderOnlyIfTheClaimMadeIt) {
  const ScratchFolder scratch;
  fs::create_directory(scratch / "there");
  for (const char* name : {"there", "made"}) {
    const auto stage = Claim(PosixIo(), TargetFor(scratch / name, Hf("new")));
    StageFiles(PosixIo(), *stage, Hf("new"));
    stage->Discard();
  }
  EXPECT_THAT(PosixIo().List(scratch.path()), testing::ElementsAre("there"));
  EXPECT_THAT(PosixIo().List(scratch / "there"), IsEmpty());
}

TEST(Receipt, IsCorruptWhereItIsNotOne) {
  const ScratchFolder scratch;
  EXPECT_FALSE(ReadReceipt(PosixIo(), TargetPlace::Folder(scratch.path())));
  for (const char* text :
       {"", "[]", "{}", R"({"plan_id": 1, "files": []})", R"({"plan_id": "a", "files": {}})",
        R"({"plan_id": "a", "files": [{"path": "x"}]})", R"({"plan_id": "a", "files": [{"path": "x", "size": "1"}]})",
        R"({"plan_id": "a", "files": [{"path": "x", "size": -1, "xxh3": "0"}]})",
        R"({"plan_id": "a", "files": [{"path": "x", "size": 1}]})",
        R"({"plan_id": "a", "files": [{"path": "../x", "size": 1, "xxh3": "0"}]})",
        R"({"plan_id": "a", "files": [{"path": "/x", "size": 1, "xxh3": "0"}]})"}) {
    Spit(scratch / ".reshard.json", text);
    const Error error = ErrorOf([&] { ReadReceipt(PosixIo(), TargetPlace::Folder(scratch.path())); });
    EXPECT_EQ(error.code(), Code::kCorrupt) << text;
    EXPECT_EQ(error.path(), scratch / ".reshard.json") << text;
  }
}

TEST(Owner, IsRefusedWhileAliveWhateverThePlan) {
  const ScratchFolder scratch;
  Target target = TargetFor(scratch / "out", Hf("new"));
  const auto stage = Claim(PosixIo(), target);
  for (const char* plan_id : {kPlan, "another"}) {
    target.plan_id = plan_id;
    const Error error = ErrorOf([&] { Claim(PosixIo(), target); });
    EXPECT_EQ(error.code(), Code::kAlreadyExists);
    EXPECT_THAT(error.what(), HasSubstr("process " + std::to_string(getpid()) + " on host "));
    EXPECT_THAT(error.what(), HasSubstr("or delete " + scratch / "out/.reshard/owner" + " if it runs no longer"));
  }
  EXPECT_THAT(PosixIo().List(scratch / "out/.reshard"), testing::ElementsAre(kPlan, "owner"));
}

TEST(Owner, IsTakenOverWhenItsProcessIsGone) {
  const ScratchFolder scratch;
  const Target target = TargetFor(scratch / "out", Hf("new"));
  const pid_t child = fork();
  if (child == 0) {
    const auto stage = Claim(PosixIo(), target);
    _exit(stage ? 0 : 1);  // as if killed: nothing is released
  }
  siginfo_t ended;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT), 0);
  ASSERT_EQ(ended.si_status, 0);
  ASSERT_TRUE(fs::exists(scratch / "out/.reshard/owner"));
  EXPECT_TRUE(Claim(PosixIo(), target));  // a zombie, which still has a pid
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(Claim(PosixIo(), target));
}

TEST(Owner, IsJudgedByBootStartAndHeartbeat) {
  const struct {
    const char* key;
    const char* value;
    int silent_seconds;
    bool taken;
  } kRows[] = {
      {"boot", "an earlier boot", 0, true},   {"start", "1", 0, true},         {"host", "elsewhere", 0, false},
      {"host", "elsewhere", 50, false},       {"host", "elsewhere", 70, true}, {"pid_namespace", "pid:[1]", 50, false},
      {"pid_namespace", "pid:[1]", 70, true}, {"token", "x", 70, false},
  };
  for (const auto& row : kRows) {
    const ScratchFolder scratch;
    const Target target = TargetFor(scratch / "out", Hf("new"));
    const auto first = Claim(PosixIo(), target);
    EditOwners(scratch / "out", row.key, row.value);
    const struct timespec times[2] = {{time(nullptr) - row.silent_seconds, 0}, {time(nullptr) - row.silent_seconds, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, (scratch / "out/.reshard/owner").c_str(), times, 0), 0);
    if (row.taken) {
      EXPECT_TRUE(Claim(PosixIo(), target)) << row.key;
    } else {
      EXPECT_EQ(ErrorOf([&] { Claim(PosixIo(), target); }).code(), Code::kAlreadyExists) << row.key;
    }
  }
}

TEST(Owner, DoesNothingMoreOnceItWasTakenOver) {
  const ScratchFolder scratch;
  const Target target = TargetFor(scratch / "out", Hf("new"));
  auto first = Claim(PosixIo(), target);
  StageFiles(PosixIo(), *first, Hf("new"));
  LetOwnersDie(scratch / "out");
  const auto second = Claim(PosixIo(), target);
  EXPECT_EQ(ErrorOf([&] { first->MarkExecuted({}); }).code(), Code::kAlreadyExists);
  EXPECT_EQ(ErrorOf([&] { first->Publish(ReceiptOf(kPlan, Hf("new").files)); }).code(), Code::kAlreadyExists);
  EXPECT_EQ(ErrorOf([&] { first->Discard(); }).code(), Code::kAlreadyExists);
  first.reset();
  EXPECT_EQ(ErrorOf([&] { Claim(PosixIo(), target); }).code(), Code::kAlreadyExists);
  StageFiles(PosixIo(), *second, Hf("new"));
  second->Publish(ReceiptOf(kPlan, Hf("new").files));
  ExpectPublished(scratch / "out", Hf("new"));
}

// Lets a test do something in the middle of a claim or a release.
class HookedIo : public FaultyIo {
 public:
  HookedIo() : FaultyIo(PosixIo()) {}
  bool Link(const std::string& from, const std::string& to) override {
    if (before_link) std::exchange(before_link, nullptr)();
    return FaultyIo::Link(from, to);
  }
  void RemoveAll(const std::string& path) override {
    FaultyIo::RemoveAll(path);
    if (after_removal) std::exchange(after_removal, nullptr)();
  }
  std::function<void()> before_link, after_removal;
};

// A lock that its process did not live to release.
void AcquireAndDie(const std::string& folder) {
  FaultyIo io(PosixIo());
  OwnerLock lock(io, folder);
  io.KillAt(1);
  const std::string file = JoinPath(folder, lock.names().back()), edited = folder + "." + lock.names().back();
  Json owner = Json::parse(Slurp(file));
  owner["boot"] = "an earlier boot";
  Spit(edited, owner.dump());
  fs::rename(edited, file);  // at once, for those who read it just now
}

TEST(OwnerLock, IsNotFooledByAChainThatIsReleasedWhileItClaims) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "lock";
  AcquireAndDie(folder);
  std::unique_ptr<OwnerLock> other;
  HookedIo io;
  io.before_link = [&] {
    OwnerLock(PosixIo(), folder).Release();  // took over, and is done already
    other = std::make_unique<OwnerLock>(PosixIo(), folder);
    EXPECT_EQ(other->names().size(), 1u);
  };
  // What it was about to make lies behind the dead owner, whose chain is gone.
  EXPECT_EQ(ErrorOf([&] { OwnerLock(io, folder); }).code(), Code::kAlreadyExists);
  EXPECT_TRUE(other->Held());
}

TEST(OwnerLock, IsReleasedInTheOrderThatLeavesRoomForOne) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "lock";
  AcquireAndDie(folder);
  HookedIo io;
  OwnerLock lock(io, folder);
  EXPECT_EQ(lock.names().size(), 2u);
  std::unique_ptr<OwnerLock> next;
  io.after_removal = [&] { next = std::make_unique<OwnerLock>(PosixIo(), folder); };
  lock.Release();
  ASSERT_TRUE(next);
  EXPECT_TRUE(next->Held());
}

// Runs come, find an owner dead, die or release, and come again, all at once: never are there two.
TEST(OwnerLock, IsHeldByOneHoweverManyCome) {
  const ScratchFolder scratch;
  const std::string folder = scratch / "lock";
  std::atomic<int> owners{0}, claimed{0};
  const auto run = [&] {
    for (int round = 0; round < 100; ++round) {
      try {
        if (round % 4 == 0) AcquireAndDie(folder);
        FaultyIo io(PosixIo());  // spares the syncs
        OwnerLock lock(io, folder);
        EXPECT_EQ(++owners, 1);
        ++claimed;
        std::this_thread::yield();
        --owners;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::kAlreadyExists) << error.what();
      }
    }
  };
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; ++id) threads.emplace_back(run);
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(claimed, 10);
}

// What a target may hold at any instant, and what the next run makes of it.
struct KillCase {
  const char* name;
  Checkpoint old_one;  // empty: a fresh target
  Checkpoint new_one;
};

class Kill : public testing::TestWithParam<KillCase> {
 protected:
  void Reset() {
    fs::remove_all(out_);
    SpitAll(out_, GetParam().old_one.files);
    if (replace()) {
      Spit(JoinPath(out_, ".reshard.json"), ReceiptOf("old plan", GetParam().old_one.files).dump());
      Spit(JoinPath(out_, "conversion-logs/log"), "log");
    }
  }

  bool replace() const { return !GetParam().old_one.files.empty(); }
  Target target() const { return TargetFor(out_, GetParam().new_one, replace()); }

  void ExpectOldOrNoMarkerOrNew() {
    const Files now = Published(out_);
    const bool is_new = now == GetParam().new_one.files;
    const bool is_old = replace() && now == GetParam().old_one.files;
    for (const std::string& marker : kMarkers) EXPECT_TRUE(is_new || is_old || now.count(marker) == 0) << marker;
    const std::optional<Json> receipt = ReadReceipt(PosixIo(), TargetPlace::Folder(out_));
    if (receipt) {
      EXPECT_TRUE(receipt->at("plan_id") == kPlan ? is_new : is_old) << "the receipt vouches for too much";
    }
  }

  void ExpectTheNextRunEndsIt() {
    FaultyIo io(PosixIo());
    Convert(io, target(), GetParam().new_one);
    ExpectPublished(out_, GetParam().new_one);
    if (replace()) {
      EXPECT_EQ(Slurp(JoinPath(out_, "conversion-logs/log")), "log");
    }
  }

  // False where the run ends before the n-th call.
  bool RunKilledAt(uint64_t n) {
    FaultyIo io(PosixIo());
    io.KillAt(n);
    try {
      Convert(io, target(), GetParam().new_one);
    } catch (const Killed&) {
    }
    LetOwnersDie(out_);
    ExpectOldOrNoMarkerOrNew();
    return io.calls() >= n;
  }

  const ScratchFolder scratch_{ScratchFolder::InMemory()};
  const std::string out_ = scratch_ / "out";
};

TEST_P(Kill, LeavesOldOrNewAtEveryCallAndTheNextRunEndsIt) {
  uint64_t n = 0;
  for (bool more = true; more;) {
    SCOPED_TRACE(++n);
    Reset();
    more = RunKilledAt(n);
    ExpectTheNextRunEndsIt();
    if (HasFailure()) return;
  }
  EXPECT_GT(n, 100u);
}

TEST_P(Kill, MayHitTheNextRunAsWell) {
  for (uint64_t n = 40;; n += 7) {
    for (uint64_t m = 3;; m += 11) {
      SCOPED_TRACE(std::to_string(n) + ", then " + std::to_string(m));
      Reset();
      if (!RunKilledAt(n)) return;
      const bool more = RunKilledAt(m);
      ExpectTheNextRunEndsIt();
      if (HasFailure()) return;
      if (!more) break;
    }
  }
}

TEST_P(Kill, IsNoWorseWhenACallFails) {
  for (uint64_t n = 1;; ++n) {
    SCOPED_TRACE(n);
    Reset();
    FaultyIo io(PosixIo());
    io.FailAt(n, EIO);
    try {
      Convert(io, target(), GetParam().new_one);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kIo) << error.what();
      EXPECT_FALSE(error.path().empty());
    }
    const bool done = io.calls() < n;
    LetOwnersDie(out_);
    ExpectOldOrNoMarkerOrNew();
    ExpectTheNextRunEndsIt();
    if (done || HasFailure()) return;
  }
}

// A process that really ends there: nothing is unwound, and its claim looks as the kernel leaves it.
TEST_P(Kill, IsSurvivedByARealProcess) {
  FaultyIo counting(PosixIo());
  Reset();
  Convert(counting, target(), GetParam().new_one);
  for (const uint64_t percent : {10, 40, 55, 62, 69, 76, 83, 90, 97}) {
    const uint64_t n = counting.calls() * percent / 100;
    SCOPED_TRACE(n);
    Reset();
    const pid_t child = fork();
    if (child == 0) {
      FaultyIo io(PosixIo());
      io.RaiseAt(n, SIGKILL);
      Convert(io, target(), GetParam().new_one);
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status));
    ExpectOldOrNoMarkerOrNew();
    ExpectTheNextRunEndsIt();
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Kill,
                         testing::Values(KillCase{"FreshHf", {}, Hf("new")}, KillCase{"FreshNemo", {}, Nemo("new")},
                                         KillCase{"HfOverHf", Hf("old"), Hf("new")},
                                         KillCase{"NemoOverNemo", Nemo("old"), Nemo("new")},
                                         KillCase{"HfOverNemo", Nemo("old"), Hf("new")},
                                         KillCase{"NemoOverHf", Hf("old"), Nemo("new")}),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace reshard
