"""`ns convert` with a cluster configuration: where it is looked for and what its keys mean. A stand-in for sbatch keeps
what it is called with; tests/slurm has the real one."""

import json
import os
import re
import shutil
import subprocess

import launching
import pytest
import tiny_model
from program import BINARY, files

# ---------------------------------------------------------------- where the configuration is looked for

class Search:
    """A configuration in each place, each with a folder of its own behind /models."""

    def __init__(self, site):
        self.site = site
        self.program = site.root / "prefix" / "bin" / "ns"
        self.program.parent.mkdir(parents=True)
        shutil.copy(BINARY, self.program)
        self.folders = {"flag": site.root / "flag", "env": site.root / "env", "cwd": site.cwd / "cluster_configs",
                        "prefix": site.root / "prefix" / "cluster_configs"}

    def write(self, place, name="x"):
        data = self.site.root / f"data-of-{place}"
        if not data.exists():
            launching.write_llama(data / "in")
        folder = self.folders.get(place, self.site.root / place)
        return self.site.write_config(name, folder, executor="local", mounts=[f"{data}:/models"], job_dir=None)

    def run(self, *words, code=0, **env):
        command = [self.program, "convert", *words, "--input_model=/models/in", "--output_model=/models/out",
                   "--convert_from=hf", "--convert_to=nemo", "--num_gpus=1", "--hf_model_name=example/model",
                   "--dry_run"]
        done = subprocess.run(command, env={**self.site.env, **env}, cwd=self.site.cwd, capture_output=True, text=True)
        assert done.returncode == code, done
        return done

    def place(self, *words, **env):
        """Whose configuration was taken."""
        done = self.run(*words, **env)
        found = set(re.findall(r"data-of-([a-z]+)/out", done.stdout))
        assert len(found) == 1, done
        return found.pop()


@pytest.fixture
def search(site):
    return Search(site)


def test_the_folder_of_the_command_line_comes_first(search):
    for place in ("flag", "env", "cwd", "prefix"):
        search.write(place)
    env = {"NEMO_SKILLS_CONFIG_DIR": str(search.folders["env"])}
    assert search.place("--cluster=x", f"--config_dir={search.folders['flag']}", **env) == "flag"
    assert search.place("--cluster=x", **env) == "env"
    assert search.place("--cluster=x") == "cwd"
    (search.folders["cwd"] / "x.yaml").unlink()
    assert search.place("--cluster=x") == "prefix"


def test_a_relative_folder_of_the_command_line(search):
    search.write("cwd")
    assert search.place("--cluster=x", "--config_dir=cluster_configs") == "cwd"


def test_an_empty_variable_names_no_folder(search):
    search.write("cwd")
    assert search.place("--cluster=x", NEMO_SKILLS_CONFIG_DIR="") == "cwd"


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_folder_that_is_named_is_the_only_one(search, by_variable):
    search.write("cwd")
    folder = search.site.root / "flag"
    folder.mkdir()
    words, env = ([], {"NEMO_SKILLS_CONFIG_DIR": str(folder)}) if by_variable else ([f"--config_dir={folder}"], {})
    assert f"{folder}/x.yaml" in search.run("--cluster=x", *words, code=3, **env).stderr


def test_a_cluster_that_is_nowhere(search):
    assert "never-heard-of" in search.run("--cluster=never-heard-of", code=3).stderr


def test_a_cluster_in_a_folder_below(search):
    search.folders["cwd"] = search.site.cwd / "cluster_configs" / "sub"
    search.write("cwd")
    assert search.place("--cluster=sub/x") == "cwd"


def test_the_whole_path_in_a_variable_counts_without_a_cluster(search):
    """And then no folder does."""
    file = search.write("whole")
    search.write("flag")
    env = {"NEMO_SKILLS_CONFIG": str(file), "NEMO_SKILLS_CONFIG_DIR": str(search.folders["flag"])}
    assert search.place(**env) == "whole"
    assert search.place(f"--config_dir={search.folders['flag']}", **env) == "whole"
    assert search.place("--cluster=x", **env) == "flag"
    assert "no-such.yaml" in search.run(code=3, NEMO_SKILLS_CONFIG=str(search.site.root / "no-such.yaml")).stderr


