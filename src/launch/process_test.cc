#include "launch/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "launch/local_tasks.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using Words = std::vector<std::string>;

int ExitOf(Process process) {
  for (;; usleep(1000))
    if (const std::optional<int> exit = process.Poll()) return *exit;
}

bool Appears(const std::string& path) {
  for (int i = 0; i < 2000; ++i, usleep(5000))
    if (std::filesystem::exists(path)) return true;
  return false;
}

TEST(Process, HasAnExitCode) {
  EXPECT_EQ(ExitOf(Process({"sh", "-c", "exit 3"}, {})), 3);
  EXPECT_EQ(ExitOf(Process({"/bin/sh", "-c", "kill -9 $$"}, {})), 128 + SIGKILL);
}

TEST(Process, ThatIsNotThereIsAnError) {
  try {
    Process({"no-such-program-anywhere"}, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kNotFound);
    EXPECT_NE(std::string(error.what()).find("no-such-program-anywhere"), std::string::npos);
  }
}

TEST(Process, PrintsWhereItIsTold) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(ExitOf(Process({"sh", "-c", "echo out; echo err >&2"}, {0, ends[1], ends[1]})), 0);
  close(ends[1]);
  char text[64] = {};
  EXPECT_EQ(read(ends[0], text, sizeof text - 1), 8);
  EXPECT_STREQ(text, "out\nerr\n");
  close(ends[0]);
}

TEST(Process, DoesNotIgnoreWhatWeIgnore) {
  signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(ExitOf(Process({"sh", "-c", "kill -PIPE $$; exit 0"}, {})), 128 + SIGPIPE);
}

TEST(Process, EndsWithUs) {
  const ScratchFolder scratch;
  const std::string script = "trap 'touch " + scratch / "ended" + "; exit' TERM; touch " + scratch / "began" +
                             "; while :; do sleep 0.02; done";
  const pid_t parent = fork();
  if (parent == 0) {
    auto* kept = new Process({"sh", "-c", script}, {});
    (void)kept;
    pause();
  }
  ASSERT_TRUE(Appears(scratch / "began"));
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  EXPECT_TRUE(Appears(scratch / "ended"));
}

// A stand-in for the program: a script that is called with "convert --convert_task=<k> ...".
std::string Program(const ScratchFolder& scratch, const std::string& body) {
  std::string path = scratch / "program";
  std::ofstream(path) << "#!/bin/sh\n" << body;
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  return path;
}

TEST(LocalTasks, AreCalledWithTheirNumbers) {
  const ScratchFolder scratch;
  const std::string program = Program(scratch, "echo \"$@\" > " + scratch / "" + "$2\n");
  EXPECT_EQ(RunTasks({program, {"--to=nemo", "a b"}, 3}), 0);
  for (const char* task : {"0", "1", "2"}) {
    std::ifstream in(scratch / ("--convert_task=" + std::string(task)));
    std::string line;
    std::getline(in, line);
    EXPECT_EQ(line, "convert --convert_task=" + std::string(task) + " --to=nemo a b");
  }
}

TEST(LocalTasks, EndWhenOneFails) {
  const ScratchFolder scratch;
  const std::string program =
      Program(scratch, "[ $2 != --convert_task=1 ] || exit 6\ntrap 'exit 75' TERM\nwhile :; do sleep 0.02; done\n");
  EXPECT_EQ(RunTasks({program, {}, 3}), 6);
}

TEST(LocalTasks, EndWhenTheyAreStopped) {
  const ScratchFolder scratch;
  const std::string program = Program(scratch, "trap 'exit 75' TERM\nwhile :; do sleep 0.02; done\n");
  std::atomic<bool> stop = false;
  int ticks = 0;
  EXPECT_EQ(RunTasks({program, {}, 2, &stop, [&] { stop = ++ticks >= 2; }}), 75);
}

}  // namespace
}  // namespace reshard
