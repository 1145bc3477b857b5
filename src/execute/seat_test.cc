// Seats of tasks in a target.
#include <gmock/gmock.h>

#include <cerrno>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "execute/owner.h"
#include "execute/publish.h"
#include "tests/fault/faulty_io.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr char kPlan[] = "0123456789abcdef", kOtherPlan[] = "fedcba9876543210";

Target TargetIn(const ScratchFolder& scratch, const char* plan = kPlan) {
  const Json request = {{"options", {{"dtype", plan}}}, {"sources", Json::object()}};
  return Target{TargetPlace::Folder(scratch / "out"), plan, {"a", "marker"}, false, {"marker"}, request};
}

template <typename Call>
std::string RefusalOf(Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kAlreadyExists);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

void StageBoth(const std::string& folder) {
  for (const char* name : {"a", "marker"}) WriteWholeFile(PosixIo(), JoinPath(folder, name), "bytes");
}

Json Receipt() {
  Json receipt = {{"plan_id", kPlan}, {"files", Json::array()}};
  for (const char* name : {"a", "marker"})
    receipt["files"].push_back({{"path", name}, {"size", uint64_t{5}}, {"xxh3", "0"}});
  return receipt;
}

TEST(Seat, IsTakenByTasksOfOnePlanAtATime) {
  const ScratchFolder scratch;
  const Target target = TargetIn(scratch);
  const auto first = Join(PosixIo(), target, {0, 3}), second = Join(PosixIo(), target, {2, 3});
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->folder(), second->folder());
  EXPECT_THAT(RefusalOf([&] { Join(PosixIo(), target, {2, 3}); }), HasSubstr("task.2-of-3"));
  EXPECT_THAT(RefusalOf([&] { Join(PosixIo(), target, {0, 2}); }), HasSubstr("another run owns it"));
  EXPECT_THAT(RefusalOf([&] { Join(PosixIo(), TargetIn(scratch, kOtherPlan), {1, 3}); }), HasSubstr("another run"));
  EXPECT_THAT(RefusalOf([&] { Claim(PosixIo(), target); }), HasSubstr("another run owns it"));
}

TEST(Seat, IsRefusedWhereARunAloneIsAtWork) {
  const ScratchFolder scratch;
  const auto stage = Claim(PosixIo(), TargetIn(scratch));
  EXPECT_THAT(RefusalOf([&] { Join(PosixIo(), TargetIn(scratch), {0, 2}); }), HasSubstr("another run owns it"));
}

TEST(Seat, KeepsWhatIsStagedForTheRunThatPublishes) {
  const ScratchFolder scratch;
  {
    const auto seat = Join(PosixIo(), TargetIn(scratch), {0, 2});
    StageBoth(seat->folder());
  }
  const auto stage = Claim(PosixIo(), TargetIn(scratch));
  EXPECT_THAT(PosixIo().List(stage->folder()), SizeIs(2));
  stage->Publish(Receipt());
  EXPECT_FALSE(fs::exists(scratch / "out/.reshard"));
  EXPECT_TRUE(fs::exists(scratch / "out/marker"));
  EXPECT_FALSE(Join(PosixIo(), TargetIn(scratch), {1, 2}));
}

TEST(Seat, DeletesWhatAnotherPlanHasStagedUnderOverride) {
  const ScratchFolder scratch;
  StageBoth(Join(PosixIo(), TargetIn(scratch, kOtherPlan), {0, 2})->folder());
  Target target = TargetIn(scratch);
  target.replace = true;
  ASSERT_THAT(OthersStaged(PosixIo(), target), SizeIs(1));
  EXPECT_EQ(OthersStaged(PosixIo(), target)[0],
            "the option dtype was \"fedcba9876543210\" and is \"0123456789abcdef\"");
  const auto seat = Join(PosixIo(), target, {0, 2});
  EXPECT_THAT(PosixIo().List(seat->folder()), IsEmpty());
  EXPECT_FALSE(fs::exists(scratch / "out/.reshard" / fs::path(kOtherPlan)));
}

TEST(Seat, OfADeadTaskIsTakenOver) {
  const ScratchFolder scratch;
  const auto seat = Join(PosixIo(), TargetIn(scratch), {0, 2});
  const std::string owner = scratch / (std::string("out/.reshard/") + kPlan + "/task.0-of-2/owner");
  Json record = ParseJson(ReadWholeFile(PosixIo(), owner, 4096), owner);
  record["boot"] = "an earlier boot";
  WriteWholeFile(PosixIo(), owner, record.dump());
  EXPECT_TRUE(Join(PosixIo(), TargetIn(scratch), {0, 2}));
  EXPECT_TRUE(Claim(PosixIo(), TargetIn(scratch)));
}

TEST(OwnerLock, IsWaitedForWhileItIsPassing) {
  const ScratchFolder scratch;
  auto passing = std::make_unique<OwnerLock>(PosixIo(), scratch / "lock", OwnerLock::Stay::kPassing);
  std::thread release([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    passing.reset();
  });
  OwnerLock lock(PosixIo(), scratch / "lock");
  release.join();
  EXPECT_TRUE(lock.Held());
  EXPECT_THAT(RefusalOf([&] { OwnerLock(PosixIo(), scratch / "lock", OwnerLock::Stay::kPassing); }),
              HasSubstr("another run owns it"));
}

// It would keep all others waiting for as long as the task is at work.
TEST(Seat, IsNotTakenWhileItsClaimIsLeftBehind) {
  bool more = true;
  for (uint64_t call = 1; more; ++call) {
    const ScratchFolder scratch(ScratchFolder::InMemory());
    FaultyIo io(PosixIo());
    io.FailAt(call, EIO);
    try {
      const auto seat = Join(io, TargetIn(scratch), {0, 2});
      EXPECT_FALSE(fs::exists(scratch / "out/.reshard/owner")) << "call " << call;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kIo) << error.what();
    }
    more = io.calls() >= call;
  }
}

// Many at once: each gets its seat.
TEST(Seat, IsFoundByAllHoweverManyComeAtOnce) {
  const ScratchFolder scratch;
  constexpr uint32_t kTasks = 12;
  std::vector<std::unique_ptr<Seat>> seats(kTasks);
  std::vector<std::thread> threads;
  for (uint32_t task = 0; task < kTasks; ++task)
    threads.emplace_back([&, task] { seats[task] = Join(PosixIo(), TargetIn(scratch), {task, kTasks}); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& seat : seats) EXPECT_TRUE(seat);
}

}  // namespace
}  // namespace reshard
