"""The families by the real megatron-core: it loads what we write strictly and computes what transformers does, and what it
saves reads back. Those that it has no layers of its own for (Gemma's norms) are not here."""

import dataclasses

import families
import megatron_jobs
import models
import pytest
import test_megatron
from families import CASES, SPARSE
from program import convert

VERSIONS = ["0.12", "0.16"]
MODELS = {
    name: dataclasses.replace(case, dtype="fp32")
    for name, case in CASES.items()
    if not {"nemo", "megatron"} & set(case.refused) and not families.zero_centred(case.family) and not case.settings.get("sliding_window")
}
SAVED = [name for name, case in MODELS.items() if case.family in SPARSE]


def weights(kind, folder):
    return dict(nemo=(folder / "model_weights", "model."), megatron=(folder / "iter_0000001", ""))[kind]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(kind, name) -> what we write, or the error; name -> the model."""
    made, top = {}, tmp_path_factory.mktemp("families")
    for i, (name, case) in enumerate({**MODELS,}.items()):
        made[name] = families.write(top / f"{i}-hf", case, name)
        for kind in ("nemo", "megatron"):
            options = ["--hf_model_name=example/model", "--nemo_weights=torch_dist"]
            made[kind, name] = top / f"{i}-{kind}"
            convert(made[name].path, made[kind, name], *options, to=kind, code=None)
    return made


@pytest.fixture(scope="module")
def megatron(folders, tmp_path_factory):
    top, jobs = tmp_path_factory.mktemp("mcore"), {}
    for version in VERSIONS:
        jobs[version] = []
        for name in MODELS:
            common = dict(hf=str(folders[name].path))
            for kind in ("nemo", "megatron"):
                folder, prefix = weights(kind, folders[kind, name])
                jobs[version].append(dict(common, id=f"{kind} {name}", do="load", weights=str(folder), prefix=prefix))
            if name in SAVED:
                args = test_megatron.arguments(folders[name].config)
                to = str(top / version / name / "iter_0000001")
                jobs[version].append(dict(common, id=f"save {name}", do="save", to=to, prefix="", backend="torch_dist", args=args))
    return megatron_jobs.run(jobs, top), top


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["nemo", "megatron"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gpt_model_loads_ours_strictly_and_computes_what_transformers_does(name, kind, version, megatron):
    difference = megatron[0][version, f"{kind} {name}"]
    assert not isinstance(difference, str), difference
    assert difference < 1e-4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SAVED)
def test_what_megatron_saves_reads_back_bit_for_bit(name, version, folders, megatron, tmp_path):
    results, top = megatron
    assert results[version, f"save {name}"] == 0, results[version, f"save {name}"]
    (top / version / name / "latest_checkpointed_iteration.txt").write_text("1")
    for i, options in enumerate([[], [f"--hf_model_name={folders[name].path}"]]):
        convert(top / version / name, tmp_path / str(i), *options, to="hf")
        models.assert_equal(models.read(tmp_path / str(i)), folders[name].tensors)
