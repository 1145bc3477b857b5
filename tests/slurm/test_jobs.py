"""Jobs among others: after them, in partitions, with what Slurm keeps of them, and when it has forgotten them."""

import pathlib
import shutil
import tempfile

import launching
import pytest
from slurm_site import Slurm, SlurmSite, go_on, missing
from program import files, hashes

SECRET = "hf_neverEverToBeSeen"


def other_job(site, script, *words):
    """A job that is none of ours."""
    return site.cluster.run("sbatch", "--parsable", "--mem=100", f"--output={site.root}/other-%j.log", *words,
                            f"--wrap={script}").strip()


@pytest.mark.parametrize("dependency_type, first_fails, runs", [
    (None, False, True), (None, True, True), ("afterany", True, True), ("afterok", False, True),
    ("afterok", True, False), ("afternotok", True, True)])
def test_after_another_experiment(llama, dependency_type, first_fails, runs):
    """By default the next runs whatever became of the one before, as with the original."""
    llama.write_config(dependency_type=dependency_type)
    words = ["--installation_command=false"] if first_fails else []
    first = llama.launch_convert("--expname=first", target="/models/first", *words)
    second = llama.launch_convert("--expname=second", "--run_after=first", target="/models/second")
    first.ended()
    job, = second.ended()
    assert first.jobs()[0]["JobState"] == ("FAILED" if first_fails else "COMPLETED")
    assert job["JobState"] == ("COMPLETED" if runs else "CANCELLED"), second.report()
    assert job["StartTime"] >= first.jobs()[0]["EndTime"]


def test_after_several_experiments_by_title_and_by_id(llama):
    """Titles may have underscores; all the jobs of an experiment are waited for."""
    llama.write_config()
    gate = other_job(llama, "sleep 60")
    held = ["--sbatch_kwargs={\"dependency\": \"afterany:%s\"}" % gate]
    first = llama.launch_convert("--expname=a_title", "--convert_tasks=2", target="/models/a", *held)
    second = llama.launch_convert("--expname=b", target="/models/b", *held)
    identity, = (llama.home / ".nemo_run" / "experiments" / "b").iterdir()
    last = llama.launch_convert("--expname=c", "--run_after=a_title", f"--run_after={identity.name}", target="/models/c")
    wanted = {launched.id for launched in (first, second)} | {first.jobs("a_title-commit")[0]["JobId"]}
    said = last.jobs()[0]["Dependency"]
    assert all(f"afterany:{job}" in said for job in wanted), said
    llama.cluster.run("scancel", gate)
    last.completed()
    assert files(llama.data / "c")


def test_after_an_experiment_that_is_over_or_was_never(llama):
    llama.launch_convert("--expname=over", target="/models/over").completed()
    launched = llama.launch_convert("--expname=next", "--run_after=over", target="/models/next")
    launched.completed()
    launched = llama.launch_convert("--expname=last", "--run_after=never-heard-of", target="/models/last")
    assert "never-heard-of" in launched.result.err
    launched.completed()


def test_after_jobs_that_the_original_submitted(llama):
    """It left a line in .slurm_jobs."""
    job = other_job(llama, "sleep 60")
    folder = llama.home / ".nemo_run" / "experiments" / "train" / "train_1733000000" / "train"
    folder.mkdir(parents=True)
    (llama.home / ".nemo_run" / ".slurm_jobs").write_text(
        f"{job} = /logs/*_srun.log,{folder},LocalTunnel,{{\"job_dir\": \"/x\"}}\n")
    for name in ("train", "train_1733000000"):
        launched = llama.launch_convert(f"--run_after={name}", f"--expname=after-{name}", target=f"/models/{name}")
        assert f"afterany:{job}" in launched.jobs()[0]["Dependency"]
    llama.cluster.run("scancel", job)
    launched.completed()


