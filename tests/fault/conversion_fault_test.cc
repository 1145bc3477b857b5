// Whole conversions that something ends at the n-th call to the file system, for every n: a failing call, a kill, a
// loss of power. Afterwards the target is the old checkpoint, or has no marker and the next run rolls it forward, or is
// the new one, and the same command again ends with the files of an undisturbed run.
//
// Everything is in memory. One fault is tried at every call, the others at some; RESHARD_TEST_ALL=1 tries all.
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <string>

#include "archive/tar.h"
#include "base/error.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "models/kinds/kind.h"
#include "reshard/reshard.h"
#include "tests/fault/faulty_io.h"
#include "tests/fault/file_tree.h"
#include "tests/fault/volatile_io.h"

namespace reshard {
namespace {

constexpr char kFixtures[] = RESHARD_SOURCE_DIR "/tests/fixtures/";
constexpr uint64_t kVocabulary = 66;  // of the model that is converted
constexpr char kOut[] = "/out/checkpoint";

// What a checkpoint's loaders see.
Files WithoutOurs(Files files) {
  std::erase_if(files, [](const auto& file) {
    return file.first.starts_with(".reshard/") || file.first == ".reshard.json" ||
           file.first.starts_with("conversion-logs/");
  });
  return files;
}

const std::string kPacked = "/packed/m.nemo";

std::string Packed(const Files& files) {
  FileLayout layout;
  TarLayout tar(layout);
  for (const auto& [path, bytes] : files) tar.AddFile(path, std::string_view(bytes));
  tar.Finish();
  return layout.literals[0].bytes;
}

struct Case {
  const char *name, *input, *to;
  const char* old;  // what --override replaces; empty: nothing is there
  void (*adjust)(ConvertOptions&);
};

void PrintTo(const Case& row, std::ostream* out) { *out << row.name; }

void Nothing(ConvertOptions&) {}
void TwoRanks(ConvertOptions& options) { options.tp_size = 2; }
void SmallShards(ConvertOptions& options) {
  options.max_shard_size = 30'000;
  options.dtype = "fp32";
}
void FromPacked(ConvertOptions& options) { options.input = kPacked; }
void SeveralTasks(ConvertOptions& options) { options.tasks = 3; }
void SeveralWorkers(ConvertOptions& options) { options.run.workers = 3; }

const Case kCases[] = {
    {"HfToNemo", "llama-tp2-bf16-zarr/hf", "nemo", "", Nothing},
    {"NemoToHf", "llama-tp2-bf16-zarr/nemo", "hf", "", Nothing},
    {"HfToTrtllm", "llama-tp2-bf16-zarr/hf", "trtllm", "", TwoRanks},
    {"NemoToTrtllm", "llama-tp2-bf16-zarr/nemo", "trtllm", "", TwoRanks},
    {"HfToHf", "llama-tp2-bf16-zarr/hf", "hf", "", SmallShards},
    {"HfToNemoOverNemo", "llama-tp2-bf16-zarr/hf", "nemo", "mistral-bf16-zarr/nemo", Nothing},
    {"NemoToHfOverHf", "llama-tp2-bf16-zarr/nemo", "hf", "llama31-fp32-zarr/hf", Nothing},
    {"HfToTrtllmOverHf", "llama-tp2-bf16-zarr/hf", "trtllm", "mistral-bf16-zarr/hf", TwoRanks},
    {"NemoToTrtllmOverTrtllm", "llama-tp2-bf16-zarr/nemo", "trtllm", "trtllm/qwen2-gqa-tp2/trtllm", TwoRanks},
    {"HfToHfOverNemo", "llama-tp2-bf16-zarr/hf", "hf", "mistral-bf16-zarr/nemo", SmallShards},
    {"NemoToHfWithThreeWorkers", "llama-tp2-bf16-zarr/nemo", "hf", "", SeveralWorkers},
    {"HfToNemoByThreeTasks", "llama-tp2-bf16-zarr/hf", "nemo", "", SeveralTasks},
    {"PackedNemoToHf", "llama-tp2-bf16-zarr/nemo", "hf", "", FromPacked},
    {"NemoToHfByThreeTasksOverHf", "llama-tp2-bf16-zarr/nemo", "hf", "mistral-bf16-zarr/hf", SeveralTasks},
};

enum class Fault { kPowerLoss, kKill, kFailedSync, kEio, kEnospc };
struct FaultRow {
  Fault fault;
  const char* name;
  uint64_t stride;
};
constexpr FaultRow kFaults[] = {{Fault::kPowerLoss, "loss of power", 1},
                                {Fault::kFailedSync, "lost write-back", 1},
                                {Fault::kKill, "kill", 11},
                                {Fault::kEio, "EIO", 11},
                                {Fault::kEnospc, "ENOSPC", 13}};

bool TryAll() {
  const char* all = std::getenv("RESHARD_TEST_ALL");
  return all && std::string(all) == "1";
}

class ConversionFault : public testing::TestWithParam<Case> {
 protected:
  static void SetUpTestSuite() { points_ = 0; }
  static void TearDownTestSuite() { std::cout << "points tried: " << points_ << "\n"; }

