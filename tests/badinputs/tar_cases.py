"""Bad and odd packed checkpoints: a .nemo is a tar, or a gzip of one."""
import gzip
import io
import shutil
import struct
import tarfile

from cases import BASES, bad, valid
from tiny_model import write_nemo

GROUP = "packed .nemo"
CONFIG = "./model_config.yaml"
WEIGHTS = "./model_weights/model.embedding.word_embeddings.weight/0.0"
BLOCK = 512


def write_packed(path):
    """A NeMo folder, packed under the name that is given as NeMo packs it."""
    folder = path.with_name("unpacked")
    write_nemo(folder)
    with tarfile.open(path, "w:") as tar:
        tar.add(folder, arcname=".")
    shutil.rmtree(folder)
    return path


BASES["packed"] = (write_packed, BASES["nemo"][1])


def refused(code, *says):
    return bad(GROUP, "packed", code, r"in\.nemo", *says)


def accepted():
    return valid(GROUP, "packed")


def read(path):
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read() if member.isfile() else b"") for member in tar.getmembers()]


def write(path, members, tar_format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w:", format=tar_format) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))


def file(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def add(path, *members, tar_format=tarfile.PAX_FORMAT):
    write(path, [*read(path), *members], tar_format)


def edit(path, name, change):
    """Changes one member's TarInfo, or drops it where `change` says False."""
    def kept(info):
        return info.name != name[2:] and info.name != name or change(info) is not False
    write(path, [(info, data) for info, data in read(path) if kept(info)], tarfile.GNU_FORMAT)


def with_sum(header):
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


def edit_header(path, name, offset, value, keep_sum=False):
    """Changes bytes of a member's own header, and makes its sum right again."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmember(name).offset_data - BLOCK
    header = bytearray(data[at:at + BLOCK])
    header[offset:offset + len(value)] = value
    data[at:at + BLOCK] = header if keep_sum else with_sum(bytes(header))
    path.write_bytes(data)


def raw(name, data=b"", kind=b"0"):
    """A ustar member, whatever its name and type."""
    header = bytearray(BLOCK)
    header[:len(name)] = name
    header[100:107], header[124:135] = b"0000644", b"%011o" % len(data)
    header[156:157], header[257:265] = kind, b"ustar\00000"
    return with_sum(bytes(header)) + data + bytes(-len(data) % BLOCK)


def record(key, value):
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def prepend(path, *members):
    path.write_bytes(b"".join(members) + path.read_bytes())


# ---------------------------------------------------------------- headers

@refused(4, r"sum", r"damaged")
def header_with_a_wrong_sum(path):
    """a header whose checksum is not that of its bytes"""
    edit_header(path, CONFIG, 100, b"0000777", keep_sum=True)


@refused(4, r"sum", r"tar")
def text_instead_of_a_tar(path):
    """a text file named .nemo"""
    path.write_text("model: llama\n" * 100)


@refused(4, r"git-lfs", r"git lfs pull")
def packed_git_lfs_pointer(path):
    """git-lfs pointer text instead of the archive"""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")


@refused(4, r"0 bytes|byte 0")
def packed_empty(path):
    """a .nemo of 0 bytes"""
    path.write_bytes(b"")


@refused(4, r"model_config\.yaml", r"negative")
def size_negative_in_octal(path):
    """size -1 in the header's text"""
    edit_header(path, CONFIG, 124, b"-0000000001")


@refused(4, r"model_config\.yaml", r"negative")
def size_negative_in_base_256(path):
    """size -1 in base 256"""
    edit_header(path, CONFIG, 124, b"\xff" * 12)


@refused(4, r"model_config\.yaml", r"2\^63")
def size_beyond_64_bits_in_base_256(path):
    """size 2^80 in base 256"""
    edit_header(path, CONFIG, 124, b"\x80\x01" + bytes(10))


@refused(4, r"model_config\.yaml", r"9223372036854775807", r"cut off")
def size_2_63_minus_1_in_base_256(path):
    """size 2^63 - 1 in base 256"""
    edit_header(path, CONFIG, 124, b"\x80" + struct.pack(">3xQ", 2**63 - 1))


@refused(4, r"model_config\.yaml", r"8589934591", r"cut off")
def member_larger_than_the_file(path):
    """a member of 8 GiB in a file of 30 kB"""
    edit_header(path, CONFIG, 124, b"77777777777")


@refused(4, r"PAX", r"record")
def pax_records_that_are_none(path):
    """a PAX header whose record is longer than it"""
    prepend(path, raw(b"././@PaxHeader", b"99 path=x\n", b"x"))


@refused(4, r"size '-1'")
def pax_size_negative(path):
    """a PAX header with size=-1"""
    prepend(path, raw(b"././@PaxHeader", record(b"size", b"-1"), b"x"))


@refused(4, r"name twice")
def gnu_long_names_in_a_row(path):
    """one GNU long name after the other, a thousand of them"""
    prepend(path, *[raw(b"././@LongLink", b"n" * 200 + b"\0", b"L")] * 1000)


@refused(4, r"extended header of 2000000000 bytes|2,000,000,000|cut off")
def gnu_long_name_of_2_gb(path):
    """a GNU long name that says it has 2 GB"""
    header = bytearray(raw(b"././@LongLink", b"", b"L"))
    header[124:135] = b"%011o" % 2_000_000_000
    prepend(path, with_sum(bytes(header)))


@refused(5, r"--max_memory")
def extended_headers_of_70_mb(path):
    """70 global PAX headers of a megabyte each"""
    prepend(path, *[raw(b"././@PaxHeader", record(b"comment", b"c" * 1_000_000), b"g")] * 70)


# ---------------------------------------------------------------- names

@refused(4, r"model_config\.yaml", r"duplicate")
def config_twice(path):
    """model_config.yaml twice: other programs take the last"""
    add(path, file(CONFIG, b"hidden_size: 16\n"))


@refused(4, r"0\.0", r"duplicate")
def weights_twice(path):
    """a chunk of the weights twice, with different data"""
    add(path, file(WEIGHTS, bytes(352)))


@refused(4, r"model_config\.yaml", r"duplicate")
def config_with_and_without_a_dot(path):
    """`./model_config.yaml` and `model_config.yaml`"""
    add(path, file("model_config.yaml", b"hidden_size: 16\n"))


@refused(4, r"Model_Config\.yaml", r"case")
def config_in_another_case(path):
    """`model_config.yaml` and `Model_Config.yaml`, one file on some file systems"""
    add(path, file("./Model_Config.yaml", b"hidden_size: 16\n"))


@refused(5, r"combining mark", r"NFC")
def name_in_decomposed_letters(path):
    """a name with a combining mark, which another name may be in composed letters"""
    add(path, file("./tokenize\u0301r.model", b"x"))


@refused(4, r"\.\.")
def name_that_leaves_the_archive(path):
    """a member `../../escaped`"""
    add(path, file("../../escaped", b"x"))


@refused(4, r"/etc/passwd", r"absolute")
def name_absolute(path):
    """a member `/etc/passwd`"""
    prepend(path, raw(b"/etc/passwd", b"x"))


@refused(4, r"\.\./escaped", r"\.\.")
def pax_path_that_leaves_the_archive(path):
    """a plain name in the header, `path=../escaped` in the PAX header before it"""
    add(path, file("./plain", b"x", pax_headers={"path": "../escaped"}))


@refused(4, r"model_config\.yaml", r"duplicate")
def pax_path_of_another_member(path):
    """a plain name in the header, `path=./model_config.yaml` in the PAX header before it"""
    add(path, file("./plain", b"hidden_size: 16\n", pax_headers={"path": CONFIG}))


@refused(4, r"UTF-8")
def name_not_utf8(path):
    """a name with the byte FF"""
    prepend(path, raw(b"./tokenizer_\xff.model", b"x"))


@refused(4, r"model_config\.yaml", r"file", r"folder")
def file_that_is_a_folder_too(path):
    """`model_config.yaml` and `model_config.yaml/x`"""
    add(path, file(CONFIG + "/x", b"x"))


# ---------------------------------------------------------------- types

@refused(5, r"link\b", r"symbolic link")
def symbolic_link_and_a_file_through_it(path):
    """a link to /tmp and a member below it"""
    add(path, file("./link", type=tarfile.SYMTYPE, linkname="/tmp"), file("./link/escaped", b"x"))


@refused(5, r"hard link")
def hard_link(path):
    """a hard link to the config"""
    add(path, file("./again.yaml", type=tarfile.LNKTYPE, linkname=CONFIG))


@refused(4, r"device")
def character_device(path):
    """a character device, /dev/zero"""
    add(path, file("./zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5))


@refused(4, r"device")
def block_device(path):
    """a block device"""
    add(path, file("./disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0))


@refused(4, r"FIFO")
def fifo_in_the_archive(path):
    """a FIFO: refused, not waited for"""
    add(path, file("./pipe", type=tarfile.FIFOTYPE))


@refused(5, r"sparse")
def sparse_member_of_gnu(path):
    """a sparse member in GNU's old form"""
    edit_header(path, WEIGHTS, 156, b"S")


@refused(5, r"sparse")
def sparse_member_of_pax(path):
    """a sparse member in the PAX form, GNU.sparse.map"""
    add(path, file("./sparse", b"x" * 512, pax_headers={"GNU.sparse.major": "0", "GNU.sparse.minor": "1",
                                                      "GNU.sparse.map": "0,512", "GNU.sparse.size": "1024"}))


# ---------------------------------------------------------------- what is in it

@refused(4, r"model_config\.yaml")
def packed_without_a_config(path):
    """no model_config.yaml in the archive"""
    edit(path, CONFIG, lambda info: False)


@refused(3, r"model_config\.yaml")
def packed_below_a_folder(path):
    """all members below a folder `x/`, where NeMo does not look for them"""
    def below(info):
        info.name = "x/" + info.name.removeprefix("./")
        return info
    write(path, [(below(info), data) for info, data in read(path) if info.name != "."])


@refused(4, r"metadata\.json", r"incomplete")
def packed_without_metadata(path):
    """no model_weights/metadata.json in the archive"""
    edit(path, "./model_weights/metadata.json", lambda info: False)


@refused(4, r"tensor 'embedding\.word_embeddings\.weight'")
def packed_chunk_missing(path):
    """one chunk file is not in the archive"""
    edit(path, WEIGHTS, lambda info: False)


# ---------------------------------------------------------------- ends

@refused(4, r"cut off")
def last_member_cut_off(path):
    """the file ends within the data of its last member"""
    with tarfile.open(path) as tar:
        last = max(tar.getmembers(), key=lambda member: member.offset_data + member.size)
    path.write_bytes(path.read_bytes()[:last.offset_data + last.size - 1])


@refused(4, r"two blocks of zeros", r"cut off")
def archive_without_an_end(path):
    """the file ends behind its last member, where others may have been"""
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % BLOCK))


@refused(4, r"other bytes than zeros")
def garbage_behind_the_end(path):
    """another archive behind the end of the first"""
    path.write_bytes(path.read_bytes() * 2)


# ---------------------------------------------------------------- gzip

def compress(path):
    path.write_bytes(gzip.compress(path.read_bytes()))


@refused(4, r"gzip", r"cut off")
def gzip_cut_off(path):
    """a gzip'd archive that lacks its last 10 bytes"""
    compress(path)
    path.write_bytes(path.read_bytes()[:-10])


@refused(4, r"gzip", r"damaged")
def gzip_with_a_wrong_crc(path):
    """a gzip'd archive whose CRC is another"""
    compress(path)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)


@refused(4, r"gzip", r"other bytes follow")
def gzip_with_garbage_behind_it(path):
    """bytes behind the end of a gzip'd archive"""
    compress(path)
    path.write_bytes(path.read_bytes() + b"garbage behind it")


@refused(4, r"gzip", r"no tar")
def gzip_of_something_else(path):
    """a gzip of a text"""
    path.write_bytes(gzip.compress(b"model: llama\n" * 1000))


@refused(4, r"unpack to", r"1000")
def gzip_bomb(path):
    """a gzip'd archive that begins with a member of 20 MB of zeros, in 20 kB"""
    prepend(path, raw(b"./zeros", bytes(20_000_000)))
    compress(path)


# ---------------------------------------------------------------- odd and valid

@accepted()
def gzip_archive(path):
    """a gzip'd archive, as NeMo before 1.7 wrote them"""
    compress(path)


@accepted()
def gnu_archive_without_dots(path):
    """GNU format, names without `./`, no folders"""
    def plain(info):
        info.name = info.name.removeprefix("./")
        return info
    write(path, [(plain(info), data) for info, data in read(path) if info.isfile()], tarfile.GNU_FORMAT)


@accepted()
def members_in_reverse_order(path):
    """members from the last to the first, so that files come before their folders"""
    write(path, read(path)[::-1], tarfile.USTAR_FORMAT)


@accepted()
def end_of_two_blocks(path):
    """two blocks of zeros at the end, and no further padding"""
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % BLOCK + 2 * BLOCK))
