"""What convert leaves behind, and what it does to what is there already."""
import json
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
    convert(source, tmp_path / "out", *TO_NEMO, "--verify")


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
    convert(source, tmp_path / "out", "--to=hf", "--dtype=fp16", "--allow_overflow")
    assert tiny_model.read_hf(tmp_path / "out")[name].data[:4] == bytes.fromhex("007c") * 2
