#include "execute/execute.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "execute/journal.h"
#include "execute/random_job.h"
#include "tensor/cast.h"
#include "tests/fault/faulty_io.h"

namespace reshard {
namespace {

using namespace reshard::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Execute, WritesWhatAnElementWiseReferenceWrites) {
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    ScratchFolder folder;
    Job job = RandomJob(random, folder);
    uint64_t literals = 0;
    for (const FileLayout& file : job.plan.files)
      for (const Literal& literal : file.literals) literals += literal.bytes.size();
    for (unsigned workers : {1, 2, 5}) {
      ExecuteOptions options;
      options.workers = workers;
      options.dense_buffer = workers == 2 ? kMaxDenseBuffer : Pick(random, 8, 300);
      options.drop_source_cache = workers == 5;
      TestIo io;
      std::string staging = "staging" + std::to_string(workers);
      ExecuteReport report = Execute(job.plan, folder / staging, io, options);
      ASSERT_NO_FATAL_FAILURE(ExpectImages(job, report, folder, staging));
      ASSERT_EQ(report.bytes_read, job.source_bytes);
      ASSERT_EQ(report.bytes_written, job.target_bytes + literals);
      ASSERT_EQ(io.file_system_syncs, 1u);
    }
  }
}

// Killed before any call of the first run, the second goes on: whatever it finds, the files are those of the plan.
TEST(Execute, GoesOnWhereItWasKilled) {
  uint64_t reused = 0;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Random random(seed);
    ScratchFolder folder;
    Job job = RandomJob(random, folder);
    for (uint64_t call = 1, calls = 2; call < calls; call += 1 + call / 40) {
      SCOPED_TRACE(::testing::Message() << "seed " << seed << ", call " << call);
      ExecuteOptions options;
      options.workers = 1 + call % 2;
      options.journal = folder / "journal" + std::to_string(call);
      const std::string staging = "staging" + std::to_string(call);
      FaultyIo io(PosixIo());
      io.KillAt(call);
      try {
        Execute(job.plan, folder / staging, io, options);
        calls = 0;  // it was over before
      } catch (...) {
        calls = UINT64_MAX;
      }
      TestIo again;
      const ExecuteReport report = Execute(job.plan, folder / staging, again, options);
      ASSERT_NO_FATAL_FAILURE(ExpectImages(job, report, folder, staging));
      ASSERT_LE(report.bytes_read, job.source_bytes);
      reused += job.source_bytes - report.bytes_read;
    }
  }
  EXPECT_GT(reused, 0u);
}

TEST(Execute, DoesAnewWhatAJournalSaysOfFilesThatAreGone) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    ScratchFolder folder;
    Job job = RandomJob(random, folder);
    ExecuteOptions options;
    options.journal = folder / "journal";
    TestIo io;
    Execute(job.plan, folder / "staging", io, options);
    const std::string& victim = job.plan.files[Pick(random, 0, job.plan.files.size() - 1)].path;
    const std::string path = JoinPath(folder / "staging", victim);
    std::filesystem::remove(path);
    FaultyIo killed(PosixIo());  // after it has made the file anew, perhaps with the same inode
    killed.KillAt(seed + 1);
    EXPECT_ANY_THROW(Execute(job.plan, folder / "staging", killed, options));
    ASSERT_NO_FATAL_FAILURE(ExpectImages(job, Execute(job.plan, folder / "staging", io, options), folder, "staging"));
  }
}

// What was recorded in another boot and never synced may be zeros after a power loss.
TEST(Execute, DoesAnewWhatAPowerLossMayHaveTaken) {
  Random random(7);
  ScratchFolder folder;
  Job job = RandomJob(random, folder);
  ExecuteOptions options;
  TestIo io;
  Execute(job.plan, folder / "staging", io, options);
  Journal journal(io, folder / "journal", 1000, job.plan.files.size(), "another boot");
  for (size_t i = 0; i < job.plan.files.size(); ++i) {
    const std::string path = JoinPath(folder / "staging", job.plan.files[i].path);
    journal.AddFile(i, PosixIo().Stat(path)->inode);
    std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
        .write(std::string(job.plan.files[i].size, '\0').data(), static_cast<std::streamsize>(job.plan.files[i].size));
  }
  for (uint64_t op = 0; op < 1000; ++op) journal.AddOp(op, 0);
  options.journal = folder / "journal";
  ASSERT_NO_FATAL_FAILURE(ExpectImages(job, Execute(job.plan, folder / "staging", io, options), folder, "staging"));
}

