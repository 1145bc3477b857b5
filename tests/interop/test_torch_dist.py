"""torch_dist: real megatron-core loads ours and we read theirs, of every grid of ranks; torch's own DCP loads ours, too.

One process of each megatron-core version works off all cases (its import takes longer than they do).
"""

import json
import pathlib

import mcore_run
import models
import nemo_reference
import pytest
import torch
import torch.distributed.checkpoint as dcp
from program import convert, files, hashes, reshard
from test_mcore import Case

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

VERSIONS = ["0.8", "0.12", "0.16"]
SHAPES = models.SHAPES
CASES = {
    "llama": Case("llama", SHAPES["8x2"], te=True),
    "llama-bf16": Case("llama", SHAPES["4x4"], torch.bfloat16),
    "llama-fp16": Case("llama", SHAPES["6x3"], torch.float16),
    "llama-head_dim": Case("llama", SHAPES["head_dim"]),
    "llama-tied": Case("llama", SHAPES["tied"]),
    "llama-padded": Case("llama", SHAPES["vocab97"], rows=128, versions=("0.12", "0.16")),
    "llama-llama3": Case("llama", dict(SHAPES["8x2"], rope_parameters=models.LLAMA3_ROPE), versions=("0.12", "0.16")),
    "qwen2": Case("qwen2", models.heads(8, 4), te=True),
    "qwen3": Case("qwen3", SHAPES["4x4"], torch.bfloat16),
}
IN_RANKS = ["llama-bf16", "qwen2", "qwen3"]
RANKS = [(tp, pp) for tp in (1, 2, 4) for pp in (1, 2) if tp * pp > 1]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Case -> (model, our conversion of it to NeMo)."""
    made = {}
    for name, case in CASES.items():
        top = tmp_path_factory.mktemp(name)
        model = models.write(top / "hf", models.config(case.family, **case.settings), case.dtype, seed=name)
        convert(model.path, top / "nemo", "--nemo_weights=torch_dist", "--hf_model_name=example/model", to="nemo")
        made[name] = model, top / "nemo"
    return made


@pytest.fixture(scope="session")
def megatron(folders, tmp_path_factory):
    """(version, job, case) -> result; with the folders that Megatron saved below saved[version]."""
    runs, saved, results = [], {}, {}
    for version in VERSIONS:
        saved[version] = tmp_path_factory.mktemp("megatron-" + version)
        jobs = []
        for name, (model, nemo) in folders.items():
            case, hf, out = CASES[name], str(model.path), saved[version] / name
            rows = case.rows if version in case.versions else None
            jobs.append(dict(id=f"load {name}", do="load", hf=hf, nemo=str(nemo), rows=rows))
            to = dict(to=str(out / "1x1" / "model_weights"), backend="torch_dist")
            jobs.append(dict(id=f"save {name}", do="save", hf=hf, te=case.te, **to))
            for tp, pp in RANKS if name in IN_RANKS else []:
                to = dict(to=str(out / f"{tp}x{pp}" / "model_weights"), backend="torch_dist", ranks=[tp, pp])
                jobs.append(dict(id=f"{tp}x{pp} {name}", do="again", hf=hf, nemo=str(nemo), **to))
        runs.append(mcore_run.Run(version, saved[version], jobs))
    for run in runs:
        results.update({(run.version, *name.split()): result for name, result in run.results().items()})
    return results, saved


versions = pytest.mark.parametrize("version", VERSIONS)


@versions
@pytest.mark.parametrize("name", CASES)
def test_a_gpt_model_loads_ours_strictly_and_computes_what_transformers_does(name, version, megatron):
    difference = megatron[0][version, "load", name]
    assert not isinstance(difference, str), difference
    if version in CASES[name].versions + ("0.16",):
        assert difference < 1e-4


def read_back(nemo, model, out):
    """Converts what Megatron saved to HuggingFace; NeMo keeps the config beside the weights, Megatron alone has none."""
    text = nemo_reference.config_text(nemo_reference.nemo_config(model.config, model.dtype, backend="torch_dist"))
    (nemo / "model_config.yaml").write_text(text)
    convert(nemo, out, f"--hf_model_name={model.path}", to="hf")
    models.assert_equal(models.read(out), model.tensors)


@versions
@pytest.mark.parametrize("name", CASES)
def test_what_megatron_saves_reads_back_bit_for_bit(name, version, folders, megatron, tmp_path):
    results, saved = megatron
    assert results[version, "save", name] == 0, results[version, "save", name]
    read_back(saved[version] / name / "1x1", folders[name][0], tmp_path / "out")


@versions
@pytest.mark.parametrize("ranks", [f"{tp}x{pp}" for tp, pp in RANKS])
@pytest.mark.parametrize("name", IN_RANKS)
def test_ranks_load_ours_strictly_and_what_they_save_reads_back_bit_for_bit(name, ranks, version, folders, megatron, tmp_path):
    results, saved = megatron
    assert results[version, ranks, name] == 0, results[version, ranks, name]
    read_back(saved[version] / name / ranks, folders[name][0], tmp_path / "out")


def loaded_by_torch(folder):
    """Every tensor of a distributed checkpoint, by torch alone."""
    reader = dcp.FileSystemReader(folder)
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_torch_loads_ours(name, folders):
    model, nemo = folders[name]
    arrays = nemo_reference.nemo_arrays(model.config, model.tensors)
    models.assert_equal(loaded_by_torch(nemo / "model_weights"), {key: array.value for key, array in arrays.items()})


def test_the_config_names_the_format_and_the_rows_that_are_stored(folders):
    model, nemo = folders["llama-padded"]
    lines = (nemo / "model_config.yaml").read_text().splitlines()
    assert "dist_ckpt_format: torch_dist" in lines and "override_vocab_size: 97" in lines
    metadata = json.loads((nemo / "model_weights" / "metadata.json").read_text())
    assert metadata == dict(json.loads(nemo_reference.METADATA), sharded_backend="torch_dist")
    assert torch.load(nemo / "model_weights" / "common.pt", weights_only=True) == {}


def test_there_and_back_through_zarr_gives_the_same_files(folders, tmp_path):
    nemo = folders["qwen2"][1]
    convert(nemo, tmp_path / "zarr", "--nemo_weights=zarr", to="nemo")
    convert(tmp_path / "zarr", tmp_path / "again", "--nemo_weights=torch_dist", to="nemo")
    assert hashes(tmp_path / "again") == hashes(nemo)


def test_the_formats_are_told_apart(folders, tmp_path):
    nemo = folders["qwen2"][1]
    assert reshard("inspect", nemo, "--json").json()["format"] == "torch_dist"
    assert reshard("verify", nemo, folders["qwen2"][0].path).code == 0
    assert sorted(files(nemo / "model_weights")) == [".metadata", "__0_0.distcp", "common.pt", "metadata.json"]
