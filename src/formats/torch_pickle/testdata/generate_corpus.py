"""Writes the corpora of the fuzz targets of zips, pickles and torch files. Needs the golden files beside it."""

import pathlib
import random
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ARCHIVE = HERE.parents[2] / "archive"


def write(folder, inputs):
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, content in inputs.items():
        (folder / name).write_bytes(content)


def built(mode, seed, size=400):
    """Input of a target that builds something of bytes: any bytes will do."""
    return bytes([mode]) + random.Random(seed).randbytes(size)


files = {path.name: path.read_bytes() for path in sorted(HERE.iterdir()) if path.suffix in (".pt", ".bin", ".ckpt")}
pickles = {}
for name in files:
    if zipfile.is_zipfile(HERE / name):
        with zipfile.ZipFile(HERE / name) as archive:
            pickles[name + ".pkl"] = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
pickles["protocol4.pkl"] = b"\x80\x04\x95\x14\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94K\x01\x8c\x01b\x94\x8f\x94(K\x02\x90u."
zips = {name: (ARCHIVE / "testdata" / name).read_bytes() for name in ("common.pt", "shard_0_2.pt")}

write(ARCHIVE / "corpus_zip", {**{n: b"\0" + c for n, c in zips.items()}, **{f"built{i}": built(1, i) for i in range(4)}})
write(HERE.parent / "corpus_pickle",
      {**{n: b"\0" + c for n, c in pickles.items()}, **{f"built{i}": built(1, i) for i in range(8)}})
write(HERE.parent / "corpus", {**{n: b"\0" + c for n, c in files.items()},
                               **{f"built{i}": built(1 + i % 2, i, 600) for i in range(8)}})
