"""A target that is a TensorRT-LLM engine: the checkpoint beside it, then trtllm-build, then the tokenizer."""
import json
import os
import shutil
import stat

import pytest

from black_box import assert_refused, convert, run
from program import files, hashes

# Records its arguments, demands a complete checkpoint, and makes an "engine" of each rank.
STAND_IN = """#!/usr/bin/env python3
import json, os, pathlib, sys
pathlib.Path(os.environ["RECORD"]).write_text(json.dumps(sys.argv[1:]))
checkpoint, engine = (pathlib.Path(sys.argv[sys.argv.index(name) + 1]) for name in ("--checkpoint_dir", "--output_dir"))
config = json.loads((checkpoint / "config.json").read_text())
ranks = [checkpoint / f"rank{n}.safetensors" for n in range(config["mapping"]["world_size"])]
assert all(rank.stat().st_size > 8 for rank in ranks)
print("a line of trtllm-build")
if os.environ.get("FAIL"):
    sys.exit(3)
engine.mkdir(exist_ok=True)
for n, rank in enumerate(ranks):
    (engine / f"rank{n}.engine").write_bytes(b"engine")
"""

DEFAULTS = ["--use_paged_context_fmha", "enable", "--max_input_len", "4096", "--max_seq_len", "8192",
            "--max_num_tokens", "8192", "--max_batch_size", "128"]


@pytest.fixture
def build(tmp_path):
    """An environment with the stand-in on its PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "trtllm-build"
    program.write_text(STAND_IN)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record.json")}


@pytest.fixture
def model(source, tmp_path):
    """With a tokenizer, and files beside it that are none of the engine's."""
    shutil.copytree(source, tmp_path / "model")
    for name in ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json"]:
        (tmp_path / "model" / name).write_text(f"{name} of the model")
    return tmp_path / "model"


def record(tmp_path):
    return json.loads((tmp_path / "record.json").read_text())


def test_the_checkpoint_then_the_engine_then_the_tokenizer(model, tmp_path, build):
    out = tmp_path / "out"
    result = convert(model, out, "--to=trtllm", "--num_gpus=2", "--dtype=bf16", env=build)
    assert record(tmp_path) == ["--checkpoint_dir", f"{out}-tmp", "--output_dir", str(out), "--gpt_attention_plugin",
                                "bfloat16", *DEFAULTS]
    assert set(files(out)) == {"rank0.engine", "rank1.engine", "tokenizer.json", "tokenizer_config.json",
                               "tokenizer.model"}
    assert (out / "tokenizer.json").read_text() == "tokenizer.json of the model"
    assert set(files(f"{out}-tmp")) == {"config.json", "rank0.safetensors", "rank1.safetensors"}
    convert(model, tmp_path / "only", "--to=trtllm", "--checkpoint_only", "--tp_size=2", "--dtype=bf16")
    assert hashes(f"{out}-tmp") == hashes(tmp_path / "only")
    assert "a line of trtllm-build" in result.err and result.out == ""


@pytest.mark.parametrize("words, passed", [
    (["--max_batch_size", "64", "--gemm_plugin=auto"], ["--max_batch_size", "64", "--gemm_plugin=auto"]),
    (["--max-input-len=100", "--gather_all_token_logits"], ["--max_input_len=100", "--gather_all_token_logits"]),
    (["--", "--of_a_later_version", "a b", "$HOME;x"], ["--of_a_later_version", "a b", "$HOME;x"]),
    (["--multiple_profiles", "enable", "--", "--max_batch_size=1"],
     ["--multiple_profiles", "enable", "--max_batch_size=1"]),
], ids=str)
def test_extra_words_go_to_trtllm_build_as_they_are(model, tmp_path, build, words, passed):
    split = words.index("--") if "--" in words else len(words)
    convert(*words[:split], model, tmp_path / "out", "--to=trtllm", "--dtype=fp16", *words[split:], env=build)
    assert record(tmp_path)[6:] == [*DEFAULTS, *passed]


def test_without_trtllm_build_nothing_is_done(model, tmp_path):
    result = run("convert", model, tmp_path / "out", "--to=trtllm", env={"PATH": "/nowhere"})
    assert_refused(result, (3,), r"trtllm-build", r"--checkpoint_only", r"PATH")
    assert not (tmp_path / "out-tmp").exists()
    planned = json.loads(run("plan", model, tmp_path / "out", "--to=trtllm", "--json", env={"PATH": "/nowhere"}).out)
    assert planned["target"]["path"] == f"{tmp_path / 'out'}-tmp"


def test_a_build_that_fails_leaves_the_checkpoint_for_the_next(model, tmp_path, build):
    result = run("convert", model, tmp_path / "out", "--to=trtllm", "--quiet", env={**build, "FAIL": "1"})
    assert result.code == 7 and "exit code 3" in result.err and "out-tmp" in result.err, result
    before = hashes(tmp_path / "out-tmp")
    result = convert(model, tmp_path / "out", "--to=trtllm", env=build)
    assert "already complete" in result.err, result
    assert hashes(tmp_path / "out-tmp") == before and (tmp_path / "out" / "rank0.engine").exists()


