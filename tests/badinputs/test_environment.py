"""What is around a run: targets, limits, signals, closed streams, full disks, a second converter, a changing source."""
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

import tiny_model
from black_box import (
    CRASH, TO_HF, TO_NEMO, assert_refused, assert_unpublished, convert, finish, is_published, run, start)
from program import hashes
from tiny_model import config, tensors, write_config, write_hf

MB = 1 << 20
# A second is promised; the rest is for a machine that does other things meanwhile.
STOP_WITHIN = 1.5
SLOWLY = (*TO_NEMO, "--dtype=fp32", "--workers=1", "--max_memory=64MiB")


@pytest.fixture
def source(tmp_path):
    return write_hf(tmp_path / "in")


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    """13 MB: long enough to be killed in the middle."""
    settings = config(hidden_size=256, intermediate_size=704, num_hidden_layers=6, vocab_size=2048)
    return write_hf(tmp_path_factory.mktemp("middling") / "in", settings, shards=3)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """200 MB: long enough to be stopped after its first bytes."""
    settings = config(hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
                      num_key_value_heads=4, vocab_size=8192)
    folder = write_hf(tmp_path_factory.mktemp("large") / "in", settings)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def large_converted(large, tmp_path_factory):
    """Hashes of the undisturbed conversion."""
    target = tmp_path_factory.mktemp("converted") / "out"
    convert(large, target, *SLOWLY)
    found = hashes(target)
    shutil.rmtree(target)
    return found


@contextmanager
def mounted(path, options):
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def start_and_wait_for_data(source, target, *arguments, **options):
    """Starts a conversion and returns once staged data is on its way; fails if it ends before."""
    process = start("convert", source, target, *arguments, **options)
    for _ in range(20_000):
        assert process.poll() is None, f"ended before it could be disturbed: {finish(process)}"
        staged = target / ".reshard"
        if staged.is_dir() and sum(path.stat().st_blocks for path in staged.rglob("*") if path.is_file()) * 512 > MB:
            return process
        time.sleep(0.001)
    process.kill()
    raise AssertionError(f"no staged data: {finish(process)}")


# ---------------------------------------------------------------- the target

