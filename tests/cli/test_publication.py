"""What convert leaves behind, and what it does to what is there already."""
import json
import os
import re
import resource
import shutil
import stat

import pytest

import tiny_model
from black_box import TO_HF, TO_NEMO, assert_refused, assert_unpublished, convert, run
from program import hashes
from tiny_model import CONFIG, tensors


def mtimes(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_hf_to_nemo_is_the_independent_mapping(source, tmp_path):
    convert(source, tmp_path / "out", *TO_NEMO)
    assert tiny_model.read_nemo(tmp_path / "out") == {
        key: (tiny_model.ZARR_DTYPES[dtype], values.shape, values.tobytes())
        for key, (dtype, values, _) in tiny_model.nemo_arrays(CONFIG, tensors()).items()}


def test_nemo_to_hf_is_the_independent_mapping(nemo, tmp_path):
    convert(nemo, tmp_path / "out", *TO_HF)
    assert tiny_model.read_hf(tmp_path / "out") == tensors()


def test_finished_command_run_again(source, tmp_path):
    convert(source, tmp_path / "out", *TO_NEMO)
    before = mtimes(tmp_path / "out")
    result = run("convert", source, tmp_path / "out", *TO_NEMO)
    assert result.code == 0 and "already complete" in result.out + result.err, result
    assert mtimes(tmp_path / "out") == before


def test_finished_command_run_again_to_verify(source, tmp_path):
    convert(source, tmp_path / "out", "--to=hf")
    assert run("convert", source, tmp_path / "out", "--to=hf", "--verify").code == 0
    weights = tmp_path / "out" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert run("convert", source, tmp_path / "out", "--to=hf").code == 0  # by sizes alone
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf", "--verify"), (6,), r"differ from the source in 1")


def test_other_command_on_a_finished_target(source, tmp_path):
    convert(source, tmp_path / "out", *TO_NEMO)
    before = hashes(tmp_path / "out")
    assert_refused(run("convert", source, tmp_path / "out", *TO_NEMO, "--dtype=fp32"), (3,), r"--override")
    assert hashes(tmp_path / "out") == before


def test_target_that_was_damaged_is_not_called_complete(source, tmp_path):
    convert(source, tmp_path / "out", "--to=hf")
    (tmp_path / "out" / "config.json").unlink()
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf"), (3,), r"config\.json|--override")


def test_override_replaces_everything(source, tmp_path):
    convert(source, tmp_path / "reference", "--to=hf")
    target = tmp_path / "out"
    convert(source, target, *TO_NEMO)
    (target / "stale.txt").write_text("stale")
    convert(source, target, "--to=hf", "--override")
    assert hashes(target) == hashes(tmp_path / "reference")
    assert not (target / ".reshard").exists()


def test_override_of_nothing(source, tmp_path):
    convert(source, tmp_path / "out", *TO_NEMO, "--override")


def test_override_that_fails_keeps_the_old(source, tmp_path):
    target = tmp_path / "out"
    convert(source, target, *TO_NEMO)
    before = hashes(target)
    tiny_model.write_hf(source, tiny_model.config(tie_word_embeddings=True), tensors())
    assert_refused(run("convert", source, target, *TO_NEMO, "--override"), (6,), r"lm_head\.weight")
    assert hashes(target) == before


@pytest.mark.parametrize("override", [(), ("--override",)], ids=["plain", "override"])
def test_logs_of_the_conversion_are_kept(source, tmp_path, override):
    logs = tmp_path / "out" / "conversion-logs"
    logs.mkdir(parents=True)
    (logs / "x.log").write_text("log")
    convert(source, tmp_path / "out", *TO_NEMO, *override)
    assert (logs / "x.log").read_text() == "log"


def test_empty_target_is_used(source, tmp_path):
    (tmp_path / "out").mkdir()
    convert(source, tmp_path / "out", *TO_NEMO)


def test_parents_of_the_target_are_made(source, tmp_path):
    convert(source, tmp_path / "a" / "b" / "out", *TO_NEMO)


def test_relative_paths(source, tmp_path):
    convert("in", "out", *TO_NEMO, cwd=tmp_path)
    convert(source, tmp_path / "reference", *TO_NEMO)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


def test_leftovers_of_another_run_are_not_mixed_in(source, tmp_path):
    staged = tmp_path / "out" / ".reshard" / "0123456789abcdef"
    staged.mkdir(parents=True)
    (staged / "stale.txt").write_text("stale")
    convert(source, tmp_path / "out", *TO_NEMO)
    assert not any("stale" in name for name in hashes(tmp_path / "out"))


def test_bytes_do_not_depend_on_workers(source, tmp_path):
    for workers in (1, 2, 5):
        convert(source, tmp_path / f"out{workers}", *TO_NEMO, f"--workers={workers}")
    assert hashes(tmp_path / "out1") == hashes(tmp_path / "out2") == hashes(tmp_path / "out5")


def test_files_get_the_umask_of_the_user(source, tmp_path):
    convert(source, tmp_path / "out", *TO_NEMO, umask=0o027)
    for path in (tmp_path / "out").rglob("*"):
        wanted = 0o750 if path.is_dir() else 0o640
        if ".reshard" not in str(path.relative_to(tmp_path / "out")):
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_verify_before_publication(source, tmp_path):
    """The second pass has its name, and the last line says what it found."""
    words = (*TO_NEMO, "--verify", "--json", "--log_format=json")
    for last in ("done", "already_complete"):
        result = convert(source, tmp_path / "out", *words)
        lines = [json.loads(line) for line in result.err.splitlines()]
        assert lines[-1]["event"] == last and lines[-1]["verified"] is True, result
        assert json.loads(result.out)["verified"] is True
        assert {line["doing"] for line in lines if line["event"] == "progress"} == (
            {"converting", "comparing"} if last == "done" else {"comparing"})
    assert "verified against the source" in convert(source, tmp_path / "out", *TO_NEMO, "--verify").err
    assert json.loads(convert(source, tmp_path / "out", *TO_NEMO, "--json").out)["verified"] is False


def test_quiet_says_nothing(source, tmp_path):
    result = convert(source, tmp_path / "out", *TO_NEMO, "--quiet")
    assert not result.out and not result.err, result


def test_log_as_json_lines(source, tmp_path):
    result = convert(source, tmp_path / "out", *TO_NEMO, "--log_format=json")
    assert all(isinstance(json.loads(line), dict) for line in result.err.splitlines()), result


def test_error_as_json_line(tmp_path):
    result = run("convert", tmp_path / "none", tmp_path / "out", *TO_NEMO, "--log_format=json")
    assert result.code == 3, result
    assert any("none" in json.dumps(json.loads(line)) for line in result.err.splitlines()), result


def test_all_problems_are_in_the_json_line(tmp_path):
    """300 norms that the config knows and the file lacks: a person is shown 200 of them, a program all."""
    settings = tiny_model.config(num_hidden_layers=150)
    named = {name: tensor for name, tensor in tensors(settings).items() if "layernorm" not in name}
    source = tiny_model.write_hf(tmp_path / "in", settings, named)
    words = ("convert", source, tmp_path / "out", "--to=hf")
    line = json.loads(run(*words, "--log_format=json").err.splitlines()[-1])
    assert line["code"] == "mismatch" and "\n" not in line["text"]
    missing = [name for name in tensors(settings) if "layernorm" in name]
    said = [line["tensor"], *line["problems"]] if "tensor" in line else line["problems"]
    assert len(said) == len(missing) == 300
    assert all(any(name in problem for problem in said) for name in missing)
    shown = run(*words).err.splitlines()
    assert len(shown) == 202 and re.search(r"and \d+ more", shown[-1])


def test_overflow_to_infinity_is_an_error_unless_allowed(source, tmp_path):
    """2e38 has no place in fp16: the tensor and the count are named, nothing is published; the rerun publishes."""
    named = tensors(dtype="F32")
    name = "model.layers.1.mlp.up_proj.weight"
    huge = bytearray(named[name].data)
    huge[:8] = bytes.fromhex("ffff167f") * 2
    tiny_model.write_hf(source, named={**named, name: named[name]._replace(data=bytes(huge))})
    refused = run("convert", source, tmp_path / "out", "--to=hf", "--dtype=fp16")
    assert_refused(refused, (6,), r"model\.layers\.1\.mlp\.up_proj\.weight", r"\b2\b", r"--allow_overflow")
    assert_unpublished(tmp_path / "out")
    result = convert(source, tmp_path / "out", "--to=hf", "--dtype=fp16", "--allow_overflow", "--json", "--quiet")
    assert json.loads(result.out)["overflows"] == [{"tensor": name, "count": 2}]
    assert tiny_model.read_hf(tmp_path / "out")[name].data[:4] == bytes.fromhex("007c") * 2
    compared = run("verify", source, tmp_path / "out")
    assert compared.code == 0 and "2 finite values of A are infinite in B's dtype" in compared.out, compared


# ---------------------------------------------------------------- whose data it is

def test_other_model_of_the_same_shape_is_not_called_complete(source, tmp_path):
    other = tiny_model.write_hf(tmp_path / "other", named=tiny_model.tensors(seed=8))
    convert(source, tmp_path / "out", "--to=hf")
    assert_refused(run("convert", other, tmp_path / "out", "--to=hf"), (3,), r"--override")
    convert(other, tmp_path / "out", "--to=hf", "--override")
    assert tiny_model.read_hf(tmp_path / "out") == tiny_model.read_hf(other)


def test_source_that_was_overwritten_is_not_called_complete(source, tmp_path):
    convert(source, tmp_path / "out", *TO_NEMO)
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert_refused(run("convert", source, tmp_path / "out", *TO_NEMO), (3,), r"--override")


def overflowing(folder, **options):
    """A model with two values that fp16 does not hold, and the tensor that has them."""
    named = tensors(dtype="F32", **options)
    name = "model.layers.1.mlp.up_proj.weight"
    named[name] = named[name]._replace(data=bytes.fromhex("ffff167f") * 2 + named[name].data[8:])
    return tiny_model.write_hf(folder, named=named)


TO_FP16 = ("--to=hf", "--dtype=fp16")


@pytest.fixture
def staged(tmp_path):
    """A source whose conversion to fp16 in `out` is complete, and unpublished because of an overflow."""
    folder = overflowing(tmp_path / "huge")
    assert_refused(run("convert", folder, tmp_path / "out", *TO_FP16), (6,), r"--allow_overflow")
    return folder


def damage_what_is_staged(target):
    path, = target.glob(".reshard/*/files/model.safetensors")
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def test_staged_data_is_not_published_for_another_model(staged, tmp_path):
    other = overflowing(tmp_path / "other", seed=8)
    convert(other, tmp_path / "reference", *TO_FP16, "--allow_overflow")
    assert_refused(run("convert", other, tmp_path / "out", *TO_FP16, "--allow_overflow"), (6,), "--override")
    convert(other, tmp_path / "out", *TO_FP16, "--allow_overflow", "--override")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


def test_staged_data_that_was_damaged_is_made_again(staged, tmp_path):
    convert(staged, tmp_path / "reference", *TO_FP16, "--allow_overflow")
    damage_what_is_staged(tmp_path / "out")
    convert(staged, tmp_path / "out", *TO_FP16, "--allow_overflow")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


def test_staged_data_that_is_another_than_the_source_is_not_kept(staged, tmp_path):
    """With a hash that vouches for it only --verify can tell, and what it refused is not there for the next run."""
    convert(staged, tmp_path / "reference", *TO_FP16, "--allow_overflow")
    convert(overflowing(tmp_path / "other", seed=8), tmp_path / "wrong", *TO_FP16, "--allow_overflow")
    path, = (tmp_path / "out").glob(".reshard/*/executed")
    executed = json.loads(path.read_text())
    receipt = json.loads((tmp_path / "wrong" / ".reshard.json").read_text())
    executed["record"]["hashes"] = [int(file["xxh3"], 16) for file in receipt["files"]]
    path.write_text(json.dumps(executed))
    for name in hashes(tmp_path / "wrong"):
        shutil.copy(tmp_path / "wrong" / name, path.parent / "files" / name)
    assert_refused(run("convert", staged, tmp_path / "out", *TO_FP16, "--allow_overflow", "--verify"), (6,), r"differ")
    convert(staged, tmp_path / "out", *TO_FP16, "--allow_overflow")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


@pytest.mark.parametrize("record", [{"hashes": []}, {"hashes": None}, {"bytes_read": "many"}, {"overflows": [{}]}])
def test_damaged_record_of_staged_data(staged, tmp_path, record):
    convert(staged, tmp_path / "reference", *TO_FP16, "--allow_overflow")
    path, = (tmp_path / "out").glob(".reshard/*/executed")
    executed = json.loads(path.read_text())
    executed["record"].update(record)
    path.write_text(json.dumps(executed))
    convert(staged, tmp_path / "out", *TO_FP16, "--allow_overflow")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "reference")


