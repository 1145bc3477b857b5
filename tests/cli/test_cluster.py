"""`ns convert` with a cluster configuration: where it is looked for, what its keys mean, and the job that Slurm is given.
A stand-in for sbatch keeps what it is called with; tests/slurm has the real one."""

import json
import os
import re
import shutil
import subprocess

import launching
import pytest
import tiny_model
from launching import Site
from program import BINARY, files, hashes

SECRET = "hf_neverEverToBeSeen"


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path)
    launching.write_llama(site.data / "in")
    site.stand_in_for_sbatch()
    return site


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


# ---------------------------------------------------------------- the script

MINIMAL = {"account": "acct", "cpus-per-task": "8", "job-name": "conversion", "nodes": "1", "ntasks-per-node": "1",
           "open-mode": "append", "partition": "batch"}


def checked(site, *words, **options):
    """Submits; every script is one that bash and shellcheck accept; the directives of the first job without those that
    name this test's folders."""
    site.convert(*words, **options)
    for job in site.submitted():
        subprocess.run(["bash", "-n", job.path], check=True)
        if shutil.which("shellcheck"):
            subprocess.run(["shellcheck", job.path], check=True)
        names = [name for name in job.directives]
        assert names == sorted(names)
        assert job.words[-1] == str(job.path) and job.words[:2] == ["--requeue", "--parsable"]
        assert job.path.read_text() == job.script
    found = dict(site.submitted()[0].directives)
    assert found.pop("output").endswith("_%j_sbatch.log")
    assert mebibytes(found.pop("mem")) == 4096
    return found


def mebibytes(text):
    """As --mem counts: M unless another unit is given."""
    value, unit = re.fullmatch(r"(\d+)([KMGT]?)B?", text).groups()
    return int(value) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 ** 2}[unit]


def test_minimal_job(site):
    site.write_config()
    assert checked(site) == MINIMAL
    job, = site.submitted()
    assert job.path.name == "nemo-run_sbatch.sh"
    assert re.fullmatch(r"conversion_\d{10}", job.path.parent.name)
    assert job.path.parent.parent == site.jobs / "experiments" / "conversion"
    assert job.options == {"requeue": None, "parsable": None}
    assert "--gpus" not in job.script and "--container" not in job.script and "set -x" not in job.script


def test_the_command_of_the_job_is_the_program_on_the_same_options(site):
    site.write_config()
    site.convert("--max_memory=128MiB", "--workers", "3", "--override", "--hf_model_name=it's one")
    command = site.submitted()[0].command
    binary = next(word for word in command if word.startswith(str(site.jobs)))
    assert re.fullmatch(rf"{re.escape(str(site.jobs))}/\.bin/[0-9a-f]{{64}}/reshard", binary)
    assert open(binary, "rb").read() == BINARY.read_bytes() and os.access(binary, os.X_OK)
    given = command[command.index(binary) + 1:]
    assert given[0] == "convert" and "--hf_model_name=it's one" in given
    assert f"--input_model={site.data}/in" in given and f"--output_model={site.data}/out" in given
    assert {"--max_memory=128MiB", "--workers=3", "--override"} <= set(given)
    assert not any(re.match("--(cluster|partition|log_dir|expname|run_after|config_dir)", word) for word in given)


