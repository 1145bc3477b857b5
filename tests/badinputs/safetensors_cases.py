"""Bad and odd safetensors files: one mutation of the model.safetensors of a valid folder each."""
import json
import struct

import tiny_model
from cases import bad, valid
from tiny_model import Tensor, header_text, split_safetensors, write_raw

GROUP = "safetensors"
FILE = r"model\.safetensors"
NORM = "model.norm.weight"
NORM_SAID = r"tensor 'model\.norm\.weight'"
GIT_LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4990000000\n"
CUT_OFF = r"cut off|truncated|incomplete|download"


def broken(code, *says):
    return bad(GROUP, "hf", code, FILE, *says)


def weights(folder):
    return folder / "model.safetensors"


def edit_header(folder, change, file="model.safetensors"):
    """Applies `change` to the header as a dict; bytes that it returns replace the data."""
    header, data = split_safetensors(folder / file)
    changed = change(header, data)
    write_raw(folder / file, header_text(header), changed if isinstance(changed, bytes) else data)


def edit_text(folder, change):
    """Applies `change` to the bytes of the header."""
    header, data = split_safetensors(weights(folder))
    write_raw(weights(folder), change(header_text(header)), data)


def edit_entry(folder, **fields):
    """Changes fields of the entry of one tensor; None drops a field."""
    def change(header, _data):
        for key, value in fields.items():
            header[NORM][key] = value
            if value is None:
                del header[NORM][key]
    edit_header(folder, change)


def edit_entry_text(folder, old, new):
    """Replaces text inside the entry of one tensor, for what a JSON writer would not write."""
    def change(text):
        start = text.index(f'"{NORM}"'.encode())
        place = text.index(old, start)
        return text[:place] + new + text[place + len(old):]
    edit_text(folder, change)


def insert_first(folder, member):
    """Puts the text of one more member at the front of the header object."""
    edit_text(folder, lambda text: b"{" + member + b"," + text[1:])


def add_tensor(folder, name, tensor=None):
    named = tiny_model.read_safetensors(weights(folder))
    named[name] = tensor or Tensor("BF16", (2,), b"\0" * 4)
    tiny_model.write_safetensors(weights(folder), named)


# ---------------------------------------------------------------- length of the header

@broken(4, r"\b0 bytes|empty")
def empty_file(folder):
    """file of 0 bytes"""
    weights(folder).write_bytes(b"")


@broken(4, r"\b5\b", r"\b8\b")
def shorter_than_its_length_field(folder):
    """file of 5 bytes"""
    weights(folder).write_bytes(b"\x3c\0\0\0\0")


@broken(4, r"header")
def header_length_zero(folder):
    """header length 0"""
    _, data = split_safetensors(weights(folder))
    write_raw(weights(folder), b"", data)


@broken(4, r"header", r"\b60\b")
def header_length_and_nothing_else(folder):
    """header length 60 in a file of 8 bytes"""
    weights(folder).write_bytes(struct.pack("<Q", 60))


@broken(4, r"header", r"\b999999\b")
def header_length_beyond_the_file(folder):
    """header length larger than the file"""
    header, data = split_safetensors(weights(folder))
    write_raw(weights(folder), header_text(header), data, length=999_999)


@broken(4, r"header", r"100[,_ ]?000[,_ ]?001", r"100[,_ ]?000[,_ ]?000|100 ?MB")
def header_length_over_the_limit(folder):
    """header of 100,000,001 bytes, all present"""
    with weights(folder).open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(8 + 100_000_001)


@broken(4, r"header", str(2**63))
def header_length_2_63(folder):
    """header length 2^63"""
    write_raw(weights(folder), b"{}", b"", length=2**63)


@broken(4, r"header", str(2**64 - 1))
def header_length_2_64_minus_1(folder):
    """header length 2^64 - 1"""
    write_raw(weights(folder), b"{}", b"", length=2**64 - 1)


@broken(4, r"git-lfs|Git LFS", r"git lfs pull")
def git_lfs_pointer(folder):
    """git-lfs pointer text instead of the weights"""
    weights(folder).write_text(GIT_LFS_POINTER)


# ---------------------------------------------------------------- header as text

@broken(4, r"UTF-8")
def header_not_utf8(folder):
    """header with the byte FF in a name"""
    edit_text(folder, lambda text: text.replace(b"lm_head", b"lm_hea\xff"))


