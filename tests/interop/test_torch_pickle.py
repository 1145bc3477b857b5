"""Torch files as we lay them out are those of torch.save, byte for byte, but for the serialization id."""
import os
import pathlib
import subprocess
import zipfile

import pytest
import torch

BUILD = pathlib.Path(os.environ.get("RESHARD", "build/release/reshard")).parent
TOOL = BUILD / "src" / "formats" / "torch_pickle" / "lay_out_torch"
ALL = os.environ.get("RESHARD_TEST_ALL") == "1"

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (F32, F16, BF16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.float8_e4m3fnuz,
          torch.float8_e5m2fnuz, torch.uint16, torch.uint32, torch.uint64)


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


def lay_out(path, tensors):
    lines = "".join(f"{name} {dtype_name(dtype)} {' '.join(map(str, shape))}\n" for name, dtype, shape in tensors)
    subprocess.run([TOOL, path], input=lines, text=True, check=True)


def save(path, tensors):
    """The same tensors by torch: the bytes of tensor i have the value i modulo 256."""
    state = {}
    for i, (name, dtype, shape) in enumerate(tensors):
        count = torch.Size(shape).numel() * dtype.itemsize
        state[name] = torch.full((count,), i % 256, dtype=torch.uint8).view(dtype).reshape(shape)
    torch.save(state, path)


def ids(path):
    """Where a file has the serialization id and its two CRCs."""
    with zipfile.ZipFile(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/.data/serialization_id"))
        directory = archive.start_dir
        names = [i.filename for i in archive.infolist()]
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        data = info.header_offset + 30 + name + extra
        file.seek(directory)
        rest = file.read()
    assert names[-1] == info.filename
    central = directory + rest.rindex(b"PK\x01\x02")
    return [(data, 48), (central + 16, 4)]


def assert_same_but_ids(ours, theirs):
    size = theirs.stat().st_size
    assert ours.stat().st_size == size
    holes = ids(theirs)
    assert ids(ours) == holes
    with open(ours, "rb") as a, open(theirs, "rb") as b:
        at = 0
        while at < size:
            pieces = [bytearray(file.read(1 << 24)) for file in (a, b)]
            for begin, length in holes:
                for piece in pieces:
                    first, last = max(begin - at, 0), min(begin + length - at, len(piece))
                    if first < last:
                        piece[first:last] = bytes(last - first)
            assert pieces[0] == pieces[1], f"they differ between {at} and {at + len(pieces[0])}"
            at += len(pieces[0])


CASES = {
    "one": [("weight", F32, (3, 4))],
    "none": [],
    "every dtype": [(f"t.{dtype_name(dtype)}", dtype, (4, 2)) for dtype in DTYPES],
    "every number of axes": [(f"axes{n}", F16, (2,) * n) for n in range(7)],
    "without elements": [("a", F32, (0,)), ("b", BF16, (0, 3)), ("c", F32, (2, 0, 5)), ("d", torch.float8_e5m2, (0,))],
    "numbers around the widths of opcodes": [(f"n{n}", torch.int8, (n, 1)) for n in (255, 256, 65535, 65536)],
    "999": [(f"t{i}", F32, (2,)) for i in range(999)],
    "1000": [(f"t{i}", F32, (2,)) for i in range(1000)],
    "1001": [(f"t{i}", F32, (2,)) for i in range(1001)],
    "2000": [(f"layer.{i}.weight", BF16, (1, 3)) for i in range(2000)],
    "2345 of all types": [(f"layer.{i}.weight", DTYPES[i % len(DTYPES)], (i % 5, 3)) for i in range(2345)],
    "long names": [("n" * 300 + str(i), F32, (i + 1,)) for i in range(70)],
}


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_that_of_torch(name, tmp_path):
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    ours, theirs = tmp_path / "ours" / "pytorch_model-1-of-2.bin", tmp_path / "theirs" / "pytorch_model-1-of-2.bin"
    lay_out(ours, CASES[name])
    save(theirs, CASES[name])
    assert_same_but_ids(ours, theirs)
    loaded = torch.load(ours, weights_only=True)
    assert [(key, value.dtype, tuple(value.shape)) for key, value in loaded.items()] == CASES[name]


@pytest.mark.skipif(not ALL, reason="writes 4 GB; RESHARD_TEST_ALL=1")
@pytest.mark.parametrize("size", [0xFFFFFFFE, 0xFFFFFFFF, 2**32 + 5])
def test_sizes_and_offsets_that_need_64_bits(size, tmp_path):
    tensors = [("large", torch.int8, (size,)), ("behind", F32, (2, 3))]
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    ours, theirs = tmp_path / "ours" / "x.bin", tmp_path / "theirs" / "x.bin"
    lay_out(ours, tensors)
    save(theirs, tensors)
    assert_same_but_ids(ours, theirs)
    loaded = torch.load(ours, mmap=True, weights_only=True)
    assert loaded["behind"].view(torch.uint8).flatten().tolist() == [1] * 24
    theirs.unlink()


def test_a_layout_larger_than_any_disk_here_loads(tmp_path):
    """More than 2^31 elements and 2^32 bytes, of which only headers are written (the data are a hole)."""
    path = tmp_path / "sparse.bin"
    lay_out(path, [("large", BF16, (2**16, 2**16 + 1)), ("behind", F32, (2, 3))])
    loaded = torch.load(path, mmap=True, weights_only=True)
    assert loaded["large"].shape == (2**16, 2**16 + 1)
    assert loaded["behind"].view(torch.uint8).flatten().tolist() == [1] * 24
    path.unlink()