@pytest.mark.parametrize("keys, words, expected", [
    ({}, ["--partition=other"], {"partition": "other"}),
    ({"partition": None}, [], {"partition": None}),
    ({"cpu_partition": "cpu"}, [], {"partition": "cpu"}),
    ({"cpu_partition": "cpu"}, ["--partition=other"], {"partition": "other"}),
    ({}, ["--request_gpus"], {"gpus-per-node": "1"}),
    ({"cpu_partition": "cpu"}, ["--request_gpus"], {"partition": "batch", "gpus-per-node": "1"}),
    ({"disable_gpus_per_node": True}, ["--request_gpus"], {}),
    ({}, ["--exclusive"], {"exclusive": ""}),
    ({}, ["--exclusive", "--no_exclusive"], {}),
    ({}, ["--no-exclusive"], {}),
    ({}, ["--time_min=00:10:00"], {"time-min": "00:10:00"}),
    ({}, ["--qos=high"], {"qos": "high"}),
    ({"mail_type": "END", "mail_user": "a@example.org"}, [], {"mail-type": "END", "mail-user": "a@example.org"}),
    ({"job_name_prefix": "team:"}, ["--expname=my model"], {"job-name": "team:my model"}),
    ({"account": "two words"}, [], {"account": "two words"}),
    ({}, ["--sbatch_kwargs={\"nice\": 10, \"cpus_per_task\": 4, \"hold\": true}"],
     {"nice": "10", "cpus-per-task": "4", "hold": ""}),
    ({}, ["--sbatch_arguments={\"account\": null, \"open-mode\": false}"], {"account": None, "open-mode": None}),
    ({"timeouts": "{batch: 01:00:00}"}, [], {"time": "01:00:00", "signal": "TERM@60"}),
], ids=str)
def test_directives(site, keys, words, expected):
    """An empty text is a flag, None a line that is not there."""
    site.write_config(**keys)
    wanted = {**MINIMAL, **expected}
    assert checked(site, *words) == {name: value or None for name, value in wanted.items() if value is not None}


def test_memory_is_twice_what_the_conversion_may_have(site):
    site.write_config()
    site.convert("--max_memory=3GiB")
    assert mebibytes(site.submitted()[0].directives["mem"]) == 6144


def test_arguments_of_sbatch_that_are_no_json(site):
    site.write_config()
    for text in ("nice=10", "[1]", "3", "{\"a\": {\"b\": 1}}"):
        assert "sbatch_kwargs" in site.convert(f"--sbatch_kwargs={text}", code=2).err
    assert site.submitted() == []


def test_a_command_before_the_job(site):
    """Any that a shell takes; tests/slurm runs one."""
    site.write_config()
    checked(site, "--installation_command=echo 'one two' && true; x=\"$HOME\"")
    script = site.submitted()[0].script
    assert script.index("one two") < script.index(" convert ")


@pytest.mark.parametrize("words, place", [([], "out/conversion-logs"), (["--log_dir=/models/logs"], "logs")])
def test_logs(site, words, place):
    """Slurm before 23.02 makes no folder for them."""
    site.write_config()
    site.convert("--expname=my-model", *words)
    job, = site.submitted()
    folder = site.data / place
    assert folder.is_dir()
    assert job.directives["output"] == f"{folder}/my-model_%j_sbatch.log"
    assert f"{folder}/main_my-model_" in job.script and "_srun.log" in job.script


def test_names_of_logs_as_they_once_were(site):
    """Without the id of the job, and with the direction for the experiment."""
    site.write_config()
    site.convert("--classic_log_names")
    assert site.submitted()[0].directives["output"].endswith("/main_conversion-hf-nemo_sbatch.log")


def test_two_launches_in_one_second(site):
    site.write_config()
    for number in range(3):
        site.convert(target=f"/models/out{number}")
    assert len({job.path.parent for job in site.submitted()}) == 3


def test_the_program_is_sent_once(site):
    site.write_config()
    site.convert()
    binary, = (site.jobs / ".bin").glob("*/reshard")
    before = binary.stat()
    site.convert(target="/models/other")
    assert [binary] == list((site.jobs / ".bin").glob("*/*"))
    assert binary.stat().st_ino == before.st_ino and binary.stat().st_mtime_ns == before.st_mtime_ns


def test_without_a_folder_for_jobs_they_are_kept_with_the_records(site):
    site.write_config(job_dir=None)
    site.convert(NEMORUN_HOME=str(site.root / "runs"))
    assert site.submitted()[0].path.parent.parent == site.root / "runs" / "experiments" / "conversion"


def test_records_of_a_launch(site):
    """As NeMo-Run keeps them, so that either program finds the jobs of the other."""
    site.write_config()
    site.convert()
    home = site.home / ".nemo_run"
    folder, = (home / "experiments" / "conversion").iterdir()
    json.loads((folder / "reshard.json").read_text())
    line, = (home / ".slurm_jobs").read_text().splitlines()
    job, rest = line.split(" = ")
    assert job == "101" and str(folder) in rest
    logs = f"{site.data}/out/conversion-logs"
    assert rest.startswith(f"{logs}/*") and rest.split(",")[0].endswith("srun.log")


