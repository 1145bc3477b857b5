"""All cases, and docs/bad-inputs.md made of them: `python3 tests/badinputs/catalogue.py` rewrites it."""
import importlib
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "cli")]

import cases  # noqa: E402

for module in ("safetensors_cases", "hf_folder_cases", "yaml_cases", "zarr_cases", "megatron_cases", "torch_cases",
               "torch_dist_cases", "tar_cases", "trtllm_cases"):
    importlib.import_module(module)

BAD_INPUTS = cases.BAD_INPUTS
VALID_INPUTS = cases.VALID_INPUTS
DOCUMENT = HERE.parents[1] / "docs" / "bad-inputs.md"

HEAD = """\
# Bad inputs

What a conversion meets in the field. Every line is one generator: a function that turns a valid tiny model into one
that holds exactly this defect. The tests run `reshard convert` on it and expect the exit code, a message that names
file, tensor and what was found, and a target that no loader can take for a checkpoint; `inspect` must survive it too.
The words of the last column may be others of the same
meaning. What the codes mean, and what to do about them, is in [errors.md](errors.md).

This page is made by `python3 tests/badinputs/catalogue.py`; a test compares the two.
"""

MIDDLE = """
# Odd and valid

These look wrong and are not. They convert, and the weights are compared bit for bit with an independent mapping.
"""

TAIL = """
# Environment

What is not in the input but around the run is in `tests/badinputs/test_environment.py`, one test a case: a target
that exists, is the source or lies inside it, paths that cannot be made, limits of memory, open files and file size, a
full disk, closed output streams, signals, two converters on one target, a source cut off while it is read. No space
and I/O errors at each call of a publication are injected in `src/execute/publish_test.cc`.

Three rows have no automated test: a memory limit of a cgroup (the tests limit the process instead: `RLIMIT_AS`,
`RLIMIT_DATA`), a clock that jumps during a run, and system calls that a signal interrupts (`EINTR`).
"""


def identifier(case):
    return f"{case.group}-{case.make.__name__}".replace(" ", "_")


def essence(pattern):
    """A pattern as a reader sees it: the words, without the syntax of regular expressions."""
    first = pattern.split("|")[0]
    return re.sub(r"\\b|[()^$?]|\\(?=\W)", "", first).replace("[,_ ]", ",").replace("\\d", "N")


def table(found, *columns):
    lines = []
    for group in dict.fromkeys(case.group for case in found):
        lines += ["", f"## {group}", ""]
        lines += ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
        for case in found:
            if case.group == group:
                lines.append("| " + " | ".join(cell(case).replace("|", "\\|") for _, cell in columns) + " |")
    return "\n".join(lines) + "\n"


def document():
    case = ("case", lambda entry: entry.make.__doc__)
    generator = ("generator", lambda entry: f"`{entry.make.__name__}`")
    code = ("exit", lambda entry: str(entry.code))
    says = ("the message names", lambda entry: ", ".join(f"`{essence(pattern)}`" for pattern in entry.says))
    bad = table(BAD_INPUTS, case, generator, code, says)
    return HEAD + bad + MIDDLE + table(VALID_INPUTS, case, generator) + TAIL


if __name__ == "__main__":
    DOCUMENT.write_text(document())
