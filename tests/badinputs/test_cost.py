"""What a hostile pickle costs, however large: 64 MiB of memory at most, and no time to speak of."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from program import BINARY, ROOT

MOST = 64 << 20
PROGRAM = 8 << 20  # the process itself
# Runs a command from a small process: the peak of a child is never below what its parent held when it started it.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, done.stderr, sep="\\n")
"""
PICKLES = {
    "12 million lists": (b"(" + b"]" * 12_000_000 + b"t.", 5, "max_memory"),
    "15 million numbers": (b"(" + b"K\1" * 15_000_000 + b"t.", 5, "max_memory"),
    "60 million nones": (b"(" + b"N" * 60_000_000 + b"t.", 5, "max_memory"),
    "a text of 50 MB": (b"X" + (50_000_000).to_bytes(4, "little") + b"a" * 50_000_000 + b".", 4, ""),
    "70 million bytes": (b"N" * 70_000_000 + b".", 5, "max_memory"),
    "3 million tuples within one another": (b")" + b"\x85" * 3_000_000 + b".", None, ""),
}


def inspect(path):
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, BINARY, "inspect", path], capture_output=True, text=True, check=True)
    code, peak, error = done.stdout.split("\n", 2)
    return int(code), int(peak), error


def check(path, code, says):
    found, peak, error = inspect(path)
    assert found in ((4, 5) if code is None else (code,)), error
    assert error.startswith("reshard: error: reading ") and error.strip().count("\n") == 0 and says in error, error
    assert peak <= MOST + PROGRAM, f"{peak / 2**20:.0f} MiB\n{error}"


@pytest.mark.parametrize("name", PICKLES)
def test_metadata_of_a_distributed_checkpoint(name, tmp_path):
    shutil.copytree(ROOT / "tests/fixtures/llama-gqa-bf16-torch_dist-new/nemo", tmp_path / "nemo")
    body, code, says = PICKLES[name]
    (tmp_path / "nemo/model_weights/.metadata").write_bytes(b"\x80\x04" + body)
    check(tmp_path / "nemo", code, says)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pytorch_file(name, tmp_path):
    config = ROOT / "tests/fixtures/llama-gqa-bf16-torch_dist-new/hf/config.json"
    shutil.copy(config, tmp_path)
    body, code, says = PICKLES[name]
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + body)
        file.writestr("archive/version", "3\n")
    check(tmp_path, code if "text" not in name else None, says)
