"""Bad and odd PyTorch files in a HuggingFace folder: the zip, the pickle, the tensors in it, and what attacks put there."""
import gzip
import io
import struct
import tarfile
import warnings
import zipfile

import tiny_model
import torch_file
from cases import BASES, bad, valid
from safetensors_cases import GIT_LFS_POINTER
from tiny_model import config, tensors
from torch_file import (call, dict_of, members_of, number, pickled, storage, tensor, text, values_of, write,
                        write_members)

GROUP = "PyTorch file"
FILE = "pytorch_model.bin"
NORM = "model.norm.weight"
NORM_SAID = r"tensor 'model\.norm\.weight'"


def write_hf_bin(folder):
    folder.mkdir(parents=True)
    tiny_model.write_config(folder, config())
    write(folder / FILE, tensors())


BASES["hf bin"] = (write_hf_bin, ("--to=hf",))


def broken(code, *says):
    return bad(GROUP, "hf bin", code, r"pytorch_model\.bin", *says)


def edit(folder, change):
    """`change` takes the file's bytes, as a bytearray, and may return others."""
    raw = bytearray((folder / FILE).read_bytes())
    (folder / FILE).write_bytes(change(raw) or raw)


def put(raw, at, layout, *values):
    struct.pack_into(layout, raw, at, *values)


def member(raw, name):
    """Where the directory's header and the local header of a member are."""
    end = raw.rindex(b"PK\5\6")
    at = struct.unpack_from("<I", raw, end + 16)[0]
    while True:
        length, extra, comment = struct.unpack_from("<HHH", raw, at + 28)
        if raw[at + 46 : at + 46 + length].endswith(b"/" + name.encode()):
            return at, struct.unpack_from("<I", raw, at + 42)[0]
        at += 46 + length + extra + comment


def rewrite(folder, drop=(), pickle=None, **changes):
    """The file anew, with some members changed, left out, or added."""
    members = members_of(tensors(), pickle)
    members.update({name.replace("__", "/"): content for name, content in changes.items()})
    write_members(folder / FILE, {name: content for name, content in members.items() if name not in drop})


def with_value(folder, opcodes, name=NORM):
    """Something else stands in a tensor's place."""
    rewrite(folder, pickle=pickled(dict_of({**values_of(tensors()), name: opcodes}.items())))


def norm(**changes):
    """The final norm, the 20th tensor, with other numbers."""
    key = list(tensors()).index(NORM)
    parts = {"key": str(key), "elements": 16, "name": "BFloat16Storage", "shape": [16], "strides": None, "offset": 0, **changes}
    return tensor(storage(parts["key"], parts["elements"], parts["name"]), parts["shape"], parts["strides"], parts["offset"])


# ---------------------------------------------------------------- what is no torch file

@broken(4, r"begins with", r"torch\.save")
def text_file(folder):
    """text instead of a zip"""
    (folder / FILE).write_bytes(b"these are no weights\n")


@broken(4, r"empty")
def torch_file_empty(folder):
    """file of 0 bytes"""
    (folder / FILE).write_bytes(b"")


@broken(4, r"git-lfs", r"git lfs pull")
def torch_git_lfs_pointer(folder):
    """git-lfs pointer text instead of the weights"""
    (folder / FILE).write_bytes(GIT_LFS_POINTER if isinstance(GIT_LFS_POINTER, bytes) else GIT_LFS_POINTER.encode())


@broken(5, r"compressed")
def seven_zip(folder):
    """7z archive, of which scanners of pickles see nothing"""
    edit(folder, lambda raw: b"7z\xbc\xaf\x27\x1c\0\4" + bytes(raw))


@broken(5, r"compressed")
def gzipped(folder):
    """gzip of the file"""
    edit(folder, lambda raw: gzip.compress(bytes(raw)))


