"""The commands that only look: help, version, families, formats, inspect, plan, verify."""
import json
import os
import re

import numpy as np
import pytest

import tiny_model
from black_box import TO_HF, TO_NEMO, assert_refused, convert, run
from program import files

COMMANDS = ("convert", "plan", "inspect", "verify", "status", "logs", "cancel", "commit", "families", "formats")


def parsed(*arguments, code=0):
    result = run(*arguments, "--json")
    assert result.code == code, result
    return json.loads(result.out)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command):
    result = run(*command.split(), "--help")
    assert result.code == 0, result
    assert not result.err, result
    assert max(map(len, result.out.splitlines())) <= 100, result
    assert re.search(r"exit", result.out, re.IGNORECASE), result
    if not command:
        assert all(re.search(rf"^ *{name}\b", result.out, re.MULTILINE) for name in COMMANDS), result


def test_help_of_convert_names_every_option():
    text = run("convert", "--help").out.replace("-", "_")
    options = """input_model output_model convert_from convert_to model_type hf_model_name dtype override max_shard_size
        max_memory workers dry_run verify json log_format quiet num_gpus num_nodes vocab_size untie_embeddings
        allow_rope allow_overflow""".split()
    assert [option for option in options if f"__{option}" not in text] == []


def test_version():
    result = run("--version")
    assert result.code == 0 and re.match(r"reshard \d+\.\d+\.\d+", result.out), result


def test_no_command_shows_the_help():
    result = run()
    assert result.code in (0, 2), result
    assert "convert" in result.out + result.err


def test_families():
    text = json.dumps(parsed("families"))
    assert run("families").code == 0
    for name in ("llama", "qwen2", "qwen3"):
        assert name in text
    for architecture in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        assert architecture + "ForCausalLM" in text


def test_formats():
    text = json.dumps(parsed("formats")) + run("formats").out
    assert "safetensors" in text and "zarr" in text
    assert [row["kind"] for row in parsed("formats")] == ["hf", "nemo", "trtllm", "nemo2", "megatron"]


def edit_yaml(folder, old, new):
    path = folder / "model_config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ---------------------------------------------------------------- inspect

@pytest.mark.parametrize("kind, format_name", [("hf", "safetensors"), ("nemo", "zarr")])
def test_inspect(source, nemo, kind, format_name):
    folder = {"hf": source, "nemo": nemo}[kind]
    found = parsed("inspect", folder)
    assert found["kind"] == kind
    assert format_name in found["format"]
    if kind == "hf":
        assert found["family"] == "llama"
    named = tiny_model.tensors()
    assert found["parameters"] == sum(int(np.prod(tensor.shape)) for tensor in named.values())
    assert found["bytes"] >= sum(len(tensor.data) for tensor in named.values())
    if kind == "nemo":
        named = {key: tiny_model.Tensor(dtype, values.shape, b"")
                 for key, (dtype, values, _) in tiny_model.nemo_arrays(tiny_model.CONFIG, named).items()}
    assert found["dtypes"] == {"BF16": len(named)}
    assert {entry["name"]: (entry["dtype"], tuple(entry["shape"])) for entry in found["tensors"]} == {
        name: ("BF16", tensor.shape) for name, tensor in named.items()}
    assert found["hyperparameters"]