// A matrix in one file, and the same in four files of a quarter of its columns each.
struct Columns {
  static constexpr uint64_t kRows = 5000, kColumns = 2048, kChunks = 4;
  Dtype dtype = Dtype::kBF16;

  Piece Whole() const { return RowMajorPiece(WholeBox({kRows, kColumns}), dtype, 0, 100); }
  std::vector<Piece> Chunks(Dtype chunk_dtype) const {
    std::vector<Piece> chunks;
    for (uint32_t i = 0; i < kChunks; ++i)
      chunks.push_back(RowMajorPiece({{0, i * kColumns / kChunks}, {kRows, kColumns / kChunks}}, chunk_dtype, i, 0));
    return chunks;
  }
  static std::string Chunk(const std::string& whole, uint64_t chunk, uint64_t item) {
    std::string bytes;
    const uint64_t width = kColumns / kChunks * item;
    for (uint64_t row = 0; row < kRows; ++row) bytes.append(whole, (row * kChunks + chunk) * width, width);
    return bytes;
  }
};

TEST(Execute, ScattersColumnsWithFewCalls) {
  Random random(7);
  ScratchFolder folder;
  Columns columns;
  std::string matrix = RandomElements(random, Columns::kRows * Columns::kColumns * 2);
  Plan plan;
  plan.sources = {WriteSource(folder, "source", std::string(100, 'h') + matrix)};
  plan.source_tensors = {"w"};
  for (int i = 0; i < 4; ++i) plan.files.push_back({std::to_string(i), matrix.size() / 4, {}});
  plan.parts = {{"w", {Columns::kRows, Columns::kColumns}, {columns.Whole()}, columns.Chunks(Dtype::kBF16)}};
  TestIo io;
  ExecuteOptions options;
  options.workers = 2;
  Execute(plan, folder / "out", io, options);
  for (uint64_t i = 0; i < 4; ++i)
    EXPECT_TRUE(ReadFile(folder / ("out/" + std::to_string(i))) == Columns::Chunk(matrix, i, 2)) << i;
  EXPECT_LE(io.writes, 30u);
}

TEST(Execute, GathersColumnsAndCastsWithFewCalls) {
  Random random(8);
  ScratchFolder folder;
  Columns columns{Dtype::kF32};
  const uint64_t count = Columns::kRows * Columns::kColumns;
  std::string matrix = RandomElements(random, count * 2), wide(count * 4, '\0');
  Cast(Dtype::kBF16, Dtype::kF32, matrix.data(), wide.data(), count);
  Plan plan;
  plan.source_tensors = {"w"};
  for (uint64_t i = 0; i < 4; ++i)
    plan.sources.push_back(WriteSource(folder, std::to_string(i), Columns::Chunk(matrix, i, 2)));
  plan.files = {{"w", 100 + wide.size(), {{0, std::string(100, 'h')}}}};
  plan.parts = {{"w", {Columns::kRows, Columns::kColumns}, columns.Chunks(Dtype::kBF16), {columns.Whole()}}};
  TestIo io;
  ExecuteOptions options;
  options.workers = 2;
  options.dense_buffer = kMinDenseBuffer;
  Execute(plan, folder / "out", io, options);
  EXPECT_TRUE(ReadFile(folder / "out/w") == std::string(100, 'h') + wide);
  EXPECT_LE(io.writes, 170u);  // steps of 256 KiB
}

// One part of `count` elements, from file "source" to file "out/target".
Plan SimplePlan(const ScratchFolder& folder, const std::string& bytes, Dtype from, Dtype to) {
  const uint64_t count = bytes.size() / ItemSize(from);
  Plan plan;
  plan.sources = {WriteSource(folder, "source", bytes)};
  plan.source_tensors = {"model.norm.weight"};
  plan.files = {{"target", count * ItemSize(to), {}}};
  plan.parts = {
      {"norm", {count}, {RowMajorPiece(WholeBox({count}), from, 0, 0)}, {RowMajorPiece(WholeBox({count}), to, 0, 0)}}};
  return plan;
}

