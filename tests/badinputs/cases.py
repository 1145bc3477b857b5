"""The tables of bad inputs and of odd but valid inputs.

A case is a generator: a function that turns a valid folder into one that holds exactly one defect (or oddity). Its
docstring is its line in docs/bad-inputs.md. The generators lie in the *_cases.py modules, one a format.
"""
from typing import Callable, NamedTuple

from black_box import TO_HF, TO_NEMO
import tiny_model

BASES = {
    "hf": (tiny_model.write_hf, TO_NEMO),
    "hf to trtllm": (tiny_model.write_hf, ("--to=trtllm", "--checkpoint_only")),
    "nemo": (tiny_model.write_nemo, TO_HF),
    "nemo2": (tiny_model.write_nemo2, TO_HF),
    "megatron": (tiny_model.write_megatron, TO_HF),
    "trtllm": (tiny_model.write_trtllm, ("--to=hf", "--quiet")),
}


class BadInput(NamedTuple):
    group: str
    base: str
    make: Callable  # (folder) -> None
    code: int  # the exit code
    says: tuple  # patterns of the message
    arguments: tuple


class ValidInput(NamedTuple):
    group: str
    base: str
    make: Callable  # (folder) -> None, or (settings, tensors) where they are not the base's
    arguments: tuple


BAD_INPUTS = []
VALID_INPUTS = []


def bad(group, base, code, *says, arguments=()):
    """Declares a generator of a bad input; `says` are regular expressions of the message, in any order."""
    def declare(make):
        BAD_INPUTS.append(BadInput(group, base, make, code, says, arguments))
        return make
    return declare


def valid(group, base, *arguments):
    """Declares a generator of an input that looks odd and must be accepted."""
    def declare(make):
        VALID_INPUTS.append(ValidInput(group, base, make, arguments))
        return make
    return declare
