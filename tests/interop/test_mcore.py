"""Megatron-core's own dist_checkpointing and GPTModel on our NeMo folders, and our reader on what they save.

One process of each megatron-core version works off all cases (its import takes longer than they do).
"""

import dataclasses

import mcore_run
import models
import nemo_reference
import pytest
import torch
from program import convert, hashes

VERSIONS = ["0.8", "0.12"]


@dataclasses.dataclass
class Case:
    family: str
    settings: dict
    dtype: torch.dtype = torch.float32
    rows: int = None  # vocabulary rows of the loading model, where not those stored
    te: bool = False  # saved with the objects of TransformerEngine 1.8
    versions: tuple = tuple(VERSIONS)  # whose forward has all that the model needs


SHAPES = models.SHAPES
CASES = {
    "llama": Case("llama", SHAPES["8x2"], te=True),
    "llama-bf16": Case("llama", SHAPES["4x4"], torch.bfloat16),
    "llama-fp16": Case("llama", SHAPES["6x3"], torch.float16),
    "llama-3x1": Case("llama", SHAPES["3x1"]),
    "llama-7x7": Case("llama", SHAPES["7x7"]),
    "llama-head_dim": Case("llama", SHAPES["head_dim"]),
    "llama-tied": Case("llama", SHAPES["tied"]),
    "llama-padded": Case("llama", SHAPES["vocab97"], rows=128),
    "llama-biased": Case("llama", dict(SHAPES["8x2"], attention_bias=True, mlp_bias=True)),
    "llama-linear": Case("llama", dict(SHAPES["8x2"], rope_parameters=models.LINEAR_ROPE)),
    "llama-llama3": Case("llama", dict(SHAPES["8x2"], rope_parameters=models.LLAMA3_ROPE), versions=("0.12",)),
    "mistral": Case("mistral", dict(SHAPES["8x2"], sliding_window=32)),
    "qwen2": Case("qwen2", SHAPES["8x2"], te=True),
    "qwen2-tied": Case("qwen2", SHAPES["tied"], torch.bfloat16),
    "qwen3": Case("qwen3", SHAPES["8x2"]),
    "qwen3-head_dim": Case("qwen3", SHAPES["head_dim"], torch.bfloat16),
}
TWO_RANKS = [name for name, c in CASES.items() if c.settings["num_key_value_heads"] % 2 == 0 and "vocab_size" not in c.settings]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Case -> (model, what our conversion of it to NeMo said, where it lies)."""
    made = {}
    for name, case in CASES.items():
        top = tmp_path_factory.mktemp(name)
        model = models.write(top / "hf", models.config(case.family, **case.settings), case.dtype, seed=name)
        result = convert(model.path, top / "nemo", "--hf_model_name=example/model", to="nemo", code=None)
        made[name] = model, result, top / "nemo"
    return made


@pytest.fixture(scope="session")
def megatron(folders, tmp_path_factory):
    """(version, job, case) -> result; with the folders that Megatron saved below saved[version]."""
    runs, saved, results = [], {}, {}
    for version in VERSIONS:
        saved[version] = tmp_path_factory.mktemp("megatron-" + version)
        jobs = []
        for name, (model, _, nemo) in folders.items():
            case, hf, out = CASES[name], str(model.path), saved[version] / name
            jobs.append(dict(id=f"load {name}", do="load", hf=hf, nemo=str(nemo), rows=case.rows))
            jobs.append(dict(id=f"save {name}", do="save", hf=hf, to=str(out / "one" / "model_weights"), te=case.te))
            if name in TWO_RANKS:
                to = str(out / "two" / "model_weights")
                jobs.append(dict(id=f"again {name}", do="again", hf=hf, nemo=str(nemo), to=to, ranks=[2, 1]))
        runs.append(mcore_run.Run(version, saved[version], jobs))
    for run in runs:
        results.update({(run.version, *name.split()): result for name, result in run.results().items()})
    return results, saved


versions = pytest.mark.parametrize("version", VERSIONS)


@versions
@pytest.mark.parametrize("name", CASES)
def test_a_gpt_model_loads_our_folder_strictly_and_computes_what_transformers_does(name, version, folders, megatron):
    converted = folders[name][1]
    assert converted.code == 0, converted
    difference = megatron[0][version, "load", name]
    assert not isinstance(difference, str), difference
    if version in CASES[name].versions:
        assert difference < 1e-4


def back(nemo, model, out):
    """Converts what Megatron saved to HuggingFace; NeMo keeps the config beside the weights, Megatron alone has none."""
    text = nemo_reference.config_text(nemo_reference.nemo_config(model.config, model.dtype))
    (nemo / "model_config.yaml").write_text(text)
    convert(nemo, out, f"--hf_model_name={model.path}", to="hf")
    models.assert_equal(models.read(out), model.tensors)


@versions
@pytest.mark.parametrize("name", CASES)
def test_what_megatron_saves_reads_back_bit_for_bit(name, version, folders, megatron, tmp_path):
    results, saved = megatron
    assert results[version, "save", name] == 0, results[version, "save", name]
    back(saved[version] / name / "one", folders[name][0], tmp_path / "out")


@versions
@pytest.mark.parametrize("name", TWO_RANKS)
def test_our_folder_resharded_by_two_ranks_reads_back_bit_for_bit(name, version, folders, megatron, tmp_path):
    results, saved = megatron
    assert results[version, "again", name] == 0, results[version, "again", name]
    back(saved[version] / name / "two", folders[name][0], tmp_path / "out")


@versions
@pytest.mark.parametrize("name", CASES)
def test_our_arrays_are_the_files_megatron_saves(name, version, folders, megatron):
    def arrays(folder):
        return {n: h for n, h in hashes(folder).items() if "/" in n and "_extra_state" not in n}

    assert arrays(folders[name][2] / "model_weights") == arrays(megatron[1][version] / name / "one" / "model_weights")
