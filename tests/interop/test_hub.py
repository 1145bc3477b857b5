"""Where models of the hub lie on this machine: the folder that huggingface_hub itself names for the same environment."""

import os
import pathlib
import shutil
import subprocess
import sys

import models
import nemo_reference
import pytest
import torch
from program import BINARY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLACES = {
    "home": {},
    "XDG_CACHE_HOME": {"XDG_CACHE_HOME": "{tmp}/xdg"},
    "HF_HOME": {"HF_HOME": "{tmp}/base"},
    "HF_HUB_CACHE": {"HF_HUB_CACHE": "{tmp}/cache", "HF_HOME": "{tmp}/base"},
    "old name": {"HUGGINGFACE_HUB_CACHE": "{tmp}/cache"},
    "tilde": {"HF_HUB_CACHE": "~/cache"},
    "tilde alone": {"HF_HUB_CACHE": "~"},
    "variable": {"HF_HUB_CACHE": "$PLACE/a$NOT_SET/${{PLACE_NAME}}s", "PLACE": "{tmp}", "PLACE_NAME": "cache"},
    "variable in HF_HOME": {"HF_HOME": "${{PLACE}}", "PLACE": "{tmp}/base"},
    "no variable": {"HF_HUB_CACHE": "{tmp}/$/${{PLACE/$1"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    source = models.write(folder / "hf", models.config("llama", **models.SHAPES["8x2"]), torch.bfloat16, seed="hub")
    nemo_reference.write_nemo(folder / "nemo", source.config, source.tensors, torch.bfloat16)
    return folder


def environment(tmp, variables):
    bare = {k: v for k, v in os.environ.items() if not k.endswith("_CACHE") and k not in ("HF_HOME", "XDG_CACHE_HOME")}
    return {**bare, "HOME": f"{tmp}/home", **{k: v.format(tmp=tmp) for k, v in variables.items()}}


def store(cache, model):
    repository = pathlib.Path(cache) / "models--example--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model / "hf", repository / "snapshots" / COMMIT)


def convert(model, out, env):
    command = [BINARY, "convert", model / "nemo", out, "--to=hf", "--hf_model_name=example/model"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("place", PLACES)
def test_a_model_is_found_where_huggingface_hub_keeps_it(place, model, tmp_path):
    env = environment(tmp_path, PLACES[place])
    ask = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    cache = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True).stdout.strip()
    missing = convert(model, tmp_path / "out", env)
    assert missing.returncode == 3 and cache in missing.stderr
    store(cache, model)
    found = convert(model, tmp_path / "out", env)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "hf" / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["TRANSFORMERS_CACHE", "PYTORCH_TRANSFORMERS_CACHE", "PYTORCH_PRETRAINED_BERT_CACHE"])
def test_the_cache_of_transformers_4_comes_before_that_of_the_hub(name, model, tmp_path):
    store(tmp_path / "old", model)
    found = convert(model, tmp_path / "out", environment(tmp_path, {name: "{tmp}/old", "HF_HUB_CACHE": "{tmp}/new"}))
    assert found.returncode == 0, found.stderr


def test_a_template_without_config_is_refused_with_a_remedy(model, tmp_path):
    env = environment(tmp_path, {"HF_HUB_CACHE": "{tmp}/cache"})
    store(tmp_path / "cache", model)
    (tmp_path / "cache" / "models--example--model" / "snapshots" / COMMIT / "config.json").unlink()
    refused = convert(model, tmp_path / "out", env)
    assert refused.returncode == 3
    for word in ["config.json", "expected", "--hf_model_name", str(tmp_path / "cache")]:
        assert word in refused.stderr, refused.stderr
    assert not (tmp_path / "out").exists()
