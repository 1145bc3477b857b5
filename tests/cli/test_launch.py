"""Launching: what is handed to Slurm, to ssh and to Docker, all of which are stand-ins that record how they are called."""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from black_box import assert_refused, run
from program import BINARY, files

RECORDER = """#!/usr/bin/env python3
import json, os, pathlib, shutil, subprocess, sys
folder, name = pathlib.Path(os.path.realpath(__file__)).parent.parent, pathlib.Path(__file__).name
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([name, sys.argv[1:], dict(os.environ), os.getcwd()]) + "\\n")
answer = folder / ("answer-" + name)
if name == "ssh":
    sys.exit(subprocess.run(["sh", "-c", sys.argv[-1]]).returncode)
if name == "sbatch" and not answer.exists():
    print(100 + sum('["sbatch"' in line for line in (folder / "calls").open()))
elif answer.exists():
    sys.exit(subprocess.run(["sh", str(answer), *sys.argv[1:]]).returncode)
"""

SLURM = """executor: slurm
account: acct
partition: batch
job_name_prefix: "nemo_skills:"
containers: {trtllm: "nvcr.io#nvidia/trt:1", nemo: img}
mounts: ["%s/models:/hf_models", "%s/out:/trt_models:rw"]
timeouts: {batch: 04:00:00}
"""


class Cluster:
    """Stand-ins for Slurm, ssh and docker, folders behind mounted names, and configurations."""

    def __init__(self, folder, source):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("sbatch", "squeue", "scontrol", "sacct", "scancel", "ssh"):
            self.stand_in(name)
        (folder / "models").mkdir()
        shutil.copytree(source, folder / "models" / "m")
        (folder / "out").mkdir()
        self.write("slurm", SLURM % (folder, folder) + f"job_dir: {folder}/jobs\n")
        self.env = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "NEMORUN_HOME": str(folder / "home"),
                    "HF_TOKEN": "hunter2", "SLURM_CONF": "/etc/nothing", "NEMO_SKILLS_CONFIG": "",
                    "NEMO_SKILLS_CONFIG_DIR": str(folder / "configs")}

    def stand_in(self, name):
        path = self.folder / "bin" / name
        path.write_text(RECORDER)
        path.chmod(0o755)

    def answer(self, name, script):
        (self.folder / f"answer-{name}").write_text(script)

    def write(self, name, text):
        (self.folder / "configs").mkdir(exist_ok=True)
        (self.folder / "configs" / f"{name}.yaml").write_text(text)

    def run(self, *words, **options):
        return run(*words, env=self.env, **options)

    def convert(self, *words, cluster="slurm", to="nemo", code=0):
        result = self.run("convert", f"--cluster={cluster}", "--input_model=/hf_models/m",
                          "--output_model=/trt_models/x", f"--convert_to={to}", "--convert_from=hf", "--num_gpus=2", *words)
        assert result.code == code, result
        return result

    def calls(self, name):
        path = self.folder / "calls"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [call for call in lines if call[0] == name]

    def scripts(self):
        return [pathlib.Path(arguments[-1]).read_text() for _, arguments, _, _ in self.calls("sbatch")]

    def directives(self, index=0):
        return re.findall(r"^#SBATCH --(\S.*)$", self.scripts()[index], re.MULTILINE)

    def command(self, index=0):
        """The words of the program, from its path on."""
        line = next(line for line in self.scripts()[index].splitlines() if " convert " in line)
        words = shlex.split(line)
        return words[[word.endswith("/reshard") for word in words].index(True):]


@pytest.fixture
def cluster(tmp_path, source):
    return Cluster(tmp_path, source)


