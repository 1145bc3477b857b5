"""HuggingFace models in torch distributed checkpoints: what torch saves, of one process or of several, and what it loads."""

import shutil

import models
import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from program import convert, files, hashes, reshard
from test_torch_dist import loaded_by_torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

CASES = {
    "llama": models.config("llama", **models.SHAPES["8x2"]),
    "llama-tied": models.config("llama", **models.SHAPES["tied"]),
    "llama-tiny": models.config("llama", **models.SHAPES["1x1"], vocab_size=2),
    "qwen2": models.config("qwen2", **models.SHAPES["vocab97"]),
    "qwen3": models.config("qwen3", **models.SHAPES["head_dim"]),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    return {name: models.write(folder / name, c, torch.bfloat16) for name, c in CASES.items()}


def beside_config(model, folder):
    """The folder of a distributed checkpoint, with what a fine-tune keeps beside it."""
    shutil.copy(model.path / "config.json", folder)


def assert_reads_back(model, folder, out):
    assert reshard("inspect", folder, "--json").json()["format"] == "dcp"
    convert(folder, out, to="hf")
    models.assert_equal(models.read(out), model.tensors)


def nested(state, prefix):
    for name in reversed(prefix.split(".")[:-1]):
        state = {name: state}
    return state


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "state_dict.", "app.", "app.model.module."])
@pytest.mark.parametrize("name", CASES)
def test_what_torch_saves_reads_back_behind_any_prefix(name, prefix, written, tmp_path):
    model = written[name]
    dcp.save(nested(model.tensors, prefix), checkpoint_id=tmp_path / "dcp", no_dist=True)
    beside_config(model, tmp_path / "dcp")
    assert_reads_back(model, tmp_path / "dcp", tmp_path / "out")


def test_optimizers_and_other_state_are_left_out(written, tmp_path):
    model = written["llama"]
    moments = {f"state.{name}.exp_avg": torch.zeros_like(t, dtype=torch.float32) for name, t in model.tensors.items()}
    state = {"app": {"model": model.tensors, "optim": moments}, "step": 7, "rng": torch.zeros(5, dtype=torch.uint8)}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    beside_config(model, tmp_path / "dcp")
    assert_reads_back(model, tmp_path / "dcp", tmp_path / "out")


def test_two_models_are_refused(written, tmp_path):
    tensors = written["llama"].tensors
    dcp.save({"model": tensors, "ema": tensors}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    beside_config(written["llama"], tmp_path / "dcp")
    result = convert(tmp_path / "dcp", tmp_path / "out", to="hf", code=6)
    assert "'ema.', 'model.'" in result.err or "'model.', 'ema.'" in result.err


# How four ranks share a tensor: evenly or not, along one axis or two, some of them with nothing.
PLACEMENTS = {
    "rows": ((4,), [Shard(0)]),
    "rows-of-three": ((3,), [Shard(0)]),
    "rows-of-rows": ((2, 2), [Shard(0), Shard(0)]),
    "rows-and-columns": ((2, 2), [Shard(0), Shard(-1)]),
    "replicas": ((2, 2), [Replicate(), Shard(0)]),
}


def save_in_ranks(rank, mesh, placements, tensors, folder, rendezvous):
    torch.set_num_threads(1)
    ranks = torch.Size(mesh).numel()
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=ranks, rank=rank)
    device_mesh = init_device_mesh("cpu", mesh)
    state = {}
    for name, t in tensors.items():
        placed = [p if not (isinstance(p, Shard) and p.dim == -1) else Shard(t.ndim - 1) for p in placements]
        state[name] = distribute_tensor(t, device_mesh, placed)
    dcp.save({"model": state}, checkpoint_id=folder)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_what_several_ranks_save_reads_back(name, placement, written, tmp_path):
    model, (mesh, placements) = written[name], PLACEMENTS[placement]
    arguments = (mesh, placements, model.tensors, tmp_path / "dcp", tmp_path / "rendezvous")
    torch.multiprocessing.start_processes(save_in_ranks, arguments, torch.Size(mesh).numel(), start_method="fork")
    beside_config(model, tmp_path / "dcp")
    assert_reads_back(model, tmp_path / "dcp", tmp_path / "out")


@pytest.mark.parametrize("name", CASES)
def test_torch_loads_ours(name, written, tmp_path):
    model = written[name]
    convert(model.path, tmp_path / "out", "--hf_weights=dcp", to="hf")
    models.assert_equal(loaded_by_torch(tmp_path / "out"), model.tensors)
    assert sorted(files(tmp_path / "out")) == [".metadata", "__0_0.distcp", "config.json", "generation_config.json"]
    assert reshard("verify", model.path, tmp_path / "out").code == 0
    convert(tmp_path / "out", tmp_path / "again", "--hf_weights=dcp", to="hf")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_what_torch_makes_of_ours_computes_the_same(name, written, tmp_path):
    model = written[name]
    convert(model.path, tmp_path / "out", "--hf_weights=dcp", to="hf")
    dcp_to_torch_save(tmp_path / "out", tmp_path / "whole.pt")
    again = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.float32, attn_implementation="eager").eval()
    again.load_state_dict(torch.load(tmp_path / "whole.pt", weights_only=True))
    with torch.no_grad():
        got = again(models.token_ids(model.config.vocab_size)).logits
    assert torch.equal(got, models.logits(model.path))


@pytest.mark.parametrize("to", ["nemo", "trtllm"])
def test_other_kinds_come_of_it_as_of_safetensors(to, written, tmp_path):
    model = written["llama"]
    options = ["--hf_model_name=example/model"] if to == "nemo" else ["--checkpoint_only"]
    convert(model.path, tmp_path / "dcp", "--hf_weights=dcp", to="hf")
    for source in (model.path, tmp_path / "dcp"):
        convert(source, tmp_path / f"from-{source.name}", *options, to=to)
    assert hashes(tmp_path / "from-dcp") == hashes(tmp_path / "from-llama")
