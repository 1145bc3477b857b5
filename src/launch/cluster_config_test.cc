#include "launch/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "base/error.h"
#include "tests/fault/scratch_folder.h"

namespace reshard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

Environment Variables(std::map<std::string, std::string> variables) {
  return [=](const std::string& name) {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
  };
}

ClusterConfig Parse(const std::string& text, std::map<std::string, std::string> variables = {}) {
  return ParseClusterConfig("executor: slurm\n" + text, "c.yaml", Variables(std::move(variables)));
}

Error ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return Error(Code::kInternal, "no error");
}

std::string Host(const ClusterConfig& config, const std::string& path) {
  std::vector<std::string> notes;
  return HostPath(config, path, notes);
}

TEST(ClusterConfig, ReadsEveryKeyOfTheExamples) {
  const ClusterConfig config = Parse(R"(
containers:
  trtllm: igitman/nemo-skills-trtllm:0.4.1
  nemo: /images/nemo.sqsh
  vllm:
job_name_prefix: "nemo_skills:"
account: acct
partition: batch
cpu_partition: cpu
ssh_tunnel:
  host: login1
  user: $ME
  job_dir: /lustre/me/jobs/
  identity: ${HOME}/.ssh/id
  port: 2222
  pre_command: module load slurm
  shell: bash
mounts:
  - /lustre/me/models:/models
  - "{DATA}:/data:ro"
timeouts:
  batch: 06:00:00
  cpu: 1-00:00:00
default_timeout: 4:00:00
env_vars: [A, B=$ME x, " C = a=b "]
required_env_vars:
  - D
dependency_type: afterok
mail_type: END
mail_user: me@here
disable_gpus_per_node: yes
num_workers: 4
)",
                                     {{"ME", "me"}, {"HOME", "/home/me"}, {"DATA", "/d/"}, {"D", "d d"}});
  EXPECT_THAT(config.containers,
              ElementsAre(Pair("nemo", "/images/nemo.sqsh"), Pair("trtllm", "igitman/nemo-skills-trtllm:0.4.1")));
  EXPECT_EQ(config.job_name_prefix, "nemo_skills:");
  EXPECT_EQ(config.account + config.partition + config.cpu_partition, "acctbatchcpu");
  ASSERT_TRUE(config.ssh);
  EXPECT_EQ(config.ssh->user, "me");
  EXPECT_EQ(config.ssh->job_dir, "/lustre/me/jobs");
  EXPECT_EQ(config.ssh->identity, "/home/me/.ssh/id");
  EXPECT_EQ(config.ssh->port, 2222);
  EXPECT_EQ(config.ssh->pre_command, "module load slurm");
  EXPECT_EQ(config.mounts[1].source + config.mounts[1].destination + config.mounts[1].flags, "/d/dataro");
  EXPECT_THAT(config.variables, ElementsAre(Pair("B", "me x"), Pair("C", "a=b"), Pair("D", "d d")));
  EXPECT_EQ(TimeLimit(config, "batch"), "06:00:00");
  EXPECT_EQ(TimeLimit(config, "cpu"), "1-00:00:00");
  EXPECT_EQ(TimeLimit(config, "other"), "4:00:00");
  EXPECT_EQ(config.dependency_type, "afterok");
  EXPECT_TRUE(config.disable_gpus_per_node);
  EXPECT_THAT(config.notes, ElementsAre(HasSubstr("A of env_vars"), HasSubstr("default_timeout is 4:00:00")));
}

TEST(ClusterConfig, KeysWithoutAValueAreAbsent) {
  const ClusterConfig config =
      Parse("mounts:\ncontainers:\ntimeouts:\nenv_vars: null\nrequired_env_vars: ~\nssh_tunnel:\n");
  EXPECT_TRUE(config.mounts.empty() && config.containers.empty() && config.timeouts.empty() && !config.ssh);
  EXPECT_EQ(config.dependency_type, "afterany");
  EXPECT_EQ(TimeLimit(config, "batch"), "");
}