def test_a_conversion_is_one_job(cluster, tmp_path):
    result = cluster.convert("--hf_model_name=meta-llama/x", "--dtype=fp16", "--workers=3", "--quiet", "--json")
    (_, arguments, _, folder), = cluster.calls("sbatch")
    assert arguments[:-1] == ["--requeue", "--parsable"]
    script = pathlib.Path(arguments[-1])
    assert re.fullmatch(rf"{tmp_path}/jobs/experiments/conversion/conversion_\d+/nemo-run_sbatch.sh", str(script))
    assert folder == str(script.parent)
    logs = tmp_path / "out" / "x" / "conversion-logs"
    assert cluster.directives() == [
        "account=acct", "cpus-per-task=8", "job-name=nemo_skills:conversion", "mem=4096M", "nodes=1", "ntasks-per-node=1",
        "open-mode=append", f"output={logs}/conversion_%j_sbatch.log", "partition=batch", "signal=TERM@60", "time=04:00:00"]
    program, *words = cluster.command()
    assert words == ["convert", f"--input_model={tmp_path}/models/m", f"--output_model={tmp_path}/out/x",
                     "--convert_to=nemo", "--convert_from=hf", "--num_gpus=2", "--hf_model_name=meta-llama/x",
                     "--dtype=fp16", "--workers=3", "--quiet"]
    assert pathlib.Path(program).read_bytes() == pathlib.Path(BINARY).read_bytes()
    assert re.fullmatch(rf"{tmp_path}/jobs/\.bin/[0-9a-f]{{64}}/reshard", program)
    assert logs.is_dir()
    status = json.loads(result.out)
    assert status["state"] == "PENDING" and status["jobs"][0]["log"] == f"{logs}/main_conversion_101_srun.log"


def test_scripts_are_good_shell(cluster, tmp_path):
    cluster.convert("--convert_tasks=3", "--installation_command=echo it's", to="trtllm")
    cluster.convert("--convert_tasks=3", "--convert_tasks_per_node=2", "--override")
    for _, arguments, _, _ in cluster.calls("sbatch"):
        subprocess.run(["bash", "-n", arguments[-1]], check=True)
        if shutil.which("shellcheck"):
            checked = subprocess.run(["shellcheck", "-s", "bash", arguments[-1]], capture_output=True, text=True)
            assert checked.returncode == 0, checked.stdout


def test_what_sbatch_and_files_see_of_the_environment(cluster, tmp_path):
    cluster.write("slurm", SLURM % (tmp_path, tmp_path) +
                  "env_vars: [HF_TOKEN, 'A=it''s $B', MY_API_KEY=hunter2, HF_HOME=/hf_models/hub]\n")
    cluster.env["B"] = "x y"
    result = cluster.convert()
    _, _, environment, _ = cluster.calls("sbatch")[0]
    assert environment["SLURM_CONF"] == "/etc/nothing" and "HF_TOKEN" not in environment and "B" not in environment
    exports = [line for line in cluster.scripts()[0].splitlines() if line.startswith("export")]
    assert [shlex.split(line)[1] for line in exports] == ["A=it's x y", f"HF_HOME={tmp_path}/models/hub"]
    (tmp_path / "calls").unlink()
    (tmp_path / "configs" / "slurm.yaml").unlink()
    everything = subprocess.run(["grep", "-rl", "hunter2", str(tmp_path)], capture_output=True, text=True).stdout
    assert not everything and "hunter2" not in result.err + result.out
    assert "HF_TOKEN looks like a secret" in result.err


def test_many_tasks_are_an_array_and_a_commit(cluster, tmp_path):
    cluster.convert("--convert_tasks=3", "--expname=many")
    (_, first, _, _), (_, second, _, _) = cluster.calls("sbatch")
    assert second[2:-1] == ["--dependency=afterok:101", "--kill-on-invalid-dep=yes"]
    assert second[-1].endswith("/commit_sbatch.sh")
    assert "array=0-2" in cluster.directives()
    assert f"output={tmp_path}/out/x/conversion-logs/many_%A_%a_sbatch.log" in cluster.directives()
    assert cluster.command(0)[1:4] == ["convert", "--convert_tasks=3", "--convert_task=$SLURM_ARRAY_TASK_ID"]
    assert not any("convert_task" in word for word in cluster.command(1))
    assert "job-name=nemo_skills:many-commit" in cluster.directives(1)


def test_many_tasks_in_one_allocation(cluster):
    cluster.convert("--convert_tasks=5", "--convert_tasks_per_node=2")
    assert {"nodes=3", "ntasks=5", "ntasks-per-node=2", "mem=8192M", "cpus-per-task=8"} <= set(cluster.directives())
    assert not any(line.startswith("array") for line in cluster.directives())