def test_the_input_may_be_made_by_the_job_before(llama):
    shutil.move(llama.data / "in", llama.root / "later")
    job = other_job(llama, f"sleep 1; cp -r {llama.root}/later {llama.data}/in")
    folder = llama.home / ".nemo_run" / "experiments" / "train" / "train_1733000000" / "train"
    folder.mkdir(parents=True)
    (llama.home / ".nemo_run" / ".slurm_jobs").write_text(f"{job} = /l/*_srun.log,{folder},LocalTunnel,{{}}\n")
    llama.launch_convert("--run_after=train").completed()
    llama.reshard("verify", llama.data / "in", llama.data / "out")


def test_partitions(llama):
    llama.write_config(timeouts="{batch: 02:00:00, small: 10:00}")
    batch = llama.launch_convert(target="/models/batch")
    small = llama.launch_convert("--partition=small", "--expname=small", target="/models/small")
    exclusive = llama.launch_convert("--exclusive", "--expname=exclusive", target="/models/exclusive")
    gpus = llama.launch_convert("--request_gpus", "--expname=gpus", target="/models/gpus")
    job, = batch.completed()
    assert job["Partition"] == "batch" and job["TimeLimit"] == "02:00:00"
    job, = small.completed()
    assert job["Partition"] == "small" and job["TimeLimit"] == "00:10:00" and job["NodeList"] == "node1"
    assert exclusive.completed()[0]["NumCPUs"] == "16"
    assert gpus.completed()[0]["TresPerNode"] == "gres:gpu:1"


def test_what_slurm_refuses_is_told(llama):
    result = llama.convert("--partition=nowhere", code=7)
    assert "nowhere" in result.err or "partition" in result.err
    assert "time" in llama.convert("--time_min=sometimes", code=(2, 7)).err
    assert not llama.cluster.run("squeue", "--noheader")


def test_a_conversion_that_fails_is_a_job_that_fails(llama):
    """With the exit code of the conversion."""
    launched = llama.launch_convert("--installation_command=rm -r %s/in" % llama.data)
    job, = launched.ended()
    assert job["JobState"] == "FAILED" and job["ExitCode"] == "3:0", launched.report()
    said = "".join(path.read_text() for path in (llama.data / "out" / "conversion-logs").iterdir())
    assert f"{llama.data}/in" in said


def test_logs_are_appended_to_a_folder_that_was_not_there(llama):
    launched = llama.launch_convert("--log_dir=/models/deep/er/logs")
    job, = launched.completed()
    assert {path.name for path in (llama.data / "deep" / "er" / "logs").iterdir()} == {
        f"conversion_{job['JobId']}_sbatch.log", f"main_conversion_{job['JobId']}_srun.log"}


def test_variables_reach_the_job(llama):
    llama.write_config(env_vars=["GIVEN", "lower_case=two words"])
    record = llama.root / "env"
    launched = llama.launch_convert(f"--installation_command=env > {record}", GIVEN="it's $HOME",
                                    NOT_LISTED="not to be passed")
    launched.completed()
    found = record.read_text().splitlines()
    assert "GIVEN=it's $HOME" in found and "lower_case=two words" in found
    assert not any(line.startswith("NOT_LISTED=") for line in found)


def test_no_secret_in_any_file(llama):
    names = ["HF_TOKEN", "WANDB_API_KEY", "NVIDIA_API_KEY", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "NGC_API_KEY",
             "MY_PASSWORD", "NOT_IN_THE_FILE"]
    llama.write_config(env_vars=names[:-1], required_env_vars=["HF_TOKEN"])
    launched = llama.launch_convert("--convert_tasks=2", **dict.fromkeys(names, SECRET))
    # While the jobs are there: slurmctld and slurmd keep scripts and environments of those that wait and run.
    searched = secret_free(llama)
    assert any("state" in path.parts and path.name == "environment" for path in searched), "slurmctld kept nothing"
    launched.completed()
    secret_free(llama)