@broken(5, r"tar")
def tar_of_torch_0_1(folder):
    """tar, as torch 0.1 wrote it"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"\x80\x02N."))
    (folder / FILE).write_bytes(out.getvalue())


@broken(5, r"PYTORCH1|before")
def pre_release_archive(folder):
    """archive of a torch before 1.0"""
    edit(folder, lambda raw: b"PYTORCH1" + bytes(raw))


@broken(5, r"bare pickle")
def bare_pickle(folder):
    """pickle without a zip around it"""
    (folder / FILE).write_bytes(members_of(tensors())["data.pkl"])


@broken(5, r"TorchScript")
def torch_script(folder):
    """TorchScript archive"""
    rewrite(folder, **{"constants.pkl": b"\x80\x02)."})


# ---------------------------------------------------------------- the zip

@broken(4, r"end record", r"cut off")
def zip_truncated(folder):
    """the last 100 bytes are missing: no end record"""
    edit(folder, lambda raw: raw[:-100])


@broken(4, r"end record", r"cut off")
def zip_half_downloaded(folder):
    """the first half of the file"""
    edit(folder, lambda raw: raw[: len(raw) // 2])


@broken(4, r"7 bytes behind")
def zip_followed_by_garbage(folder):
    """bytes behind the end record"""
    edit(folder, lambda raw: bytes(raw) + b"garbage")


@broken(4, r"directory from offset")
def directory_beyond_the_file(folder):
    """end record that points behind the end of the file"""
    edit(folder, lambda raw: put(raw, raw.rindex(b"PK\5\6") + 16, "<I", 2**31))


def with_zip64(raw, members=None, offset=None, place=None):
    """The same end with 64-bit records, in which some numbers are others."""
    end = raw.rindex(b"PK\5\6")
    count, size, begin = struct.unpack_from("<HII", raw, end + 10)
    count = count if members is None else members
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, begin if offset is None else offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end if place is None else place, 1)
    put(raw, end + 8, "<HHII", 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return bytes(raw[:end]) + record + locator + bytes(raw[end:])


@broken(4, r"directory from offset")
def zip64_offset_lies(folder):
    """64-bit end record with an offset beyond 2^63"""
    edit(folder, lambda raw: with_zip64(raw, offset=2**63 + 5))


@broken(4, r"members")
def zip64_members_lie(folder):
    """64-bit end record with 2^40 members"""
    edit(folder, lambda raw: with_zip64(raw, members=2**40))


@broken(4, r"64-bit end record")
def zip64_record_elsewhere(folder):
    """locator of the 64-bit end record that points beyond the file"""
    edit(folder, lambda raw: with_zip64(raw, place=2**50))


@broken(4, r"end records give")
def zip64_contradicts(folder):
    """64-bit and classic end record that differ"""
    def change(raw):
        both = bytearray(with_zip64(raw))
        put(both, both.rindex(b"PK\5\6") + 10, "<H", 3)
        return both
    edit(folder, change)


@broken(4, r"data\.pkl", r"another name")
def local_name_differs(folder):
    """local header with another name than the directory's, so that two readers read two files"""
    edit(folder, lambda raw: put(raw, member(raw, "data.pkl")[1] + 30, "<B", ord("q")))


@broken(4, r"data\.pkl", r"contradict")
def local_size_differs(folder):
    """local header with another size than the directory's"""
    edit(folder, lambda raw: put(raw, member(raw, "data.pkl")[1] + 22, "<I", 7))


@broken(4, r"data\.pkl", r"contradict")
def local_flags_differ(folder):
    """flag of encryption in the local header only, which makes some scanners skip the member"""
    edit(folder, lambda raw: put(raw, member(raw, "data.pkl")[1] + 6, "<H", 1))


@broken(5, r"data\.pkl", r"encrypted")
def zip_encrypted(folder):
    """flag of encryption"""
    def change(raw):
        central, local = member(raw, "data.pkl")
        put(raw, central + 8, "<H", 1)
        put(raw, local + 6, "<H", 1)
    edit(folder, change)


@broken(4, r"CRC", r"data\.pkl")
def crc_wrong(folder):
    """data.pkl of another CRC than the headers say"""
    def change(raw):
        central, local = member(raw, "data.pkl")
        put(raw, central + 16, "<I", 1)
        put(raw, local + 14, "<I", 1)
    edit(folder, change)


@broken(5, r"compressed", r"method 8")
def zip_deflated(folder):
    """compressed members"""
    write_members(folder / FILE, members_of(tensors()), method=zipfile.ZIP_DEFLATED)


@broken(5, r"compressed", r"method 8")
def zip_bomb(folder):
    """100 MB of zeros compressed to 100 KB"""
    members = {**members_of(tensors()), "data/0": bytes(100 << 20)}
    write_members(folder / FILE, members, method=zipfile.ZIP_DEFLATED)


