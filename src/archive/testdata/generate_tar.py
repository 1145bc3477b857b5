"""Writes the golden tars of this folder with Python's tarfile, in its three formats; the tests do not need it."""

import io
import os
import tarfile

os.chdir(os.path.dirname(os.path.abspath(__file__)))

LONG = "long_" * 24 + "name"  # no slash: ustar could not split it
MEMBERS = [("./", None), ("./model_config.yaml", b"a: 1\n"), ("./model_weights", None),
           ("./model_weights/" + "folder_" * 12 + "/" + "x" * 40, b"y" * 600), ("./empty", b"")]


def info_of(name, data):
    info = tarfile.TarInfo(name)
    info.mtime = 315532800  # 1980-01-01
    info.type, info.mode = (tarfile.DIRTYPE, 0o755) if data is None else (tarfile.REGTYPE, 0o644)
    info.size = len(data or b"")
    return info


def write(path, tar_format, members):
    with tarfile.open(path, "w:", format=tar_format) as tar:
        for name, data in members:
            tar.addfile(info_of(name, data), io.BytesIO(data or b""))


more = MEMBERS + [("./" + LONG, b"z"), ("./tokenizer_\u00e9.model", b"t" * 512)]
write("pax.tar", tarfile.PAX_FORMAT, more)
write("gnu.tar", tarfile.GNU_FORMAT, more)
write("ustar.tar", tarfile.USTAR_FORMAT, MEMBERS)
big = info_of("./big", b"")
big.size = 9 << 30
with open("big_header.tar", "wb") as file:
    file.write(big.tobuf(tarfile.PAX_FORMAT))
with open("big_header_gnu.tar", "wb") as file:
    file.write(big.tobuf(tarfile.GNU_FORMAT))
