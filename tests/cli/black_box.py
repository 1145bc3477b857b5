"""Runs the program as a black box (limits, signals, closed streams), and checks what every refusal must keep to."""
import os
import re
import resource
import subprocess
from typing import NamedTuple

from program import BINARY

TO_NEMO = ("--to=nemo", "--hf_model_name=example/model")
TO_HF = ("--to=hf", "--model_type=llama", "--vocab_size=11")
EXITS = {0, 1, 2, 3, 4, 5, 6, 7}

# Left by an uncaught exception, an assertion, a sanitizer or a mangled symbol.
CRASH = re.compile(r"terminate called|what\(\)|Traceback|Sanitizer|runtime error:|Assertion|std::|_ZN|core dumped")
# Control characters other than the end of a line, and those that reorder text.
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def __str__(self):
        return f"exit {self.code}\n--- stdout\n{self.out[:4000]}\n--- stderr\n{self.err[:4000]}"


def start(*arguments, program=BINARY, limits=(), env=None, before=None, **popen):
    """Starts the program; limits are (resource, value) pairs and `before` runs in the child."""
    def prepare():
        for which, value in limits:
            resource.setrlimit(which, (value, value))
        if before:
            before()
    # No hub cache of this machine may answer for a model name.
    environment = {**os.environ, "HF_HUB_CACHE": "/nonexistent", "HF_HUB_OFFLINE": "1", **(env or {})}
    popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
    return subprocess.Popen([str(program), *map(str, arguments)], env=environment, preexec_fn=prepare, **popen)


def finish(process, timeout=60):
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Result(process.returncode, (out or b"").decode(errors="backslashreplace"),
                  (err or b"").decode(errors="backslashreplace"))


def run(*arguments, timeout=60, **options):
    return finish(start(*arguments, **options), timeout)


def convert(source, target, *arguments, **options):
    """A conversion that must succeed."""
    result = run("convert", source, target, *arguments, **options)
    assert result.code == 0, result
    return result


def assert_refused(result, exits, *says):
    """One of the exit codes, the error grammar, and each pattern somewhere in the message."""
    assert result.code in exits, result
    first, *more = result.err.splitlines() or [""]
    assert first.startswith("reshard: error: "), result
    assert all(line.startswith("  ") for line in more), result
    assert not CRASH.search(result.err), result
    assert not UNPRINTABLE.search(result.err), result
    assert len(result.err) < 20_000, f"{len(result.err)} characters"
    if result.code != 2:
        assert re.match(r"reshard: error: \w+ing .+: ", first), result
    if result.code in (4, 6):
        assert "expected" in first, result
    for pattern in says:
        assert re.search(pattern, result.err, re.IGNORECASE), f"no /{pattern}/ in {result}"


def assert_unpublished(target):
    """Nothing of the target is there but the staging folder, so no loader can take it for a checkpoint."""
    entries = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    assert entries <= {".reshard"}, f"published: {sorted(entries)}"


def is_published(target):
    markers = ("model.safetensors", "model.safetensors.index.json", "model_weights/metadata.json")
    return any((target / marker).exists() for marker in markers)