@pytest.mark.parametrize("env", [{}, {"NEMO_SKILLS_CONFIG": ""}])
def test_without_a_configuration_paths_are_those_of_this_machine(site, env):
    site.convert(source=site.data / "in", target=site.data / "out", cluster=None, **env)
    assert files(site.data / "out")


# ---------------------------------------------------------------- mounts

def local(site, *words, mounts, code=0, source="/models/in", target="/models/out", **env):
    site.write_config("local", executor="local", mounts=mounts, job_dir=None, account=None, partition=None)
    return site.convert(*words, source=source, target=target, cluster="local", code=code, **env)


def test_mounted_names_are_those_of_folders_here(site):
    local(site, mounts=[f"{site.data}:/models"])
    assert tiny_model.read_nemo(site.data / "out")


@pytest.mark.parametrize("mount", ["{data}:/models/", "{data}/:/models", "{data}:/models:ro", "{data}:/models:rw",
                                   "{{DATA}}:/models", "{data}:{{NAME}}", "$DATA:/models", "${{ROOT}}/data:$NAME"])
def test_spellings_of_a_mount(site, mount):
    local(site, mounts=[mount.format(data=site.data)], DATA=str(site.data), NAME="/models", ROOT=str(site.root))
    assert files(site.data / "out")


@pytest.mark.parametrize("path", ["/models2/in", "/other/in", "in", "~/in", "/nemo_run/code/in"])
def test_a_path_under_no_mount(site, path):
    """A destination ends at a slash: the original took /models2 for /models and went on with the wrong folder."""
    launching.write_llama(site.root / "data2" / "in")
    result = local(site, mounts=[f"{site.data}:/models"], source=path, code=3)
    assert path in result.err and "mount" in result.err


def test_an_output_or_logs_under_no_mount(site):
    mounts = [f"{site.data}:/models"]
    assert "/other/out" in local(site, mounts=mounts, target="/other/out", code=3).err
    assert "/other/logs" in local(site, "--log_dir=/other/logs", mounts=mounts, code=3).err


@pytest.mark.parametrize("swap", [False, True])
def test_the_deepest_destination_counts(site, swap):
    """As in the container; the original took the first of the file."""
    shutil.move(site.data / "in", site.root / "deep" / "in")
    mounts = [f"{site.data}:/models", f"{site.root}/deep:/models/deep"]
    local(site, mounts=mounts[::-1] if swap else mounts, source="/models/deep/in")
    assert files(site.data / "out")


def test_a_path_of_this_machine_is_taken_as_it_is(site):
    local(site, mounts=[f"{site.data}:/models"], source=site.data / "in", target=site.data / "out")
    assert files(site.data / "out")


def test_mounts_of_the_command_line_are_added(site):
    (site.root / "more").mkdir()
    local(site, f"--mount_paths={site.root}/more:/more,{site.root}:/root", mounts=[f"{site.data}:/models"],
          target="/more/out")
    assert files(site.root / "more" / "out")


@pytest.mark.parametrize("mounts, code, said", [
    (None, 3, "/models/in"), (["{data}"], 4, "mounts"), ([":/models"], 4, "mounts"), (["{data}:"], 4, "mounts"),
    (["{{MISSING}}:/models"], 3, "MISSING"), (["$MISSING/x:/models"], 3, "MISSING"),
    (["{data}:/models:sometimes"], 4, "sometimes"), ("{data}:/models", 4, "mounts"), ([3], 4, "mounts"),
], ids=str)
def test_mounts_that_are_none(site, mounts, code, said):
    filled = [m.format(data=site.data) if isinstance(m, str) else m for m in mounts] if isinstance(mounts, list) \
        else mounts and mounts.format(data=site.data)
    file = site.write_config("local", executor="local", job_dir=None)
    text = re.sub("mounts:.*", f"mounts: {'' if filled is None else json.dumps(filled)}", file.read_text())
    file.write_text(text)
    result = site.convert(cluster="local", code=code)
    assert said in result.err and (code == 3 or f"cluster_configs/{file.name}" in result.err), result


# ---------------------------------------------------------------- keys

def test_a_variable_that_must_be_there(site):
    site.write_config(required_env_vars=["MUST_BE"])
    assert "MUST_BE" in site.convert(code=3).err
    site.convert(MUST_BE="here")
    assert re.search(r"^export MUST_BE=", site.submitted()[-1].script, re.M)