  void SetUp() override {
    source_ = FilesBelow(PosixIo(), std::string(kFixtures) + GetParam().input);
    if (replace()) old_ = FilesBelow(PosixIo(), std::string(kFixtures) + GetParam().old);
    VolatileIo io;
    Prepare(io);
    Convert(io, io);
    whole_ = FilesBelow(io, kOut);
    new_ = WithoutOurs(whole_);
    ASSERT_FALSE(new_.empty());
  }

  bool replace() const { return GetParam().old[0] != '\0'; }

  // Source and old target, as long on the disk.
  void Prepare(Io& io) const {
    PutFiles(io, "/in", source_);
    PutFiles(io, ParentOf(kPacked), {{"m.nemo", Packed(source_)}});
    PutFiles(io, kOut, old_);
    if (replace()) {
      Json receipt = {{"plan_id", "fedcba9876543210"}, {"files", Json::array()}};
      for (const auto& [path, bytes] : old_)
        receipt["files"].push_back({{"path", path}, {"size", bytes.size()}, {"xxh3", "0"}});
      PutFiles(io, kOut, {{".reshard.json", receipt.dump()}, {"conversion-logs/log", "log"}});
    }
    io.SyncFileSystem("/in");
  }

  static ConvertOptions Options() {
    ConvertOptions options;
    options.input = "/in";
    options.output = kOut;
    options.to = GetParam().to;
    options.replace = GetParam().old[0] != '\0';
    options.vocab_size = kVocabulary;
    options.run.workers = 1;
    options.run.max_memory = uint64_t{16} << 30;  // this process is that of all conversions; a sanitizer keeps them
    GetParam().adjust(options);
    return options;
  }

  // All of it by one run, or the shares of several one after the other and then, if none failed, what publishes.
  static ConvertReport Convert(VolatileIo& disk, Io& io, bool errors_lose_data = false) {
    ConvertOptions options = Options();
    std::optional<Error> failed;
    for (uint32_t task = 0; options.tasks > 1 && task < options.tasks; ++task) {
      options.task = task;
      try {
        Conversion(options, io).Run();
      } catch (const Error& error) {
        failed = error;
        if (errors_lose_data) disk.LoseWriteBack();
      }
      LetOwnersDie(disk);  // a task is a process
    }
    if (failed) throw *failed;
    options.task.reset();
    return Conversion(options, io).Run();
  }