@pytest.mark.parametrize("key, value", [("xxh3", None), ("size", -1), ("size", 1.5), ("path", "../config.json")])
def test_damaged_receipt(source, tmp_path, key, value):
    convert(source, tmp_path / "out", "--to=hf")
    path = tmp_path / "out" / ".reshard.json"
    receipt = json.loads(path.read_text())
    receipt["files"][0][key] = value
    path.write_text(json.dumps(receipt))
    assert_refused(run("verify", tmp_path / "out"), (4,), r"\.reshard\.json")


# ---------------------------------------------------------------- places and names

def test_staging_folder_that_is_a_link_is_left_alone(source, tmp_path):
    precious = tmp_path / "precious"
    (precious / "0123456789abcdef").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".reshard").symlink_to("../precious")
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf"), (3,), r"\.reshard", r"link")
    assert [path.name for path in precious.iterdir()] == ["0123456789abcdef"]


def test_staging_folder_with_something_of_somebody_else(source, tmp_path):
    mine = tmp_path / "out" / ".reshard" / "mine" / "file"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    convert(source, tmp_path / "out", "--to=hf")
    assert mine.read_text() == "mine"


def test_staging_folder_that_is_a_file(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".reshard").write_text("")
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf"), (3,), r"\.reshard", r"file")