void ExpectError(const std::function<void()>& run, Code code, const std::vector<std::string>& words) {
  try {
    run();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& word : words) EXPECT_THAT(error.what(), HasSubstr(word));
  }
}

TEST(Execute, CountsOverflowsBySourceTensor) {
  ScratchFolder folder;
  const float inf = std::numeric_limits<float>::infinity();
  Plan plan = SimplePlan(folder, Bytes<float>({1e5f, -7e4f, 1, inf, 65504, 65520}), Dtype::kF32, Dtype::kF16);
  // A replica of the target, whose overflows are the same ones.
  plan.files.push_back({"replica", 12, {}});
  plan.parts[0].targets.push_back(plan.parts[0].targets[0]);
  plan.parts[0].targets[1].file = 1;
  plan.source_tensors.push_back("other");
  plan.parts.push_back(plan.parts[0]);
  plan.parts[1].sources[0].tensor = 1;
  plan.parts[1].targets[0].file = 2;
  plan.parts[1].targets[1].file = 3;
  plan.parts.push_back(plan.parts[0]);
  plan.parts[2].targets[0].file = 4;
  plan.parts[2].targets[1].file = 5;
  for (int i = 2; i < 6; ++i) plan.files.push_back({std::to_string(i), 12, {}});
  TestIo io;
  ExecuteReport report = Execute(plan, folder / "out", io, {});
  ASSERT_EQ(report.overflows.size(), 2u);
  EXPECT_EQ(report.overflows[0].tensor, "model.norm.weight");
  EXPECT_EQ(report.overflows[0].count, 6u);
  EXPECT_EQ(report.overflows[1].tensor, "other");
  EXPECT_EQ(report.overflows[1].count, 3u);
}

// BF16 bits by torch 2.13: (w.float() + 1).to(torch.bfloat16), and w.float() - 1 for the other way.
TEST(Execute, AddsOneWhereOnlyTheSourceIsStoredMinusOne) {
  ScratchFolder folder;
  const std::string minus_one = Bytes<uint16_t>({0x0000, 0xbf80, 0x3b80, 0x3c40, 0xff80, 0x3e21, 0x7f81});
  Plan plan = SimplePlan(folder, minus_one, Dtype::kBF16, Dtype::kBF16);
  plan.parts[0].sources[0].minus_one = true;
  plan.files.push_back({"the same", minus_one.size(), {}});
  plan.parts[0].targets.push_back(plan.parts[0].targets[0]);
  plan.parts[0].targets[1].file = 1;
  plan.parts[0].targets[1].minus_one = true;
  TestIo io;
  Execute(plan, folder / "out", io, {});
  EXPECT_EQ(ReadFile(folder / "out/target"), Bytes<uint16_t>({0x3f80, 0x0000, 0x3f80, 0x3f82, 0xff80, 0x3f94, 0x7fc1}));
  EXPECT_EQ(ReadFile(folder / "out/the same"), minus_one);

  plan = SimplePlan(folder, Bytes<uint16_t>({0x3f80, 0x8000, 0x3f81, 0x3f7f, 0x4380}), Dtype::kBF16, Dtype::kBF16);
  plan.parts[0].targets[0].minus_one = true;
  Execute(plan, folder / "back", io, {});
  EXPECT_EQ(ReadFile(folder / "back/target"), Bytes<uint16_t>({0x0000, 0xbf80, 0x3c00, 0xbb80, 0x437f}));
}

TEST(Execute, CountsOverflowsOfEachForm) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, Bytes<float>({65519.5f, 65520, 1, -65520.5f}), Dtype::kF32, Dtype::kF16);
  plan.parts[0].sources[0].minus_one = true;
  plan.files.push_back({"plain", 8, {}});
  plan.parts[0].targets.push_back(plan.parts[0].targets[0]);
  plan.parts[0].targets[0].minus_one = true;  // -65520.5 and 65520 are infinite here
  plan.parts[0].targets[1].file = 1;          // 65520.5 and 65521 here, and -65519.5 is not
  TestIo io;
  ExecuteReport report = Execute(plan, folder / "out", io, {});
  ASSERT_EQ(report.overflows.size(), 1u);
  EXPECT_EQ(report.overflows[0].count, 4u);
  EXPECT_EQ(ReadFile(folder / "out/target"), Bytes<uint16_t>({0x7bff, 0x7c00, 0x3c00, 0xfc00}));
  EXPECT_EQ(ReadFile(folder / "out/plain"), Bytes<uint16_t>({0x7c00, 0x7c00, 0x4000, 0xfbff}));
}

