"""Packed checkpoints as Python's tarfile and GNU tar write them, in every format: a .nemo is read as its folder is."""

import gzip
import io
import os
import subprocess
import tarfile
import time

import models
import pytest
from program import ROOT, convert, hashes, reshard
from test_fixtures import FACTS, FIXTURES

CASE = FIXTURES / "tied-shared-fp32-zarr"
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def pack(folder, path, mode="w:", tar_format=tarfile.PAX_FORMAT):
    """As NeMo's SaveRestoreConnector packs: the folder under the name '.'."""
    with tarfile.open(path, mode, format=tar_format) as tar:
        tar.add(folder, arcname=".")
    return path


@pytest.mark.parametrize("case", FACTS)
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_packed_fixture_gives_the_files_that_its_folder_gives(case, mode, tmp_path):
    fixture = FIXTURES / case
    packed = pack(fixture / "nemo", tmp_path / "model.nemo", mode)
    template = f"--hf_model_name={fixture / 'hf'}"
    convert(packed, tmp_path / "out", template, to="hf")
    models.assert_equal(models.read(tmp_path / "out"), models.read(fixture / "hf"))
    convert(fixture / "nemo", tmp_path / "want", template, to="hf")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "want")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.nemo", "out", "want"]


@pytest.mark.parametrize("tar_format", FORMATS)
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_every_format_of_tarfile(tar_format, mode, tmp_path):
    packed = pack(CASE / "nemo", tmp_path / "model.nemo", mode, FORMATS[tar_format])
    assert reshard("verify", packed, CASE / "hf", "--json").json()["equal"]
    convert(packed, tmp_path / "out", to="nemo")
    got = hashes(tmp_path / "out")
    assert {n: h for n, h in hashes(CASE / "nemo").items() if "_extra_state" not in n and not n.endswith("common.pt")}.items() <= got.items()


@pytest.mark.parametrize("option", ["--format=v7", "--format=oldgnu", "--format=gnu", "--format=ustar", "--format=posix"])
@pytest.mark.parametrize("names", [["."], ["model_config.yaml", "model_weights"]])
def test_every_format_of_gnu_tar_with_and_without_dots(option, names, tmp_path):
    packed = tmp_path / "model.nemo"
    subprocess.run(["tar", option, "-C", CASE / "nemo", "-cf", packed, *names], check=True)
    assert reshard("verify", packed, CASE / "nemo", "--json").json()["equal"]


def test_a_gzip_of_gzip_members_and_its_other_levels(tmp_path):
    tar = pack(CASE / "nemo", tmp_path / "plain.tar").read_bytes()
    packed = tmp_path / "model.nemo"
    packed.write_bytes(gzip.compress(tar[:1000], 1) + gzip.compress(b"") + gzip.compress(tar[1000:], 0))
    assert reshard("verify", packed, tmp_path / "plain.tar", "--json").json()["equal"]


def test_two_packed_files_are_compared_and_inspected_as_one_another(tmp_path):
    plain = pack(CASE / "nemo", tmp_path / "plain.nemo")
    compressed = pack(CASE / "nemo", tmp_path / "compressed.nemo", "w:gz")
    assert reshard("verify", plain, compressed, "--json").json()["equal"]
    inspected = [reshard("inspect", path, "--json").json() for path in (plain, compressed, CASE / "nemo")]
    for report in inspected:
        report.pop("path")
    assert inspected[0] == inspected[1] == inspected[2]
    packed_hf = pack(CASE / "hf", tmp_path / "hf.tar")
    assert reshard("verify", packed_hf, plain, "--json").json()["equal"]