def test_an_engine_is_a_job_of_its_own(cluster, tmp_path):
    cluster.convert("--max_batch_size", "64", "--no-trt_reuse_tmp_engine", "--", "--later", "a b", to="trtllm")
    (_, _, _, _), (_, second, _, _) = cluster.calls("sbatch")
    assert second[2:-1] == ["--dependency=afterok:101", "--kill-on-invalid-dep=yes"]
    conversion, build = cluster.command(0), cluster.command(1)
    assert conversion[-2:] == ["--no_trt_reuse_tmp_engine", "--prepare_only"]
    assert "gpus-per-node=2" in cluster.directives(1) and not any("gpus" in line for line in cluster.directives(0))
    assert not any(line.startswith(("mem=", "cpus-per-task")) for line in cluster.directives(1))
    split = build.index("--")
    assert build[split + 1:split + 6] == ["--max_batch_size", "64", "--later", "a b", ">>" + f"{tmp_path}/out/x/conversion-logs/main_conversion-build_$SLURM_JOB_ID_srun.log"]
    assert "--trt_reuse_tmp_engine" in build and "--prepare_only" not in build
    container, = [word for word in build if word.startswith("--trtllm_build=")]
    words = json.loads(container.split("=", 1)[1])
    assert words[0] == "srun" and words[-1] == "trtllm-build" and "--no-container-mount-home" in words
    assert "--container-image=nvcr.io#nvidia/trt:1" in words
    assert f"--container-mounts={tmp_path}/models:/hf_models,{tmp_path}/out:/trt_models:rw,{tmp_path}/out:{tmp_path}/out" in words
    assert not any(word.startswith("--mpi") for word in words)


def test_options_of_sbatch(cluster, tmp_path):
    text = SLURM % (tmp_path, tmp_path) + "cpu_partition: cpu\nmail_type: END\nmail_user: me\ndefault_timeout: 1:0:0:0\n"
    cluster.write("slurm", text)
    cluster.convert("--qos=high", "--time_min=01:00:00", "--exclusive", "--max_memory=8GiB", "--classic_log_names",
                    '--sbatch_kwargs={"cpus_per_task": 4, "comment": "a b", "requeue": false, "hold": true, "nodes": null}')
    assert cluster.directives() == [
        "account=acct", "comment='a b'", "cpus-per-task=4", "exclusive", "hold", "job-name=nemo_skills:conversion-hf-nemo",
        "mail-type=END", "mail-user=me", "mem=16384M", "ntasks-per-node=1", "open-mode=append",
        f"output={tmp_path}/out/x/conversion-logs/main_conversion-hf-nemo_sbatch.log", "partition=cpu", "qos=high",
        "signal=TERM@60", "time=1-0:0:0", "time-min=01:00:00"]
    cluster.convert("--partition=other", "--request_gpus", "--log_dir=/trt_models/logs")
    assert {"partition=other", "gpus-per-node=2"} <= set(cluster.directives(1))
    assert f"output={tmp_path}/out/logs/conversion_%j_sbatch.log" in cluster.directives(1)


def test_without_a_time_none_is_asked_for(cluster, tmp_path):
    cluster.write("slurm", (SLURM % (tmp_path, tmp_path)).split("timeouts")[0] + "disable_gpus_per_node: true\n")
    cluster.convert("--request_gpus")
    assert not any(line.startswith(("time", "signal", "gpus")) for line in cluster.directives())


def test_a_dry_run_touches_nothing(cluster, tmp_path):
    before = files(tmp_path)
    result = cluster.convert("--dry_run", "--convert_tasks=2", to="trtllm")
    assert files(tmp_path) == before and not cluster.calls("sbatch")
    assert result.out.count("#!/bin/bash") == 3
    assert "# sbatch --requeue --parsable '--dependency=afterok:<convert>' --kill-on-invalid-dep=yes" in result.out


