"""`reshard status`, `logs`, `cancel` and `commit` of conversions that were launched."""

import os
import subprocess
import time

import pytest
from slurm_site import go_on
from program import BINARY, files


def shown(site, *words, code=0):
    return site.reshard("status", *words, "--json", code=code).json()["experiments"]


def test_status_from_the_queue_to_the_end(large):
    launched = large.launch_convert("--convert_tasks=2", "--expname=mine", "--sbatch_kwargs={\"hold\": true}")
    one, = shown(large, "mine")
    identity, = (large.home / ".nemo_run" / "experiments" / "mine").iterdir()
    assert one["title"] == "mine" and one["id"] == identity.name
    assert one["executor"] == "slurm" and one["cluster"] == "slurm" and one["target"] == f"{large.data}/out"
    assert one["state"] == "PENDING" and one["progress"] is None
    assert [(job["name"], job["state"]) for job in one["jobs"]] == [("convert", "PENDING"), ("commit", "PENDING")]
    assert one["jobs"][0]["id"] == launched.id

    large.cluster.run("scontrol", "release", launched.id)
    large.cluster.run("scontrol", "release", launched.jobs("mine-commit")[0]["JobId"], check=False)
    pid = large.halt_at(100 << 20)
    one, = shown(large, "mine")
    assert one["state"] == "RUNNING"
    assert {task["index"] for task in one["jobs"][0]["tasks"]} == {0, 1}
    assert "RUNNING" in {task["state"] for task in one["jobs"][0]["tasks"]}
    text = large.reshard("status", "mine").out
    assert "mine" in text and "RUNNING" in text
    go_on(pid)
    launched.completed()

    one, = shown(large, "mine")
    assert one["state"] == "COMPLETED" and {job["exit_code"] for job in one["jobs"]} == {0}
    assert {job["state"] for job in one["jobs"]} == {"COMPLETED"}
    for job in one["jobs"]:
        assert os.path.dirname(job["log"]) == f"{large.data}/out/conversion-logs"


def test_progress_over_all_tasks(large):
    """Each writes how far it is, at most every two seconds; so a halted one has said something that is true."""
    launched = large.launch_convert("--convert_tasks=2", "--workers=1")
    pid = large.halt_at(100 << 20)
    total = sum(path.stat().st_size for path in (large.data / "in").glob("*.safetensors"))

    def progress():
        found = shown(large, "conversion")[0]["progress"]
        return found if found and found["done"] else None

    go_on(pid)
    pid = large.halt_at(150 << 20)
    found = large.cluster.wait(progress, "progress", 20)
    assert 0 < found["done"] <= found["total"]
    assert 0.9 * total < found["total"] < 1.1 * total and found["rate"] > 0
    go_on(pid)
    launched.completed()


@pytest.mark.parametrize("by", ["title", "id", "job", "folder"])
def test_names(llama, by):
    launched = llama.launch_convert("--expname=one")
    llama.launch_convert("--expname=other", target="/models/other").completed()
    launched.completed()
    identity, = (llama.home / ".nemo_run" / "experiments" / "one").iterdir()
    name = {"title": "one", "id": identity.name, "job": launched.id, "folder": llama.data / "out"}[by]
    one, = shown(llama, name)
    assert one["id"] == identity.name


def test_all_newest_first_and_the_newest_of_a_title(llama):
    for number in range(3):
        llama.launch_convert("--expname=same", target=f"/models/out{number}")
    llama.launch_convert("--expname=last", target="/models/last").completed()
    everything = shown(llama)
    assert [one["title"] for one in everything] == ["last", "same", "same", "same"]
    assert [one["target"] for one in everything[1:]] == [f"{llama.data}/out{number}" for number in (2, 1, 0)]
    assert shown(llama, "same")[0]["target"] == f"{llama.data}/out2"


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "commit"])
def test_a_name_that_was_never_given(llama, command):
    llama.launch_convert("--expname=llama-70b").completed()
    result = llama.reshard(command, "llama-7b", code=3)
    assert "llama-7b" in result.err and "did you mean" in result.err and "llama-70b" in result.err


def test_nothing_was_ever_launched(site):
    assert shown(site) == []


def test_logs(llama):
    launched = llama.launch_convert("--installation_command=echo hello from before")
    launched.completed()
    result = llama.reshard("logs", "conversion")
    job = launched.id
    folder = llama.data / "out" / "conversion-logs"
    for line in (folder / f"main_conversion_{job}_srun.log").read_text().splitlines():
        assert line in result.out
    assert "hello from before" in result.out + (folder / f"conversion_{job}_sbatch.log").read_text()


def test_logs_are_followed_to_the_end(large):
    launched = large.launch_convert()
    pid = large.halt_at(50 << 20)
    follow = subprocess.Popen([BINARY, "logs", "conversion", "--follow"], env=large.env, stdout=subprocess.PIPE,
                              text=True)
    try:
        time.sleep(1)
        assert follow.poll() is None
        go_on(pid)
        launched.completed()
        out, _ = follow.communicate(timeout=30)
    finally:
        follow.kill()
    assert follow.returncode == 0
    text = (large.data / "out" / "conversion-logs" / f"main_conversion_{launched.id}_srun.log").read_text()
    assert text.splitlines()[-1] in out


@pytest.mark.parametrize("tasks", [1, 3])
def test_cancel(large, tasks):
    """A job that is cancelled stays so: it is no node that failed, to be tried again."""
    launched = large.launch_convert(f"--convert_tasks={tasks}")
    pid = large.halt_at(50 << 20)
    large.reshard("cancel", "conversion")
    go_on(pid)
    jobs = launched.ended()
    assert "CANCELLED" in {job["JobState"] for job in jobs} and jobs[-1]["JobState"] == "CANCELLED", launched.report()
    assert {job["Restarts"] for job in jobs} == {"0"}
    assert shown(large, "conversion")[0]["state"] == "CANCELLED"
    assert {name.split("/")[0] for name in files(large.data / "out")} <= {"conversion-logs"}


def test_cancel_of_what_is_over(llama):
    llama.launch_convert().completed()
    llama.reshard("cancel", "conversion")
    assert shown(llama, "conversion")[0]["state"] == "COMPLETED"


def test_a_publication_that_was_begun_is_rolled_forward(llama):
    """By its folder. What is staged is what the first would have published."""
    llama.launch_convert().completed()
    llama.reshard("commit", llama.data / "out")
    llama.reshard("verify", llama.data / "in", llama.data / "out")


def test_a_conversion_here_has_a_record_too(llama):
    llama.convert(source=llama.data / "in", target=llama.data / "out", cluster=None)
    everything = shown(llama)
    assert all(one["state"] == "COMPLETED" for one in everything)