@pytest.mark.parametrize("place", ["out", "out/.reshard"])
def test_link_to_nothing(source, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to("nowhere")
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf"), (3,), place, r"nowhere, expected a folder")


def test_target_where_nothing_can_be_made(source):
    assert_refused(run("convert", source, "/proc/out", "--to=hf"), (3,), r"making /proc/out: No such file")


def test_error_is_not_that_of_cleaning_up(source, tmp_path):
    """Two files more than the standard streams are too few for the data, and for deleting what is staged as well."""
    result = run("convert", source, tmp_path / "out", *TO_NEMO, limits=[(resource.RLIMIT_NOFILE, 6)])
    assert_refused(result, (7,), r"(reading|writing) .*: Too many open files")


BAD_NAME = os.fsdecode(b"b\xffad")


def test_source_whose_name_is_no_text(tmp_path):
    source = tiny_model.write_hf(tmp_path / BAD_NAME)
    assert_refused(run("convert", source, tmp_path / "out", "--to=nemo"), (3,), r"UTF-8", r"--hf_model_name")
    convert(source, tmp_path / "hf", "--to=hf")
    convert(source, tmp_path / "nemo", *TO_NEMO)


def test_template_whose_name_is_no_text(nemo, tmp_path):
    template = tiny_model.write_hf(tmp_path / BAD_NAME)
    result = run("convert", nemo, tmp_path / "out", "--to=hf", f"--hf_model_name={template}")
    assert_refused(result, (3,), r"UTF-8")


def test_side_file_whose_name_is_no_text(source, tmp_path):
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / BAD_NAME).write_text("")
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf"), (3,), r"UTF-8")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- side files

