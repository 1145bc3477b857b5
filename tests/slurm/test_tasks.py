"""One conversion on many tasks, and what is left of it when some of them die: the bytes are always the same."""

import os
import random
import shutil
import signal
import time

import launching
import pytest
from slurm_site import bytes_written, go_on
from program import assert_nothing_published, files, hashes, reshard
from renames import killed_before_rename

KILLS = 20 if os.environ.get("RESHARD_TEST_ALL") == "1" else 4
MODEL = launching.tiny_model.config(hidden_size=256, intermediate_size=512, num_attention_heads=8,
                                    num_key_value_heads=2, num_hidden_layers=4, vocab_size=1003)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, large_model):
    """Hashes of what one process makes of the large model."""
    folder = tmp_path_factory.mktemp("expected")
    reshard("convert", large_model, folder / "out", "--to=nemo", "--dtype=bf16", "--hf_model_name=example/model",
            "--quiet")
    return hashes(folder / "out")


def checkpoint(folder):
    return {name: digest for name, digest in hashes(folder).items() if not name.startswith("conversion-logs/")}


@pytest.mark.parametrize("to", ["nemo", "hf", "trtllm"])
def test_bytes_do_not_depend_on_the_number_of_tasks(site, to):
    launching.write_llama(site.data / "in", MODEL, shards=3)
    site.write_config()
    launching.executable(site.bin / "trtllm-build", launching.TRTLLM_BUILD)
    more = ["--max_shard_size=1MB"] if to == "hf" else ["--checkpoint_only", "--num_gpus=4"] if to == "trtllm" else []
    site.convert(*more, source=site.data / "in", target=site.data / "alone", to=to, cluster=None)
    expected = checkpoint(site.data / "alone")
    assert len(expected) > 3
    launches = {}
    for tasks in (1, 2, 3, 7):
        launches[tasks] = site.launch_convert(*more, f"--convert_tasks={tasks}", f"--expname=n{tasks}",
                                              target=f"/models/out{tasks}", to=to)
    for tasks, launched in launches.items():
        names = [job["JobName"] for job in launched.completed()]
        assert names.count(f"n{tasks}") == tasks and names.count(f"n{tasks}-commit") == (tasks > 1)
        assert checkpoint(site.data / f"out{tasks}") == expected
        site.reshard("verify", site.data / f"out{tasks}")


def test_tasks_in_one_allocation(site):
    launching.write_llama(site.data / "in", MODEL, shards=3)
    site.write_config()
    site.convert(source=site.data / "in", target=site.data / "alone", cluster=None)
    launched = site.launch_convert("--convert_tasks=5", "--convert_tasks_per_node=2")
    tasks, commit = launched.completed()
    assert tasks["NumNodes"] == "3" and commit["NumNodes"] == "1"
    assert checkpoint(site.data / "out") == checkpoint(site.data / "alone")


def test_tasks_as_processes_of_this_machine(site):
    launching.write_llama(site.data / "in", MODEL, shards=3)
    for tasks in (1, 2, 3, 7):
        site.convert(f"--convert_tasks={tasks}", source=site.data / "in", target=site.data / f"out{tasks}", cluster=None)
        assert checkpoint(site.data / f"out{tasks}") == checkpoint(site.data / "out1")


def test_tasks_share_the_work(large):
    """Neither does one write all, nor do two the same."""
    launched = large.launch_convert("--convert_tasks=3")
    written = {}
    def watch():
        written.update({pid: (bytes_written(pid) or written.get(pid, 0)) for pid in large.processes()})
        return set(launched.states()) <= {"COMPLETED"}
    large.cluster.wait(watch, "the end")
    launched.completed()
    total = sum(path.stat().st_size for path in files(large.data / "out").values())
    assert max(written.values()) < 0.6 * total and sum(written.values()) < 1.2 * total, written


def one_victim(rng, launched, site, by_scancel):
    """Waits for a task at work and kills it after a random while; False where all were faster."""
    site.cluster.wait(lambda: site.processes() or not launched.cluster.run("squeue", "--noheader"), "a task")
    time.sleep(rng.uniform(0, 0.4))
    running = sorted(site.processes())
    if not running:
        return False
    if by_scancel:
        tasks = [job for job in launched.jobs() if job["JobState"] == "RUNNING"]
        if not tasks:
            return False
        job = rng.choice(tasks)
        array = f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if "ArrayTaskId" in job else job["JobId"]
        site.cluster.run("scancel", array)
    else:
        try:
            os.kill(rng.choice(running), signal.SIGKILL)
        except ProcessLookupError:
            return False
    return True