@broken(4, r"overlap")
def members_overlap(folder):
    """two members over the same bytes"""
    def change(raw):
        central, local = member(raw, "data/0")
        size = struct.unpack_from("<I", raw, central + 24)[0] + 200
        for at in (central + 20, central + 24, local + 18, local + 22):
            put(raw, at, "<I", size)
    edit(folder, change)


@broken(4, r"version", r"expected them to end before")
def member_beyond_the_directory(folder):
    """member that reaches into the directory"""
    def change(raw):
        central, local = member(raw, "version")
        for at in (central + 20, central + 24, local + 18, local + 22):
            put(raw, at, "<I", 100_000)
    edit(folder, change)


@broken(4, r"data\.pkl' is there twice")
def data_pkl_twice(folder):
    """two members data.pkl"""
    members = members_of(tensors())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_members(folder / FILE, [*members.items(), ("data.pkl", members["data.pkl"])])


@broken(4, r"leaves the archive")
def member_outside(folder):
    """member `../x`"""
    rewrite(folder, **{"../../x": b"x"})


@broken(4, r"one top folder")
def two_top_folders(folder):
    """members in two top folders"""
    members = [(f"pytorch_model/{name}", content) for name, content in members_of(tensors()).items()]
    with zipfile.ZipFile(folder / FILE, "w") as archive:
        for name, content in [*members, ("other/data.pkl", b"\x80\x02N.")]:
            archive.writestr(name, content)


@broken(4, r"data\.pkl")
def data_pkl_missing(folder):
    """no data.pkl"""
    rewrite(folder, drop=("data.pkl",))


@broken(4, r"version")
def version_missing(folder):
    """no version"""
    rewrite(folder, drop=("version",))


@broken(4, r"version 'abc'")
def version_no_number(folder):
    """version `abc`"""
    rewrite(folder, version=b"abc")


@broken(4, r"version '0'")
def version_zero(folder):
    """version 0"""
    rewrite(folder, version=b"0\n")


@broken(5, r"version 99")
def version_99(folder):
    """version 99"""
    rewrite(folder, version=b"99\n")


@broken(5, r"big-endian")
def byteorder_big(folder):
    """byteorder `big`"""
    rewrite(folder, byteorder=b"big")


@broken(4, r"byteorder 'middle'")
def byteorder_middle(folder):
    """byteorder `middle`"""
    rewrite(folder, byteorder=b"middle")


@broken(4, NORM_SAID, r"storage '\d+' is not in the file")
def storage_missing(folder):
    """no member for a storage"""
    rewrite(folder, drop=(f"data/{list(tensors()).index(NORM)}",))


@broken(4, r"tensor 'model\.embed_tokens\.weight'", r"350 bytes, expected 352")
def storage_short(folder):
    """storage of fewer bytes than its elements take"""
    rewrite(folder, data__0=tensors()["model.embed_tokens.weight"].data[:-2])


@broken(4, r"tensor 'model\.embed_tokens\.weight'", r"354 bytes, expected 352")
def storage_long(folder):
    """storage of more bytes than its elements take"""
    rewrite(folder, data__0=tensors()["model.embed_tokens.weight"].data + b"\0\0")


# ---------------------------------------------------------------- the old stream

@broken(4, r"cut off")
def stream_truncated(folder):
    """stream of before torch 1.6, without its last byte"""
    (folder / FILE).write_bytes(torch_file.stream(tensors())[:-1])


@broken(5, r"big-endian")
def stream_big_endian(folder):
    """stream of a big-endian machine"""
    (folder / FILE).write_bytes(torch_file.stream(tensors(), little=False))