def test_large_side_file_of_a_nemo_folder_is_copied(nemo, tmp_path):
    with (nemo / "events.log").open("wb") as file:
        file.truncate(70 << 20)
    convert(nemo, tmp_path / "out", "--to=nemo")
    assert hashes(tmp_path / "out")["events.log"] == hashes(nemo)["events.log"]


def test_what_is_no_file_is_left(source, tmp_path):
    templates = source / "additional_chat_templates"
    (templates / "folder").mkdir(parents=True)
    (templates / "rag.jinja").write_text("rag")
    os.mkfifo(templates / "fifo")
    result = run("plan", source, tmp_path / "out", "--to=hf", "--json")
    planned = json.loads(result.out)
    assert planned["copied"] == ["additional_chat_templates/rag.jinja"]
    assert {"additional_chat_templates/fifo", "additional_chat_templates/folder/"} <= set(planned["left"])
    convert(source, tmp_path / "out", "--to=hf")
    assert "additional_chat_templates/rag.jinja" in hashes(tmp_path / "out")


# ---------------------------------------------------------------- what a script reads

def test_result_as_json(source, tmp_path):
    """The same keys say whether anything was done."""
    done, again = (json.loads(convert(source, tmp_path / "out", "--to=hf", "--json").out) for _ in range(2))
    assert (done["already_complete"], again["already_complete"]) == (False, True)
    assert {key: done[key] for key in ("plan_id", "target", "files")} == {
        key: again[key] for key in ("plan_id", "target", "files")}


def test_plan_names_what_is_in_the_way(source, tmp_path):
    def obstacles(*arguments):
        return json.loads(run("plan", source, tmp_path / "out", "--to=hf", *arguments, "--json").out)["obstacles"]
    assert obstacles() == []
    convert(source, tmp_path / "out", "--to=hf")
    assert obstacles() == []
    text, = obstacles("--dtype=fp32")
    assert "--override" in text
    assert f"obstacle {text}\n" in run("plan", source, tmp_path / "out", "--to=hf", "--dtype=fp32").out
    assert obstacles("--dtype=fp32", "--override") == []