def test_jobs_wait_for_those_of_other_experiments(cluster, tmp_path):
    cluster.convert("--expname=first", "--convert_tasks=2")
    lines = (tmp_path / "home" / ".slurm_jobs").read_text()
    with (tmp_path / "home" / ".slurm_jobs").open("a") as file:
        file.write(f"77 = /l/*77_srun.log,{tmp_path}/home/experiments/train/train_17/nemo-run,SSHTunnel,{{}}\n")
    assert f"101 = {tmp_path}/out/x/conversion-logs/*101_srun.log,{tmp_path}/home/experiments/first/first_" in lines
    cluster.answer("squeue", "printf 'squeue|101|N/A|COMPLETED\\nsqueue|102|N/A|PENDING\\nsqueue|77|N/A|RUNNING\\n'")
    result = cluster.convert("--run_after=first", "--run_after", "train_17", "--run_after=none")
    assert cluster.calls("sbatch")[-1][1][2:-1] == ["--dependency=afterany:102:77"]
    assert "--run_after=none: there is no such experiment" in result.err
    with (tmp_path / "configs" / "slurm.yaml").open("a") as file:
        file.write("dependency_type: afterok\n")
    cluster.convert("--run_after=first")
    assert cluster.calls("sbatch")[-1][1][2:-1] == ["--dependency=afterok:102", "--kill-on-invalid-dep=yes"]


def test_what_cannot_work_is_not_submitted(cluster, tmp_path):
    (tmp_path / "out" / "x").mkdir()
    (tmp_path / "out" / "x" / "something").write_text("")
    assert_refused(cluster.convert(code=3), (3,), "something", "--override")
    assert not cluster.calls("sbatch")
    cluster.convert("--run_after=train")  # by then it may be another
    (tmp_path / "models" / "m" / "config.json").write_text("{}")
    assert cluster.convert("--override", code=4).code == 4


def test_a_refusal_of_sbatch_is_told(cluster):
    cluster.answer("sbatch", "echo 'sbatch: error: Batch job submission failed: Requires at least one GPU' >&2; exit 1")
    assert_refused(cluster.convert(code=7), (7,), "submitting .*nemo-run_sbatch.sh: .*at least one GPU", "--request_gpus")


def test_if_a_later_job_is_refused_the_first_is_cancelled(cluster, tmp_path):
    cluster.answer("sbatch", "case \"$*\" in *dependency*) exit 1 ;; *) echo '5;cluster' ;; esac")
    cluster.convert("--convert_tasks=2", code=7)
    assert cluster.calls("scancel")[0][1] == ["5"]
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("reshard.json"))


@pytest.mark.parametrize("word, said", [
    ("--input_model=/other/m", "translating /other/m: it is under no mount of .*/slurm.yaml"),
    ("--output_model=/trt_models2/x", "only begins alike"), ("--log_dir=logs", "translating logs"),
    ("--cluster=none-such", "none-such.yaml")])
def test_paths_must_be_mounted(cluster, word, said):
    assert_refused(cluster.convert(word, code=3), (3,), said)
    assert not cluster.calls("sbatch")


def test_paths_that_are_not_mounted_may_be_taken_as_they_are(cluster, tmp_path):
    cluster.convert(f"--input_model={tmp_path}/models/m", "--output_model=/scratch/none/x", "--check_mounted_paths",
                    f"--log_dir={tmp_path}/logs", "--run_after=x")
    assert f"--output_model=/scratch/none/x" in cluster.command()
    cluster.convert(f"--mount_paths={tmp_path}/new:/new", "--output_model=/new/x")
    assert f"--output_model={tmp_path}/new/x" in cluster.command(1) and (tmp_path / "new").is_dir()
    with (tmp_path / "configs" / "slurm.yaml").open("a") as file:
        file.write("")
    text = (tmp_path / "configs" / "slurm.yaml").read_text().replace("mounts: [", f'mounts: ["{tmp_path}/gone:/gone", ')
    cluster.write("slurm", text)
    assert_refused(cluster.convert("--check_mounted_paths", code=3), (3,), "checking .*/gone: it is the source of a mount")


