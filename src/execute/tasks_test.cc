// Several tasks that fill one staging folder.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/bytes.h"
#include "base/error.h"
#include "execute/journals.h"
#include "execute/op_bytes.h"
#include "execute/random_job.h"
#include "tests/fault/faulty_io.h"

namespace reshard {
namespace {

using namespace reshard::testing;

ExecuteOptions OptionsOf(const ScratchFolder& folder, TaskOf task = {}) {
  ExecuteOptions options;
  options.journal = folder / "journal";
  options.task = task;
  return options;
}

ExecuteReport RunTask(const Job& job, const ScratchFolder& folder, TaskOf task = {}) {
  TestIo io;
  return Execute(job.plan, folder / "staging", io, OptionsOf(folder, task));
}

// Runs the task until its n-th call; false where it came to its end before.
bool RunAndKill(const Job& job, const ScratchFolder& folder, TaskOf task, uint64_t call) {
  FaultyIo io(PosixIo());
  io.KillAt(call);
  try {
    Execute(job.plan, folder / "staging", io, OptionsOf(folder, task));
    return false;
  } catch (...) {
    return true;
  }
}

TEST(Shares, GiveEveryByteToOneTask) {
  const uint64_t mib = kMiB;
  const std::vector<FileLayout> files = {{"a", 700 * mib + 5, {}}, {"b", 0, {}}, {"c", 3, {}}, {"d", 90 * mib, {}}};
  for (uint32_t tasks : {1u, 2u, 3u, 7u, 40u}) {
    SCOPED_TRACE(tasks);
    const Shares shares(files, tasks);
    std::vector<uint64_t> load(tasks);
    for (size_t file = 0; file < files.size(); ++file) {
      uint64_t end = 0;
      shares.ForEachSlice(file, 0, files[file].size, [&](uint32_t task, uint64_t from, uint64_t to) {
        EXPECT_EQ(from, end);
        if (from > 0) {
          EXPECT_EQ(from % (64 * mib), 0u);
        }
        EXPECT_TRUE(shares.Has(task, file));
        load[task] += to - from;
        end = to;
      });
      EXPECT_EQ(end, files[file].size);
    }
    // No task has more than a fair share and a slice.
    const uint64_t fair = CeilDiv(790 * mib + 8, tasks);
    EXPECT_LE(*std::max_element(load.begin(), load.end()), fair + RoundUp(fair, 64 * mib));
  }
  EXPECT_FALSE(Shares(files, 1).IsCut(0));
  EXPECT_TRUE(Shares(files, 2).IsCut(0));
  EXPECT_FALSE(Shares(files, 2).IsCut(3));
}

TEST(Shares, OfAPieceOfAFileAreWhatASliceSays) {
  const Shares shares({{"a", 200 * kMiB, {}}}, 3);
  std::map<uint32_t, uint64_t> bytes;
  shares.ForEachSlice(0, 60 * kMiB, 70 * kMiB,
                      [&](uint32_t task, uint64_t from, uint64_t to) { bytes[task] += to - from; });
  ASSERT_EQ(bytes.size(), 2u);
  EXPECT_EQ(bytes[shares.OwnerOf(0)], 4 * kMiB);
}

TEST(Tasks, WriteTogetherWhatOneWrites) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const uint32_t tasks = static_cast<uint32_t>(Pick(random, 2, 6));
    SCOPED_TRACE(::testing::Message() << "seed " << seed << ", " << tasks << " tasks");
    ScratchFolder folder;
    const Job job = RandomJob(random, folder);
    const Shares shares(job.plan.files, tasks);
    uint64_t literals = 0, literals_of_cut = 0, written = 0, read = 0;
    for (size_t file = 0; file < job.plan.files.size(); ++file) {
      for (const Literal& literal : job.plan.files[file].literals) {
        literals += literal.bytes.size();
        if (shares.IsCut(file)) literals_of_cut += literal.bytes.size();
      }
    }
    std::vector<uint32_t> order;
    for (uint32_t task = 0; task < tasks; ++task) order.push_back(task);
    std::shuffle(order.begin(), order.end(), random);
    for (uint32_t task : order) {
      const ExecuteReport report = RunTask(job, folder, {task, tasks});
      written += report.bytes_written;
      read += report.bytes_read;
    }
    EXPECT_EQ(written, job.target_bytes + literals);
    EXPECT_EQ(read, BytesRead(job.plan, shares));
    const ExecuteReport last = RunTask(job, folder);
    ASSERT_NO_FATAL_FAILURE(ExpectImages(job, last, folder, "staging"));
    EXPECT_EQ(last.bytes_read, 0u);
    EXPECT_EQ(last.bytes_written, literals_of_cut);
    EXPECT_EQ(last.bytes_staged, job.target_bytes);
  }
}

// Tasks of changing numbers are killed at random, then one run alone does the rest.
TEST(Tasks, GoOnWhereTheyWereKilledWhateverTheirNumber) {
  uint64_t reused = 0;
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    ScratchFolder folder;
    const Job job = RandomJob(random, folder);
    for (uint64_t rounds = Pick(random, 1, 4); rounds > 0; --rounds) {
      const uint32_t tasks = static_cast<uint32_t>(Pick(random, 1, 4));
      for (uint32_t task = 0; task < tasks; ++task) RunAndKill(job, folder, {task, tasks}, Pick(random, 1, 120));
    }
    const ExecuteReport last = RunTask(job, folder);
    ASSERT_NO_FATAL_FAILURE(ExpectImages(job, last, folder, "staging"));
    reused += last.bytes_staged;
  }
  EXPECT_GT(reused, 0u);
}

