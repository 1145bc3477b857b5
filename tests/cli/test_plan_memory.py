"""What a plan of many tensors takes: published shapes with experts, headers only, their data a hole."""

import os
import pathlib
import subprocess
import sys

import pytest
from program import BINARY

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
DEFAULT_MEMORY = 256 * MIB
TARGETS = [("nemo", "--nemo_weights=torch_dist"), ("megatron", "--nemo_weights=torch_dist"), ("hf", "--hf_weights=safetensors")]


@pytest.fixture(scope="module", params=["mixtral-8x22b", "qwen3-235b", "100k"])
def sparse(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse") / request.param
    subprocess.run([sys.executable, ROOT / "bench" / "make_model.py", folder, f"--shape={request.param}", "--sparse"], check=True)
    return folder


def peak_of(*words):
    """Exit code and peak resident bytes of the program alone."""
    child = subprocess.Popen([BINARY, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss * 1024


@pytest.mark.parametrize("kind, weights", TARGETS, ids=[kind for kind, _ in TARGETS])
def test_a_plan_keeps_within_the_memory_that_is_the_default(sparse, kind, weights, tmp_path):
    code, peak = peak_of("plan", sparse, tmp_path / "out", f"--to={kind}", weights, f"--hf_model_name={sparse}", "--quiet")
    assert code == 0
    assert peak <= DEFAULT_MEMORY, f"{peak / MIB:.0f} MiB"


def test_more_than_that_is_refused_and_not_tried(sparse, tmp_path):
    """A file for each chunk and each expert's object of 100,000 tensors is too much; so it says, before it takes the memory."""
    code, peak = peak_of("plan", sparse, tmp_path / "out", "--to=nemo", "--nemo_weights=zarr", f"--hf_model_name={sparse}", "--quiet")
    assert code == (2 if sparse.name == "100k" else 0)
    assert peak <= DEFAULT_MEMORY, f"{peak / MIB:.0f} MiB"
