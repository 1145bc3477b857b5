"""Every container goes to every other one, and a model that has been through them ends in the hash that it began with."""

import gzip
import os

import models
import pytest
import torch
from program import convert, hashes, reshard

# name -> options of the conversion into it; the target of a packed one is a file
CONTAINERS = {
    "safetensors": ("hf", []),
    "shards": ("hf", ["--max_shard_size=30KB"]),
    "bin": ("hf", ["--hf_weights=bin"]),
    "bin_shards": ("hf", ["--hf_weights=bin", "--max_shard_size=30KB"]),
    "dcp": ("hf", ["--hf_weights=dcp"]),
    "zarr": ("nemo", []),
    "torch_dist": ("nemo", ["--nemo_weights=torch_dist"]),
    "ranks": ("nemo", ["--nemo_weights=ranks", "--tp_size=2", "--pp_size=2"]),
    "packed": ("nemo", []),
    "packed_torch_dist": ("nemo", ["--nemo_weights=torch_dist"]),
    "packed_ranks": ("nemo", ["--nemo_weights=ranks", "--tp_size=2"]),
    "nemo2": ("nemo2", []),
    "nemo2_zarr": ("nemo2", ["--nemo_weights=zarr"]),
    "megatron": ("megatron", []),
    "trtllm": ("trtllm", ["--checkpoint_only", "--tp_size=2", "--pp_size=2"]),
}
FAMILIES = {"llama": models.heads(8, 4), "qwen2": models.heads(4, 2), "tied": models.heads(4, 2, tie_word_embeddings=True)}


def path_of(folder, container):
    return folder / (f"{container}.nemo" if container.startswith("packed") else container)


def make(source, folder, container, template, code=0):
    kind, options = CONTAINERS[container]
    return convert(source, path_of(folder, container), *options, "--hf_model_name", template, to=kind, code=code)


def weights(folder):
    return {name: digest for name, digest in hashes(folder).items() if name.endswith(".safetensors")}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A model, in every container by way of its HuggingFace folder."""
    folder = tmp_path_factory.mktemp(request.param)
    c = models.config("qwen2" if request.param == "qwen2" else "llama", **FAMILIES[request.param])
    models.write(folder / "hf", c, torch.bfloat16, seed=request.param)
    for container in CONTAINERS:
        make(folder / "hf", folder, container, folder / "hf")
    return folder


def cells():
    """All pairs for one family; for the others every container once on each side, or all with RESHARD_TEST_ALL."""
    sources, targets = list(CONTAINERS)[1:], list(CONTAINERS)
    for family in FAMILIES:
        for i, source in enumerate(sources):
            every = family == "llama" or os.environ.get("RESHARD_TEST_ALL")
            for target in targets if every else [targets[(i + 3) % len(targets)]]:
                yield family, source, target


@pytest.mark.parametrize("family, source, target", list(cells()), indirect=["family"])
def test_one_goes_to_another_and_back_to_the_hash_it_began_with(source, target, family, tmp_path):
    make(path_of(family, source), tmp_path, target, family / "hf")
    convert(path_of(tmp_path, target), tmp_path / "back", "--hf_model_name", family / "hf", to="hf")
    assert weights(tmp_path / "back") == weights(family / "safetensors")
    reshard("verify", path_of(family, source), path_of(tmp_path, target), "--hf_model_name", family / "hf")
    reshard("verify", path_of(tmp_path, target))


def test_a_chain_through_all_of_them_ends_in_the_hash_it_began_with(family, tmp_path):
    before = family / "hf"
    for step, container in enumerate(CONTAINERS):
        (tmp_path / str(step)).mkdir()
        make(before, tmp_path / str(step), container, family / "hf")
        before = path_of(tmp_path / str(step), container)
    convert(before, tmp_path / "back", "--hf_model_name", family / "hf", to="hf")
    assert weights(tmp_path / "back") == weights(family / "safetensors")


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name.startswith("packed")])
def test_a_compressed_archive_is_the_archive(container, family, tmp_path):
    packed = tmp_path / "model.nemo"
    packed.write_bytes(gzip.compress(path_of(family, container).read_bytes()))
    convert(packed, tmp_path / "back", "--hf_model_name", family / "hf", to="hf")
    assert weights(tmp_path / "back") == weights(family / "safetensors")


@pytest.mark.parametrize("container", CONTAINERS)
def test_inspect_and_plan_know_it(container, family, tmp_path):
    path = path_of(family, container)
    shown = reshard("inspect", path, "--json", "--hf_model_name", family / "hf").json()
    assert shown["kind"] == CONTAINERS[container][0] and shown["tensors"] and shown["parameters"]
    planned = reshard("plan", path, tmp_path / "out", "--to=hf", "--json", "--hf_model_name", family / "hf").json()
    convert(path, tmp_path / "out", "--hf_model_name", family / "hf", to="hf")
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in hashes(tmp_path / "out")}
    assert {row["path"]: row["size"] for row in planned["files"]} == sizes


def test_a_packed_target_is_written_once(family, tmp_path):
    """What is written is what the plan says and no more: there is no temporary copy."""
    planned = reshard("plan", family / "hf", tmp_path / "m.nemo", "--to=nemo", "--json").json()
    done = reshard("convert", family / "hf", tmp_path / "m.nemo", "--to=nemo", "--json").json()
    assert planned["bytes_written"] == done["bytes_written"] == (tmp_path / "m.nemo").stat().st_size


@pytest.mark.parametrize("first, second", [("packed", "packed_torch_dist"), ("packed_torch_dist", "packed")])
def test_another_packed_target_is_refused_and_then_replaced(first, second, family, tmp_path):
    out = tmp_path / "m.nemo"
    convert(family / "hf", out, *CONTAINERS[first][1], to="nemo")
    before = out.read_bytes()
    convert(family / "hf", out, *CONTAINERS[second][1], to="nemo", code=3)
    assert out.read_bytes() == before
    convert(family / "hf", out, *CONTAINERS[second][1], "--override", to="nemo")
    assert out.read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".m.nemo.reshard.json", "m.nemo"]
    reshard("verify", family / "hf", out)