TEST(Execute, LeavesZerosOfPaddingAlone) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(8, 'x'), Dtype::kF32, Dtype::kF32);
  plan.parts[0].sources.clear();
  plan.parts[0].targets[0].minus_one = true;
  TestIo io;
  Execute(plan, folder / "out", io, {});
  EXPECT_EQ(ReadFile(folder / "out/target"), std::string(8, '\0'));
}

// Two tensors for one part of 3 x 4; they differ at [1, 2] and behind it.
Plan TiedPlan(const ScratchFolder& folder, std::vector<float> second) {
  std::vector<float> first(12, 0.5f);
  Plan plan;
  plan.sources = {WriteSource(folder, "a", Bytes(first)), WriteSource(folder, "b", Bytes(second))};
  plan.source_tensors = {"embed", "head"};
  plan.files = {{"target", 48, {}}};
  Box whole = WholeBox({3, 4});
  plan.parts = {{"embedding",
                 {3, 4},
                 {RowMajorPiece(whole, Dtype::kF32, 0, 0, 0), RowMajorPiece(whole, Dtype::kF32, 1, 0, 1)},
                 {RowMajorPiece(whole, Dtype::kF32, 0, 0)}}};
  return plan;
}

TEST(Execute, RefusesCopiesThatDiffer) {
  ScratchFolder folder;
  std::vector<float> second(12, 0.5f);
  second[6] = 1.25f;
  second[9] = 2;
  Plan plan = TiedPlan(folder, second);
  for (unsigned workers : {1, 2, 5}) {
    for (uint64_t dense : {4, 20, 4096}) {
      ExecuteOptions options;
      options.workers = workers;
      options.dense_buffer = dense;
      TestIo io;
      ExpectError([&] { Execute(plan, folder / "out", io, options); }, Code::kMismatch,
                  {"reading b, tensor 'head': element [1, 2] of 'embedding' is 1.25, expected 0.5 as in tensor "
                   "'embed' of a"});
    }
  }
}

TEST(Execute, NamesTheFirstFailureOfThePlanForAnyNumberOfWorkers) {
  ScratchFolder folder;
  Plan plan = TiedPlan(folder, std::vector<float>(12, 0.25f));
  const Part part = plan.parts[0];
  plan.files.clear();
  plan.parts.clear();
  for (uint32_t i = 0; i < 40; ++i) {
    plan.files.push_back({std::to_string(i), 48, {}});
    plan.parts.push_back(part);
    plan.parts[i].name = "part " + std::to_string(i);
    plan.parts[i].targets[0].file = i;
    if (i < 3) plan.parts[i].sources.pop_back();
  }
  for (int run = 0; run < 30; ++run) {
    ExecuteOptions options;
    options.workers = 5;
    TestIo io;
    ExpectError([&] { Execute(plan, folder / "out", io, options); }, Code::kMismatch, {"of 'part 3'"});
  }
}

TEST(Execute, RefusesASourceThatChanged) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  Plan other_time = plan, other_size = plan;
  other_time.sources[0].mtime_ns -= 1;
  other_size.sources[0].size += 1;
  TestIo io;
  ExpectError([&] { Execute(other_time, folder / "out", io, {}); }, Code::kMismatch,
              {"reading source: the file changed since the plan"});
  ExpectError([&] { Execute(other_size, folder / "out", io, {}); }, Code::kMismatch,
              {"the file changed since the plan: it has 64 bytes, expected 65"});
}

// Half of it has been read by then: what is staged is of no state that the file ever was in.
TEST(Execute, RefusesASourceThatChangesWhileItIsRead) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  const std::string path = plan.sources[0].path;
  std::function<void()> changes[] = {
      [&] {
        std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).write("yyyy", 4);
        std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() + std::chrono::seconds(1));
      },
      [&] {
        const auto time = std::filesystem::last_write_time(path);
        std::ofstream(path + ".new") << std::string(64, 'z');
        std::filesystem::last_write_time(path + ".new", time);
        std::filesystem::rename(path + ".new", path);
      },
      [&] { std::filesystem::remove(path); }};
  for (const auto& change : changes) {
    plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
    TestIo io;
    io.on_write = [&] {
      if (std::filesystem::exists(path)) change();
    };
    ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kMismatch, {"reading source: the file"});
  }
}