# ---------------------------------------------------------------- more than one job

def test_tasks_are_an_array_and_a_last_job(site):
    site.write_config()
    checked_script = site.convert("--convert_tasks=3")
    tasks, commit = site.submitted()
    assert tasks.directives["array"] == "0-2", checked_script
    assert tasks.directives["output"].endswith("/conversion_%A_%a_sbatch.log")
    assert "--convert_tasks=3" in tasks.command
    assert any(word.startswith("--convert_task=") and "SLURM_ARRAY_TASK_ID" in word for word in tasks.command)
    assert commit.path.name == "commit_sbatch.sh" and commit.path.parent == tasks.path.parent
    assert commit.options["dependency"] == "afterok:101" and commit.options["kill-on-invalid-dep"] == "yes"
    assert "array" not in commit.directives and not any("--convert_task=" in word for word in commit.command)
    assert commit.directives["job-name"] == "conversion-commit"
    for job in (tasks, commit):
        subprocess.run(["bash", "-n", job.path], check=True)
        subprocess.run(["shellcheck", job.path], check=True)


def test_tasks_in_one_allocation(site):
    site.write_config()
    site.convert("--convert_tasks=5", "--convert_tasks_per_node=2")
    tasks, commit = site.submitted()
    assert "array" not in tasks.directives and tasks.directives["nodes"] == "3"
    assert "SLURM_PROCID" in tasks.script and re.search(r"\bsrun\b[^\n]*(-n|--ntasks=) ?5", tasks.script)
    assert commit.options["dependency"] == "afterok:101"


def test_an_engine_is_a_second_job(site):
    site.write_config(containers={"nemo": "n", "trtllm": "registry#some/image:1"}, cpu_partition="cpu")
    site.ns("convert", "--cluster=slurm", "--input_model=/models/in", "--output_model=/models/out",
            "--convert_from=hf", "--convert_to=trtllm", "--num_gpus=8", "--max_batch_size", "64")
    convert, build = site.submitted()
    assert "--prepare_only" in convert.command and "gpus-per-node" not in convert.directives
    assert convert.directives["partition"] == "cpu" and "--container" not in convert.script
    assert build.path.name == "build_sbatch.sh" and build.directives["job-name"] == "conversion-build"
    assert build.directives["gpus-per-node"] == "8" and build.directives["partition"] == "batch"
    assert build.options["dependency"] == "afterok:101" and build.options["kill-on-invalid-dep"] == "yes"
    assert "--container-image=registry#some/image:1" in build.script and "--mpi" not in build.script
    assert "--no-container-mount-home" in build.script and f"{site.data}:/models" in build.script
    for job in (convert, build):
        subprocess.run(["bash", "-n", job.path], check=True)
        subprocess.run(["shellcheck", job.path], check=True)


def test_an_engine_of_a_checkpoint_in_tasks(site):
    site.write_config()
    site.ns("convert", "--cluster=slurm", "--input_model=/models/in", "--output_model=/models/out",
            "--convert_from=hf", "--convert_to=trtllm", "--num_gpus=8", "--convert_tasks=2")
    tasks, commit, build = site.submitted()
    assert commit.options["dependency"] == "afterok:101" and build.options["dependency"] == "afterok:102"
    assert "--container" not in build.script


# ---------------------------------------------------------------- before anything is submitted

def test_dry_run_touches_nothing(site):
    site.write_config()
    before = sorted(path for path in site.root.rglob("*"))
    result = site.convert("--dry_run", "--convert_tasks=2")
    assert "#SBATCH" in result.out and "--array=0-1" in result.out and "afterok" in result.out
    assert f"--input_model={site.data}/in" in result.out
    assert sorted(path for path in site.root.rglob("*")) == before


@pytest.mark.parametrize("prepare, words, code, said", [
    (lambda site: (site.data / "in" / "config.json").write_text("{"), [], 4, "config.json"),
    (lambda site: launching.write_llama(site.data / "out"), [], 3, "--override"),
    (lambda site: None, ["--max_memory=1KiB"], 2, "max_memory"),
    (lambda site: None, ["--convert_tasks=0"], 2, "convert_tasks"),
    (lambda site: None, ["--convert_tasks=2", "--convert_task=2"], 2, "convert_task"),
])
def test_what_cannot_work_is_refused_at_once(site, prepare, words, code, said):
    site.write_config()
    prepare(site)
    assert said in site.convert(*words, code=code).err
    assert site.submitted() == []