def secret_free(site):
    searched = [path for root in (site.root, site.cluster.folder) for path in root.rglob("*") if path.is_file()]
    for path in searched:
        try:
            assert SECRET.encode() not in path.read_bytes(), path
        except FileNotFoundError:  # of a job that ended meanwhile
            pass
    return searched


def test_records_lie_where_the_variable_says(llama):
    launched = llama.launch_convert(NEMORUN_HOME=str(llama.root / "runs"))
    assert (llama.root / "runs" / ".slurm_jobs").read_text().startswith(f"{launched.id} = ")
    assert not (llama.home / ".nemo_run").exists()
    launched.completed()
    shown = llama.reshard("status", "conversion", "--json", NEMORUN_HOME=str(llama.root / "runs")).json()
    assert [job["id"] for job in shown["experiments"][0]["jobs"]] == [launched.id]


# ---------------------------------------------------------------- jobs that slurmctld has forgotten

@pytest.fixture(scope="module")
def forgetful_cluster():
    why = missing()
    if why:
        pytest.skip(f"no Slurm: {why}")
    cluster = Slurm(pathlib.Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")), nodes=1, extra="MinJobAge=2")
    yield cluster
    cluster.settle()
    cluster.down()


def test_jobs_that_slurm_has_forgotten(tmp_path, forgetful_cluster):
    """There is no accounting either; the records of the jobs themselves remain."""
    site = SlurmSite(tmp_path, forgetful_cluster)
    launching.write_llama(site.data / "in", shards=2)
    site.write_config()
    good = site.launch_convert("--expname=good", "--convert_tasks=2", target="/models/good")
    bad = site.launch_convert("--expname=bad", "--installation_command=false", target="/models/bad")
    gone = site.launch_convert("--expname=gone", "--sbatch_kwargs={\"hold\": true}", target="/models/gone")
    site.cluster.run("scancel", gone.id)
    site.cluster.wait(lambda: not site.cluster.jobs(), "that all is forgotten", 120)

    shown = {name: site.reshard("status", name, "--json").json()["experiments"][0] for name in ("good", "bad", "gone")}
    assert shown["good"]["state"] == "COMPLETED"
    assert {job["name"]: job["state"] for job in shown["good"]["jobs"]} == {"convert": "COMPLETED", "commit": "COMPLETED"}
    assert [task["state"] for task in shown["good"]["jobs"][0]["tasks"]] == ["COMPLETED", "COMPLETED"]
    assert shown["bad"]["state"] == "FAILED" and shown["bad"]["jobs"][0]["exit_code"] == 1
    assert shown["gone"]["state"] in ("CANCELLED", "UNKNOWN")
    assert good.result.code == bad.result.code == 0
    assert "main_" in site.reshard("logs", "good").out + str(list((site.data / "good").rglob("*.log")))
    site.convert("--expname=next", "--run_after=good", target="/models/next")
    site.cluster.wait(lambda: (site.data / "next" / "model_weights" / "metadata.json").exists(), "the next")


def test_a_job_that_was_killed_is_not_said_to_run(tmp_path, forgetful_cluster, large_model):
    """Its record says that it began, and not how it ended."""
    site = SlurmSite(tmp_path, forgetful_cluster)
    (site.data / "in").symlink_to(large_model)
    site.write_config()
    launched = site.launch_convert()
    site.halt_at(50 << 20)
    site.cluster.run("scancel", "--full", launched.id)
    for pid in site.processes():
        go_on(pid)
    site.cluster.wait(lambda: not site.cluster.jobs(), "that all is forgotten", 120)
    shown = site.reshard("status", "conversion", "--json").json()["experiments"][0]
    assert shown["state"] in ("FAILED", "CANCELLED")


def test_hashes_are_those_of_a_conversion_here(llama):
    llama.launch_convert("--expname=there").completed()
    llama.convert(source=llama.data / "in", target=llama.data / "here", cluster=None)
    there = {name: digest for name, digest in hashes(llama.data / "out").items() if "conversion-logs" not in name}
    assert there == hashes(llama.data / "here")
