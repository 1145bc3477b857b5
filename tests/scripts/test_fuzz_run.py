"""fuzz/run with targets that are shell scripts: what it counts, and what its exit code says."""
import pathlib
import shutil
import subprocess

import pytest

RUN = pathlib.Path(__file__).resolve().parents[2] / "fuzz" / "run"


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "fuzz").mkdir()
    (tmp_path / "build" / "fuzz").mkdir(parents=True)
    shutil.copy(RUN, tmp_path / "fuzz" / "run")
    return tmp_path


def targets(checkout, **scripts):
    lines = []
    for name, script in scripts.items():
        program = checkout / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        lines.append(f"{program} {checkout / 'corpus'}\n")
    (checkout / "build" / "fuzz" / "fuzz-targets.txt").write_text("".join(lines))


def run(checkout, *arguments):
    return subprocess.run([checkout / "fuzz" / "run", *arguments], capture_output=True, text=True)


def tries(count, code=0):
    return f'echo "stat::number_of_executed_units: {count}"; echo "$@" >"$0.arguments"; exit {code}'


def test_the_inputs_of_all_targets_are_counted(checkout):
    targets(checkout, a_fuzz=tries(1000), b_fuzz=tries(234))
    done = run(checkout, "30")
    assert done.returncode == 0, done
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["a_fuzz", "1000"], ["b_fuzz", "234"], ["all", "1234"]]
    assert "-max_total_time=30" in (checkout / "a_fuzz.arguments").read_text()


def test_a_target_that_fails_does_not_stop_the_others(checkout):
    targets(checkout, a_fuzz=tries(7, code=77), b_fuzz="exit 1", c_fuzz=tries(5))
    done = run(checkout, "--count", "5")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].endswith("7 inputs, FAILED") and lines[1].endswith("0 inputs, FAILED"), lines
    assert lines[2].endswith("5 inputs") and "12 inputs, 2 failed" in lines[3], lines
    assert "-runs=5" in (checkout / "c_fuzz.arguments").read_text()


def test_only_the_targets_that_are_named_run(checkout):
    targets(checkout, a_fuzz=tries(1), b_fuzz=tries(2))
    done = run(checkout, "1", "b_fuzz")
    assert "a_fuzz" not in done.stdout and "2 inputs" in done.stdout
    assert run(checkout, "1", "no_such_fuzz").returncode == 2


@pytest.mark.parametrize("arguments", [[], ["x"], ["0"], ["--count"]])
def test_usage(checkout, arguments):
    targets(checkout, a_fuzz=tries(1))
    done = run(checkout, *arguments)
    assert done.returncode == 2 and "usage" in done.stderr