def test_a_finished_conversion_is_not_submitted_or_is_done_at_once(site):
    site.write_config()
    site.convert(source=site.data / "in", target=site.data / "out", cluster=None)
    before = hashes(site.data / "out")
    assert "already complete" in site.convert().err or site.submitted()
    assert hashes(site.data / "out") == before


@pytest.mark.parametrize("missing", ["--input_model", "--output_model", "--convert_to", "--num_gpus"])
def test_options_that_must_be_there(site, missing):
    words = ["--input_model=/models/in", "--output_model=/models/out", "--convert_to=nemo", "--num_gpus=1"]
    result = site.ns("convert", "--cluster=slurm", *[word for word in words if not word.startswith(missing)], code=2)
    assert missing in result.err or missing == "--convert_to" and "--to" in result.err
    assert site.submitted() == []


def test_sbatch_that_fails(site):
    site.write_config()
    launching.executable(site.bin / "sbatch", "#!/bin/sh\necho 'sbatch: error: no such luck' >&2\nexit 1\n")
    result = site.convert(code=7)
    assert "no such luck" in result.err


def test_a_partition_that_demands_gpus(site):
    site.write_config()
    launching.executable(site.bin / "sbatch", "#!/bin/sh\necho 'sbatch: error: Job submit/allocate failed: Invalid "
                         "generic resource (gres) specification: please request GPUs' >&2\nexit 1\n")
    assert "--request_gpus" in site.convert(code=7).err


def test_without_sbatch(site):
    site.write_config()
    (site.bin / "sbatch").unlink()
    for name in ("sh", "bash", "env", "mkdir", "cat"):
        (site.bin / name).symlink_to(shutil.which(name))
    assert "sbatch" in site.convert(code=(3, 7), PATH=str(site.bin)).err


# ---------------------------------------------------------------- secrets

def test_no_secret_reaches_a_file_a_log_or_sbatch(site):
    names = ["HF_TOKEN", "WANDB_API_KEY", "NVIDIA_API_KEY", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "NGC_API_KEY",
             "MY_PASSWORD", "DB_PASSWD", "AWS_SECRET_ACCESS_KEY", "SOME_CREDENTIAL", "JUST_A_VARIABLE"]
    site.write_config(env_vars=names[:-1], required_env_vars=["HF_TOKEN"])
    (site.cwd / "cluster_configs" / "other.yaml").write_text("")
    result = site.convert("--convert_tasks=2", **dict.fromkeys(names, SECRET))
    assert SECRET not in result.out + result.err and "HF_TOKEN" in result.err
    for job in site.submitted():
        assert SECRET not in job.env.values() and not set(names) & set(job.env), job.env
    for path in site.root.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


# ---------------------------------------------------------------- options of the original

DOCUMENTED = {
    "cluster": "slurm", "input_model": "/models/in", "output_model": "/models/out", "model_type": "llama",
    "convert_from": "hf", "convert_to": "nemo", "hf_model_name": "example/model", "dtype": "bf16", "expname": "mine",
    "num_nodes": "1", "num_gpus": "8", "partition": "other", "run_after": "mine", "config_dir": "cluster_configs",
    "log_dir": "/models/logs", "time_min": "00:01:00", "reuse_code_exp": "x", "mount_paths": "/a:/b", "qos": "high",
    "installation_command": "true", "sbatch_kwargs": "{}", "sbatch_arguments": "{}",
}
FLAGS = ("exclusive", "no_exclusive", "no-exclusive", "reuse_code", "no_reuse_code", "no-reuse_code",
         "check_mounted_paths", "no_check_mounted_paths", "skip_hf_home_check", "no_skip_hf_home_check", "dry_run")


