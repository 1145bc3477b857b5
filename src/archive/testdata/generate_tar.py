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

# -- the corpus of tar_fuzz: a trick each, and the shortest end


def corpus(name, tar):
    os.makedirs("../corpus_tar", exist_ok=True)
    with open(f"../corpus_tar/{name}", "wb") as out:
        out.write(tar + bytes(1024))


def member(name, data=b"", tar_format=tarfile.USTAR_FORMAT, **fields):
    info = info_of(name, data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tar_format) + data + bytes(-len(data) % 512)


folder = member("./", type=tarfile.DIRTYPE)
config = member("./model_config.yaml", b"a: 1\n")
corpus("plain", folder + config + member("./w", type=tarfile.DIRTYPE) + member("./w/x", b"y" * 600))
corpus("no_dots", member("model_config.yaml", b"a: 1\n") + member("w/x", b"y"))
corpus("prefix", member("p" * 90 + "/" + "n" * 90, b"1"))
corpus("pax_path", member("./" + LONG, b"1", tarfile.PAX_FORMAT))
corpus("pax_size", member("./a", b"1", tarfile.PAX_FORMAT, pax_headers={"size": "1"}))
corpus("pax_time", member("./a", b"1", tarfile.PAX_FORMAT, mtime=1.5))
corpus("pax_global", tarfile.TarInfo.create_pax_global_header({"comment": "c", "size": "1"}) + member("./a", b"1"))
corpus("pax_out", member("./a", b"1", tarfile.PAX_FORMAT, pax_headers={"path": "../a"}))
corpus("gnu_name", member("./" + LONG, b"1", tarfile.GNU_FORMAT))
corpus("gnu_link", member("./a", b"", tarfile.GNU_FORMAT, type=tarfile.SYMTYPE, linkname="l" * 120))
corpus("sparse", member("./a", b"", tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.map": "0,1"}))
corpus("twice", config + member("model_config.yaml", b"a: 2\n"))
corpus("case", config + member("./MODEL_config.yaml", b"a: 2\n"))
corpus("utf8", member("./\u00e9", b"1", tarfile.GNU_FORMAT))
corpus("big", member("./big", b"", tarfile.GNU_FORMAT, size=9 << 30))
corpus("links", member("./a", type=tarfile.LNKTYPE, linkname="./b") + member("./c", type=tarfile.FIFOTYPE))
corpus("file_as_folder", member("./a", b"1") + member("./a/b", b"2"))
corpus("file_as_root", member(".", b"1"))
corpus("empty", b"")