TEST(Execute, ReportsASourceThatIsCutOff) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  plan.parts[0].sources[0].offset = 4;
  TestIo io;
  ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kCorrupt, {"source", "cut off"});
}

TEST(Execute, ReportsAMissingSource) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  std::filesystem::remove(folder / "source");
  TestIo io;
  ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kNotFound, {"source"});
}

TEST(Execute, ReportsAFolderThatCannotBeMade) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  TestIo io;
  // A path below a regular file fails for root too.
  EXPECT_THROW(Execute(plan, folder / "source/out", io, {}), Error);
}

TEST(Execute, PassesOnWhatAWriteReports) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64000, 'x'), Dtype::kF32, Dtype::kF32);
  TestIo io;
  std::atomic<int> left{3};
  io.on_write = [&] {
    if (--left == 0) throw SystemError(ENOSPC, "writing", "target");
  };
  ExecuteOptions options;
  options.dense_buffer = 4096;
  options.workers = 2;
  ExpectError([&] { Execute(plan, folder / "out", io, options); }, Code::kNoSpace, {"writing target"});
  EXPECT_EQ(io.open, 0u);
}

TEST(Execute, RefusesACastThatThereIsNot) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kI64, Dtype::kF32);
  TestIo io;
  ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kUnsupported, {"'norm'", "I64", "F32"});
  plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kI64, Dtype::kI64);
  plan.parts[0].targets[0].minus_one = true;
  ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kUnsupported, {"'norm'", "I64 to I64 minus one"});
}

TEST(Execute, RefusesSourcesOfTwoForms) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  plan.parts[0].sources.push_back(plan.parts[0].sources[0]);
  plan.parts[0].sources[1].minus_one = true;
  TestIo io;
  ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kInternal, {"'norm' as F32 and as F32 minus one"});
}

TEST(Execute, RefusesAPlanWithoutAllSources) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  plan.parts[0].shape = {17};
  TestIo io;
  ExpectError([&] { Execute(plan, folder / "out", io, {}); }, Code::kInternal, {"16 of the 17"});
}

TEST(Execute, StopsWithinAStep) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(1 << 20, 'x'), Dtype::kF32, Dtype::kF32);
  std::atomic<bool> stop{false};
  TestIo io;
  io.on_write = [&] {
    if (io.writes == 10) stop = true;
  };
  ExecuteOptions options;
  options.dense_buffer = 1024;
  options.stop = &stop;
  ExpectError([&] { Execute(plan, folder / "out", io, options); }, Code::kCancelled, {"stopped by a signal"});
  EXPECT_EQ(io.writes, 11u);
}

class RecordingObserver : public Observer {
 public:
  void OnProgress(uint64_t bytes_done, uint64_t bytes_total) override {
    EXPECT_FALSE(busy_.exchange(true));
    EXPECT_GE(bytes_done, done);
    done = bytes_done;
    total = bytes_total;
    ++calls;
    busy_ = false;
  }
  uint64_t done = 0, total = 0, calls = 0;

 private:
  std::atomic<bool> busy_{false};
};

TEST(Execute, TellsOfProgressAtMostTenTimesASecond) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(400, 'x'), Dtype::kF32, Dtype::kF16);
  const Part part = plan.parts[0];
  plan.parts.clear();
  plan.files.clear();
  for (uint32_t i = 0; i < 60; ++i) {
    plan.files.push_back({std::to_string(i), 200, {}});
    plan.parts.push_back(part);
    plan.parts[i].targets[0].file = i;
  }
  TestIo io;
  io.on_write = [] { std::this_thread::sleep_for(std::chrono::milliseconds(10)); };
  RecordingObserver observer;
  ExecuteOptions options;
  options.workers = 2;
  options.observer = &observer;
  auto begin = std::chrono::steady_clock::now();
  Execute(plan, folder / "out", io, options);
  auto tenths = (std::chrono::steady_clock::now() - begin) / std::chrono::milliseconds(100);
  EXPECT_EQ(observer.done, 60u * 200);
  EXPECT_EQ(observer.total, 60u * 200);
  EXPECT_GE(observer.calls, 2u);
  EXPECT_LE(observer.calls, static_cast<uint64_t>(tenths) + 2);
}