@broken(4, r"storage '3' has 256 elements")
def stream_of_other_sizes(folder):
    """stream whose storages have other sizes than its pickle says"""
    named = tensors()
    lengths = [len(t.data) // 2 for t in named.values()]
    raw = bytearray(torch_file.stream(named))
    at = len(raw) - sum(8 + len(t.data) for t in named.values()) + sum(8 + 2 * n for n in lengths[:3])
    put(raw, at, "<q", 256)
    (folder / FILE).write_bytes(raw)


@broken(4, r"storage 'other' belongs to no tensor")
def stream_of_unknown_storage(folder):
    """stream with a storage of no tensor, whose type nothing tells"""
    keys = [*map(str, range(len(tensors()) - 1)), "other"]
    (folder / FILE).write_bytes(torch_file.stream(tensors(), keys=keys))


# ---------------------------------------------------------------- the pickle

def of_pickle(code, pickle, *says):
    """A generator whose data.pkl is `pickle`."""
    def declare(make):
        def generator(folder):
            rewrite(folder, pickle=pickle)
        generator.__name__, generator.__doc__ = make.__name__, make.__doc__
        return broken(code, *says)(generator)
    return declare


@of_pickle(4, b"\x80\x02}h\x07.", r"BINGET", r"memo")
def memo_missing():
    """object of the memo that was not put there"""


@of_pickle(4, b"\x80\x02R.", r"REDUCE", r"stack")
def stack_underflow():
    """call with nothing on the stack"""


@of_pickle(4, b"\x80\x02}(" + text("a") + b"X\xff\xff\xff\x7fb", r"BINUNICODE", r"2147483647 bytes")
def text_beyond_the_pickle():
    """text longer than the pickle"""


@of_pickle(4, b"\x80\x02}(" + text("a") + b"J\1\2", r"BININT", r"4 bytes")
def opcode_truncated():
    """opcode cut off"""


@of_pickle(4, b"\x80\x02}", r"STOP")
def stop_missing():
    """no STOP"""


@of_pickle(4, b"\x80\x02}(.", r"mark")
def mark_left():
    """mark that nothing takes off"""


@of_pickle(4, b"\x80\x02K\1u.", r"mark")
def mark_missing():
    """items without a mark"""


@of_pickle(4, pickled(dict_of([(b"\xff\xfe", b"N")])), r"UTF-8")
def text_not_utf8():
    """key that is not UTF-8"""


@of_pickle(4, pickled(text("f") + b")R"), r"REDUCE", r"no function")
def call_of_a_text():
    """call of a text"""


@of_pickle(4, pickled(b"]}b"), r"BUILD")
def state_of_a_list():
    """state given to a list"""


@of_pickle(4, pickled(b"cos\nsystem\nK\1R"), r"REDUCE", r"tuple")
def arguments_no_tuple():
    """call whose arguments are no tuple"""


@of_pickle(4, b"\x80\x04\x95" + b"\xff" * 8 + b"}.", r"frame")
def frame_beyond_the_pickle():
    """frame of 2^64 - 1 bytes"""


@of_pickle(5, b"\x80\x09}.", r"protocol 9")
def protocol_9():
    """protocol 9"""


@of_pickle(4, b"cos\nsystem\n(X\1\0\0\0atR.", r"PROTO")
def protocol_missing():
    """pickle that does not begin with its protocol"""


@of_pickle(5, pickled(b"]" * 3_000_000), r"--max_memory")
def three_million_lists():
    """3,000,000 lists in 3 MB"""


@of_pickle(5, pickled(b"}r\xff\xff\xff\xff"), r"--max_memory")
def memo_of_2_32():
    """memo of 2^32 - 1"""


@of_pickle(5, pickled(b"ccollections\nOrderedDict\nq\0](" + (number(1) + number(2) + b"\x86") * 1000 + b"e\x85q\1" +
                      b"0h\0h\1R" * 100_000), r"--max_memory")
def dicts_of_dicts():
    """100,000 copies of a dict of 1,000 items, each by 6 bytes"""


@of_pickle(5, pickled(b")" + b"\x85" * 1_000_000), r"no tensor|--max_memory")
def million_nested_tuples():
    """1,000,000 nested tuples"""


@of_pickle(5, pickled(b"}" + b"}" * 10_000 + (text("a") + b"}s")), r"no tensor")
def dicts_10000():
    """10,000 dicts on the stack"""


@of_pickle(5, pickled(b"]q\0h\0a"), r"no tensor")
def list_in_itself():
    """list that holds itself"""


@of_pickle(5, pickled(b"}q\0" + text("state_dict") + b"h\0s"), r"no tensor")
def state_dict_in_itself():
    """state dict that holds itself"""


@bad(GROUP, "hf bin", 6, r"model\.norm\.weight", r"missing")
def no_tensors(folder):
    """empty dict"""
    rewrite(folder, pickle=pickled(b"}"))


@of_pickle(5, pickled(dict_of([("step", number(7))])), r"no tensor")
def no_tensors_but_a_number():
    """dict without a tensor"""


@of_pickle(4, pickled(dict_of([*values_of(tensors()).items(), (NORM, norm())])), NORM_SAID, r"twice")
def torch_name_twice():
    """one tensor name twice"""


@of_pickle(4, pickled(dict_of([*values_of(tensors()).items(), ("a\x1b[2J", norm())])), r"U\+001B")
def torch_name_with_escape():
    """name with a control character"""


# ---------------------------------------------------------------- tensors

def of_norm(code, opcodes, *says):
    """A generator in which other opcodes stand for the final norm."""
    def declare(make):
        def generator(folder):
            with_value(folder, opcodes)
        generator.__name__, generator.__doc__ = make.__name__, make.__doc__
        return broken(code, NORM_SAID, *says)(generator)
    return declare


@of_norm(4, norm(offset=1), r"within its storage")
def offset_beyond():
    """offset that moves the tensor behind its storage"""


@of_norm(4, norm(strides=[2]), r"within its storage")
def stride_beyond():
    """stride that reaches behind the storage"""


@of_norm(4, norm(strides=[2**62]), r"within its storage")
def stride_overflows():
    """stride of 2^62"""


@of_norm(4, norm(offset=2**63 - 1), r"within its storage")
def offset_overflows():
    """offset of 2^63 - 1"""


@of_norm(4, norm(offset=-1), r"-1")
def offset_negative():
    """negative offset"""


@of_norm(4, norm(shape=[-16]), r"-16")
def size_negative():
    """negative extent"""


@of_norm(5, norm(strides=[-1]), r"negative")
def stride_negative():
    """negative stride"""


@of_norm(4, norm(elements=2**62, name="FloatStorage"), r"2\^64")
def storage_overflows():
    """storage of 2^62 elements of four bytes"""


@of_norm(4, norm(elements=int.from_bytes(b"\1" * 254, "little")), r"whole number")
def storage_of_huge_number():
    """storage whose size is a number of 254 bytes"""


@of_norm(4, norm(shape=[2**32, 2**32], strides=[0, 0]), r"2\^64")
def torch_shape_overflows():
    """shape of 2^64 elements, all of them the same"""


@bad(GROUP, "hf bin", 6, r"model\.norm\.weight", r"\[1048576, 1048576\]")
def torch_shape_huge(folder):
    """shape of 2^40 elements over one"""
    with_value(folder, norm(shape=[2**20, 2**20], strides=[0, 0]))


@of_norm(4, norm(strides=[1, 1]), r"strides")
def strides_of_other_ndim():
    """more strides than axes"""


@of_norm(5, norm(shape=[1] * 7, strides=[1] * 7), r"axes")
def seven_axes():
    """seven axes"""


@of_norm(5, norm(name="QInt8Storage"), r"QInt8Storage")
def storage_quantised():
    """quantised storage"""


@of_norm(5, norm(name="ComplexDoubleStorage"), r"ComplexDoubleStorage")
def storage_complex():
    """storage of complex128"""


@of_norm(4, tensor(b"N", [16]), r"no storage")
def no_storage():
    """tensor without a storage"""


@of_norm(5, call("torch._utils", "_rebuild_sparse_tensor", b"N", b"N"), r"_rebuild_sparse_tensor")
def sparse():
    """sparse tensor"""


@of_norm(5, call("torch._utils", "_rebuild_qtensor", b"N"), r"_rebuild_qtensor")
def quantised():
    """quantised tensor"""


@of_norm(5, call("torch._utils", "_rebuild_meta_tensor_no_storage", b"N"), r"_rebuild_meta_tensor_no_storage")
def without_data():
    """tensor of the meta device, which has no data"""


@of_norm(5, call("torch._tensor", "_rebuild_from_type_v2", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cmine\nTensor\n", b")", b"N"),
         r"mine\.Tensor")
def of_a_subclass():
    """tensor of a class of somebody's own"""


@of_norm(4, call("torch._utils", "_rebuild_parameter", b"N"), r"no tensor")
def parameter_of_nothing():
    """parameter without a tensor"""


def nested_parameters(count):
    return b"ctorch._utils\n_rebuild_parameter\n(" * count + norm() + b"\x89}tR" * count


@of_norm(4, nested_parameters(1000), r"calls")
def parameters_1000_deep():
    """parameter of a parameter of ..., 1,000 deep"""


@bad(GROUP, "hf bin", 6, r"model\.norm\.weight", r"missing")
def torch_tensor_is_none(folder):
    """None in a tensor's place"""
    with_value(folder, b"N")


# ---------------------------------------------------------------- attacks

COMMAND = text("touch pwned")
# Functions by which pickles are known to run code, those that scanners had to learn of one by one among them.
CALLS = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "Popen"), ("subprocess", "check_output"),
    ("builtins", "eval"), ("builtins", "exec"), ("builtins", "compile"), ("builtins", "getattr"), ("builtins", "__import__"),
    ("builtins", "open"), ("builtins", "eval.__call__"), ("runpy", "_run_code"), ("runpy", "run_path"), ("pty", "spawn"),
    ("torch.hub", "load"), ("torch.serialization", "load"), ("torch", "load"), ("torch.jit", "load"),
    ("torch._inductor.codecache", "compile_file"), ("torch.jit.unsupported_tensor_ops", "execWrapper"),
    ("torch.utils.collect_env", "run"), ("torch.utils.bottleneck.__main__", "run_cprofile"),
    ("torch.utils._config_module", "ConfigModule.load_config"), ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression"),
    ("torch._dynamo.guards", "GuardBuilder.get"), ("torch.utils.data.datapipes.utils.decoder", "basichandlers"),
    ("numpy.testing._private.utils", "runstring"), ("numpy.f2py.crackfortran", "getlincoef"), ("numpy", "load"),
    ("pickle", "loads"), ("_pickle", "loads"), ("dill", "loads"), ("cloudpickle", "loads"), ("joblib", "load"),
    ("marshal", "loads"), ("types", "CodeType"), ("types", "FunctionType"), ("importlib", "import_module"), ("ctypes", "CDLL"),
    ("functools", "partial"), ("operator", "attrgetter"), ("operator", "methodcaller"), ("code", "InteractiveInterpreter.runcode"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"), ("webbrowser", "open"), ("socket", "create_connection"),
    ("http.client", "HTTPSConnection"), ("urllib.request", "urlopen"), ("shutil", "rmtree"), ("sys", "exit"), ("pdb", "run"),
    ("bdb", "Bdb.run"), ("cProfile", "run"), ("profile", "Profile.run"), ("timeit", "timeit"), ("trace", "Trace.run"),
    ("doctest", "debug_script"), ("idlelib.pyshell", "ModifiedInterpreter.runcode"), ("idlelib.autocomplete", "AutoComplete.get_entity"),
    ("lib2to3.pgen2.grammar", "Grammar.loads"), ("lib2to3.pgen2.pgen", "ParserGenerator.make_label"), ("ensurepip", "_run_pip"),
    ("pip", "main"), ("venv", "main"), ("pydoc", "pipepager"), ("pydoc", "locate"), ("imaplib", "IMAP4_stream"), ("smtplib", "SMTP"),
    ("distutils.file_util", "write_file"), ("logging.config", "_resolve"), ("linecache", "updatecache"), ("aiohttp.client", "ClientSession"),
    ("requests.api", "get"), ("hydra.utils", "instantiate"), ("hydra._internal.instantiate._instantiate2", "instantiate"),
    ("megatron.core.utils", "init_method_normal"), ("mine", "Weights"),
]


