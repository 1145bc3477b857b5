#!/usr/bin/env python3
"""Writes the files of corpus/ beside this script: the .metadata of cases of tests/badinputs that have an odd one, and numbers
for the fuzz target's own generator. Those named mcore_* are copies from tests/fixtures."""
import pathlib
import random
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "cli"), str(TESTS / "badinputs")]

import cases  # noqa: E402
import torch_dist_cases  # noqa: E402

LARGEST = 20000  # bytes
ODD = ["written_by_this_suite", "uneven_chunks", "empty_chunk", "plans_and_other_attributes", "numbers_as_plain_tuples"]


def is_chosen(case):
    if case.base != "nemo torch_dist":
        return False
    return case.make.__name__ in ODD if case in cases.VALID_INPUTS else torch_dist_cases.METADATA in case.says


for case in filter(is_chosen, cases.BAD_INPUTS + cases.VALID_INPUTS):
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "in"
        cases.BASES[case.base][0](folder)
        case.make(folder)
        path = torch_dist_cases.metadata_file(folder)
        if path.is_file() and path.stat().st_size < LARGEST:
            (HERE / "corpus" / case.make.__name__).write_bytes(path.read_bytes())
generator = random.Random(1)
for number in range(16):
    raw = b"!" + bytes(generator.randrange(256) for _ in range(16 << (number % 4)))
    (HERE / "corpus" / f"numbers_{number}").write_bytes(raw)