def published(target):
    return (target / "model_weights" / "metadata.json").exists()


@pytest.mark.parametrize("by_scancel", [False, True], ids=["kill -9", "scancel"])
def test_random_tasks_die_and_the_same_command_goes_on(large, expected, by_scancel):
    rng = random.Random(f"{by_scancel}")
    kills = attempts = targets = 0
    words = ("--convert_tasks=3", "--workers=1")
    while kills < KILLS / 2:
        target = large.data / f"out{targets}"
        while kills < KILLS / 2 and not published(target):
            attempts += 1
            assert attempts < 6 * KILLS, "too many conversions were faster than the killer"
            launched = large.launch_convert(*words, target=f"/models/out{targets}")
            kills += one_victim(rng, launched, large, by_scancel)
            jobs = launched.ended()
            assert all(job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED") for job in jobs), launched.report()
            if not published(target):
                assert_nothing_published_but_logs(target)
        launched = large.launch_convert(*words, target=f"/models/out{targets}")
        launched.ended()
        assert checkpoint(target) == expected, launched.report()
        targets += 1


def assert_nothing_published_but_logs(target):
    assert {name.split("/")[0] for name in files(target)} <= {"conversion-logs"}


def test_a_task_that_dies_takes_the_last_job_with_it(large, expected):
    launched = large.launch_convert("--convert_tasks=3")
    pid = large.halt_at(50 << 20)
    os.kill(pid, signal.SIGKILL)
    jobs = launched.ended()
    states = {job["JobName"]: set() for job in jobs}
    for job in jobs:
        states[job["JobName"]].add(job["JobState"])
    assert states["conversion"] == {"COMPLETED", "FAILED"} and states["conversion-commit"] == {"CANCELLED"}
    assert_nothing_published_but_logs(large.data / "out")
    large.launch_convert("--convert_tasks=3").completed()
    assert checkpoint(large.data / "out") == expected


def test_what_is_done_is_not_done_again(large, expected):
    """Killed at three quarters, the next run writes little more than the rest."""
    total = sum(path.stat().st_size for path in (large.data / "in").glob("*.safetensors"))
    launched = large.launch_convert("--workers=1")
    pid = large.halt_at(0.75 * total)
    os.kill(pid, signal.SIGKILL)
    launched.ended()
    launched = large.launch_convert("--workers=1")
    written = [0]
    def watch():
        written.extend(bytes_written(pid) for pid in large.processes())
        return set(launched.states()) <= {"COMPLETED"}
    large.cluster.wait(watch, "the end")
    assert checkpoint(large.data / "out") == expected
    assert max(written) < 0.35 * total


def test_the_same_with_another_number_of_tasks(large, expected):
    launched = large.launch_convert("--convert_tasks=3")
    os.kill(large.halt_at(50 << 20), signal.SIGKILL)
    launched.ended()
    large.launch_convert("--convert_tasks=2").completed()
    assert checkpoint(large.data / "out") == expected


def halve(site, *words):
    """A conversion one of whose tasks was killed at work."""
    launched = site.launch_convert(*words)
    os.kill(site.halt_at(50 << 20), signal.SIGKILL)
    assert "FAILED" in {job["JobState"] for job in launched.ended()}


def assert_refused(site, changed, *words):
    """By the command that submits, by every job where it cannot look itself, and by the one that publishes."""
    before = staged(site)
    assert before
    result = site.convert(*words, code=6)
    assert changed in result.err and "--override" in result.err, result
    launches = [site.launch_convert(*words, "--run_after=conversion")]
    if any("--convert_tasks" in word for word in words):
        launches.append(site.launch("commit", "conversion", name="reshard"))
    for launched in launches:
        jobs = launched.ended()
        assert {job["ExitCode"] for job in jobs if job["JobState"] != "CANCELLED"} == {"6:0"}, launched.report()
        said = logs_of(site, launched)
        assert changed in said and "--override" in said, launched.report()
    assert staged(site) == before


def logs_of(site, launched):
    logs = site.data / "out" / "conversion-logs"
    return "".join(path.read_text() for job in launched.jobs() for path in sorted(logs.glob(f"*_{job['JobId']}_*")))


def staged(site):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in site.data.glob("out/.reshard/*/files/**/*")}