def declare_call(module, name):
    @broken(5, NORM_SAID, f"{module}.{name}".replace(".", r"\."), r"nothing is called")
    def generator(folder):
        with_value(folder, call(module, name, COMMAND))
    generator.__name__ = f"calls_{module}_{name}".replace(".", "_")
    generator.__doc__ = f"`{module}.{name}(...)` in a tensor's place"


for _module, _name in CALLS:
    declare_call(_module, _name)


@of_norm(5, b"cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR(" + COMMAND + b"tR", r"builtins\.getattr")
def calls_what_a_call_gives():
    """call of what another call gives"""


@of_norm(5, b"cmine\nWeights\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb" + COMMAND + b"b", r"mine\.Weights")
def sets_its_setstate():
    """object whose `__setstate__` is set to os.system and called by the next state"""


@of_norm(5, b"c__builtin__\neval\n(" + COMMAND + b"tR", r"builtins\.eval")
def calls_by_a_name_of_python_2():
    """function by the name that Python 2 had for it"""


# These opcodes are refused wherever they stand.

def in_file(code, opcodes, *says, protocol=2):
    return of_pickle(code, pickled(opcodes, protocol), *says)


@in_file(5, b"(cos\nsystem\n" + COMMAND + b"o", r"OBJ")
def opcode_obj():
    """call by the opcode OBJ"""


