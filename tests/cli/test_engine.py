"""A target that is a TensorRT-LLM engine: the checkpoint beside it, then trtllm-build, then the tokenizer."""
import json
import os
import pathlib
import shutil
import signal
import stat
import time

import pytest

from black_box import assert_refused, convert, finish, run, start
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
(engine / "config.json").write_text("{}")
"""

DEFAULTS = ["--use_paged_context_fmha", "enable", "--max_input_len", "4096", "--max_seq_len", "8192",
            "--max_num_tokens", "8192", "--max_batch_size", "128"]


def stand_in(tmp_path, text):
    program = tmp_path / "bin" / "trtllm-build"
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


@pytest.fixture
def build(tmp_path):
    """An environment with the stand-in on its PATH."""
    folder = stand_in(tmp_path, STAND_IN)
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
    assert set(files(out)) == {"config.json", "rank0.engine", "rank1.engine", "tokenizer.json", "tokenizer_config.json",
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
    shutil.rmtree(tmp_path / "out")
    convert(model, tmp_path / "out", "--to=trtllm", "--no-trt_reuse_tmp_engine", env=build)
    assert config.stat().st_ino != inode


@pytest.mark.parametrize("there", [
    {"model.safetensors": "", "config.json": "{}"}, {"config.json": "{}"}, {"notes.txt": "mine"},
    {"config.json": "{}", "rank0.safetensors": "", "notes.txt": "mine"}, {"sub/rank0.safetensors": ""},
], ids=lambda there: "+".join(there))
def test_only_a_checkpoint_is_made_again_and_nothing_else_is_lost(model, tmp_path, build, there):
    tmp = tmp_path / "out-tmp"
    for name, text in there.items():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text(text)
    words = ("convert", model, tmp_path / "out", "--to=trtllm", "--no_trt_reuse_tmp_engine", "--quiet")
    assert_refused(run(*words, env=build), (3,), r"out-tmp", r"--override")
    assert {p.relative_to(tmp).as_posix(): p.read_text() for p in tmp.rglob("*") if p.is_file()} == there
    assert run(*words, "--override", env=build).code == 0
    assert set(files(tmp)) == {"config.json", "rank0.safetensors"}


def test_ranks_that_the_new_checkpoint_has_not_are_gone(model, tmp_path, build):
    """Also those of a checkpoint without a receipt."""
    tmp = tmp_path / "out-tmp"
    convert(model, tmp, "--to=trtllm", "--checkpoint_only", "--tp_size=2")
    without_receipt(tmp)
    convert(model, tmp_path / "out", "--to=trtllm", "--no_trt_reuse_tmp_engine", env=build)
    assert set(files(tmp)) == {"config.json", "rank0.safetensors"}


def test_an_engine_is_replaced_with_override_only(model, tmp_path, build):
    convert(model, tmp_path / "out", "--to=trtllm", env=build)
    for option in ("--no_trt_reuse_tmp_engine", "--trt_reuse_tmp_engine"):
        assert_refused(run("convert", model, tmp_path / "out", "--to=trtllm", option, env=build), (3,), r"--override")


# How a build goes wrong: what it does, the words of the error, and whether it leaves something in OUT.
FAILURES = {
    "says it is done": ("exit 0", [r"exit code 0", r"did not write config\.json", r"2 ranks"], False),
    "lacks a rank": ('mkdir "$4"; touch "$4/rank0.engine" "$4/config.json"', [r"did not write rank1\.engine"], True),
    "lacks the config": ('mkdir "$4"; touch "$4/rank0.engine" "$4/rank1.engine"', [r"did not write config\.json"], True),
    "is killed": ("kill -9 $$", [r"signal 9"], False),
    "is killed in the middle": ('mkdir "$4"; touch "$4/rank0.engine"; kill -9 $$', [r"signal 9"], True),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_build_that_goes_wrong_says_so_and_what_to_do(model, tmp_path, build, how):
    does, says, leaves = FAILURES[how]
    stand_in(tmp_path, f"#!/bin/sh\n{does}\n")
    words = ["convert", model, tmp_path / "out", "--to=trtllm", "--tp_size=2", "--quiet"]
    result = run(*words, env=build)
    assert_refused(result, (7,), r"running .*bin/trtllm-build", r"out-tmp", *says)
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert ("--override" in result.err) == leaves, result
    stand_in(tmp_path, STAND_IN)
    result = run(*words, *["--override"] * leaves, env=build)
    assert result.code == 0 and (tmp_path / "out" / "rank1.engine").exists(), result


def test_engines_of_an_earlier_build_are_not_taken_for_this_ones(model, tmp_path, build):
    convert(model, tmp_path / "out", "--to=trtllm", env=build)
    stand_in(tmp_path, "#!/bin/sh\nexit 0\n")
    result = run("convert", model, tmp_path / "out", "--to=trtllm", "--override", "--quiet", env=build)
    assert_refused(result, (7,), r"did not write")


def test_a_program_that_cannot_be_started(model, tmp_path, build):
    for text in ("no program", "#!/nonexistent/python\n"):
        stand_in(tmp_path, text)
        result = run("convert", model, tmp_path / "out", "--to=trtllm", "--quiet", env=build)
        assert_refused(result, (7,), r"trtllm-build: it cannot be started", r"interpreter", r"out-tmp")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build_too(model, tmp_path, build, number):
    """Else it would go on writing into a folder that the next one writes into."""
    stand_in(tmp_path, '#!/bin/sh\necho $$ > "$RECORD"; exec sleep 60\n')
    process = start("convert", model, tmp_path / "out", "--to=trtllm", "--quiet", env=build)
    pid = wait_for(lambda: (tmp_path / "record.json").read_text().strip())
    process.send_signal(number)
    result = finish(process)
    assert result.code == 128 + number and "out-tmp" in result.err, result
    assert not pathlib.Path(f"/proc/{pid}").exists()


def test_a_kill_ends_the_build_too(model, tmp_path, build):
    stand_in(tmp_path, '#!/bin/sh\necho $$ > "$RECORD"; exec sleep 60\n')
    process = start("convert", model, tmp_path / "out", "--to=trtllm", "--quiet", env=build)
    pid = wait_for(lambda: (tmp_path / "record.json").read_text().strip())
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not is_running(pid), seconds=5)


def is_running(pid):
    """An ended process that nobody has waited for is not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(look, seconds=30):
    """What `look` gives as soon as it gives something."""
    for _ in range(seconds * 100):
        try:
            if found := look():
                return found
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    raise AssertionError("nothing came")