@pytest.mark.parametrize("words", [(), ("--convert_tasks=2",)], ids=["alone", "tasks"])
def test_an_input_that_changed_is_told(site, large_model, words):
    """And nothing of it is mixed with what was staged before."""
    shutil.copytree(large_model, site.data / "in")
    site.write_config()
    halve(site, *words)
    changed = site.data / "in" / "model-00002-of-00005.safetensors"
    header, data = launching.tiny_model.split_safetensors(changed)
    header["__metadata__"]["changed"] = "yes"
    launching.tiny_model.write_raw(changed, launching.tiny_model.header_text(header), data)
    told = f"the source {changed.name}: size was"
    assert_refused(site, told, *words)
    launched = site.launch_convert(*words, "--override")
    launched.completed()
    assert f"--override discards what an earlier run has staged: {told}" in logs_of(site, launched)
    site.convert(source=site.data / "in", target=site.data / "alone", cluster=None)
    assert checkpoint(site.data / "out") == checkpoint(site.data / "alone")


def test_another_option_is_told(large):
    halve(large)
    assert_refused(large, 'the option dtype was "bf16" and is "fp32"', "--dtype=fp32")
    large.launch_convert("--dtype=fp32", "--override").completed()
    large.convert("--dtype=fp32", source=large.data / "in", target=large.data / "alone", cluster=None)
    assert checkpoint(large.data / "out") == checkpoint(large.data / "alone")


def test_a_task_that_is_asked_to_stop_goes_on_by_itself(large, expected):
    """Slurm starts it again half a minute later: a requeued job waits until its credential has expired."""
    launched = large.launch_convert()
    pid = large.halt_at(100 << 20)
    os.kill(pid, signal.SIGTERM)
    go_on(pid)
    large.cluster.wait(lambda: launched.jobs()[0]["Restarts"] == "1", "the requeue")
    job, = launched.completed()
    assert job["Restarts"] == "1" and checkpoint(large.data / "out") == expected


def test_a_node_that_is_taken_away(large, expected):
    """`scontrol requeue` is what Slurm does to the jobs of a node that fails."""
    launched = large.launch_convert("--convert_tasks=2")
    pid = large.halt_at(50 << 20)
    victim = next(job for job in launched.jobs() if job["JobState"] == "RUNNING")
    large.cluster.run("scontrol", "requeue", f"{victim['ArrayJobId']}_{victim['ArrayTaskId']}")
    go_on(pid)
    launched.completed()
    assert checkpoint(large.data / "out") == expected


def test_a_last_job_that_dies_is_submitted_again(large, expected):
    """`reshard commit NAME` after the tasks are done."""
    launched = large.launch_convert("--convert_tasks=2")
    commit = large.cluster.wait(lambda: launched.jobs("conversion-commit"), "the last job")[0]
    large.cluster.run("scancel", commit["JobId"])
    launched.ended()
    assert_nothing_published_but_logs(large.data / "out")
    again = large.launch("commit", "conversion", name="reshard")
    again.completed()
    assert checkpoint(large.data / "out") == expected


def test_a_publication_that_was_killed_is_ended_by_a_job(llama):
    """`reshard commit NAME` after half of the files were renamed."""
    here = {"source": llama.data / "in", "cluster": None}
    llama.convert(target=llama.data / "alone", **here)
    launched = llama.launch_convert("--convert_tasks=2", "--sbatch_kwargs={\"hold\": true}")
    tasks, commit = launched.id, launched.jobs("conversion-commit")[0]["JobId"]
    llama.cluster.run("scancel", commit)
    llama.cluster.run("scontrol", "release", tasks)
    launched.ended()
    words = llama.convert("--dry_run", target=llama.data / "out", **here).command
    half = len(checkpoint(llama.data / "alone")) // 2
    words.remove("--dry_run")
    assert killed_before_rename(half, *words, cwd=llama.cwd, env=llama.env)
    assert not published(llama.data / "out") and checkpoint(llama.data / "out")
    again = llama.launch("commit", "conversion", name="reshard")
    llama.cluster.run("scontrol", "release", again.id)
    again.completed()
    assert checkpoint(llama.data / "out") == checkpoint(llama.data / "alone")


def test_shares_are_done_without_publishing(large, expected):
    words = ("--convert_tasks=2", "--workers=1")
    for task in (0, 1):
        large.convert(*words, f"--convert_task={task}", source=large.data / "in", target=large.data / "out", cluster=None)
        assert_nothing_published(large.data / "out")
    large.convert(source=large.data / "in", target=large.data / "out", cluster=None)
    assert checkpoint(large.data / "out") == expected