TEST(Tasks, CountOverflowsOnce) {
  Random random(5);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    ScratchFolder folder, other;
    Job job = RandomJob(random, folder);
    const ExecuteReport alone = [&] {
      TestIo io;
      return Execute(job.plan, other / "staging", io, OptionsOf(other));
    }();
    for (uint32_t task = 0; task < 3; ++task) RunTask(job, folder, {task, 3});
    const ExecuteReport last = RunTask(job, folder);
    uint64_t expected = 0, found = 0;
    for (const Overflow& overflow : alone.overflows) expected += overflow.count;
    for (const Overflow& overflow : last.overflows) found += overflow.count;
    EXPECT_EQ(found, expected);
  }
}

// A matrix of F32 in two halves, one behind the other by columns, and transposed blocks of rows, in files that are cut,
// one of them within an element. All rows about that one are too large for BF16.
Job LargeJob(const ScratchFolder& folder) {
  constexpr uint64_t kRows = 5000, kColumns = 10007;
  Random random(1);
  Job job;
  std::string source(kRows * kColumns * 4, '\0');
  for (size_t at = 0; at + 8 <= source.size(); at += 8) {
    const uint64_t bits = random();
    std::memcpy(source.data() + at, &bits, 8);
  }
  const uint32_t largest = 0x7f7fffff;
  for (size_t at = 3350 * kColumns; at < 3360 * kColumns; ++at) std::memcpy(source.data() + at * 4, &largest, 4);
  Part part;
  part.name = "large";
  part.shape = {kRows, kColumns};
  part.sources = {RowMajorPiece(WholeBox(part.shape), Dtype::kF32, 0, 0)};
  constexpr uint64_t kHeader = 4096 + 1;
  Box left{{0, 0}, {kRows, 5000}}, right{{0, 5000}, {kRows, kColumns - 5000}};
  Piece first = RowMajorPiece(left, Dtype::kBF16, 0, kHeader), second = RowMajorPiece(right, Dtype::kBF16, 0, kHeader);
  // The rows of both halves take turns, ten at a time.
  first.axes[0] = {10, 5000, 10 * kColumns};
  second.axes[0] = {10, kColumns - 5000, 10 * kColumns};
  second.offset += 10 * 5000 * 2;
  part.targets = {first, second, RowMajorPiece(WholeBox(part.shape), Dtype::kF32, 1, 0)};
  job.plan.files = {{"bf16", kHeader + kRows * kColumns * 2, {{0, std::string(kHeader, 'h')}}},
                    {"f32", source.size(), {}}};
  std::string cast(kRows * kColumns * 2, '\0'), image(kHeader, 'h');
  Cast(Dtype::kF32, Dtype::kBF16, source.data(), cast.data(), kRows * kColumns);
  for (uint64_t row = 0; row < kRows; row += 10)
    for (const Box& half : {left, right})
      for (uint64_t r = row; r < row + 10; ++r)
        image.append(cast, (r * kColumns + half.origin[1]) * 2, half.shape[1] * 2);
  job.images = {image, source};
  job.plan.parts = {part};
  job.plan.source_tensors = {"tensor"};
  job.plan.sources = {WriteSource(folder, "source", source)};
  return job;
}

// Finite numbers of F32 that round to infinity: half a step above BF16's largest, or more.
uint64_t TooLargeForBf16(const std::string& numbers) {
  uint64_t count = 0;
  for (size_t at = 0; at < numbers.size(); at += 4) {
    uint32_t bits = 0;
    std::memcpy(&bits, numbers.data() + at, 4);
    bits &= 0x7fffffff;
    count += bits >= 0x7f7f8000 && bits < 0x7f800000;
  }
  return count;
}

TEST(Tasks, ShareFilesThatAreCut) {
  ScratchFolder folder;
  const Job job = LargeJob(folder);
  const Shares shares(job.plan.files, 3);
  EXPECT_TRUE(shares.IsCut(0) && shares.IsCut(1));
  std::set<uint32_t> owners;
  for (size_t file : {0, 1})
    shares.ForEachSlice(file, 0, job.plan.files[file].size,
                        [&](uint32_t task, uint64_t, uint64_t) { owners.insert(task); });
  EXPECT_EQ(owners.size(), 3u);
  for (uint32_t task : {1, 0, 2}) {
    for (uint64_t call : {40, 90}) RunAndKill(job, folder, {task, 3}, call);
    RunTask(job, folder, {task, 3});
  }
  const ExecuteReport last = RunTask(job, folder);
  ASSERT_NO_FATAL_FAILURE(ExpectImages(job, last, folder, "staging"));
  EXPECT_EQ(last.bytes_read, 0u);
  uint64_t overflows = 0;
  for (const Overflow& overflow : last.overflows) overflows += overflow.count;
  EXPECT_EQ(overflows, TooLargeForBf16(job.images[1]));
}

TEST(Tasks, DoNotMendWhatOthersWorkOn) {
  Random random(3);
  ScratchFolder folder;
  Job job = RandomJob(random, folder);
  while (job.plan.files.size() < 2 || job.target_bytes == 0) job = RandomJob(random, folder);
  for (uint32_t task : {0, 1}) RunTask(job, folder, {task, 2});
  std::filesystem::remove(folder / ("staging/" + job.plan.files[0].path));
  const uint32_t owner = Shares(job.plan.files, 2).OwnerOf(0);
  try {
    RunTask(job, folder, {1 - owner, 2});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kCorrupt);
    EXPECT_NE(std::string(error.what()).find(job.plan.files[0].path), std::string::npos);
  }
  const ExecuteReport last = RunTask(job, folder);
  ASSERT_NO_FATAL_FAILURE(ExpectImages(job, last, folder, "staging"));
}

}  // namespace
}  // namespace reshard