@pytest.mark.parametrize("option", DOCUMENTED)
@pytest.mark.parametrize("dashes", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_documented_options(site, option, dashes, joined):
    site.write_config()
    name = f"--{option}".replace("_", "-") if dashes else f"--{option}"
    words = [f"{name}={DOCUMENTED[option]}"] if joined else [name, DOCUMENTED[option]]
    site.convert("--dry_run", *words)
    assert option.split("_")[0] in site.convert("--dry_run", name, code=2).err.replace("-", "_")


@pytest.mark.parametrize("option", FLAGS)
def test_documented_flags(site, option):
    site.write_config()
    site.convert("--dry_run", f"--{option}")
    site.convert("--dry_run", f"--{option}".replace("_", "-"))


@pytest.mark.parametrize("word", ["--reuse_code", "--reuse_code_exp=x", "--skip_hf_home_check"])
def test_needless_options_are_told_in_one_line(site, word):
    site.write_config()
    plain, told = site.convert("--dry_run").err.splitlines(), site.convert("--dry_run", word).err.splitlines()
    extra = [line for line in told if line not in plain]
    assert len(extra) == 1 and word.split("=")[0].strip("-") in extra[0].replace("-", "_")


def to_trtllm(site, *words, code=0):
    site.write_config()
    return site.ns("convert", "--cluster=slurm", "--input_model=/models/in", "--output_model=/models/out",
                   "--convert_from=hf", "--convert_to=trtllm", "--num_gpus=2", "--dry_run", *words, code=code)


SCRIPT_WORDS = {
    "nemo": ["--override", "--over", "--precision 16", "--prec 16", "--in-path /models/in", "--out-path /models/out",
             "--hf-model-name x"],
    "trtllm": ["--model_dir /models/in", "--meta_ckpt_dir /models/in", "--tp_size 2", "--pp_size 1", "--moe_tp_size 2",
               "--moe_ep_size 1", "--vocab_size 19", "--n_positions 64", "--n_layer 2", "--n_head 8", "--n_kv_head 2",
               "--n_embd 64", "--inter_size 96", "--multiple_of 256", "--ffn_dim_multiplier 1.0",
               "--rms_norm_eps 1e-6", "--rotary_base 10000.0", "--hidden_act silu", "--use_weight_only",
               "--disable_weight_only_quant_plugin", "--weight_only_precision int8", "--weight_only_precision int4_awq",
               "--calib_dataset x", "--smoothquant 0.5", "-sq 0.5", "--per_channel", "--per_token", "--per_group",
               "--int8_kv_cache", "--fp8_kv_cache", "--use_fp8_rowwise", "--use_fp8", "--quant_ckpt_path /models/in",
               "--load_by_shard", "--load_model_on_cpu", "--group_size 128", "--use_parallel_embedding",
               "--embedding_sharding_dim 0", "--use_embedding_sharing", "--output_dir /models/out", "--workers 1",
               "--moe_num_experts 0", "--moe_top_k 0", "--moe_renorm_mode 1", "--save_config_only",
               "--remove_duplicated_kv_heads", "--log_level info", "--smooth 0.5", "--use_weight"],
}


@pytest.mark.parametrize("to, words", [(to, words) for to, each in SCRIPT_WORDS.items() for words in each])
def test_options_of_the_scripts_are_honoured_or_refused_with_a_reason(site, to, words):
    """Never unknown; `-sq` and prefixes as argparse has them."""
    site.write_config()
    run = to_trtllm if to == "trtllm" else lambda site, *words, code: site.convert("--dry_run", *words, code=code)
    result = run(site, *words.split(), code=(0, 2, 3, 5, 6))
    assert not re.search(r"did you mean|unknown|Traceback", result.err), result


def test_options_of_the_way_back(site):
    launching.tiny_model.write_nemo(site.data / "nemo", launching.SETTINGS)
    launching.write_hub_model(site.data / "hf-home", "example/model")
    site.write_config("local", executor="local", job_dir=None, env_vars=["HF_HOME"])
    for number, words in enumerate([["--max-shard-size", "5GB"], ["--max-shard", "5GB"], ["--cpu-only"], ["--cpu"],
                                    ["--tmp-out-path", "/models/x"], ["--precision", "bf16"], ["--hf-model", "x"]]):
        site.ns("convert", "--cluster=local", "--input_model=/models/nemo", f"--output_model=/models/out{number}",
                "--convert_from=nemo", "--convert_to=hf", "--num_gpus=1", *words, "--hf_model_name=example/model",
                HF_HOME="/models/hf-home")
        assert tiny_model.read_hf(site.data / f"out{number}") == tiny_model.tensors(launching.SETTINGS)


def test_no_prefixes_of_ns_options(site):
    """Click matches them whole, so a prefix is an unknown word."""
    site.write_config()
    for word in ("--partit=x", "--exp=x", "--conv=nemo"):
        assert word.split("=")[0] in site.convert("--dry_run", word, code=2).err


def test_words_for_the_first_step(site):
    result = to_trtllm(site, "--trt_prepare_args=--use_parallel_embedding --embedding_sharding_dim '1'")
    assert "--use_parallel_embedding" in result.out and "--embedding_sharding_dim=1" in result.out
    assert "did you mean" in to_trtllm(site, "--trt_prepare_args=--use_parallel_embeding", code=2).err


def test_words_for_trtllm_build_reach_the_second_job(site):
    site.write_config()
    site.ns("convert", "--cluster=slurm", "--input_model=/models/in", "--output_model=/models/out",
            "--convert_from=hf", "--convert_to=trtllm", "--num_gpus=2", "--max_batch_size", "64", "--", "--x", "a b")
    build = site.submitted()[-1].command
    position = build.index("--")
    assert build[position + 1:] == ["--x", "a b"] or {"--x", "a b"} <= set(build)


# ---------------------------------------------------------------- documented lines on this machine

@pytest.mark.parametrize("line", [
    "--input_model /models/in --output_model /models/out --model_type llama --convert_from hf --convert_to nemo "
    "--num_gpus 1 --hf_model_name meta-llama/Meta-Llama-3.1-8B",
    "--input_model=/models/nemo --output_model=/models/out --model_type=llama --convert_from=nemo --convert_to=hf "
    "--num_gpus=1 --hf_model_name=meta-llama/Meta-Llama-3.1-8B",
    "--input_model /models/in --output_model /models/out --model_type llama --convert_from hf --convert_to trtllm "
    "--num_gpus 1 --hf_model_name meta-llama/Meta-Llama-3.1-8B"])
def test_lines_with_a_configuration_of_this_machine(site, line):
    launching.tiny_model.write_nemo(site.data / "nemo", launching.SETTINGS)
    launching.write_hub_model(site.data / "hf-home", "meta-llama/Meta-Llama-3.1-8B")
    launching.executable(site.bin / "trtllm-build", launching.TRTLLM_BUILD)
    folder = site.root / "configs"
    site.write_config("test-local", folder, executor="local", job_dir=None, account=None, partition=None,
                      env_vars=["HF_HOME"])
    site.ns("convert", "--cluster", "test-local", "--config_dir", folder, *line.split(), HF_HOME="/models/hf-home")
    assert files(site.data / "out")
    site.reshard("verify", site.data / ("out-tmp" if "trtllm" in line else "out"))


@pytest.mark.parametrize("container, expected", [("some/image:1", True), ("", False)])
def test_an_engine_on_this_machine_is_built_in_the_container(site, container, expected):
    """Where trtllm-build is not on the PATH and docker is."""
    record = site.root / "docker-calls"
    build = launching.executable(site.root / "trtllm-build", launching.TRTLLM_BUILD)
    launching.executable(site.bin / "docker", "#!/usr/bin/env python3\nimport json, os, sys\n"
                         f"open({str(record)!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
                         f"os.execv({str(build)!r}, sys.argv[sys.argv.index('trtllm-build'):])\n")
    site.write_config("local", executor="local", job_dir=None, containers={"nemo": "n", "trtllm": container})
    site.ns("convert", "--cluster=local", "--input_model=/models/in", "--output_model=/models/out", "--convert_to=trtllm",
            "--num_gpus=8", "--max_batch_size=3", code=0 if expected else 3)
    if expected:
        words = json.loads(record.read_text())
        assert words[:2] == ["run", "--rm"] and "--ipc=host" in words and "--network=host" in words
        assert "--gpus=8" in words or words[words.index("--gpus") + 1] == "8"
        assert f"{site.data}:/models" in " ".join(words)
        image = words.index("some/image:1")
        assert words[image + 1] == "trtllm-build"
        assert words[words.index("--checkpoint_dir") + 1] == f"{site.data}/out-tmp"
