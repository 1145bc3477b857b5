"""`reshard commit FOLDER` after a conversion that was killed between any two renames of its publication."""
import itertools
import os
import pathlib
import shutil
import tempfile

import pytest

import tiny_model
from black_box import TO_HF, TO_NEMO, is_published, run
from program import BINARY, hashes
from renames import killed_before_rename


@pytest.fixture
def tmp_path(tmp_path):
    """In memory, where there is such a place: every run syncs several times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield pathlib.Path(folder)


def make_hf(folder):
    return tiny_model.write_hf(folder)


def make_nemo(folder):
    return tiny_model.write_nemo(folder)


# What is made of what, what is in its way, and how.
DIRECTIONS = {
    "fresh nemo": (make_hf, None, TO_NEMO),
    "fresh hf": (make_nemo, None, (*TO_HF, "--max_shard_size=10KB")),
    "hf over nemo": (make_hf, make_nemo, ("--to=hf", "--override")),
    "nemo over hf": (make_hf, make_hf, (*TO_NEMO, "--override")),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_commit_ends_a_publication_killed_before_any_rename(tmp_path, direction):
    make, make_old, words = DIRECTIONS[direction]
    source = make(tmp_path / "in")
    old = hashes(make_old(tmp_path / "old")) if make_old else {}
    assert run("convert", source, tmp_path / "reference", *words).code == 0
    expected = hashes(tmp_path / "reference")
    target = tmp_path / "out"
    more, n, rolled_forward = True, 0, 0
    while more:
        n += 1
        if make_old:
            shutil.copytree(tmp_path / "old", target)
        more = killed_before_rename(n, BINARY, "convert", source, target, *words)
        now = hashes(target)
        assert now in (old, expected) or not is_published(target), f"before rename {n}"
        begun = bool(list(target.glob(".reshard/*/publishing")))
        result = run("commit", target)
        assert result.code == 0, result
        assert ("is published" if begun else "no publication was begun") in result.err, result
        if begun:
            rolled_forward += 1
        else:
            assert hashes(target) == now, f"before rename {n}"
            if now != expected:
                assert run("convert", source, target, *words).code == 0
        assert hashes(target) == expected, f"before rename {n}"
        assert not (target / ".reshard").exists()
        if more:
            shutil.rmtree(target)
    assert run("verify", target).code == 0
    assert rolled_forward > len(expected)


def test_commit_may_be_killed_as_well(source, tmp_path):
    assert run("convert", source, tmp_path / "reference", *TO_NEMO).code == 0
    begun, target = tmp_path / "begun", tmp_path / "out"
    for n in itertools.count(1):
        killed_before_rename(n, BINARY, "convert", source, begun, *TO_NEMO)
        if list(begun.glob(".reshard/*/publishing")):
            break
    assert not is_published(begun)
    more, n = True, 0
    while more:
        n += 1
        shutil.copytree(begun, target)
        more = killed_before_rename(n, BINARY, "commit", target)
        assert run("commit", target).code == 0
        assert hashes(target) == hashes(tmp_path / "reference") and not (target / ".reshard").exists()
        shutil.rmtree(target)
    assert n > len(hashes(tmp_path / "reference"))