@broken(4, r"UTF-8|JSON|escape|surrogate")
def header_with_lone_surrogate(folder):
    r"""header with the escape \ud800 alone in a name"""
    edit_text(folder, lambda text: text.replace(b"lm_head", b"\\ud800"))


@broken(4, r"JSON")
def header_not_json(folder):
    """header `{` padded with blanks"""
    edit_text(folder, lambda text: b"{" + b" " * (len(text) - 1))


@broken(4, r"object")
def header_is_an_array(folder):
    """header `[]`"""
    edit_text(folder, lambda _: b"[]      ")


@broken(4, r"object")
def header_is_a_number(folder):
    """header `7`"""
    edit_text(folder, lambda _: b"7       ")


@broken(4, r"JSON|byte order mark|BOM")
def header_with_byte_order_mark(folder):
    """byte order mark before the header"""
    edit_text(folder, lambda text: b"\xef\xbb\xbf" + text)


@broken(4, r"JSON|after")
def header_followed_by_garbage(folder):
    """text after the header object"""
    edit_text(folder, lambda text: text.rstrip() + b" ,x")


@broken(4, r"JSON|after")
def header_of_two_objects(folder):
    """`{},"__metadata__":{...}`, as safetensors 0.4.3 wrote files without tensors"""
    write_raw(weights(folder), b'{},"__metadata__":{"format":"pt"}', b"")


@broken(4, r"nest|depth|deep|expected")
def header_nested_100000_deep_in_metadata(folder):
    """100,000 open brackets as a value of `__metadata__`"""
    edit_text(folder, lambda _: b'{"__metadata__":{"a":' + b"[" * 100_000)


@broken(4, r"nest|depth|deep|expected")
def header_nested_100000_deep_in_an_entry(folder):
    """100,000 open brackets as the value of an unknown key of a tensor"""
    edit_text(folder, lambda _: b'{"x":{"y":' + b"[" * 100_000)


@broken(4, NORM_SAID, r"duplicate|twice|two|again|second")
def tensor_twice_with_two_ranges(folder):
    """one tensor name twice, with different ranges"""
    insert_first(folder, f'"{NORM}":{{"dtype":"BF16","shape":[16],"data_offsets":[0,32]}}'.encode())


@broken(4, NORM_SAID, r"duplicate|twice|two|again|second")
def tensor_twice_with_one_range(folder):
    """one tensor name twice, with the same range (the reference accepts it)"""
    header, _ = split_safetensors(weights(folder))
    insert_first(folder, f'"{NORM}":{json.dumps(header[NORM])}'.encode())


@broken(4, r"__metadata__", r"duplicate|twice|two|again|second")
def metadata_twice(folder):
    """`__metadata__` twice"""
    insert_first(folder, b'"__metadata__":{"format":"pt"}')


@broken(4, r"__metadata__", r"string")
def metadata_value_is_a_number(folder):
    """number as a value of `__metadata__`"""
    edit_text(folder, lambda text: text.replace(b'"pt"', b"7"))


@broken(4, r"__metadata__", r"string")
def metadata_value_is_a_list(folder):
    """list as a value of `__metadata__`"""
    edit_text(folder, lambda text: text.replace(b'"pt"', b'["pt"]'))


@broken(4, r"__metadata__", r"string")
def metadata_value_is_an_object(folder):
    """object as a value of `__metadata__`"""
    edit_text(folder, lambda text: text.replace(b'"pt"', b'{"a":"pt"}'))


# ---------------------------------------------------------------- entry of a tensor

@broken(4, NORM_SAID, r"dtype")
def dtype_missing(folder):
    """no `dtype`"""
    edit_entry(folder, dtype=None)


@broken(4, NORM_SAID, r"shape")
def shape_missing(folder):
    """no `shape`"""
    edit_entry(folder, shape=None)


@broken(4, NORM_SAID, r"data_offsets")
def offsets_missing(folder):
    """no `data_offsets`"""
    edit_entry(folder, data_offsets=None)


@broken(4, NORM_SAID, r"F128")
def dtype_unknown(folder):
    """dtype `F128`"""
    edit_entry(folder, dtype="F128")


@broken(4, NORM_SAID, r"dtype")
def dtype_is_a_number(folder):
    """number as `dtype`"""
    edit_entry_text(folder, b'"BF16"', b"16")