TEST(ClusterConfig, ErrorsNameTheFileAndTheKey) {
  struct Case {
    const char *text, *says;
    Code code;
  };
  for (const Case& row :
       {Case{"mounts: /a:/b", "key 'mounts': found a single value, expected a list", Code::kCorrupt},
        {"mounts: [/a]", "key 'mounts': the mount '/a' has 0 colons", Code::kCorrupt},
        {"mounts: [\"/a:/b:zz\"]", "neither ro nor rw", Code::kCorrupt},
        {"mounts: [\":/b\"]", "empty side", Code::kCorrupt},
        {"mounts: [\"{NONE}:/b\"]", "environment variable NONE", Code::kNotFound},
        {"mounts: [\"$NONE/x:/b\"]", "environment variable NONE", Code::kNotFound},
        {"required_env_vars: [NONE]", "environment variable NONE", Code::kNotFound},
        {"timeouts: {batch: soon}", "key 'timeouts.batch': found 'soon'", Code::kCorrupt},
        {"disable_gpus_per_node: maybe", "expected true or false", Code::kCorrupt},
        {"ssh_tunnel: {user: me, job_dir: /j}", "key 'ssh_tunnel.host'", Code::kCorrupt},
        {"ssh_tunnel: {host: -oProxyCommand=x, job_dir: /j}", "key 'ssh_tunnel.host'", Code::kCorrupt},
        {"ssh_tunnel: {host: h, job_dir: j}", "key 'ssh_tunnel.job_dir'", Code::kCorrupt},
        {"ssh_tunnel: {host: h, job_dir: /j, port: 70000}", "key 'ssh_tunnel.port'", Code::kCorrupt},
        {"env_vars: [\"a b=c\"]", "no name of a variable", Code::kCorrupt}}) {
    const Error error = ErrorOf([&] { Parse(row.text); });
    EXPECT_EQ(error.code(), row.code) << row.text;
    EXPECT_THAT(error.what(), HasSubstr(row.says));
    EXPECT_THAT(error.what(), HasSubstr("reading c.yaml: "));
  }
  EXPECT_EQ(ErrorOf([] { ParseClusterConfig("executor: docker", "c.yaml", Variables({})); }).code(), Code::kCorrupt);
}

TEST(ClusterConfig, TimesAreTakenAsWritten) {
  for (const char* text : {"10", "10:00", "12:00:00", "1-12", "1-12:30", "1-12:30:15", "-1", "INFINITE", "UNLIMITED"})
    EXPECT_EQ(SlurmTime(text), text);
  EXPECT_EQ(SlurmTime("10000:00:00:00"), "10000-00:00:00");
  for (const char* text : {"", "soon", "1:2:3:4:5", "1-2-3", "4h", "-2"})
    EXPECT_EQ(SlurmTime(text), std::nullopt) << text;
}

TEST(ClusterConfig, NoticesWhatTheOriginalReadsAsANumber) {
  EXPECT_THAT(Parse("timeouts: {batch: 12:00:00}").notes, ElementsAre(HasSubstr("timeouts.batch is 12:00:00")));
  EXPECT_TRUE(Parse("timeouts: {batch: \"12:00:00\", b: 06:00:00, c: 1-00:00:00, d: 60}").notes.empty());
}

TEST(HostPath, EndsAtASlash) {
  const ClusterConfig config = Parse("mounts: [/a:/models]");
  EXPECT_EQ(Host(config, "/models"), "/a");
  EXPECT_EQ(Host(config, "/models/"), "/a");
  EXPECT_EQ(Host(config, "/models/x/../y/"), "/a/y");
  EXPECT_EQ(Host(config, "/a/x"), "/a/x");
  const Error error = ErrorOf([&] { Host(config, "/models2/x"); });
  EXPECT_EQ(error.code(), Code::kNotFound);
  EXPECT_THAT(error.what(),
              HasSubstr("translating /models2/x: it is not under the mount /models, whose name only begins alike"));
  for (const char* path : {"models/x", "~/models", "/nemo_run/code/x", "/modelsx", "/models/../x"})
    EXPECT_EQ(ErrorOf([&] { Host(config, path); }).code(), Code::kNotFound) << path;
}