  // A run that ends at the n-th call, or before: then false.
  static bool RunUntil(VolatileIo& disk, Fault fault, uint64_t n) {
    ++points_;
    FaultyIo io(disk);
    if (fault == Fault::kPowerLoss || fault == Fault::kKill) io.KillAt(n);
    if (fault == Fault::kFailedSync) io.FailSyncAt(n, EIO);
    if (fault == Fault::kEio) io.FailAt(n, EIO);
    if (fault == Fault::kEnospc) io.FailAt(n, ENOSPC);
    try {
      Convert(disk, io, fault == Fault::kFailedSync);
    } catch (const Killed&) {
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == (fault == Fault::kEnospc ? Code::kNoSpace : Code::kIo)) << error.what();
      EXPECT_FALSE(error.path().empty()) << error.what();
    }
    if (fault == Fault::kFailedSync && io.syncs() >= n) disk.LoseWriteBack();
    if (fault == Fault::kPowerLoss) {
      disk.LosePower();
    } else {
      LetOwnersDie(disk);
    }
    return (fault == Fault::kFailedSync ? io.syncs() : io.calls()) >= n;
  }

  // The process that made them is this one, and lives on.
  static void LetOwnersDie(Io& io) {
    const std::string root = JoinPath(kOut, ".reshard");
    for (const auto& [path, bytes] : FilesBelow(io, root)) {
      if (!path.substr(path.rfind('/') + 1).starts_with("owner")) continue;
      Json owner = Json::parse(bytes);
      owner["start"] = "0";
      WriteWholeFile(io, JoinPath(root, path), owner.dump());
      io.OpenWrite(JoinPath(root, path))->Sync();  // as the owner itself had done
    }
  }

  // The old one, or nothing that a loader could take for a checkpoint, or the new one.
  void ExpectOldOrNothingOrNew(Io& io) const {
    const Files all = FilesBelow(io, kOut), now = WithoutOurs(all);
    const bool is_old = now == old_, is_new = now == new_;
    if (const auto receipt = all.find(".reshard.json"); receipt != all.end()) {
      const bool of_new = receipt->second == whole_.at(".reshard.json");
      EXPECT_TRUE(of_new                                              ? is_new
                  : replace() && !SizesAreRight(receipt->second, now) ? true
                                                                      : is_old)
          << "the receipt vouches for too much";
    }
    if (is_old || is_new) return;
    for (const std::string_view marker : KindByName(GetParam().to).markers) {
      const auto there = now.find(std::string(marker)), is = new_.find(std::string(marker)),
                 was = old_.find(std::string(marker));
      if (there == now.end()) continue;
      EXPECT_TRUE(is == new_.end() || there->second != is->second) << marker << " is there";
      EXPECT_TRUE(was != old_.end() && there->second == was->second) << marker << " is neither the old nor the new one";
    }
    for (const Kind& kind : Kinds()) EXPECT_FALSE(Opens(io, kind)) << "as " << kind.name;
  }

  static bool SizesAreRight(const std::string& receipt, const Files& files) {
    const Json record = Json::parse(receipt);
    return std::all_of(record.at("files").begin(), record.at("files").end(), [&](const Json& row) {
      const auto found = files.find(row.at("path"));
      return found != files.end() && found->second.size() == row.at("size");
    });
  }