TEST(Execute, SyncsTheFileSystemThenEveryFolder) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, std::string(64, 'x'), Dtype::kF32, Dtype::kF32);
  plan.files[0].path = "a/b/target";
  plan.files.push_back(LiteralFile("a/config.json", "{}"));
  TestIo io;
  ExecuteReport report = Execute(plan, folder / "out", io, {});
  EXPECT_EQ(io.file_system_syncs, 1u);
  EXPECT_EQ(io.file_syncs, 0u);
  EXPECT_THAT(io.synced_folders, ElementsAre(folder / "out/a/b", folder / "out/a", folder / "out/"));
  Xxh3 hash;
  hash.Update("{}");
  EXPECT_EQ(report.hashes[1], hash.Digest());
}

TEST(Execute, TakesAPlanOfLiteralsAndEmptyTensors) {
  ScratchFolder folder;
  Plan plan = SimplePlan(folder, "", Dtype::kF32, Dtype::kF32);
  plan.files.push_back(LiteralFile("config.json", "{}"));
  TestIo io;
  ExecuteReport report = Execute(plan, folder / "out", io, {});
  EXPECT_EQ(ReadFile(folder / "out/target"), "");
  EXPECT_EQ(ReadFile(folder / "out/config.json"), "{}");
  EXPECT_EQ(report.hashes[0], 0x2d06800538d394c2u);  // XXH3_64bits of no bytes, from xxHash's own test vectors
}

// Thousands of files, hundreds of them at once in the plan's order, and 64 descriptors.
TEST(Execute, WorksWithSixtyFourDescriptors) {
  ScratchFolder folder;
  constexpr uint32_t kFiles = 600;
  std::vector<float> values(kFiles * 8);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  Plan plan;
  plan.source_tensors = {"w"};
  Part part{"w", {kFiles, 8}, {}, {}};
  for (uint32_t i = 0; i < kFiles; ++i) {
    plan.sources.push_back(WriteSource(folder, "s" + std::to_string(i), Bytes(values).substr(i * 32, 32)));
    plan.files.push_back({"t" + std::to_string(i), 32, {}});
    part.sources.push_back(RowMajorPiece({{i, 0}, {1, 8}}, Dtype::kF32, i, 0));
    part.targets.push_back(RowMajorPiece({{i, 0}, {1, 8}}, Dtype::kF32, i, 0));
  }
  plan.parts = {part};
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  TestIo io;
  ExecuteOptions options;
  options.workers = 5;
  EXPECT_NO_THROW(Execute(plan, folder / "out", io, options));
  EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_LE(io.most_open, 48u);
  for (uint32_t i = 0; i < kFiles; ++i)
    ASSERT_EQ(ReadFile(folder / ("out/t" + std::to_string(i))), Bytes(values).substr(i * 32, 32));
}

TEST(Execute, KeepsDirtyPagesBoundedOnOneLargeFile) {
  ScratchFolder folder;
  Plan plan;
  constexpr uint64_t kBytes = uint64_t{300} << 20;
  plan.files = {{"zeros", kBytes, {}}};
  plan.parts = {{"zeros", {kBytes}, {}, {RowMajorPiece(WholeBox({kBytes}), Dtype::kU8, 0, 0)}}};
  TestIo io;
  std::unique_ptr<Io> discarding = DiscardingIo(io);
  Execute(plan, folder / "out", *discarding, {});
  EXPECT_EQ(io.file_syncs, 1u);  // once more than 256 MiB were not waited for
}

TEST(WorkerBytes, CountsASecondBufferOnlyWhereSourcesOverlap) {
  ScratchFolder folder;
  EXPECT_EQ(WorkerBytes(SimplePlan(folder, "abcd", Dtype::kF32, Dtype::kF32), kMaxDenseBuffer),
            kMaxDenseBuffer + kIoBuffer);
  EXPECT_EQ(WorkerBytes(TiedPlan(folder, std::vector<float>(12)), kMaxDenseBuffer), 2 * kMaxDenseBuffer + kIoBuffer);
}

}  // namespace
}  // namespace reshard