TEST(HostPath, TheDeepestMountCountsAndItIsToldWhereTheOriginalTakesAnother) {
  const ClusterConfig config = Parse("mounts: [/a:/data, /b:/data/x, /:/all]");
  std::vector<std::string> notes;
  EXPECT_EQ(HostPath(config, "/data/x/y", notes), "/b/y");
  EXPECT_THAT(notes, ElementsAre(HasSubstr("the original takes /data,")));
  EXPECT_EQ(HostPath(config, "/data/z", notes), "/a/z");
  EXPECT_EQ(HostPath(config, "/all/z", notes), "/z");
  EXPECT_EQ(HostPath(config, "/all", notes), "/");
  EXPECT_EQ(notes.size(), 1);
}

TEST(HostPath, IsThePathItselfWithoutAnExecutor) { EXPECT_EQ(Host({}, "../x"), "../x"); }

class ConfigSearchTest : public testing::Test {
 protected:
  void Write(const std::string& path, const std::string& account) {
    std::filesystem::create_directories(std::filesystem::path(folder_ / path).parent_path());
    WriteWholeFile(PosixIo(), folder_ / path, "executor: slurm\naccount: " + account);
  }
  std::string Find(ConfigSearch search, std::map<std::string, std::string> variables = {}) {
    search.install_folders = {folder_ / "install"};
    return LoadClusterConfig(PosixIo(), search, Variables(std::move(variables))).account;
  }
  void SetUp() override { std::filesystem::current_path(folder_.path()); }
  void TearDown() override { std::filesystem::current_path("/"); }

  ScratchFolder folder_;
};

TEST_F(ConfigSearchTest, TakesTheOptionThenTheVariableThenHereThenTheInstallation) {
  for (const char* name : {"option", "variable", "cluster_configs", "install/cluster_configs"})
    Write(std::string(name) + "/c.yaml", name);
  const std::string variable = folder_ / "variable";
  EXPECT_EQ(Find({"c", folder_ / "option"}, {{"NEMO_SKILLS_CONFIG_DIR", variable}}), "option");
  EXPECT_EQ(Find({"c"}, {{"NEMO_SKILLS_CONFIG_DIR", variable}, {"NEMO_SKILLS_CONFIG", "/none"}}), "variable");
  EXPECT_EQ(Find({"c"}), "cluster_configs");
  std::filesystem::remove(folder_ / "cluster_configs/c.yaml");
  EXPECT_EQ(Find({"c"}), "install/cluster_configs");
  std::filesystem::remove(folder_ / "install/cluster_configs/c.yaml");
  EXPECT_EQ(ErrorOf([&] { Find({"c"}); }).code(), Code::kNotFound);
  EXPECT_EQ(ErrorOf([&] { Find({"d", folder_ / "option"}); }).code(), Code::kNotFound);
}

TEST_F(ConfigSearchTest, WithoutAClusterTheVariableNamesTheFile) {
  Write("file.yaml", "file");
  EXPECT_EQ(Find({"", "/ignored"}, {{"NEMO_SKILLS_CONFIG", folder_ / "file.yaml"}, {"NEMO_SKILLS_CONFIG_DIR", "/x"}}),
            "file");
  EXPECT_EQ(ErrorOf([&] { Find({}, {{"NEMO_SKILLS_CONFIG", "/none.yaml"}}); }).code(), Code::kNotFound);
  EXPECT_EQ(LoadClusterConfig(PosixIo(), {}, Variables({})).executor, "none");
  EXPECT_EQ(LoadClusterConfig(PosixIo(), {}, Variables({{"NEMO_SKILLS_CONFIG", ""}})).executor, "none");
}

}  // namespace
}  // namespace reshard