def sparse_copy_with_a_big_member(folder, path, tar_format, gap):
    """The folder packed, with a member of `gap` zeros before everything else, for which no disk is needed."""
    with open(path, "wb") as out:
        big = tarfile.TarInfo("./optimizer.bin")
        big.size = gap
        out.write(big.tobuf(tar_format))
        out.seek(gap + -gap % 512, os.SEEK_CUR)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:", format=tar_format) as tar:
            tar.add(folder, arcname=".")
        out.write(packed.getvalue())


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
@pytest.mark.parametrize("gap", [(8 << 30) - 1, 8 << 30, (20 << 30) + 123])
def test_weights_behind_a_member_of_8_gib_and_more(tar_format, gap, tmp_path):
    packed = tmp_path / "model.nemo"
    sparse_copy_with_a_big_member(CASE / "nemo", packed, FORMATS[tar_format], gap)
    start = time.monotonic()
    assert reshard("verify", packed, CASE / "hf", "--json").json()["equal"]
    assert time.monotonic() - start < 5
    convert(packed, tmp_path / "out", f"--hf_model_name={CASE / 'hf'}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), models.read(CASE / "hf"))


def test_the_archive_that_changes_is_noticed(tmp_path):
    """A rerun that finds another archive does not go on with what was planned for the old one."""
    packed = pack(CASE / "nemo", tmp_path / "model.nemo")
    plan = reshard("plan", packed, tmp_path / "out", "--to=hf", "--json").json()
    os.utime(packed, (1, 1))
    assert reshard("plan", packed, tmp_path / "out", "--to=hf", "--json").json()["plan_id"] != plan["plan_id"]


def test_unpacking_is_told_and_leaves_nothing_behind(tmp_path):
    packed = pack(CASE / "nemo", tmp_path / "model.nemo", "w:gz")
    size = len(gzip.decompress(packed.read_bytes()))
    notes = " ".join(reshard("plan", packed, tmp_path / "out", "--to=hf", "--json").json()["notes"])
    assert "unpacked beside the target" in notes and f"{size / 1000:.0f} kB" in notes
    assert [p.name for p in tmp_path.iterdir()] == ["model.nemo"]


def test_where_there_is_no_room_to_unpack(tmp_path):
    packed = pack(CASE / "nemo", tmp_path / "model.nemo", "w:gz")
    missing = tmp_path / "missing"
    command = ["env", f"TMPDIR={missing}", os.environ.get("RESHARD", ROOT / "build/release/reshard"), "inspect", packed]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3 and str(missing) in done.stderr, done.stderr


def test_the_target_is_not_the_archive(tmp_path):
    packed = pack(CASE / "nemo", tmp_path / "model.nemo")
    before = packed.read_bytes()
    for target in (packed, packed / "out"):
        assert "source" in convert(packed, target, to="hf", code=3).err
    assert packed.read_bytes() == before


def test_several_tasks_read_one_archive(tmp_path):
    packed = pack(CASE / "nemo", tmp_path / "model.nemo", "w:gz")
    convert(packed, tmp_path / "out", f"--hf_model_name={CASE / 'hf'}", "--convert_tasks=3", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), models.read(CASE / "hf"))


@pytest.mark.parametrize("case", ["llama-gqa-bf16-zarr", "qwen2-bias-bf16-zarr"])
def test_what_is_packed_is_what_tarfile_would_pack(case, tmp_path):
    """Byte for byte, from the files of the unpacked conversion in the same order."""
    options = ["--hf_model_name=example/model"]
    convert(FIXTURES / case / "hf", tmp_path / "folder", *options, to="nemo")
    convert(FIXTURES / case / "hf", tmp_path / "model.nemo", *options, to="nemo")
    with tarfile.open(tmp_path / "model.nemo") as tar:
        names = [member.name for member in tar.getmembers()]
        tar.extractall(tmp_path / "extracted")
    assert hashes(tmp_path / "extracted") == hashes(tmp_path / "folder")
    ours, theirs = (tmp_path / "model.nemo").read_bytes(), io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w:") as tar:
        for name in names:
            path = tmp_path / "folder" / name
            info = tarfile.TarInfo(name if name != "." else "./")
            info.mtime = 315532800
            info.type, info.mode = (tarfile.DIRTYPE, 0o755) if path.is_dir() else (tarfile.REGTYPE, 0o644)
            info.size = 0 if path.is_dir() else path.stat().st_size
            tar.addfile(info, None if path.is_dir() else path.open("rb"))
    assert ours == theirs.getvalue()


@pytest.mark.parametrize("case", ["llama-gqa-bf16-zarr", "tied-twice-bf16-zarr", "llama31-fp32-zarr"])
def test_through_a_packed_checkpoint_and_back(case, tmp_path):
    hf = FIXTURES / case / "hf"
    convert(hf, tmp_path / "model.nemo", f"--hf_model_name={hf}", to="nemo")
    assert reshard("verify", hf, tmp_path / "model.nemo", "--json").json()["equal"]
    with gzip.open(tmp_path / "compressed.nemo", "wb", compresslevel=1) as out:
        out.write((tmp_path / "model.nemo").read_bytes())
    convert(tmp_path / "compressed.nemo", tmp_path / "back", f"--hf_model_name={hf}", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), models.read(hf))


@pytest.mark.parametrize("options", [(), ("--override",)], ids=["plain", "override"])
def test_a_folder_in_the_place_of_a_packed_target_stays(options, tmp_path):
    (tmp_path / "model.nemo").mkdir()
    result = convert(CASE / "hf", tmp_path / "model.nemo", *options, to="nemo", code=3)
    assert "this is a folder, expected a file or nothing; choose another name, or delete it" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["model.nemo"] and not list((tmp_path / "model.nemo").iterdir())
