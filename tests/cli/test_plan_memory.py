"""What a plan of many tensors takes: published shapes with experts, headers only, their data a hole."""

import json
import math
import pathlib
import subprocess
import sys

import pytest
from program import BINARY

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
DEFAULT_MEMORY = 256 * MIB
CUT = 16 * MIB  # an operation copies whole rows of one tensor, and no more bytes than this
# A process of its own between, since a child is counted with what its parent held when it began.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""
TARGETS = [("nemo", "--nemo_weights=torch_dist"), ("megatron", "--nemo_weights=torch_dist"), ("hf", "--hf_weights=safetensors")]


@pytest.fixture(scope="module", params=["mixtral-8x22b", "qwen3-235b", "100k"])
def sparse(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse") / request.param
    subprocess.run([sys.executable, ROOT / "bench" / "make_model.py", folder, f"--shape={request.param}", "--sparse"], check=True)
    return folder


def operations(folder):
    """How many copy all tensors, from the headers of the shards."""
    count = 0
    for shard in folder.glob("*.safetensors"):
        with open(shard, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
        count += sum(math.ceil(rows / (CUT // (2 * math.prod(columns)))) for rows, *columns in shapes)
    return count


def peak_of(*words, stdout=subprocess.DEVNULL):
    """Exit code and peak resident bytes of the program alone."""
    command = [sys.executable, "-S", "-c", MEASURE, BINARY, *words]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    return done.returncode, int(done.stderr.split()[-1])


@pytest.mark.parametrize("kind, weights", TARGETS, ids=[kind for kind, _ in TARGETS])
def test_a_plan_keeps_within_the_memory_that_is_the_default(sparse, kind, weights, tmp_path):
    options = [f"--to={kind}", weights, f"--hf_model_name={sparse}", "--quiet", "--json"]
    with open(tmp_path / "plan.json", "wb") as plan:
        code, peak = peak_of("plan", sparse, tmp_path / "out", *options, stdout=plan)
    assert code == 0
    assert peak <= DEFAULT_MEMORY, f"{peak / MIB:.0f} MiB"
    assert json.loads((tmp_path / "plan.json").read_text())["ops"] == operations(sparse)


def test_a_plan_as_json_takes_no_more_than_as_text(sparse, tmp_path):
    """However many files it names: those of zarr, one for each chunk."""
    options = ["--to=nemo", "--nemo_weights=zarr", f"--hf_model_name={sparse}", "--max_memory=1GiB"]
    (_, text), (_, as_json) = (peak_of("plan", sparse, tmp_path / "out", *options, *more) for more in ([], ["--json"]))
    assert as_json <= text + 8 * MIB, f"{as_json / MIB:.0f} MiB, {text / MIB:.0f} as text"


def test_more_than_that_is_refused_and_not_tried(sparse, tmp_path):
    """A file for each chunk and each expert's object of 100,000 tensors is too much; so it says, before it takes the memory."""
    code, peak = peak_of("plan", sparse, tmp_path / "out", "--to=nemo", "--nemo_weights=zarr", f"--hf_model_name={sparse}", "--quiet")
    assert code == (2 if sparse.name == "100k" else 0)
    assert peak <= DEFAULT_MEMORY, f"{peak / MIB:.0f} MiB"