@broken(4, NORM_SAID, r"\bF4\b")
def sub_byte_dtype_misaligned(folder):
    """dtype F4 with an odd number of elements"""
    edit_entry(folder, dtype="F4", shape=[63])


@broken(4, NORM_SAID, r"shape")
def shape_is_null(folder):
    """`shape: null`"""
    edit_entry_text(folder, b"[16]", b"null")


@broken(4, NORM_SAID, r"shape")
def shape_is_a_string(folder):
    """string as `shape`"""
    edit_entry(folder, shape="16")


@broken(4, NORM_SAID, r"-16")
def shape_negative(folder):
    """negative extent"""
    edit_entry(folder, shape=[-16])


@broken(4, NORM_SAID)
def shape_fractional(folder):
    """fractional extent"""
    edit_entry_text(folder, b"[16]", b"[16.5]")


@broken(4, NORM_SAID)
def shape_with_exponent(folder):
    """extent written as `16e0`"""
    edit_entry_text(folder, b"[16]", b"[16e0]")


@broken(4, NORM_SAID)
def shape_2_64(folder):
    """extent 2^64"""
    edit_entry(folder, shape=[2**64])


@broken(4, NORM_SAID, r"overflow|too (large|many|big)|exceed|2\^6[34]|64 bits")
def shape_product_overflows(folder):
    """shape whose element count does not fit 64 bits"""
    edit_entry(folder, shape=[2, 2**64 - 2])


@broken(4, NORM_SAID, r"overflow|too (large|many|big)|exceed|2\^6[34]|64 bits")
def byte_size_overflows(folder):
    """shape whose byte size does not fit 64 bits"""
    edit_entry(folder, shape=[2, 2**63 - 1])


@broken(4, NORM_SAID, r"-32")
def offset_negative(folder):
    """negative offset"""
    edit_header(folder, lambda header, _: header[NORM].update(data_offsets=[-32, 0]))


@broken(4, NORM_SAID)
def offset_fractional(folder):
    """fractional offset"""
    edit_header(folder, lambda header, _: header[NORM]["data_offsets"].__setitem__(0, 0.5))


@broken(4, NORM_SAID)
def offset_2_64(folder):
    """offset 2^64"""
    edit_header(folder, lambda header, _: header[NORM]["data_offsets"].__setitem__(1, 2**64))


@broken(4, NORM_SAID, r"data_offsets")
def offsets_of_one_item(folder):
    """`data_offsets` of one item"""
    edit_header(folder, lambda header, _: header[NORM]["data_offsets"].pop())


@broken(4, NORM_SAID, r"data_offsets")
def offsets_of_three_items(folder):
    """`data_offsets` of three items"""
    edit_header(folder, lambda header, _: header[NORM]["data_offsets"].append(0))


@broken(4, NORM_SAID, r"\b32\b", r"\b34\b")
def size_does_not_fit_the_shape(folder):
    """32 bytes for a BF16 tensor of 17 elements"""
    edit_entry(folder, shape=[17])


@broken(4, NORM_SAID)
def begin_after_end(folder):
    """`data_offsets` whose begin lies after their end"""
    edit_header(folder, lambda header, _: header[NORM]["data_offsets"].reverse())


# ---------------------------------------------------------------- ranges against each other and the file

def shift(header, first, by):
    """Moves the ranges of all tensors from offset `first` on."""
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= first:
            entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]


@broken(4, r"tensor 'lm_head\.weight'", r"\b1\b|hole|gap|unused")
def hole_at_the_start(folder):
    """first tensor starts at 1"""
    def change(header, data):
        shift(header, 0, 1)
        return b"\0" + data
    edit_header(folder, change)


@broken(4, NORM_SAID, r"hole|gap|unused|begin|start|offset")
def hole_between_tensors(folder):
    """one byte between two tensors"""
    def change(header, data):
        place = header[NORM]["data_offsets"][0]
        shift(header, place, 1)
        return data[:place] + b"\0" + data[place:]
    edit_header(folder, change)


@broken(4, NORM_SAID, r"overlap|begin|start|offset")
def overlap_of_two_tensors(folder):
    """last tensor shares one byte with the one before"""
    def change(header, data):
        shift(header, header[NORM]["data_offsets"][0], -1)
        return data[:-1]
    edit_header(folder, change)