def test_through_ssh(cluster, tmp_path):
    text = SLURM % (tmp_path, tmp_path)
    cluster.write("slurm", text + "ssh_tunnel: {host: login1, user: me, identity: /id, port: 2222, "
                                  f"job_dir: {tmp_path}/remote, pre_command: 'export MODULEPATH=x'}}\n")
    cluster.convert()
    calls = cluster.calls("ssh")
    assert len(calls) == 4  # folders, the program, scripts, sbatch
    for _, arguments, _, _ in calls:
        assert arguments[:7] == ["-T", "-i", "/id", "-p", "2222", "-l", "me"]
        assert "ControlMaster=auto" in arguments and arguments[-2] == "login1"
        assert arguments[-1].startswith("export MODULEPATH=x && ")
    script = cluster.calls("sbatch")[0][1][-1]
    assert re.fullmatch(rf"{tmp_path}/remote/conversion/conversion_\d+/nemo-run_sbatch.sh", script)
    assert cluster.command()[0].startswith(f"{tmp_path}/remote/.bin/")
    assert pathlib.Path(cluster.command()[0]).read_bytes() == pathlib.Path(BINARY).read_bytes()
    assert cluster.calls("sbatch")[0][2]["MODULEPATH"] == "x"
    cluster.convert()
    assert len(cluster.calls("ssh")) == 7  # the program is there
    assert '"host":"login1"' in (tmp_path / "home" / ".slurm_jobs").read_text()


def test_a_connection_that_fails(cluster, tmp_path):
    cluster.write("slurm", SLURM % (tmp_path, tmp_path) + f"ssh_tunnel: {{host: login1, job_dir: {tmp_path}/remote}}\n")
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\necho 'ssh: no route' >&2\nexit 255\n")
    assert_refused(cluster.convert(code=7), (7,), "login1: ssh failed: ssh: no route")


STATES = """squeue|101|0|RUNNING
squeue|101|1|COMPLETED
squeue|102|N/A|PENDING
"""


def status(cluster, *words):
    result = cluster.run("status", *words, "--json")
    assert result.code == 0, result
    return json.loads(result.out)["experiments"]


def test_no_experiments(cluster):
    result = cluster.run("status")
    assert (result.code, result.out) == (0, "") and re.search(r"^reshard: no experiments in /.*/experiments$", result.err)
    assert status(cluster) == []


def test_the_states_of_jobs(cluster, tmp_path):
    cluster.convert("--convert_tasks=2", "--expname=a")
    cluster.answer("squeue", f"printf '%s' '{STATES}'")
    staging = tmp_path / "out" / "x" / ".reshard" / "plan"
    staging.mkdir(parents=True)
    for k, done in ((0, 100), (1, 300)):
        (staging / f"progress.{k}-of-2").write_text(
            json.dumps({"done": done, "total": 400, "spared": 50, "seconds": 5, "time": 1000}))
    (staging / "progress.0-of-1").write_text(json.dumps({"done": 1, "total": 9, "spared": 0, "seconds": 5, "time": 10}))
    experiment, = status(cluster)
    assert (experiment["title"], experiment["state"], experiment["cluster"]) == ("a", "RUNNING", "slurm")
    convert, commit = experiment["jobs"]
    assert (convert["state"], commit["state"]) == ("RUNNING", "PENDING")
    assert convert["tasks"] == [{"index": 0, "state": "RUNNING"}, {"index": 1, "state": "COMPLETED"}]
    assert experiment["progress"] == {"done": 400, "total": 800, "rate": 60.0, "eta": pytest.approx(400 / 60)}
    text = cluster.run("status", "a").out
    assert "tasks: 1 COMPLETED, 1 RUNNING" in text and "400 B of 800 B, 60 B/s, 0:06 left" in text
    for name in (experiment["id"], "102", str(tmp_path / "out" / "x"), str(tmp_path / "out" / "x") + "/"):
        assert [each["id"] for each in status(cluster, name)] == [experiment["id"]]


def job_folder(cluster):
    return pathlib.Path(cluster.calls("sbatch")[-1][1][-1]).parent