def test_target_that_is_not_empty(source, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    result = run("convert", source, target, *TO_NEMO)
    assert_refused(result, (3,), r"out\b", r"mine\.txt|not empty", r"--override")
    assert hashes(target).keys() == {"mine.txt"}


def test_target_that_is_a_file(source, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert_refused(run("convert", source, tmp_path / "out", *TO_NEMO), (3,), r"out\b", r"file|folder|directory")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("override", [(), ("--override",)], ids=["plain", "override"])
@pytest.mark.parametrize("place", ["in", "in/", "in/below", "in/../in", "alias", "alias/below", "."])
def test_target_that_touches_the_source(source, tmp_path, place, override):
    """The source, a path inside it, a link to it, the folder that holds it: nothing of the source may be lost."""
    (tmp_path / "alias").symlink_to("in")
    before = hashes(source)
    result = run("convert", source, f"{tmp_path}/{place}", *TO_NEMO, *override)
    assert_refused(result, (3, 2), r"source|input|not empty|--override" if place == "." else r"source|input")
    assert hashes(source) == before
    assert not (source / "below").exists()


def test_target_below_a_file(source, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(run("convert", source, tmp_path / "file" / "out", *TO_NEMO), (3, 7), r"file")


def test_target_on_a_read_only_file_system(source, tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        assert_refused(run("convert", source, disk / "out", *TO_NEMO), (3, 7), r"disk", r"read-only|permi")


def test_target_with_a_name_too_long(source, tmp_path):
    assert_refused(run("convert", source, tmp_path / ("x" * 300), *TO_NEMO), (7, 3), r"too long")


def test_target_on_another_file_system(source, tmp_path):
    with mounted(tmp_path / "disk", "size=16m") as disk:
        convert(source, disk / "out", *TO_NEMO)
        convert(source, tmp_path / "out", *TO_NEMO)
        assert hashes(disk / "out") == hashes(tmp_path / "out")


# ---------------------------------------------------------------- no space

def test_full_disk_is_noticed_before_the_first_byte(middling, tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        result = run("convert", middling, disk / "out", *TO_NEMO)
        assert_refused(result, (7,), r"space|free", r"\d.*\d", r"bytes|[kMG]i?B")
        assert_unpublished(disk / "out")
        assert not list(disk.rglob("*.0*")), "wrote chunks to a disk that is known to be too small"
        planned = run("plan", middling, disk / "out", *TO_NEMO)
        assert planned.code == 0 and re.search(r"^obstacle .*B are free, expected .*B, .*B more", planned.out, re.MULTILINE), planned


def test_lack_of_inodes_is_noticed(source, tmp_path):
    with mounted(tmp_path / "disk", "size=16m,nr_inodes=20") as disk:
        assert_refused(run("convert", source, disk / "out", *TO_NEMO), (7,), r"inodes|files", r"\d")
        assert_unpublished(disk / "out")


def test_override_says_that_only_its_second_copy_does_not_fit(middling, tmp_path):
    size = sum(path.stat().st_size for path in middling.iterdir())
    with mounted(tmp_path / "disk", f"size={size * 3 // 2}") as disk:
        convert(middling, disk / "out", "--to=hf")
        before = hashes(disk / "out")
        result = run("convert", middling, disk / "out", "--to=hf", "--max_shard_size=1MB", "--override")
        assert_refused(result, (7,), r"space|free", r"override|second copy|old checkpoint|both")
        assert hashes(disk / "out") == before


# ---------------------------------------------------------------- limits of the process

def test_works_with_64_open_files(tmp_path):
    settings = config(num_hidden_layers=20)
    source = write_hf(tmp_path / "in", settings, shards=183)
    limits = [(resource.RLIMIT_NOFILE, 64)]
    convert(source, tmp_path / "out", *TO_NEMO, limits=limits)
    convert(tmp_path / "out", tmp_path / "back", *TO_HF, "--max_shard_size=1KB", limits=limits)
    assert tiny_model.read_hf(tmp_path / "back") == tensors(settings)


def test_works_in_1_gib_of_address_space(middling, tmp_path):
    convert(middling, tmp_path / "out", *TO_NEMO, limits=[(resource.RLIMIT_AS, 1 << 30)])


def test_file_size_limit_is_an_error_and_not_the_end(middling, tmp_path):
    result = run("convert", middling, tmp_path / "out", *TO_NEMO, limits=[(resource.RLIMIT_FSIZE, 100_000)])
    assert_refused(result, (7,), r"file too large; .*ulimit -f")
    assert_unpublished(tmp_path / "out")


@pytest.mark.parametrize("locale", ["C", "POSIX", "xx_YY.nowhere"])
def test_any_locale(source, tmp_path, locale):
    target = tmp_path / "Größe-模型"
    convert(source, target, *TO_NEMO, env={"LC_ALL": locale, "LANG": locale})
    assert is_published(target)


# ---------------------------------------------------------------- closed streams

def test_reader_of_stdout_that_went_away(source, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    result = run("plan", source, tmp_path / "out", *TO_NEMO, stdout=writer)
    os.close(writer)
    assert result.code in (0, 7), result
    assert not CRASH.search(result.err), result


def test_reader_of_stdout_that_went_away_does_not_stop_a_conversion(source, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    result = run("convert", source, tmp_path / "out", *TO_NEMO, stdout=writer, stderr=writer)
    os.close(writer)
    assert result.code in (0, 7), result
    assert is_published(tmp_path / "out")


def test_closed_descriptors_are_not_written_into_the_checkpoint(source, tmp_path):
    """With 0, 1 and 2 closed, the first files opened could take their numbers."""
    convert(source, tmp_path / "reference", *TO_NEMO)

    def close_standard_streams():
        for descriptor in (0, 1, 2):
            os.close(descriptor)
    process = start("convert", source, tmp_path / "out", *TO_NEMO, before=close_standard_streams)
    assert finish(process).code in (0, 7)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


def test_result_that_cannot_be_written_is_an_error(source, tmp_path):
    with open("/dev/full", "w") as full:
        result = run("plan", source, tmp_path / "out", *TO_NEMO, "--json", stdout=full)
    assert_refused(result, (7,), r"stdout|standard output|output", r"space")


def test_plan_beyond_the_memory_is_refused_before_it_is_made(tmp_path):
    """19,803 tensors take 64 MiB where each is a file of its own, and fit where they are in one."""
    source = write_hf(tmp_path / "in", config(num_hidden_layers=2200))
    limits = [(resource.RLIMIT_DATA, 64 << 20)]
    assert run("plan", source, tmp_path / "out", "--to=hf", "--max_memory=64MiB", limits=limits).code == 0
    assert_refused(run("plan", source, tmp_path / "out", *TO_NEMO, "--max_memory=64MiB", limits=limits), (2,),
                   r"--max_memory is 67108864 bytes, expected at least \d+MiB for a plan of 19803 pieces")


def test_side_file_larger_than_the_memory_is_hashed_in_pieces(source, tmp_path):
    with open(source / "tokenizer.model", "wb") as file:
        file.truncate(60 * MB)
    limits = [(resource.RLIMIT_DATA, 32 * MB)]
    result = run("plan", source, tmp_path / "out", *TO_NEMO, "--workers=1", "--max_memory=32MiB", "--json", limits=limits)
    assert result.code == 0, result
    sha256 = hashlib.sha256((source / "tokenizer.model").read_bytes()).hexdigest()
    assert f"{sha256[:32]}_tokenizer.model" in result.out


def test_config_whose_tree_could_exceed_the_memory_is_refused(source):
    limits = [(resource.RLIMIT_DATA, 16 * MB)]
    for nodes, code in [(100_000, 5), (5_000, 0)]:
        write_config(source, config(notes=[""] * nodes))
        result = run("inspect", source, "--max_memory=16MiB", limits=limits)
        assert result.code == code, result
        assert not code or re.search(r"config\.json: .*--max_memory", result.err), result


# ---------------------------------------------------------------- signals

@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signal_stops_within_a_second(large, large_converted, tmp_path, number, code):
    target = tmp_path / "out"
    process = start_and_wait_for_data(large, target, *SLOWLY)
    sent = time.monotonic()
    process.send_signal(number)
    result = finish(process)
    took = time.monotonic() - sent
    assert result.code == code, result
    assert took < STOP_WITHIN, f"stopped after {took:.2f} s"
    assert result.err.strip(), "says nothing of how to go on"
    assert not CRASH.search(result.err), result
    assert_unpublished(target)
    convert(large, target, *SLOWLY)
    assert hashes(target) == large_converted
    shutil.rmtree(target)


def stopped(source, target, number):
    process = start_and_wait_for_data(source, target, *SLOWLY)
    process.send_signal(number)
    finish(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on(large, large_converted, tmp_path, number):
    target = tmp_path / "out"
    stopped(large, target, number)
    again = json.loads(convert(large, target, *SLOWLY, "--json", "--workers=2").out)
    assert 0 < again["bytes_read"] < (large / "model.safetensors").stat().st_size
    assert hashes(target) == large_converted
    assert not (target / ".reshard").exists()
    shutil.rmtree(target)


def staged_files(target):
    """What is staged, and when it was written to."""
    return {path.name: path.stat().st_mtime_ns for path in target.glob(".reshard/*/files/**/*")}


def test_another_command_says_what_changed_and_begins_anew_where_that_is_asked_for(large, tmp_path):
    target = tmp_path / "out"
    stopped(large, target, signal.SIGKILL)
    before = staged_files(target)
    changed = r'an earlier run has staged{}: the option dtype was "fp32" and is ""'
    assert_refused(run("convert", large, target, *TO_NEMO), (6,), changed.format(" is not .*"), "begin anew")
    obstacle, = json.loads(run("plan", large, target, *TO_NEMO, "--json").out)["obstacles"]
    assert re.search(changed.format(" is not .*"), obstacle)
    assert before and staged_files(target) == before
    result = convert(large, target, *TO_NEMO, "--override")
    assert re.search("--override discards what " + changed.format(""), result.err), result
    convert(large, tmp_path / "reference", *TO_NEMO)
    assert hashes(target) == hashes(tmp_path / "reference")
    for folder in ("out", "reference"):
        shutil.rmtree(tmp_path / folder)


def test_a_source_that_changed_is_not_mixed_with_what_was_staged(large, large_converted, tmp_path):
    target = tmp_path / "out"
    stopped(large, target, signal.SIGKILL)
    before = large / "model.safetensors"
    was = before.stat().st_mtime_ns
    os.utime(before)
    changed = r"the source model\.safetensors: mtime_ns was \d+ and is \d+"
    assert_refused(run("convert", large, target, *SLOWLY), (6,), changed, "restore")
    os.utime(before, ns=(was, was))
    assert json.loads(run("plan", large, target, *SLOWLY, "--json").out)["obstacles"] == []
    os.utime(before)
    result = convert(large, target, *SLOWLY, "--json", "--override")
    assert re.search(changed, result.err), result
    assert json.loads(result.out)["bytes_read"] >= (large / "model.safetensors").stat().st_size * 0.99
    assert hashes(target) == large_converted
    shutil.rmtree(target)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_signal_stops_what_waits_for_its_reader(source, number, code):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"x" * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    process = start("inspect", source, "--json", stdout=writer)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(number)
        result = finish(process, timeout=STOP_WITHIN)
    finally:
        process.kill()
        os.close(reader)
        os.close(writer)
    assert result.code == code, result
    assert "run the same command again" in result.err, result


def kill_at_random_times(arguments, target, reference, old, times):
    """Kills a conversion at random moments: the target is then the new, the old, or has no marker; and redoes it."""
    start_of_run = time.monotonic()
    convert(*arguments)
    duration = time.monotonic() - start_of_run
    assert hashes(target) == reference
    whole = [reference, hashes(old)] if old else [reference]
    moments = random.Random(20240).choices(range(1000), k=times)
    for moment in moments:
        shutil.rmtree(target)
        if old:
            shutil.copytree(old, target)
        process = start("convert", *arguments)
        time.sleep(duration * moment / 1000)
        process.kill()
        finish(process)
        if is_published(target):
            assert hashes(target) in whole, f"half a checkpoint, killed at {moment}/1000"
        convert(*arguments)
        assert hashes(target) == reference, f"another result after a kill at {moment}/1000"


def test_kill_at_any_time_and_run_again(middling, tmp_path):
    target = tmp_path / "out"
    convert(middling, tmp_path / "reference", *TO_NEMO)
    kill_at_random_times((middling, target, *TO_NEMO), target, hashes(tmp_path / "reference"), None, 10)


def test_kill_at_any_time_while_overriding(middling, source, tmp_path):
    target, old = tmp_path / "out", tmp_path / "old"
    convert(source, old, *TO_NEMO)
    convert(middling, tmp_path / "reference", *TO_NEMO)
    kill_at_random_times((middling, target, *TO_NEMO, "--override"), target, hashes(tmp_path / "reference"), old, 10)


# ---------------------------------------------------------------- others at work

def test_second_converter_on_one_target_is_refused(large, tmp_path):
    target = tmp_path / "out"
    first = start_and_wait_for_data(large, target, *SLOWLY)
    first.send_signal(signal.SIGSTOP)
    try:
        second = run("convert", large, target, *SLOWLY)
        other = run("convert", large, target, *TO_NEMO, "--override", "--quiet")
    finally:
        first.send_signal(signal.SIGCONT)
    for refused in (second, other):
        assert_refused(refused, (3,), r"out\b", rf"{first.pid}|another|in use|running|owner|lock")
    result = finish(first)
    assert result.code == 0, result
    assert is_published(target)
    shutil.rmtree(target)


def test_source_cut_off_while_it_is_read(large, tmp_path):
    """No crash (SIGBUS), no checkpoint of zeros."""
    source = tmp_path / "in"
    shutil.copytree(large, source)
    process = start_and_wait_for_data(source, tmp_path / "out", *SLOWLY)
    process.send_signal(signal.SIGSTOP)
    with (source / "model.safetensors").open("ab") as file:
        file.truncate(MB)
    process.send_signal(signal.SIGCONT)
    assert_refused(finish(process), (6, 4, 7), r"model\.safetensors")
    assert_unpublished(tmp_path / "out")