@pytest.mark.parametrize("value", ["plain", "two words", "it's \"quoted\"", "$HOME;`date`", "a=b", "tab\there", "ü", ""])
def test_values_of_variables_reach_the_job_as_they_are(site, value):
    site.write_config(env_vars=["GIVEN", "NOT_GIVEN"])
    site.convert(GIVEN=value)
    exports = "\n".join(re.findall(r"^export GIVEN=.*$", site.submitted()[-1].script, re.M))
    done = subprocess.run(["bash", "-c", exports + "\nprintf %s \"$GIVEN\""], capture_output=True, text=True, env={})
    assert exports and done.stdout == value
    assert "NOT_GIVEN" not in site.submitted()[-1].script


def test_variables_with_values_of_their_own(site):
    site.write_config(env_vars=["lower_case=as it is", "EMPTY="], required_env_vars=["SET_HERE=1"])
    site.convert()
    exports = "\n".join(re.findall(r"^export .*$", site.submitted()[-1].script, re.M))
    probe = exports + "\nprintf '%s,' \"$lower_case\" \"$EMPTY\" \"$SET_HERE\""
    assert subprocess.run(["bash", "-c", probe], capture_output=True, text=True, env={}).stdout == "as it is,,1,"


def test_unknown_executor(site):
    file = site.write_config(executor="kubernetes")
    result = site.convert(code=(4, 5))
    assert "kubernetes" in result.err and f"cluster_configs/{file.name}" in result.err


@pytest.mark.parametrize("text, said", [("mounts: {a: b", ""), ("executor: [slurm]", "executor"), ("- a", ""),
                                        ("ssh_tunnel: here", "ssh_tunnel"), ("containers: 3", "containers"),
                                        ("disable_gpus_per_node: maybe", "disable_gpus_per_node")])
def test_a_configuration_that_is_none(site, text, said):
    file = site.write_config()
    key = text.partition(":")[0]
    kept = [line for line in file.read_text().splitlines() if not line.startswith(f"{key}:")]
    file.write_text("\n".join([*kept, text]) + "\n" if ":" in text else text + "\n")
    result = site.convert(code=4)
    assert f"cluster_configs/{file.name}" in result.err and said in result.err


EXAMPLE_SLURM = """\
# Copyright (c) 2024, NVIDIA CORPORATION.  All rights reserved.
executor: slurm

containers:
  trtllm: igitman/nemo-skills-trtllm:0.4.1
  vllm: igitman/nemo-skills-vllm:0.4.1
  nemo: igitman/nemo-skills-nemo:0.4.1
  sandbox: igitman/nemo-skills-sandbox:0.4.1
  nemo-skills: igitman/nemo-skills:0.4.1

job_name_prefix: "nemo_skills:"

# define your ssh tunnel parameters
# ssh_tunnel:
#   host: <your hostname>
ssh_tunnel:
  host: localhost
  user: null
  job_dir: {jobs}
  identity:

account: acct
partition: batch
mounts:
  - {data}:/models  # as in the container

# timeouts also tell SFT jobs when to stop
timeouts:
  batch: 06:00:00
  interactive: 02:00:00
env_vars:
required_env_vars:
  # - HF_TOKEN
"""

# Runs what it is told on this machine, and takes from a connection only what ssh would.
SSH = """#!/usr/bin/env python3
import json, os, pathlib, sys
words, options, host = sys.argv[1:], [], None
while words and words[0].startswith("-"):
    word = words.pop(0)
    options.append(word)
    if len(word) == 2 and word[1] in "BbcDEeFIiJLlmOopQRSWw" : options.append(words.pop(0))
host, *command = words
with open({record!r}, "a") as file:
    file.write(json.dumps([options, host, command]) + "\\n")
if "-O" in options: sys.exit(0)
os.execvp("sh", ["sh", "-c", " ".join(command)])
"""


