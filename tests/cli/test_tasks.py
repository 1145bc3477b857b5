"""One conversion on several tasks: as processes of this machine, or each started by hand."""
import json
import os
import re
import signal
import time

import pytest

from black_box import TO_HF, TO_NEMO, assert_refused, assert_unpublished, convert, finish, is_published, run, start
from program import hashes
from tiny_model import CONFIG, random_tensor, shapes, tensors, write_hf

ALL_WAYS = {"to-nemo": TO_NEMO, "to-hf": ("--to=hf", "--max_shard_size=5KB"),
            "to-trtllm": ("--to=trtllm", "--checkpoint_only", "--tp_size=2"),
            "to-int8": ("--to=trtllm", "--checkpoint_only", "--use_weight_only")}


@pytest.mark.parametrize("way", ALL_WAYS.values(), ids=ALL_WAYS)
def test_bytes_do_not_depend_on_the_number_of_tasks(source, tmp_path, way):
    convert(source, tmp_path / "one", *way)
    for tasks in (2, 3, 7):
        result = convert(source, tmp_path / f"of{tasks}", *way, f"--convert_tasks={tasks}")
        assert f"by {tasks} tasks" in result.err
        assert hashes(tmp_path / f"of{tasks}") == hashes(tmp_path / "one")
        assert not (tmp_path / f"of{tasks}" / ".reshard").exists()


def test_from_nemo(nemo, tmp_path):
    convert(nemo, tmp_path / "one", *TO_HF)
    convert(nemo, tmp_path / "three", *TO_HF, "--convert_tasks=3")
    assert hashes(tmp_path / "three") == hashes(tmp_path / "one")


def test_tasks_started_by_hand_and_a_run_that_publishes(source, tmp_path):
    convert(source, tmp_path / "one", *TO_NEMO)
    for task in (2, 0, 1):
        result = convert(source, tmp_path / "out", *TO_NEMO, "--convert_tasks=3", f"--convert_task={task}")
        assert f"share {task} of 3" in result.err
        assert_unpublished(tmp_path / "out")
    result = convert(source, tmp_path / "out", *TO_NEMO, "--json")
    assert json.loads(result.out)["bytes_read"] == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "one")


def test_a_run_that_publishes_does_what_tasks_have_not(source, tmp_path):
    convert(source, tmp_path / "one", *TO_NEMO)
    convert(source, tmp_path / "out", *TO_NEMO, "--convert_tasks=3", "--convert_task=1")
    result = convert(source, tmp_path / "out", *TO_NEMO, "--json")
    report = json.loads(result.out)
    assert report["bytes_staged"] > 0 and report["bytes_read"] > 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "one")


def test_finished_command_run_again(source, tmp_path):
    for _ in range(2):
        result = convert(source, tmp_path / "out", *TO_NEMO, "--convert_tasks=2")
    assert "already complete" in result.err


@pytest.mark.parametrize("words", [("--convert_tasks=2", "--convert_task=1"), ("--convert_tasks=3",), ()],
                         ids=["a task", "all tasks", "what publishes"])
def test_other_options_say_what_changed(source, tmp_path, words):
    """And nothing is mixed: neither by one of the tasks nor by who comes after them."""
    def other(*more):
        return run("convert", source, tmp_path / "out", *TO_NEMO, "--dtype=fp32", *words, *more)
    for task in (0, 1):
        convert(source, tmp_path / "out", *TO_NEMO, "--convert_tasks=2", f"--convert_task={task}")
    staged = hashes(next(tmp_path.glob("out/.reshard/*/files")))
    changed = r'the option dtype was "" and is "fp32"'
    assert_refused(result := other(), (6,), changed, "--override")
    assert result.err.count("error:") == 1
    assert hashes(next(tmp_path.glob("out/.reshard/*/files"))) == staged
    result = other("--override")
    assert result.code == 0 and len(re.findall(changed, result.err)) == 1, result
    convert(source, tmp_path / "out", *TO_NEMO, "--dtype=fp32")
    convert(source, tmp_path / "reference", *TO_NEMO, "--dtype=fp32")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


def test_an_error_is_told_once(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    result = run("convert", source, tmp_path / "out", *TO_NEMO, "--convert_tasks=4")
    assert_refused(result, (3,), "mine", "--override")
    assert result.err.count("error:") == 1


@pytest.mark.parametrize("words", [("--convert_task=2", "--convert_tasks=2"), ("--convert_task=1",),
                                   ("--convert_tasks=0",), ("--convert_tasks=2", "--io_engine=discard")])
def test_numbers_that_make_no_sense(source, tmp_path, words):
    assert_refused(run("convert", source, tmp_path / "out", *TO_NEMO, *words), (2,), "convert_task")
    assert not (tmp_path / "out").exists()


def test_plan_counts_what_is_read_more_than_once(source):
    def plan(*words):
        return json.loads(run("plan", source, "/tmp/none", "--to=trtllm", "--checkpoint_only", "--tp_size=2",
                              *words, "--json").out)
    alone, shared = plan(), plan("--convert_tasks=2")
    # Norms go to both ranks; all else is cut, and the embedding is whole in both.
    once = {**shapes(CONFIG)}
    twice = sum(2 * int.__mul__(*shape) if "embed_tokens" in name else 2 * shape[0]
                for name, shape in once.items() if "norm" in name or "embed_tokens" in name)
    assert shared["bytes_read"] == alone["bytes_read"] + twice
    assert shared["bytes_written"] == alone["bytes_written"] and shared["plan_id"] == alone["plan_id"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough work to be stopped in."""
    folder = tmp_path_factory.mktemp("large")
    settings = {**CONFIG, "vocab_size": 60_000, "hidden_size": 192, "intermediate_size": 6000}
    write_hf(folder, settings, tensors(settings, dtype="F32"), shards=3)
    return folder


def wait_for_stage(target):
    for _ in range(3000):
        if list(target.glob(".reshard/*/journal.*")):
            return
        time.sleep(0.002)
    raise AssertionError("nothing was staged")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_goes_on_after_a_signal(large, tmp_path, number):
    words = (large, tmp_path / "out", "--to=trtllm", "--checkpoint_only", "--tp_size=4", "--convert_tasks=3")
    process = start("convert", *words)
    wait_for_stage(tmp_path / "out")
    process.send_signal(number)
    result = finish(process)
    if result.code != 0:  # it may have been over before
        assert result.code == (128 + number if number != signal.SIGKILL else -number), result
        assert not is_published(tmp_path / "out")
        assert result.err.count("error:") <= 1
    deadline = time.monotonic() + 20
    while (again := run("convert", *words)).code == 3 and time.monotonic() < deadline:  # tasks that still end
        assert "another run owns it" in again.err, again
        time.sleep(0.1)
    assert again.code == 0, again
    convert(*words[:1], tmp_path / "one", *words[2:5])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "one")


def test_a_task_that_is_killed_fails_the_command_and_the_next_goes_on(large, tmp_path):
    words = (large, tmp_path / "out", "--to=trtllm", "--checkpoint_only", "--tp_size=4", "--convert_tasks=3")
    process = start("convert", *words)
    wait_for_stage(tmp_path / "out")
    children = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
    if children:
        os.kill(int(children[0]), signal.SIGKILL)
    result = finish(process)
    assert result.code in (0, 128 + signal.SIGKILL), result
    again = convert(*words)
    assert "complete" in again.err or "wrote" in again.err
    convert(*words[:1], tmp_path / "one", *words[2:5])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "one")
