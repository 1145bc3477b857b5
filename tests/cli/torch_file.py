"""torch.save's files written from their description alone, so that a test can break each part of one.

A pickle is put together from opcodes: functions that return bytes.
"""
import struct
import zipfile

STORAGES = {"F32": "FloatStorage", "BF16": "BFloat16Storage", "F16": "HalfStorage", "I32": "IntStorage", "I8": "CharStorage"}
ITEM_SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "I8": 1}
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def storage(key, elements, name="BFloat16Storage"):
    return b"(" + text("storage") + f"ctorch\n{name}\n".encode() + text(key) + text("cpu") + number(elements) + b"tQ"


def row_major(shape):
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * shape[axis]
    return strides


def tensor(of, shape, strides=None, offset=0, function=TENSOR):
    """`of` is what storage() gives."""
    strides = row_major(shape) if strides is None else strides
    hooks = b"ccollections\nOrderedDict\n)R"
    return function + b"(" + of + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks + b"tR"


def dict_of(items):
    """Of (key, opcodes of the value)."""
    return b"}(" + b"".join(text(key) + value for key, value in items) + b"u"


def pickled(opcodes, protocol=2):
    return b"\x80" + bytes([protocol]) + opcodes + b"."


def values_of(named):
    """Name -> opcodes of each tensor, whose storages are called 0, 1, ... in that order."""
    found = {}
    for key, (name, t) in enumerate(named.items()):
        found[name] = tensor(storage(str(key), len(t.data) // ITEM_SIZES[t.dtype], STORAGES[t.dtype]), t.shape)
    return found


def members_of(named, pickle=None):
    """Name -> content, without the top folder, in the order of torch.save."""
    pickle = pickled(dict_of(values_of(named).items())) if pickle is None else pickle
    storages = {f"data/{key}": t.data for key, t in enumerate(named.values())}
    return {"data.pkl": pickle, "byteorder": b"little", **storages, "version": b"3\n"}


def write_members(path, members, top=None, method=zipfile.ZIP_STORED):
    """`members`: a dict, or pairs where a name comes twice."""
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in pairs:
            archive.writestr(f"{top or path.stem}/{name}", content)


def write(path, named, pickle=None):
    write_members(path, members_of(named, pickle))


def stream(named, pickle=None, little=True, keys=None):
    """The bytes of the stream that torch wrote before 1.6."""
    pickle = pickle or pickled(dict_of(values_of(named).items()))
    system = pickled(dict_of([("protocol_version", number(1001)), ("little_endian", b"\x88" if little else b"\x89")]))
    count = [str(key) for key in range(len(named))] if keys is None else keys
    listed = pickled(b"](" + b"".join(map(text, count)) + b"e")
    parts = [MAGIC, pickled(b"M" + struct.pack("<H", 1001)), system, pickle, listed]
    for t in named.values():
        parts += [struct.pack("<q", len(t.data) // ITEM_SIZES[t.dtype]), t.data]
    return b"".join(parts)
