#include "execute/journal.h"

#include <gtest/gtest.h>

#include "execute/testutil.h"

namespace reshard {
namespace {

using testing::TestIo;

constexpr uint64_t kOps = 10;
constexpr size_t kFiles = 3;

class JournalTest : public ::testing::Test {
 protected:
  Journal Open(const std::string& boot) { return Journal(io_, path(), kOps, kFiles, boot); }
  std::string path() const { return folder_ / "journal"; }

  // The numbers of the ops that are done, in file 0.
  static std::vector<uint64_t> Done(const Journal& journal) {
    std::vector<uint64_t> done;
    for (uint64_t op = 0; op < kOps; ++op)
      if (journal.IsDone(op, 0)) done.push_back(op);
    return done;
  }

  ScratchFolder folder_;
  TestIo io_;
};

using Numbers = std::vector<uint64_t>;

TEST_F(JournalTest, KnowsNothingWithoutAFile) { EXPECT_EQ(Done(Open("a")), Numbers{}); }

TEST_F(JournalTest, BelievesAllOfItsOwnBoot) {
  {
    Journal journal = Open("a");
    journal.AddFile(1, 77);
    journal.AddOp(3, 0);
    journal.AddOp(9, 5);
    journal.AddHash(1, 42);
  }
  Journal journal = Open("a");
  EXPECT_EQ(Done(journal), (Numbers{3, 9}));
  EXPECT_EQ(journal.OverflowsOf(9), 5u);
  EXPECT_EQ(journal.OverflowsOf(3), 0u);
  EXPECT_EQ(journal.HashOf(1), 42u);
  EXPECT_EQ(journal.InodeOf(1), 77u);
  EXPECT_FALSE(journal.HashOf(0) || journal.InodeOf(0));
  journal.AddOp(0, 0);
  EXPECT_EQ(Done(Open("a")), (Numbers{0, 3, 9}));
}

TEST_F(JournalTest, BelievesWhatWasSyncedOfAnotherBoot) {
  {
    Journal journal = Open("a");
    journal.AddOp(1, 0);
    const uint64_t records = journal.count();
    journal.AddOp(2, 0);  // while what came before is synced
    journal.AddSynced(records);
    journal.AddOp(3, 0);
  }
  EXPECT_EQ(Done(Open("a")), (Numbers{1, 2, 3}));
  Journal next = Open("b");
  EXPECT_EQ(Done(next), (Numbers{1}));
  next.AddOp(4, 0);
  EXPECT_EQ(Done(Open("b")), (Numbers{1, 4}));
  EXPECT_EQ(Done(Open("a")), (Numbers{1}));  // "a" again is a third start, not the first
}

TEST_F(JournalTest, AMarkCoversEarlierBootsOnlyAsFarAsTheyWereBelieved) {
  {
    Journal journal = Open("a");
    journal.AddOp(1, 0);
  }
  {
    Journal journal = Open("b");  // does op 1 anew, later
    journal.AddOp(2, 0);
    journal.AddSynced(journal.count());
  }
  EXPECT_EQ(Done(Open("c")), (Numbers{2}));
}

TEST_F(JournalTest, NothingIsDoneInAFileThatIsMadeAnew) {
  {
    Journal journal = Open("a");
    journal.AddFile(0, 1);
    journal.AddOp(5, 0);
    journal.AddHash(0, 5);
    journal.AddFile(0, 2);
  }
  Journal journal = Open("a");
  EXPECT_EQ(journal.InodeOf(0), 2u);
  EXPECT_FALSE(journal.HashOf(0) || journal.IsDone(5, 0));
  EXPECT_TRUE(journal.IsDone(5, 1));
}

// Every byte damaged, and every length.
TEST_F(JournalTest, BelievesWhatComesBeforeTheFirstDamage) {
  {
    Journal journal = Open("a");
    for (uint64_t op = 0; op < 4; ++op) journal.AddOp(op, 0);
  }
  const std::string whole = testing::ReadFile(path());
  ASSERT_EQ(whole.size(), 5 * 24u);
  for (size_t at = 0; at < whole.size(); ++at) {
    const uint64_t record = at / 24, believed = record == 0 ? 0 : record - 1;
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    for (const std::string& bytes : {damaged, whole.substr(0, at)}) {
      std::filesystem::remove(path());
      WriteWholeFile(PosixIo(), path(), bytes);
      EXPECT_EQ(Done(Open("a")).size(), believed) << at;
    }
  }
}

// Pages reach the disk in any order: what lies behind a page that a power loss took is of the boot before.
TEST_F(JournalTest, DoesNotBelieveWhatLiesBehindItsOwnEnd) {
  {
    Journal journal = Open("a");
    for (uint64_t op = 0; op < kOps; ++op) journal.AddOp(op, 0);
    journal.AddSynced(kOps);
  }
  std::string bytes = testing::ReadFile(path());
  bytes.replace(2 * 24, 24, std::string(24, '\0'));
  WriteWholeFile(PosixIo(), path(), bytes);
  Open("b").AddOp(5, 0);
  EXPECT_EQ(Done(Open("b")), (Numbers{5}));
  EXPECT_EQ(Done(Open("c")), (Numbers{}));
}

TEST_F(JournalTest, TakesBackWhatWasNotSynced) {
  {
    Journal journal = Open("a");
    journal.AddOp(1, 0);
    journal.AddSynced(journal.count());
    journal.AddOp(2, 0);
    journal.TakeBack();
    journal.AddOp(3, 0);  // by a worker that does not know yet
  }
  EXPECT_EQ(Done(Open("a")), (Numbers{1}));
  Journal next = Open("a");
  next.AddOp(4, 0);
  EXPECT_EQ(Done(Open("a")), (Numbers{1, 4}));
  Open("a").TakeBack();
  EXPECT_EQ(Done(Open("a")), (Numbers{1}));
}

TEST_F(JournalTest, RefusesNumbersThatThePlanDoesNotHave) {
  {
    Journal longer(io_, path(), 100, 100, "a");
    longer.AddOp(2, 0);
    longer.AddOp(50, 0);
    longer.AddOp(3, 0);
  }
  EXPECT_EQ(Done(Open("a")), (Numbers{2}));
}

}  // namespace
}  // namespace reshard
