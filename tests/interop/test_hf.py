"""HuggingFace to HuggingFace: files against those of safetensors, transformers and huggingface_hub."""

import json
import os

import huggingface_hub
import models
import pytest
import safetensors.torch
import torch
from models import assert_same_file, split
from program import convert, files, reshard

SHAPE = models.SHAPES["6x3"]
FAMILIES = list(models.CLASSES)


@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_file_is_what_the_safetensors_library_writes(family, dtype, shards, tmp_path):
    source = models.write(tmp_path / "in", models.config(family, **SHAPE), models.DTYPES[dtype], shards=shards)
    convert(source.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    library = safetensors.torch.save(source.tensors, {"format": "pt"})
    assert_same_file((tmp_path / "out" / "model.safetensors").read_bytes(), library)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert (tmp_path / "out" / "config.json").read_bytes() == (source.path / "config.json").read_bytes()


# 3KB and 4KB lie below some tensors, which then get a shard of their own; 12288 is one tensor to the byte
@pytest.mark.parametrize("size", ["3KB", "4KB", "0.012288MB", "20kb", "0.03MB", "0.1 MB", "10GB"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_shards_and_index_are_those_of_save_pretrained(tied, size, tmp_path):
    c = models.config("llama", **dict(SHAPE, vocab_size=128, num_hidden_layers=12, tie_word_embeddings=tied))
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed="shards", shards=5)
    convert(source.path, tmp_path / "out", f"--max_shard_size={size}", to="hf")

    # a model made anew: one that transformers 5 has loaded is saved in sorted order, not in that of the state dict
    models.random_model(c, torch.bfloat16, "shards").save_pretrained(tmp_path / "library", max_shard_size=size)
    got, want = files(tmp_path / "out"), files(tmp_path / "library")
    assert set(got) == set(want)
    for name in want:
        if name.endswith(".safetensors"):
            assert_same_file(got[name].read_bytes(), want[name].read_bytes())
        elif name.endswith(".index.json"):
            assert got[name].read_text() == want[name].read_text()

    plan = huggingface_hub.split_torch_state_dict_into_shards(source.tensors, max_shard_size=size)
    by_file = {name: sorted(split_names(got[name])) for name in got if name.endswith(".safetensors")}
    assert by_file == {name: sorted(tensors) for name, tensors in plan.filename_to_tensors.items()}


def split_names(path):
    return [name for name in json.loads(split(path.read_bytes())[0]) if name != "__metadata__"]


def test_a_shard_size_without_a_known_unit_is_a_usage_error(tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    for size in ("5GiB", "GB", "5 parsecs"):
        reshard("convert", source.path, tmp_path / "out", "--to=hf", f"--max_shard_size={size}", code=2)


@pytest.mark.parametrize("style", [4, 5])
def test_dtype_changes_the_dtype_key_of_config_and_nothing_else(style, tmp_path):
    source = models.write(tmp_path / "in", models.config("qwen2", **SHAPE), torch.float32, style=style)
    convert(source.path, tmp_path / "out", "--dtype=bf16", to="hf")
    key = "torch_dtype" if style == 4 else "dtype"
    text = (source.path / "config.json").read_text()
    assert f'"{key}": "float32"' in text
    assert (tmp_path / "out" / "config.json").read_text() == text.replace(f'"{key}": "float32"', f'"{key}": "bfloat16"')
    models.assert_equal(models.read(tmp_path / "out"), models.cast(source.tensors, torch.bfloat16))


def test_config_is_carried_byte_for_byte_however_it_is_written(tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    settings = json.loads((source.path / "config.json").read_text())
    settings.update(_name_or_path="exämple", eos_token_id=[1, 2], my_own={"b": 1e-7, "a": [1.0, None, True]})
    text = json.dumps(dict(reversed(settings.items())), indent=4, ensure_ascii=False)  # no newline at the end
    (source.path / "config.json").write_text(text, encoding="utf-8")
    convert(source.path, tmp_path / "out", to="hf")
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == text


CARRIED = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json"]
CARRIED += ["merges.txt", "chat_template.jinja", "generation_config.json", "LICENSE", "README.md"]
LEFT = ["training_args.bin", "notes.txt", "optimizer.pt"]


@pytest.mark.parametrize("template", [False, True], ids=["from the source", "from the template of nemo to hf"])
def test_tokenizer_licence_and_generation_files_come_along(template, tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **SHAPE), torch.bfloat16)
    for name in CARRIED + LEFT:
        (source.path / name).write_bytes(os.urandom(100) if name != "generation_config.json" else b'{"temperature": 0.6}')
    options = []
    start = source.path
    if template:
        start = tmp_path / "nemo"
        convert(source.path, start, "--hf_model_name=example/model", to="nemo")
        options = [f"--hf_model_name={source.path}"]
    else:
        plan = reshard("plan", source.path, tmp_path / "out", "--to=hf", "--json").json()
        assert set(CARRIED) <= set(plan["copied"]) and not set(LEFT) & set(plan["copied"])
        assert set(LEFT) <= set(plan["left"])
    convert(start, tmp_path / "out", *options, to="hf")
    assert set(files(tmp_path / "out")) == {*CARRIED, "config.json", "model.safetensors"}
    for name in CARRIED:
        assert (tmp_path / "out" / name).read_bytes() == (source.path / name).read_bytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_the_output(family, tmp_path):
    source = models.write(tmp_path / "in", models.config(family, **SHAPE), torch.bfloat16, shards=5)
    convert(source.path, tmp_path / "out", "--max_shard_size=20KB", to="hf")
    model, report = models.model_class(family).from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    models.assert_equal(models.state(model), source.tensors)
    assert torch.equal(models.logits(tmp_path / "out"), models.logits(source.path))