@in_file(5, b"(" + COMMAND + b"ios\nsystem\n", r"INST")
def opcode_inst():
    """call by the opcode INST"""


@in_file(5, b"\x82\x01)R", r"EXT1")
def opcode_ext():
    """function by a number of the extension registry"""


@in_file(5, b"P1\n", r"PERSID")
def opcode_persid():
    """persistent id as text"""


@in_file(5, b"\x97", r"NEXT_BUFFER", protocol=5)
def opcode_next_buffer():
    """out-of-band buffer"""


@in_file(5, b"\x8c\x02os\x94\x8c\x06system\x94" + b"00" + b"h\0h\1\x93" + b"\x8c\x01x\x85R", r"os\.system", protocol=4)
def stack_global_by_memo():
    """function whose module and name come from the memo"""


@in_file(5, b"cos\nsystem\n(" + COMMAND + b"tR", r"os\.system")
def whole_file_is_a_call():
    """a call instead of a state dict"""


@in_file(5, b"cos\nsystem\n(" + COMMAND + b"tR" + b"\xff", r"0xff")
def payload_then_broken():
    """call, then an opcode that is none: loaders that execute have done it by then"""


def beside(opcodes):
    """A checkpoint in which a hostile object stands where no tensor is needed."""
    return pickled(b"}(" + text("hyper") + opcodes + text("state_dict") + dict_of(values_of(tensors()).items()) + b"u")