@pytest.mark.parametrize("last, scontrol, sacct, state, code", [
    ("EXITED 0 17", "", "", "COMPLETED", 0), ("EXITED 6 17", "", "", "FAILED", 6), ("RUNNING host 17", "", "", "FAILED", None),
    ("STOPPED 143 17", "", "", "CANCELLED", 143), ("", "", "", "CANCELLED", None),
    ("RUNNING host 17", "JobId=101 JobState=TIMEOUT ExitCode=0:15", "", "FAILED", 143),
    ("STOPPED 143 17", "", "101|CANCELLED by 0|0:15\\n101.batch|FAILED|15:0", "CANCELLED", 143),
    ("EXITED 75 17", "", "101|NODE_FAIL|1:0", "FAILED", 1)])
def test_what_slurm_has_forgotten(cluster, last, scontrol, sacct, state, code):
    """First what it still knows elsewhere, then what the job has written itself."""
    cluster.convert()
    if last:
        (job_folder(cluster) / "convert.state").write_text("RUNNING host 16\n" + last + "\n")
    cluster.answer("scontrol", f"echo '{scontrol}'")
    cluster.answer("sacct", f"printf '{sacct}\\n'")
    job, = status(cluster)[0]["jobs"]
    assert (job["state"], job["exit_code"]) == (state, code)
    cluster.answer("squeue", "exit 1")
    cluster.answer("scontrol", "exit 1")
    assert status(cluster)[0]["state"] == state  # what is final is kept


def test_where_slurm_does_not_answer_the_own_record_counts(cluster):
    cluster.convert()
    cluster.answer("squeue", "exit 1")
    assert status(cluster)[0]["state"] == "PENDING"
    (job_folder(cluster) / "convert.state").write_text("RUNNING host 16\n")
    assert status(cluster)[0]["state"] == "RUNNING"
    assert "Slurm does not answer" in cluster.run("status").err


def test_logs(cluster, tmp_path):
    cluster.convert()
    logs = tmp_path / "out" / "x" / "conversion-logs"
    (logs / "main_conversion_101_srun.log").write_text("of the program\n")
    (logs / "conversion_101_sbatch.log").write_text("of the job\n")
    (logs / "conversion_99_sbatch.log").write_text("of another\n")
    expected = (f"==> {logs}/main_conversion_101_srun.log <==\nof the program\n"
                f"==> {logs}/conversion_101_sbatch.log <==\nof the job\n")
    assert cluster.run("logs", "conversion").out == expected
    assert cluster.run("logs", "101", "--follow").out == expected  # it has ended


def test_cancel(cluster):
    cluster.convert("--convert_tasks=2")
    cluster.answer("squeue", "printf 'squeue|101|0|COMPLETED\\nsqueue|101|1|COMPLETED\\nsqueue|102|N/A|RUNNING\\n'")
    assert cluster.run("cancel", "conversion").code == 0
    assert cluster.calls("scancel")[0][1] == ["102"]


def test_commit_submits_the_last_jobs_again(cluster):
    cluster.convert("--convert_tasks=2", to="trtllm")
    assert cluster.run("commit", "conversion").code == 0
    again = [arguments[2:] for _, arguments, _, _ in cluster.calls("sbatch")[3:]]
    assert [words[-1].rsplit("/", 1)[1] for words in again] == ["commit_sbatch.sh", "build_sbatch.sh"]
    assert again[0][:-1] == [] and again[1][:-1] == ["--dependency=afterok:104", "--kill-on-invalid-dep=yes"]
    assert [job["id"] for job in status(cluster)[0]["jobs"]] == ["101", "104", "105"]


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "commit"])
def test_unknown_names(cluster, command):
    cluster.convert("--expname=training")
    assert_refused(cluster.run(command, "trainign"), (3,), "looking for trainign", "did you mean training")


def engine_script(folder, ranks):
    """What a builder leaves: a config, and an engine of every rank."""
    names = ["config.json", *(f"rank{k}.engine" for k in range(ranks))]
    return f"mkdir -p {folder}; for f in {' '.join(names)}; do echo x >{folder}/$f; done"


def test_here_with_translated_paths(cluster, tmp_path):
    cluster.write("local", f"executor: local\nmounts: ['{tmp_path}/models:/hf_models', '{tmp_path}/out:/trt_models']\n")
    result = cluster.convert("--hf_model_name=/hf_models/m", "--run_after=x", cluster="local")
    assert (tmp_path / "out" / "x" / "model_weights" / "metadata.json").exists(), result
    assert "--run_after is not needed" in result.err
    assert_refused(cluster.convert("--input_model=/other", cluster="local", code=3), (3,), "no mount")


