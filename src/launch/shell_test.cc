#include "launch/shell.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using testing::ElementsAre;

TEST(ShellWords, AreSplitAsAShellDoes) {
  EXPECT_THAT(*ShellWords(R"( --a 'b c' "d \" $e"  f\ g h'i'"j" '' )"),
              ElementsAre("--a", "b c", "d \" $e", "f g", "hij", ""));
  EXPECT_FALSE(ShellWords("a 'b"));
  EXPECT_TRUE(ShellWords("")->empty());
}

TEST(ShellWords, QuotedWordsComeBackFromARealShell) {
  for (const std::string& word :
       std::vector<std::string>{"", "plain/x-1.2", "a b", "it's", "$HOME;`x`*", "a\nb", "\"\\'"}) {
    EXPECT_EQ(Shell().Run("printf %s " + ShellQuoted(word)).out, word);
    EXPECT_THAT(*ShellWords(ShellQuoted(word)), ElementsAre(word));
  }
  EXPECT_EQ(ShellLine({"a", "b c"}), "a 'b c'");
}

TEST(Shell, TellsTheExitAndBothStreams) {
  const Output output = Shell().Run("echo out; echo err >&2; cat; exit 7");
  EXPECT_EQ(output.exit, 7);
  EXPECT_EQ(output.out, "out\n");
  EXPECT_EQ(output.err, "err\n");
  EXPECT_EQ(Shell().Run("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2").err.size(), 1'000'000);
}

TEST(Shell, PassesNoOtherVariablesOn) {
  setenv("HF_TOKEN", "secret", 1);
  setenv("SLURM_CONF", "/x", 1);
  setenv("MULTI", "a\nHOME2=b c", 1);
  const std::string seen = Shell().Run("env").out;
  EXPECT_EQ(seen.find("secret"), seen.npos);
  EXPECT_EQ(seen.find("HOME2"), seen.npos);
  EXPECT_NE(seen.find("SLURM_CONF=/x"), seen.npos);
  EXPECT_NE(seen.find("PATH="), seen.npos);
  unsetenv("SLURM_CONF");
}

TEST(Shell, AFailureIsSaidInItsLastLine) {
  try {
    Shell().Must("echo first >&2; echo the reason >&2; exit 3", "submitting", "x.sh");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "submitting x.sh: the reason (exit code 3), expected success");
    EXPECT_EQ(error.code(), Code::kIo);
  }
}

TEST(Shell, UploadsWholeAndExecutable) {
  ScratchFolder folder;
  WriteWholeFile(PosixIo(), folder / "a", "#!/bin/sh\necho it runs\n");
  Shell().Upload(folder / "a", folder / "new folder/b");
  EXPECT_EQ(Shell().Run(ShellQuoted(folder / "new folder/b")).out, "it runs\n");
  EXPECT_EQ(PosixIo().List(folder / "new folder").size(), 1);
}

}  // namespace
}  // namespace reshard