def test_the_example_of_a_slurm_configuration(site):
    record = site.root / "ssh-calls"
    launching.executable(site.bin / "ssh", SSH.format(record=str(record)))
    config = site.cwd / "cluster_configs" / "slurm.yaml"
    config.write_text(EXAMPLE_SLURM.format(jobs=site.jobs, data=site.data))
    site.convert()
    options, host, _ = json.loads(record.read_text().splitlines()[0])
    assert "localhost" in host and "-i" not in options
    job, = site.submitted()
    assert job.path.parent.parent == site.jobs / "conversion"
    assert job.directives["job-name"] == "nemo_skills:conversion"
    assert len(record.read_text().splitlines()) <= 6, "connections"


def test_the_example_of_a_local_configuration(site):
    names = "\n".join(f"  {name}: igitman/nemo-skills-{name}:0.4.1" for name in ("trtllm", "vllm", "nemo", "sandbox"))
    (site.cwd / "cluster_configs" / "local.yaml").write_text(
        f"executor: local\n\ncontainers:\n{names}\n\n# add required mounts for models/data here\nmounts:\n"
        f"  - {site.data}:/models\n#  - <path to data>:/data\n")
    site.convert(cluster="local")
    assert files(site.data / "out")


# ---------------------------------------------------------------- times

def seconds(text):
    """M, M:S, H:M:S, D-H, D-H:M and D-H:M:S, as sbatch reads them."""
    days, dash, rest = text.rpartition("-")
    fields = [int(field) for field in rest.split(":")]
    if dash:
        hours, minutes, secs = (fields + [0, 0])[:3]
    elif len(fields) == 1:
        hours, minutes, secs = 0, fields[0], 0
    else:
        hours, minutes, secs = ([0] + fields)[-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs


HOUR = 3600


@pytest.mark.parametrize("text, expected", [
    ("06:00:00", 6 * HOUR), ("12:00:00", 12 * HOUR), ("4:00:00", 4 * HOUR), ("10:00", 600), ("90", 5400),
    ("1-00:00:00", 24 * HOUR), ("1-12", 36 * HOUR), ("2-01:30", 49.5 * HOUR), ("'04:00:00'", 4 * HOUR),
    ("10000:00:00:00", 10000 * 24 * HOUR), ("0:1:30:00", 1.5 * HOUR)])
def test_times_mean_what_they_look_like(site, text, expected):
    """A YAML 1.1 reader makes 43200 of 12:00:00, thirty days to sbatch."""
    site.write_config(timeouts="{batch: %s}" % text)
    site.convert()
    time = site.submitted()[-1].directives["time"]
    assert time.count(":") < 3 and seconds(time) == expected


def test_a_time_that_the_original_took_for_days_is_told(site):
    site.write_config(timeouts="{batch: 12:00:00}")
    assert re.search(r"12:00:00.*original", site.convert().err)


@pytest.mark.parametrize("text", ["INFINITE", "UNLIMITED", "-1"])
def test_no_limit_at_all(site, text):
    site.write_config(timeouts="{batch: %s}" % text)
    site.convert()
    assert site.submitted()[-1].directives["time"].upper() in ("INFINITE", "UNLIMITED", "-1")


@pytest.mark.parametrize("keys, expected", [
    ({}, None), ({"timeouts": ""}, None), ({"timeouts": "{other: 01:00:00}"}, None),
    ({"timeouts": "{other: 01:00:00}", "default_timeout": "02:00:00"}, 2 * HOUR),
    ({"default_timeout": "02:00:00"}, 2 * HOUR), ({"timeouts": "{batch: 03:00:00}", "default_timeout": "1-0"}, 3 * HOUR)])
def test_a_partition_without_a_time(site, keys, expected):
    site.write_config(**keys)
    site.convert()
    directives = site.submitted()[-1].directives
    assert (seconds(directives["time"]) if "time" in directives else None) == expected


def test_the_time_is_that_of_the_partition_of_the_command_line(site):
    site.write_config(timeouts="{batch: 03:00:00, other: 01:00:00}")
    site.convert("--partition=other")
    directives = site.submitted()[-1].directives
    assert directives["partition"] == "other" and seconds(directives["time"]) == HOUR


@pytest.mark.parametrize("text", ["soon", "1:2:3:4:5", "'1h'", "[1]", "1-2-3", "-5", "''"])
def test_a_time_that_is_none(site, text):
    file = site.write_config(timeouts="{batch: %s}" % text)
    result = site.convert(code=4)
    assert f"cluster_configs/{file.name}" in result.err and "batch" in result.err
    assert site.submitted() == []