def without_receipt(checkpoint):
    shutil.rmtree(checkpoint / ".reshard", ignore_errors=True)
    (checkpoint / ".reshard.json").unlink()


def test_a_checkpoint_of_another_program_is_taken_if_it_is_what_the_plan_says(model, tmp_path, build):
    tmp = tmp_path / "out-tmp"
    convert(model, tmp, "--to=trtllm", "--checkpoint_only", "--tp_size=2")
    without_receipt(tmp)
    inodes = {p: p.stat().st_ino for p in tmp.iterdir()}
    convert(model, tmp_path / "out", "--to=trtllm", "--tp_size=2", env=build)
    assert {p: p.stat().st_ino for p in tmp.iterdir()} == inodes


def test_a_checkpoint_of_another_program_is_verified_too(model, tmp_path, build):
    """Its headers are what the plan says, its data need not be."""
    tmp = tmp_path / "out-tmp"
    convert(model, tmp, "--to=trtllm", "--checkpoint_only")
    without_receipt(tmp)
    words = ("convert", model, tmp_path / "out", "--to=trtllm", "--verify")
    result = run(*words, env=build)
    assert result.code == 0 and "already complete, verified against the source" in result.err, result
    with (tmp / "rank0.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x00\x42")
    assert_refused(run(*words, "--override", "--quiet", env=build), (6,), r"differ from the source in 1 tensors")


def test_a_checkpoint_of_another_request_is_refused(model, tmp_path, build):
    tmp = tmp_path / "out-tmp"
    convert(model, tmp, "--to=trtllm", "--checkpoint_only", "--tp_size=2")
    for prepare in (lambda: None, lambda: without_receipt(tmp), lambda: (tmp / "rank1.safetensors").unlink()):
        prepare()
        result = run("convert", model, tmp_path / "out", "--to=trtllm", "--tp_size=1", "--quiet", env=build)
        assert_refused(result, (3,), r"out-tmp", r"--override")
    result = run("convert", model, tmp_path / "out", "--to=trtllm", "--tp_size=2", "--quiet", env=build)  # its own, not whole
    assert_refused(result, (3,), r"out-tmp", r"--override")
    convert(model, tmp_path / "out", "--to=trtllm", "--tp_size=1", "--no-trt_reuse_tmp_engine", env=build)
    assert set(files(tmp)) == {"config.json", "rank0.safetensors"}


def test_a_checkpoint_is_made_again_when_it_must_not_be_reused(model, tmp_path, build):
    convert(model, tmp_path / "out", "--to=trtllm", env=build)
    config = tmp_path / "out-tmp" / "config.json"
    inode = config.stat().st_ino
    convert(model, tmp_path / "out", "--to=trtllm", "--override", env=build)
    assert config.stat().st_ino == inode
    convert(model, tmp_path / "out", "--to=trtllm", "--no-trt_reuse_tmp_engine", env=build)
    assert config.stat().st_ino != inode


@pytest.mark.parametrize("first, last, made_again", [
    ("--no-trt_reuse_tmp_engine", "--trt_reuse_tmp_engine", False),
    ("--trt_reuse_tmp_engine", "--no-trt_reuse_tmp_engine", True)])
def test_of_two_opposite_options_the_last_counts(model, tmp_path, build, first, last, made_again):
    convert(model, tmp_path / "out", "--to=trtllm", env=build)
    config = tmp_path / "out-tmp" / "config.json"
    inode = config.stat().st_ino
    convert(model, tmp_path / "out", "--to=trtllm", "--override", first, last, first, last, env=build)
    assert (config.stat().st_ino != inode) == made_again


def test_a_folder_that_holds_something_is_built_into_with_override_only(model, tmp_path, build):
    out = tmp_path / "out"
    out.mkdir()
    (out / "something").write_text("else")
    assert_refused(run("convert", model, out, "--to=trtllm", env=build), (3,), r"something", r"--override")
    assert not (tmp_path / "out-tmp").exists()
    convert(model, out, "--to=trtllm", "--override", env=build)
    assert (out / "something").exists() and (out / "rank0.engine").exists()
    assert_refused(run("convert", model, model, "--to=trtllm", "--override", env=build), (3,), r"input")


@pytest.mark.parametrize("words, said", [
    (["--to=nemo", "--max_batch_size=1"], r"--to=trtllm"), (["--to=trtllm", "--checkpoint_only", "--gemm_plugin=auto"], r"checkpoint_only"),
    (["--to=trtllm", "--max_batch_sise=1"], r"did you mean --max_batch_size"),
], ids=str)
def test_words_for_trtllm_build_where_it_does_not_run(model, tmp_path, words, said):
    assert_refused(run("convert", model, tmp_path / "out", *words), (2,), said)
