#include "execute/gather.h"

#include <gmock/gmock.h>

#include <map>

#include "execute/testutil.h"

namespace reshard {
namespace {

using namespace reshard::testing;

std::vector<ElementRun> AllRuns(RunCursor cursor) {
  std::vector<ElementRun> runs;
  for (; !cursor.done(); cursor.Advance(cursor.run().length)) runs.push_back(cursor.run());
  return runs;
}

// The place in the dense buffer of every element of the file that is in `common`.
std::map<uint64_t, uint64_t> Expected(const Piece& piece, const Box& common, const Box& step) {
  std::map<uint64_t, uint64_t> places;
  ForEachIndex(common, [&](const Dims& index) { places[FileElement(piece, index)] = Linear(index, step); });
  return places;
}

struct Case {
  Piece piece;
  Box step, common;
};

Case RandomCase(Random& random, Nesting nesting) {
  Case c;
  Box part = WholeBox(RandomShape(random, 9));
  PlaceBox(random, RandomBoxIn(random, part), nesting, c.piece);
  do c.step = RandomBoxIn(random, part);
  while (!Intersect(c.step, c.piece.box));
  c.common = *Intersect(c.step, c.piece.box);
  return c;
}

TEST(RunCursor, VisitsEveryElementOnce) {
  Random random(1);
  for (int i = 0; i < 20000; ++i) {
    Case c = RandomCase(random, static_cast<Nesting>(i % 3));
    std::map<uint64_t, uint64_t> seen;
    for (const ElementRun& run : AllRuns(RunCursor(c.piece, c.common, c.step)))
      for (uint64_t k = 0; k < run.length; ++k)
        ASSERT_TRUE(seen.emplace(run.file + k, run.dense + k).second) << "twice, case " << i;
    ASSERT_EQ(seen, Expected(c.piece, c.common, c.step)) << "case " << i;
  }
}

TEST(RunCursor, GivesMaximalRunsInFileOrder) {
  Random random(2);
  for (int i = 0; i < 20000; ++i) {
    Case c = RandomCase(random, static_cast<Nesting>(i % 2));
    std::vector<ElementRun> runs = AllRuns(RunCursor(c.piece, c.common, c.step));
    for (size_t k = 1; k < runs.size(); ++k) {
      uint64_t end = runs[k - 1].file + runs[k - 1].length;
      ASSERT_LE(end, runs[k].file) << "case " << i;
      ASSERT_FALSE(end == runs[k].file && runs[k - 1].dense + runs[k - 1].length == runs[k].dense) << "case " << i;
    }
  }
}

TEST(RunCursor, SeesARowMajorPieceAsOneRun) {
  Piece piece;
  piece.box = {{8, 0}, {1 << 20, 4096}};
  piece.axes = {Axis{1 << 20, 4096, 0}, Axis{4096, 1, 0}};
  Box step{{100, 0}, {1000, 4096}};
  std::vector<ElementRun> runs = AllRuns(RunCursor(piece, step, step));
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].file, 92u * 4096);
  EXPECT_EQ(runs[0].dense, 0u);
  EXPECT_EQ(runs[0].length, 1000u * 4096);
}

// Query rows of grouped QKV: blocks of 4 rows, 6 rows apart; the step begins and ends within a block.
TEST(RunCursor, JoinsTheRowsOfABlock) {
  Piece piece;
  piece.box = WholeBox({16, 32});
  piece.axes = {Axis{4, 32, 6 * 32}, Axis{32, 1, 0}};
  Box step{{3, 0}, {7, 32}};
  std::vector<ElementRun> runs = AllRuns(RunCursor(piece, step, step));
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(runs[1].file, 6u * 32);
  EXPECT_EQ(runs[1].dense, 32u);
  EXPECT_EQ(runs[1].length, 4u * 32);
}

TEST(RunCursor, TakesAScalarAsOneElement) {
  Piece piece;
  std::vector<ElementRun> runs = AllRuns(RunCursor(piece, Box{}, Box{}));
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].length, 1u);
}

TEST(WindowCursor, CoversTheRunsInAdjacentPieces) {
  Random random(3);
  for (int i = 0; i < 20000; ++i) {
    Case c = RandomCase(random, static_cast<Nesting>(i % 3));
    uint64_t limit = Pick(random, 1, 40);
    std::map<uint64_t, uint64_t> seen;
    for (WindowCursor window(RunCursor(c.piece, c.common, c.step), limit); window.Next();) {
      ASSERT_LE(window.length(), limit);
      uint64_t next = window.file();
      size_t runs = 0;
      window.ForEachRun([&](const ElementRun& run) {
        ASSERT_EQ(run.file, next) << "case " << i;
        next += run.length;
        ++runs;
        for (uint64_t k = 0; k < run.length; ++k) seen.emplace(run.file + k, run.dense + k);
      });
      ASSERT_EQ(next, window.file() + window.length());
      ASSERT_EQ(window.single(), runs == 1);
    }
    ASSERT_EQ(seen, Expected(c.piece, c.common, c.step)) << "case " << i;
  }
}

// A chunk file holds a quarter of each row: rows lie one behind the other there, and apart in the dense buffer.
TEST(WindowCursor, GathersShortRowsThatAreAdjacentInTheFile) {
  Piece piece;
  piece.box = {{0, 256}, {1024, 256}};
  piece.axes = {Axis{1024, 256, 0}, Axis{256, 1, 0}};
  WindowCursor window(RunCursor(piece, piece.box, WholeBox({1024, 1024})), 1 << 19);
  ASSERT_TRUE(window.Next());
  EXPECT_EQ(window.length(), 1024u * 256);
  EXPECT_FALSE(window.single());
  EXPECT_FALSE(window.Next());
}

TEST(WindowCursor, LeavesLongRunsAlone) {
  Piece piece;
  piece.box = {{0, 0}, {4, 1 << 17}};
  piece.axes = {Axis{4, 1 << 17, 0}, Axis{1 << 17, 1, 0}};
  WindowCursor window(RunCursor(piece, piece.box, WholeBox({4, 1 << 18})), 1 << 19);
  for (int row = 0; row < 4; ++row) {
    ASSERT_TRUE(window.Next());
    EXPECT_TRUE(window.single());
    EXPECT_EQ(window.length(), 1u << 17);
  }
  EXPECT_FALSE(window.Next());
}

TEST(StepCursor, CutsABoxInRowMajorOrder) {
  Random random(4);
  for (int i = 0; i < 5000; ++i) {
    Box part = WholeBox(RandomShape(random, 9));
    Box box = RandomBoxIn(random, part);
    uint64_t limit = Pick(random, 1, 60), next = 0;
    StepCursor steps(box, limit);
    for (Box step; steps.Next(step);) {
      ASSERT_LE(ElementCount(step.shape), limit);
      ForEachIndex(step, [&](const Dims& index) { ASSERT_EQ(Linear(index, box), next++); });
    }
    ASSERT_EQ(next, ElementCount(box.shape));
  }
}

TEST(StepCursor, HasNoStepInAnEmptyBox) {
  StepCursor steps(WholeBox({4, 0, 3}), 10);
  Box step;
  EXPECT_FALSE(steps.Next(step));
}

TEST(IndexAt, UndoesRowMajorOrder) {
  Box step{{5, 7, 1}, {2, 3, 4}};
  ForEachIndex(step, [&](const Dims& index) { EXPECT_EQ(IndexAt(step, Linear(index, step)), index); });
}

}  // namespace
}  // namespace reshard