def test_inspect_of_shards(tmp_path):
    folder = tiny_model.write_hf(tmp_path / "in", shards=3)
    assert {entry["path"]: entry["size"] for entry in parsed("inspect", folder)["shards"]} == {
        path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


def test_inspect_as_text(source):
    result = run("inspect", source)
    assert result.code == 0, result
    for word in ("hf", "safetensors", "llama", "BF16"):
        assert word in result.out
    assert "\x1b" not in result.out, "colours without a terminal"


def test_inspect_lines_up_the_names_of_nemo(nemo, source):
    """NeMo's longest name has 65 characters."""
    for folder in (nemo, source):
        text = run("inspect", folder).out
        columns = {line.index(" BF16 ") for line in text.splitlines() if " BF16 " in line}
        assert len(columns) == 1, text
    assert " in 1 file\n" in text


def test_inspect_is_told_the_vocabulary(tmp_path):
    nemo = tiny_model.write_nemo(tmp_path / "nemo")
    edit_yaml(nemo, "make_vocab_size_divisible_by: 1\n", "make_vocab_size_divisible_by: 4\n")
    assert "--vocab_size" in parsed("inspect", nemo)["notes"][0]
    found = parsed("inspect", nemo, "--vocab_size=9")
    assert found["hyperparameters"]["vocab_size"] == 9 and not found["notes"]


def test_many_parameters_are_counted_in_the_next_unit(tmp_path):
    """999,888 are 1 M, not 1e+03 K."""
    settings = tiny_model.config(vocab_size=31124)
    folder = tiny_model.write_hf(tmp_path / "in", settings, tiny_model.tensors(settings))
    assert 999_500 < parsed("inspect", folder)["parameters"] < 1_000_000
    assert "1 M parameters" in run("inspect", folder).out


# ---------------------------------------------------------------- plan

def test_plan_is_deterministic(source, tmp_path):
    texts = {run("plan", source, tmp_path / "out", *TO_NEMO, *workers).out for workers in ((), ())}
    assert len(texts) == 1 and texts != {""}


def test_plan_id_depends_on_the_conversion_alone(source, tmp_path):
    def plan_id(*arguments):
        return parsed("plan", source, tmp_path / "out", *TO_NEMO, *arguments)["plan_id"]
    assert plan_id("--workers=1") == plan_id("--workers=5") == plan_id("--max_memory=64MiB") == plan_id()
    assert plan_id("--dtype=fp32") != plan_id()


@pytest.mark.parametrize("base", ["hf", "nemo"])
def test_plan_tells_what_convert_does(source, nemo, tmp_path, base):
    """Every file, its exact size, before the first byte is written."""
    folder, arguments = {"hf": (source, TO_NEMO), "nemo": (nemo, (*TO_HF, "--max_shard_size=1KB"))}[base]
    planned = parsed("plan", folder, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
    convert(folder, tmp_path / "out", *arguments)
    assert {entry["path"]: entry["size"] for entry in planned["files"]} == {
        name: path.stat().st_size for name, path in files(tmp_path / "out").items()}
    assert planned["bytes_written"] >= sum(len(tensor.data) for tensor in tiny_model.tensors().values())
    assert planned["ops"] > 0 and planned["bytes_read"] > 0 and planned["peak_memory"] > 0


@pytest.mark.parametrize("base", ["hf", "nemo"])
def test_plan_lists_every_part_with_its_places(source, nemo, tmp_path, base):
    """Each tensor of the source is read whole, into files that the plan has; several parts may share one tensor."""
    folder, arguments = {"hf": (source, TO_NEMO), "nemo": (nemo, TO_HF)}[base]
    planned = parsed("plan", folder, tmp_path / "out", *arguments)
    read, written, sizes = {}, {}, {entry["path"]: entry["size"] for entry in planned["files"]}
    for part in planned["parts"]:
        for place in part["sources"]:
            assert (folder / place["file"]).exists() and place["dtype"] == "BF16"
            read[place["tensor"]] = read.get(place["tensor"], 0) + place["bytes"]
        for place in part["targets"]:
            written[place["file"]] = written.get(place["file"], 0) + place["bytes"]
    named = tiny_model.tensors()
    if base == "hf":
        assert read == {name: len(tensor.data) for name, tensor in named.items()}
        place, = next(part for part in planned["parts"] if part["part"] == "q, layer 1")["targets"]
        assert place["tensor"] == "model.decoder.layers.self_attention.linear_qkv.weight"
    assert set(written) <= set(sizes) and all(written[name] <= sizes[name] for name in written)
    assert sum(written.values()) == sum(len(tensor.data) for tensor in named.values())


@pytest.mark.parametrize("words", [("--tp_size=2",), ("--tp_size=2", "--use_fp8_rowwise"), ("--tp_size=4", "--pp_size=2")])
def test_parts_of_ranks_read_what_the_plan_reads(source, tmp_path, words):
    """A rank's share of a part is not the part."""
    planned = parsed("plan", source, tmp_path / "out", "--to=trtllm", "--checkpoint_only", *words)
    places = [place for part in planned["parts"] for place in part["sources"]]
    assert sum(place["bytes"] for place in places) == planned["bytes_read"]


def test_dry_run_is_plan(source, tmp_path):
    result = run("convert", source, tmp_path / "out", *TO_NEMO, "--dry_run")
    assert result.code == 0, result
    assert result.out == run("plan", source, tmp_path / "out", *TO_NEMO).out
    assert not (tmp_path / "out").exists()


def test_plan_names_what_is_copied_and_what_is_left(source, tmp_path):
    (source / "tokenizer.json").write_text("{}")
    (source / "optimizer.pt").write_bytes(b"x")
    planned = parsed("plan", source, tmp_path / "out", "--to=hf")
    assert "tokenizer.json" in planned["copied"] and "optimizer.pt" in planned["left"]
    text = run("plan", source, tmp_path / "out", "--to=hf").out
    assert "tokenizer.json" in text and "optimizer.pt" in text


# ---------------------------------------------------------------- verify

def flip_a_bit(folder, name):
    """Flips the lowest bit of the third element of one tensor."""
    named = tiny_model.read_safetensors(folder / "model.safetensors")
    data = bytearray(named[name].data)
    data[4] ^= 1
    named[name] = named[name]._replace(data=bytes(data))
    tiny_model.write_safetensors(folder / "model.safetensors", named)


def test_verify_equal_across_kinds(source, nemo):
    found = parsed("verify", source, nemo)
    assert found["equal"] is True and not found["missing"] and not found["extra"]
    assert run("verify", nemo, source).code == 0


def test_verify_names_the_tensor_and_the_place(source, tmp_path):
    other = tiny_model.write_hf(tmp_path / "other")
    name = "model.layers.1.mlp.up_proj.weight"
    flip_a_bit(other, name)
    found = parsed("verify", source, other, code=1)
    different = [entry for entry in found["tensors"] if entry["verdict"] != "equal"]
    assert found["equal"] is False
    assert [(entry["name"], entry["verdict"], entry["differing"]) for entry in different] == [(name, "differs", 1)]
    assert different[0]["worst"]["ulps"] == 1
    text = run("verify", source, other)
    assert text.code == 1 and name in text.out and " in 1 element:" in text.out


def test_verify_compares_after_rounding(tmp_path):
    """A NeMo folder in bf16 is the rounded fp32 one, and no more than that."""
    source = tiny_model.write_hf(tmp_path / "in", named=tiny_model.tensors(dtype="F32"))
    convert(source, tmp_path / "out", *TO_NEMO, "--dtype=bf16")
    found = parsed("verify", source, tmp_path / "out")
    assert found["equal"] is True
    assert "equal_rounded" in {entry["verdict"] for entry in found["tensors"]}


def test_verify_of_different_hyperparameters(source, tmp_path):
    other = tiny_model.write_hf(tmp_path / "other", tiny_model.config(rope_theta=500000.0))
    found = parsed("verify", source, other, code=1)
    assert any("rope" in entry["key"] or "rotary" in entry["key"] for entry in found["hyperparameters"])


def test_verify_of_another_intermediate_size(source, tmp_path):
    settings = tiny_model.config(intermediate_size=20)
    other = tiny_model.write_hf(tmp_path / "other", settings, tiny_model.tensors(settings))
    for a, b, sizes in [(source, other, (24, 20)), (other, source, (20, 24))]:
        found = parsed("verify", a, b, code=1)
        line = "down, layer 1: [16, {}] in A, [16, {}] in B".format(*sizes)
        assert line in found["misshapen"] and len(found["misshapen"]) == 6
        assert line in run("verify", a, b).out


def test_verify_is_told_the_vocabulary(source, tmp_path):
    """Rows that pad NeMo's vocabulary need not be zero."""
    padded = tiny_model.config(vocab_size=12)
    nemo = tiny_model.write_nemo(tmp_path / "nemo", padded, tiny_model.tensors(padded))
    edit_yaml(nemo, "make_vocab_size_divisible_by: 1\n", "make_vocab_size_divisible_by: 4\n")
    convert(nemo, tmp_path / "hf", "--to=hf", "--vocab_size=11")
    found = parsed("verify", nemo, tmp_path / "hf", code=1)
    assert "--vocab_size" in found["notes"][0]
    text = run("verify", nemo, tmp_path / "hf").out
    assert "ulp of BF16" in text and "from row 11" in text and "note: A: " in text
    for hint in ("--vocab_size=11", f"--hf_model_name={tmp_path / 'hf'}"):
        assert parsed("verify", nemo, tmp_path / "hf", hint)["equal"] is True


def test_verify_against_the_receipt(source, tmp_path):
    convert(source, tmp_path / "out", "--to=hf")
    assert run("verify", tmp_path / "out").code == 0
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run("verify", tmp_path / "out")
    assert result.code == 1 and "model.safetensors" in result.out + result.err, result


@pytest.mark.parametrize("workers", [(), ("--workers=1",), ("--workers=5",)])
def test_verify_against_the_receipt_tells_how_far_it_is(source, tmp_path, workers):
    convert(source, tmp_path / "out", *TO_NEMO)
    result = run("verify", tmp_path / "out", "--log_format=json", *workers)
    assert result.code == 0, result
    last = json.loads(result.err.splitlines()[-1])
    size = sum(path.stat().st_size for path in files(tmp_path / "out").values())
    assert (last["event"], last["doing"], last["bytes_done"], last["bytes_total"]) == ("progress", "checking", size, size)
    assert parsed("verify", tmp_path / "out")["bytes"] == size


def test_verify_against_a_receipt_too_little_memory_for_the_workers(source, tmp_path):
    convert(source, tmp_path / "out", "--to=hf")
    assert_refused(run("verify", tmp_path / "out", "--max_memory=64MiB", "--workers=250"), (2,), r"250 workers")


def test_verify_against_a_receipt_with_a_file_missing(source, tmp_path):
    convert(source, tmp_path / "out", "--to=hf")
    os.unlink(tmp_path / "out" / "config.json")
    result = run("verify", tmp_path / "out")
    assert result.code in (1, 3) and "config.json" in result.out + result.err, result


def test_verify_without_a_receipt(source):
    assert_refused(run("verify", source), (3,), r"receipt|\.reshard\.json")
