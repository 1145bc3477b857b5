#include "launch/job_script.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/shell.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using testing::HasSubstr;
using Shape = JobSpec::Shape;

JobSpec Job(Shape shape) {
  JobSpec job;
  job.shape = shape;
  job.tasks = shape == Shape::kArray || shape == Shape::kAllocation ? 3 : 1;
  job.tasks_per_node = 2;
  job.directives = {{"account", "acct"}, {"job-name", "nemo skills:it's"}, {"exclusive", std::nullopt}};
  job.variables = {{"A", "x y'z"}};
  job.installation_command = "pip install 'x'";
  job.program = "/jobs/.bin/1/reshard";
  job.arguments = {"--input_model=/a b", "--to=hf"};
  job.state = "/jobs/x y/convert.state";
  job.log_dir = "/logs/50%";
  job.log_name = "main_x_%j_srun.log";
  return job;
}

TEST(SbatchScript, OfASingleJob) {
  EXPECT_EQ(SbatchScript(Job(Shape::kSingle)), R"golden(#!/bin/bash
#SBATCH --account=acct
#SBATCH --exclusive
#SBATCH --job-name='nemo skills:it'\''s'

set -eu
unset NEMO_SKILLS_CONFIG NEMO_SKILLS_CONFIG_DIR
export A='x y'\''z'
state='/jobs/x y/convert.state'
record() { echo "$* $(date +%s)" >>"$state"; }
stopped=
trap 'stopped=1' TERM

run() {
  bash -c 'pip install '\''x'\''' || return
  srun --output=/logs/50%%/main_x_%j_srun.log --open-mode=append --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} --ntasks=1 --nodes=1 /jobs/.bin/1/reshard convert '--input_model=/a b' --to=hf
}

record RUNNING "$(hostname)"
code=0
run || code=$?
if [ -n "$stopped" ]; then
  record STOPPED "$code"
  exit "$code"
fi
record EXITED "$code"
case $code in
  75 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
)golden");
}

TEST(SbatchScript, OfManyTasksAndOfAnEngine) {
  EXPECT_THAT(SbatchScript(Job(Shape::kArray)),
              HasSubstr("--nodes=1 /jobs/.bin/1/reshard convert --convert_tasks=3 "
                        "--convert_task=\"$SLURM_ARRAY_TASK_ID\" '--input_model=/a b' --to=hf\n"));
  EXPECT_THAT(SbatchScript(Job(Shape::kArray)),
              HasSubstr("state='/jobs/x y/convert'.\"$SLURM_ARRAY_TASK_ID\".state\n"));
  EXPECT_THAT(SbatchScript(Job(Shape::kAllocation)),
              HasSubstr("--ntasks=3 --ntasks-per-node=2 bash -c \\\n    'exec \"$1\" convert --convert_tasks=3 "
                        "--convert_task=\"$SLURM_PROCID\" \"${@:2}\"' bash /jobs/.bin/1/reshard '--input_model=/a b'"));
  EXPECT_THAT(SbatchScript(Job(Shape::kAllocation)),
              HasSubstr("srun --ntasks-per-node=1 --ntasks=\"$SLURM_NNODES\" bash"));
  EXPECT_EQ(StatePath("/a/convert.state", 3), "/a/convert.3.state");
  EXPECT_EQ(StatePath("/a/convert.state", {}), "/a/convert.state");
}

class ScriptRun : public testing::TestWithParam<Shape> {
 protected:
  // Runs the script of a program that ends with `code`, Slurm's commands being stand-ins; returns the state file.
  std::string StateAfter(int code, const std::string& restarts) {
    JobSpec job = Job(GetParam());
    job.program = folder_ / "the program";
    job.state = folder_ / "convert.state";
    job.log_dir = folder_ / "it's";
    job.installation_command = "true";
    PosixIo().MakeDirectories(job.log_dir);
    auto write = [&](const std::string& name, const std::string& text) {
      WriteWholeFile(PosixIo(), folder_ / name, "#!/bin/bash\n" + text);
      std::filesystem::permissions(folder_ / name, std::filesystem::perms::owner_all);
    };
    write("the program", "printf '%s\\n' \"$@\" >" + ShellQuoted(folder_ / "seen") + "; exit " + std::to_string(code));
    write("srun", "while [[ $1 == --* ]]; do shift; done; exec \"$@\"");
    write("scontrol", "echo \"$@\" >>" + ShellQuoted(folder_ / "requeued"));
    write("job.sh", SbatchScript(job));
    const Output output = Shell().Run(
        "bash -n " + ShellQuoted(folder_ / "job.sh") + " && PATH=" + ShellQuoted(folder_.path()) +
        ":$PATH SLURM_JOB_ID=9 SLURM_ARRAY_TASK_ID=1 SLURM_PROCID=1 SLURM_NNODES=1 SLURM_RESTART_COUNT=" + restarts +
        " bash " + ShellQuoted(folder_ / "job.sh"));
    EXPECT_EQ(output.exit, code) << output.err;
    const bool array = GetParam() == Shape::kArray;
    return ReadWholeFile(PosixIo(), StatePath(job.state, array ? std::optional(1U) : std::nullopt), 1 << 20);
  }
  bool requeued() { return PosixIo().Stat(folder_ / "requeued").has_value(); }

  ScratchFolder folder_;
};

TEST_P(ScriptRun, RecordsWhatBecomesOfTheProgram) {
  EXPECT_THAT(StateAfter(0, "0"), testing::MatchesRegex("RUNNING [^ ]+ [0-9]+\nEXITED 0 [0-9]+\n"));
  EXPECT_FALSE(requeued());
  const std::string seen = ReadWholeFile(PosixIo(), folder_ / "seen", 1 << 20);
  EXPECT_THAT(seen, HasSubstr("convert\n"));
  EXPECT_THAT(seen, HasSubstr("--input_model=/a b\n--to=hf\n"));
}

// What a builder had written is in its own way when the job is queued again, and in that of nothing else.
TEST_P(ScriptRun, OnlyABuildThatIsQueuedAgainOverrides) {
  auto seen = [&] { return ReadWholeFile(PosixIo(), folder_ / "seen", 1 << 20); };
  StateAfter(0, "0");
  EXPECT_THAT(seen(), testing::Not(HasSubstr("--override")));
  StateAfter(0, "1");
  EXPECT_EQ(seen().find("--override") != std::string::npos, GetParam() == Shape::kDirect);
}

TEST_P(ScriptRun, AFailureIsFinal) {
  EXPECT_THAT(StateAfter(6, "0"), HasSubstr("EXITED 6 "));
  EXPECT_FALSE(requeued());
}

TEST_P(ScriptRun, AnInterruptionIsQueuedAgainThreeTimes) {
  StateAfter(75, "3");
  EXPECT_FALSE(requeued());
  StateAfter(75, "2");
  EXPECT_TRUE(requeued());
}

INSTANTIATE_TEST_SUITE_P(Shapes, ScriptRun,
                         testing::Values(Shape::kSingle, Shape::kArray, Shape::kAllocation, Shape::kDirect));

}  // namespace
}  // namespace reshard
