"""HuggingFace folders whose weights are PyTorch pickles: read as torch wrote them, written as torch reads them."""
import json
import pathlib
from collections import OrderedDict

import models
import pytest
import torch
from program import convert, files, reshard
from test_torch_pickle import assert_same_but_ids

SHAPE = models.SHAPES["6x3"]
SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def plain(tensors):
    return dict(tensors)


def ordered(tensors):
    """As Module.state_dict gives it, and transformers 4 saved it."""
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}, "model": {"version": 1}})
    return state


def parameters(tensors):
    return {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}


def transposed(tensors):
    """Matrices stored by columns."""
    return {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}


def slices(tensors):
    """All tensors are views of one storage."""
    everything = torch.cat([tensor.flatten() for tensor in tensors.values()])
    views = everything.split([tensor.numel() for tensor in tensors.values()])
    return {name: view.view(tensor.shape) for view, (name, tensor) in zip(views, tensors.items())}


def every_second(tensors):
    """Views that skip every second element."""
    return {name: tensor.repeat_interleave(2, -1)[..., ::2] for name, tensor in tensors.items()}


def wrapped(tensors):
    """As Lightning nests it, with objects beside it that nothing here may build."""
    return {"epoch": 1, "callbacks": {"path": pathlib.PurePosixPath("x")}, "state_dict": ordered(tensors)}


FORMS = [plain, ordered, parameters, transposed, slices, every_second, wrapped]


def to_pickles(model, form=plain, shards=1, **how):
    """The same folder with torch files for weights."""
    for path in model.path.glob("*.safetensors*"):
        path.unlink()
    names = list(model.tensors)
    if shards == 1:
        torch.save(form(model.tensors), model.path / SINGLE, **how)
        return
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        weight_map.update(dict.fromkeys(names[i::shards], file))
        torch.save(form({name: model.tensors[name] for name in names[i::shards]}), model.path / file, **how)
    (model.path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def read_bin(folder):
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.bin")):
        for name, tensor in torch.load(path, weights_only=True).items():
            assert name not in found, f"{name} is stored twice"
            found[name] = tensor
    return found


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bytes(form, shards, zipped, tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    to_pickles(model, form, shards, _use_new_zipfile_serialization=zipped)
    convert(model.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)
    assert not list((tmp_path / "out").glob("pytorch_model*"))


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("family", models.CLASSES)
def test_families_and_dtypes(family, dtype, tmp_path):
    model = models.write(tmp_path / "in", models.config(family, **SHAPE), models.DTYPES[dtype], seed=family)
    to_pickles(model, ordered, 2)
    convert(model.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)


def contents(folder):
    return {name: path.read_bytes() for name, path in files(folder).items() if not name.startswith(".reshard")}


@pytest.mark.parametrize("arguments", [["--to=nemo"], ["--to=trtllm", "--tp_size=2", "--checkpoint_only"]], ids=["nemo", "trtllm"])
def test_other_kinds_get_the_same_files_as_from_safetensors(arguments, tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["8x2"]), torch.bfloat16)
    reshard("convert", model.path, tmp_path / "wanted", *arguments)
    to_pickles(model, transposed, 2)
    reshard("convert", model.path, tmp_path / "got", *arguments)
    assert contents(tmp_path / "got") == contents(tmp_path / "wanted")


@pytest.mark.parametrize("shared", [True, False])
def test_a_tied_head_that_is_stored_too(shared, tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["tied"]), torch.bfloat16)
    embedding = model.tensors["model.embed_tokens.weight"]
    to_pickles(model, lambda tensors: {**tensors, "lm_head.weight": embedding if shared else embedding.clone()})
    convert(model.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)


def test_safetensors_come_first(tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16, shards=2)
    (model.path / SINGLE).write_bytes(b"no weights at all")
    convert(model.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)
    assert not (tmp_path / "out" / SINGLE).exists()


def test_one_file_comes_before_an_index(tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    to_pickles(model)
    (model.path / INDEX).write_text("{}")
    convert(model.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)


@pytest.mark.parametrize("family", models.CLASSES)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_what_is_written_loads(family, tied, tmp_path):
    c = models.config(family, **SHAPE, tie_word_embeddings=tied)
    model = models.write(tmp_path / "in", c, torch.bfloat16)
    convert(model.path, tmp_path / "out", "--hf_weights=bin", to="hf")
    assert {path.name for path in (tmp_path / "out").glob("*.*") if "reshard" not in path.name} == {
        "config.json", "generation_config.json", SINGLE}
    models.assert_equal(read_bin(tmp_path / "out"), model.tensors)
    assert torch.equal(models.logits(tmp_path / "out"), models.logits(model.path))


def test_the_file_is_that_of_torch(tmp_path):
    model = models.write(tmp_path / "in", models.config("qwen2", **SHAPE), torch.float16)
    convert(model.path, tmp_path / "out", "--hf_weights=bin", to="hf")
    order = list(torch.load(tmp_path / "out" / SINGLE, weights_only=True))
    torch.save({name: model.tensors[name] for name in order}, tmp_path / SINGLE)
    assert_same_but_ids(tmp_path / "out" / SINGLE, tmp_path / SINGLE)


@pytest.mark.parametrize("size", ["3KB", "4KB", "20kb", "10GB"])
def test_shards_are_those_of_safetensors(size, tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE, num_hidden_layers=5), torch.bfloat16, shards=4)
    convert(model.path, tmp_path / "bin", "--hf_weights=bin", f"--max_shard_size={size}", to="hf")
    convert(model.path, tmp_path / "safe", f"--max_shard_size={size}", to="hf")
    as_bin = lambda name: name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    shards = {as_bin(path.name) for path in (tmp_path / "safe").glob("model-*.safetensors")}
    assert {path.name for path in (tmp_path / "bin").glob("pytorch_model-*.bin")} == shards
    if shards:
        wanted = json.loads((tmp_path / "safe" / "model.safetensors.index.json").read_text())
        got = json.loads((tmp_path / "bin" / INDEX).read_text())
        assert got["metadata"] == wanted["metadata"]
        assert got["weight_map"] == {name: as_bin(file) for name, file in wanted["weight_map"].items()}
        for name, file in got["weight_map"].items():
            assert name in torch.load(tmp_path / "bin" / file, weights_only=True)
    models.assert_equal(read_bin(tmp_path / "bin"), model.tensors)
    assert torch.equal(models.logits(tmp_path / "bin"), models.logits(model.path))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_dtypes_are_cast(dtype, tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    convert(model.path, tmp_path / "out", "--hf_weights=bin", f"--dtype={dtype}", to="hf")
    models.assert_equal(read_bin(tmp_path / "out"), models.cast(model.tensors, models.DTYPES[dtype]))


def test_there_and_back_is_the_same_file(tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    convert(model.path, tmp_path / "safe", to="hf")
    convert(tmp_path / "safe", tmp_path / "bin", "--hf_weights=bin", to="hf")
    convert(tmp_path / "bin", tmp_path / "nemo", to="nemo")
    convert(tmp_path / "nemo", tmp_path / "back", f"--hf_model_name={model.path}", to="hf")
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "safe" / name).read_bytes()
    reshard("verify", tmp_path / "bin", tmp_path / "nemo")
    reshard("verify", tmp_path / "bin")


def test_inspect_names_the_format(tmp_path):
    model = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    to_pickles(model, wrapped)
    assert json.loads(reshard("inspect", model.path, "--json").out)["format"] == "bin"