def test_a_folder_with_logs_only_is_empty(model, tmp_path, build):
    logs = tmp_path / "out" / "conversion-logs"
    logs.mkdir(parents=True)
    convert(model, tmp_path / "out", "--to=trtllm", env=build)
    assert (tmp_path / "out" / "rank0.engine").exists() and logs.exists()


@pytest.mark.parametrize("words, says", [
    (["--max_batch_size"], r"no value behind --max_batch_size"),
    (["--max_batch_size", "--gemm_plugin=auto"], r"no value behind --max_batch_size"),
    (["--fast_build=1"], r"--fast_build"),
], ids=str)
def test_options_of_trtllm_build_that_it_would_refuse_after_the_work(model, tmp_path, build, words, says):
    assert_refused(run("convert", model, tmp_path / "out", "--to=trtllm", *words, env=build), (2,), says)
    assert not (tmp_path / "out-tmp").exists()


@pytest.mark.parametrize("out", [".", "..", "out/.", "/"])
def test_a_target_without_a_name_of_its_own_is_refused(model, tmp_path, build, out):
    (tmp_path / "here" / "out").mkdir(parents=True)
    result = run("convert", model, out, "--to=trtllm", "--override", cwd=tmp_path / "here", env=build)
    assert_refused(result, (2,), r"OUT-tmp")


def test_the_tokenizer_of_a_model_in_the_hub_cache(model, tmp_path, build):
    """NeMo has none; the template has."""
    snapshots = tmp_path / "hub" / "models--example--model" / "snapshots"
    shutil.copytree(model, snapshots / ("0" * 40))
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text("0" * 40)
    env = {**build, "HF_HUB_CACHE": str(tmp_path / "hub")}
    words = ("--to=nemo", "--hf_model_name=example/model")
    convert(model, tmp_path / "nemo", *words, env=env)
    convert(tmp_path / "nemo", tmp_path / "out", "--to=trtllm", "--hf_model_name=example/model", env=env)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokenizer.json of the model"


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