def inert(pickle):
    def declare(make):
        def generator(folder):
            rewrite(folder, pickle=pickle)
        generator.__name__, generator.__doc__ = make.__name__, make.__doc__
        return valid(GROUP, "hf bin")(generator)
    return declare


WHOLE = dict_of(values_of(tensors()).items())
ATTACK = call("os", "system", COMMAND)


@inert(beside(ATTACK))
def attack_beside_the_state_dict():
    """call of os.system beside the state dict: nothing is called"""


@inert(pickled(ATTACK + b"0" + WHOLE))
def attack_that_is_dropped():
    """call of os.system whose result is taken off the stack"""


@inert(pickled(WHOLE) + pickled(ATTACK))
def attack_behind_stop():
    """second pickle behind the first"""


@inert(pickled(b"ccollections\nOrderedDict\n)R(" + WHOLE[2:] + b"}" + text("_metadata") + ATTACK + b"sb"))
def attack_in_the_metadata():
    """call of os.system in the attributes of the state dict"""


@inert(pickled(dict_of([*values_of(tensors()).items(), ("model.layers.0._extra_state", ATTACK)])))
def attack_in_extra_state():
    """call of os.system as an extra state"""


@inert(pickled(dict_of([*values_of(tensors()).items(), ("step", number(7)), ("nothing", b"N"), ("names", b"]")])))
def other_entries():
    """numbers, None and lists among the tensors"""


@inert(pickled(WHOLE, protocol=4))
def protocol_4():
    """protocol 4"""


@inert(pickled(b"}q\0(" + text("self") + b"h\0" + WHOLE[2:]))
def dict_that_holds_itself():
    """state dict that holds itself under a further key"""


@valid(GROUP, "hf bin")
def stream_of_before_1_6(folder):
    """stream of before torch 1.6"""
    (folder / FILE).write_bytes(torch_file.stream(tensors()))


@valid(GROUP, "hf bin")
def zip64_of_a_small_file(folder):
    """64-bit end records that are not needed"""
    edit(folder, with_zip64)


@valid(GROUP, "hf bin")
def members_70000(folder):
    """70,000 members, of which 21 are needed"""
    rewrite(folder, **{f"data/{i}": b"" for i in range(100, 70_100)})


@valid(GROUP, "hf bin")
def pickle_behind_100_mb(folder):
    """data.pkl behind 100 MB of other members"""
    members = {"extra": bytes(100 << 20), **members_of(tensors())}
    write_members(folder / FILE, members)


@valid(GROUP, "hf bin")
def byteorder_missing(folder):
    """no byteorder, as before torch 2.1"""
    rewrite(folder, drop=("byteorder",))


@valid(GROUP, "hf bin")
def other_top_folder(folder):
    """top folder of another name than the file's"""
    write_members(folder / FILE, members_of(tensors()), top="archive")