@broken(4, r"overlap|begin|start|offset|same")
def two_tensors_on_one_range(folder):
    """lm_head and embedding on the same bytes"""
    def change(header, _data):
        header["lm_head.weight"]["data_offsets"] = header["model.embed_tokens.weight"]["data_offsets"]
    edit_header(folder, change)


@broken(4, CUT_OFF)
def file_cut_off(folder):
    """file that lacks its last 100 bytes"""
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(content[:-100])


@broken(4, r"\b34\b")
def trailing_bytes(folder):
    """34 bytes after the last tensor"""
    with weights(folder).open("ab") as file:
        file.write(b"extra_bogus_data_for_polyglot_file")


@broken(4, r"overlap|begin|start|offset")
def many_tensors_on_one_range(folder):
    """100,000 tensors on the same 16 bytes: refused at once"""
    entry = b'":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}'
    text = b"{" + b",".join(b'"t%d' % number + entry for number in range(100_000)) + b"}"
    write_raw(weights(folder), text, b"\0" * 16)


# ---------------------------------------------------------------- names that the format allows and no model has

@bad(GROUP, "hf", 4, r"expected no control and no bidi characters")
def name_with_nul(folder):
    """tensor name that holds NUL: printed escaped"""
    add_tensor(folder, "model.\0.weight")


@bad(GROUP, "hf", 4, r"expected no control and no bidi characters")
def name_with_escape_sequence(folder):
    """tensor name that holds a terminal control sequence: printed escaped"""
    add_tensor(folder, "model.\x1b[2J\n.weight")


@bad(GROUP, "hf", 4, r"expected no control and no bidi characters")
def name_with_bidi_control(folder):
    """tensor name that reorders text: printed escaped"""
    add_tensor(folder, "model.\u202egnp.weight")


@bad(GROUP, "hf", 6, r"\.\./\.\./etc/passwd")
def name_with_path(folder):
    """unexpected tensor named `../../etc/passwd`"""
    add_tensor(folder, "../../etc/passwd")


@bad(GROUP, "hf", 6, r"xxxxxxxx")
def name_of_1_mb(folder):
    """unexpected tensor with a name of 1 MB: printed shortened"""
    add_tensor(folder, "x" * 1_000_000)


# ---------------------------------------------------------------- valid

@valid(GROUP, "hf")
def metadata_absent(folder):
    """no `__metadata__`"""
    edit_header(folder, lambda header, _: header.pop("__metadata__"))


@valid(GROUP, "hf")
def metadata_null(folder):
    """`__metadata__: null`"""
    edit_text(folder, lambda text: text.replace(b'{"format":"pt"}', b"null"))


@valid(GROUP, "hf")
def metadata_empty(folder):
    """`__metadata__: {}`"""
    edit_text(folder, lambda text: text.replace(b'{"format":"pt"}', b"{}"))


@valid(GROUP, "hf")
def metadata_of_1_mb(folder):
    """1 MB of text in `__metadata__`"""
    edit_text(folder, lambda text: text.replace(b'"pt"', b'"pt","notes":"' + b"x" * 1_000_000 + b'"'))


@valid(GROUP, "hf")
def blanks_before_the_header(folder):
    """white space before the header object"""
    edit_text(folder, lambda text: b"\t\n \r" + text)


@valid(GROUP, "hf")
def blanks_after_the_header(folder):
    """white space after the header object"""
    edit_text(folder, lambda text: text.rstrip() + b"\r \t\n")


@valid(GROUP, "hf")
def data_not_aligned(folder):
    """data that starts at an odd offset"""
    edit_text(folder, lambda text: text.rstrip() + b" " * (1 - len(text.rstrip()) % 2))


@valid(GROUP, "hf")
def names_in_any_order(folder):
    """header keys in reverse order, `__metadata__` last"""
    def change(header, _data):
        for name in sorted(header, reverse=True):
            header[name] = header.pop(name)
    edit_header(folder, change)


@valid(GROUP, "hf")
def unknown_key_of_an_entry(folder):
    """key that the format does not know in the entry of a tensor"""
    edit_entry(folder, comment="x")


@valid(GROUP, "hf")
def scalar_and_zero_size_tensors(folder):
    """tensors of shape [] and [2, 0], under names that loaders ignore"""
    add_tensor(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", Tensor("F32", (), b"\0" * 4))
    add_tensor(folder, "model.layers.1.self_attn.rotary_emb.inv_freq", Tensor("F32", (2, 0), b""))