  static bool Opens(Io& io, const Kind& kind) {
    try {
      OpenCheckpoint(io, kOut, kind.name, {});
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  void ExpectTheNextRunEndsIt(VolatileIo& io) const {
    try {
      Convert(io, io);
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
    }
    ExpectWhole(io);
  }

  // As an undisturbed run leaves it.
  void ExpectWhole(Io& io) const {
    const Files now = FilesBelow(io, kOut);
    for (const auto& [path, bytes] : whole_) {
      const auto found = now.find(path);
      EXPECT_TRUE(found != now.end()) << path << " is missing";
      EXPECT_TRUE(found == now.end() || found->second == bytes) << path << " differs";
    }
    for (const auto& [path, bytes] : now) EXPECT_EQ(whole_.count(path), 1u) << path << " is left";
    EXPECT_FALSE(io.Stat(JoinPath(kOut, ".reshard")));
  }

  static std::string PlanFolder(Io& io) {
    const std::string root = JoinPath(kOut, ".reshard");
    return JoinPath(root, io.List(root).at(0));
  }

  static uint64_t points_;
  Files source_, old_, new_, whole_;
};
uint64_t ConversionFault::points_ = 0;

TEST_P(ConversionFault, LeavesOldOrNothingOrNewAtEveryCallAndTheNextRunEndsIt) {
  for (const FaultRow& row : kFaults) {
    const uint64_t stride = TryAll() ? 1 : row.stride * (Options().tasks > 1 ? 10 : 1);
    uint64_t n = 1;
    for (bool more = true; more; n += stride) {
      SCOPED_TRACE(std::string(row.name) + " at call " + std::to_string(n));
      VolatileIo disk(n);
      Prepare(disk);
      more = RunUntil(disk, row.fault, n);
      ExpectOldOrNothingOrNew(disk);
      ExpectTheNextRunEndsIt(disk);
      if (HasFailure()) return;
    }
    EXPECT_GT(n, 20u) << row.name;
  }
}

TEST_P(ConversionFault, MayBeFollowedByAnother) {
  const uint64_t stride = (TryAll() ? 7 : 97) * Options().tasks;
  for (uint64_t first = 40;; first += stride) {
    for (uint64_t second = 3;; second += stride) {
      SCOPED_TRACE("loss of power at call " + std::to_string(first) + ", then at " + std::to_string(second));
      VolatileIo disk(first * second);
      Prepare(disk);
      if (!RunUntil(disk, Fault::kPowerLoss, first)) return;
      const bool more = RunUntil(disk, Fault::kPowerLoss, second);
      ExpectOldOrNothingOrNew(disk);
      ExpectTheNextRunEndsIt(disk);
      if (HasFailure()) return;
      if (!more) break;
    }
  }
}

// A deletion that was cut has left a journal that says all is done, and new files get the inodes of those that are
// gone.
TEST_P(ConversionFault, DoesNotTakeANewFileForOneThatIsGone) {
  ConvertOptions options = Options();
  options.tasks = 2;
  auto run = [&](Io& io, std::optional<uint32_t> task) {
    options.task = task;
    Conversion(options, io).Run();
  };
  for (const std::optional<uint32_t> task : {std::optional<uint32_t>(0), std::optional<uint32_t>()}) {
    uint64_t n = 1;
    for (bool more = true; more; n += TryAll() ? 1 : 11) {
      SCOPED_TRACE(std::string(task ? "a task" : "a run alone") + ", loss of power at call " + std::to_string(n));
      ++points_;
      VolatileIo disk(n);
      Prepare(disk);
      for (const uint32_t earlier : {0, 1}) run(disk, earlier);
      const std::string plan = PlanFolder(disk);
      for (const char* name : {"files", "journal.1-of-2"}) disk.RemoveAll(JoinPath(plan, name));
      disk.SyncFileSystem(kOut);
      FaultyIo io(disk);
      io.KillAt(n);
      try {
        run(io, task);
      } catch (const Killed&) {
      }
      more = io.calls() >= n;
      disk.LosePower();
      run(disk, std::nullopt);
      ExpectWhole(disk);
      if (HasFailure()) return;
    }
  }
}

// Another program fills the disk while a conversion runs, and makes room again.
TEST_P(ConversionFault, GoesOnWhereTheDiskWasFull) {
  VolatileIo disk, undisturbed;
  Prepare(disk);
  Prepare(undisturbed);
  ConvertOptions options = Options();
  options.tasks = 1;
  options.run.progress = [&](const Progress&) { disk.LetFree(10 * 4096); };
  try {
    Conversion(options, disk).Run();
    ADD_FAILURE() << "it was not full";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNoSpace) << error.what();
  }
  EXPECT_EQ(WithoutOurs(FilesBelow(disk, kOut)), old_);
  disk.LetFree(uint64_t{1} << 30);
  options.run.progress = nullptr;
  EXPECT_LT(Conversion(options, disk).Run().bytes_read, Conversion(options, undisturbed).Run().bytes_read);
  ExpectWhole(disk);
}

INSTANTIATE_TEST_SUITE_P(Directions, ConversionFault, testing::ValuesIn(kCases),
                         [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace reshard
