"""The jobs that `ns convert` submits: their scripts, how they follow one another, what is refused before. A stand-in for
sbatch keeps what it is called with; tests/slurm has the real one."""

import json
import os
import re
import shutil
import subprocess

import launching
import pytest
from program import BINARY, hashes

SECRET = "hf_neverEverToBeSeen"

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