def test_an_engine_here_is_made_in_a_container_where_there_is_no_trtllm_build(cluster, tmp_path):
    cluster.write("local", f"executor: local\ncontainers: {{trtllm: 'img:1'}}\n"
                           f"mounts: ['{tmp_path}/models:/hf_models:ro', '{tmp_path}/out:/trt_models']\n")
    cluster.stand_in("docker")
    cluster.answer("docker", engine_script(tmp_path / "out" / "x", 2))
    cluster.convert("--max_batch_size=3", cluster="local", to="trtllm")
    (_, words, _, _), = cluster.calls("docker")
    split = words.index("trtllm-build")
    assert words[:split + 1] == ["run", "--rm", "--gpus=2", "--ipc=host", "--network=host", "-v",
                                 f"{tmp_path}/models:/hf_models:ro", "-v", f"{tmp_path}/out:/trt_models", "-v",
                                 f"{tmp_path}/out:{tmp_path}/out", "img:1", "trtllm-build"]
    assert words[split + 1:split + 5] == ["--checkpoint_dir", f"{tmp_path}/out/x-tmp", "--output_dir", f"{tmp_path}/out/x"]
    assert words[-1] == "--max_batch_size=3"


def test_the_builder_may_be_told(cluster, tmp_path):
    cluster.stand_in("builder")
    cluster.answer("builder", engine_script(tmp_path / "made", 1))
    for command in ("builder", json.dumps(["builder", "a b"])):
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        result = run("convert", tmp_path / "models" / "m", tmp_path / "made", "--to=trtllm", f"--trtllm_build={command}",
                     env=cluster.env)
        assert result.code == 0, result
    first, second = cluster.calls("builder")
    assert first[1][:2] == ["--checkpoint_dir", f"{tmp_path}/made-tmp"] and second[1][:2] == ["a b", "--checkpoint_dir"]
    assert_refused(run("convert", "a", "b", "--to=trtllm", "--trtllm_build=[1]"), (2,), "JSON array of words")


def test_a_checkpoint_may_be_all_that_is_prepared(cluster, tmp_path):
    result = run("convert", tmp_path / "models" / "m", tmp_path / "made", "--to=trtllm", "--prepare_only",
                 "--max_batch_size=3", env={"PATH": "/nowhere"})
    assert result.code == 0 and (tmp_path / "made-tmp" / "config.json").exists() and not (tmp_path / "made").exists()


def test_logs_in_the_engines_folder_are_no_obstacle(cluster, tmp_path):
    (tmp_path / "made" / "conversion-logs").mkdir(parents=True)
    cluster.stand_in("trtllm-build")
    cluster.answer("trtllm-build", engine_script(tmp_path / "made", 1))
    result = run("convert", tmp_path / "models" / "m", tmp_path / "made", "--to=trtllm", env=cluster.env)
    assert result.code == 0, result


def test_the_configuration_of_the_environment(cluster, tmp_path):
    cluster.env["NEMO_SKILLS_CONFIG"] = str(tmp_path / "configs" / "slurm.yaml")
    result = cluster.run("convert", "/hf_models/m", "/trt_models/x", "--to=nemo", "--hf_model_name=a/b")
    assert result.code == 0 and len(cluster.calls("sbatch")) == 1, result
    assert cluster.command()[2:4] == ["--to=nemo", "--hf_model_name=a/b"] or "--convert_to=nemo" in cluster.command()
    cluster.env["NEMO_SKILLS_CONFIG"] = str(tmp_path / "none.yaml")
    assert_refused(cluster.run("convert", "/hf_models/m", "/trt_models/x", "--to=nemo"), (3,), "none.yaml")


def test_a_publication_that_was_begun_is_finished(source, tmp_path):
    assert run("convert", source, tmp_path / "out", "--to=hf").code == 0
    result = run("commit", tmp_path / "out")
    assert result.code == 0 and "no publication was begun" in result.err
