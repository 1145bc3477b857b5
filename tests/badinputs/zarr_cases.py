"""Bad and odd zarr arrays and model_weights folders of a NeMo checkpoint."""
import json
import os
import shutil

import numpy as np

from cases import bad, valid
import tiny_model
from tiny_model import CONFIG, Tensor, config, nemo_arrays, tensors, write_nemo, write_zarr

GROUP = "zarr"
FC2 = "model.decoder.layers.mlp.linear_fc2.weight"
FC2_SAID = r"model\.decoder\.layers\.mlp\.linear_fc2\.weight"
QKV = "model.decoder.layers.self_attention.linear_qkv.weight"
EMBEDDING = "model.embedding.word_embeddings.weight"
# Two layers of [16, 24] in chunks of one layer.
CHUNK_BYTES = 16 * 24 * 2


def broken(code, *says, arguments=()):
    return bad(GROUP, "nemo", code, *says, arguments=arguments)


def about_fc2(code, *says):
    return broken(code, FC2_SAID, *says)


def array_folder(folder, key=FC2):
    return folder / "model_weights" / key


def edit_zarray(folder, drop=(), **changes):
    path = array_folder(folder) / ".zarray"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if key not in drop}))


def replace_chunk(folder, make):
    path = array_folder(folder) / "1.0.0"
    path.unlink()
    make(path)


def rechunk(folder, key, chunks, **changes):
    """Stores one array anew with another chunk grid."""
    dtype, values, _ = nemo_arrays(CONFIG, tensors())[key]
    shutil.rmtree(array_folder(folder, key))
    write_zarr(array_folder(folder, key), dtype, values, chunks, **changes)


# ---------------------------------------------------------------- .zarray

@broken(4, FC2_SAID)
def zarray_missing(folder):
    """chunks without `.zarray`"""
    (array_folder(folder) / ".zarray").unlink()


@about_fc2(4, r"JSON")
def zarray_not_json(folder):
    """`.zarray` that is not JSON"""
    (array_folder(folder) / ".zarray").write_text("{")


@about_fc2(4, r"shape")
def zarray_without_shape(folder):
    """`.zarray` without `shape`"""
    edit_zarray(folder, drop=("shape",))


@about_fc2(4, r"chunks")
def chunks_of_other_ndim(folder):
    """`chunks` with fewer axes than `shape`"""
    edit_zarray(folder, chunks=[16, 24])


@about_fc2(4, r"chunks")
def chunk_extent_zero(folder):
    """chunk extent 0"""
    edit_zarray(folder, chunks=[1, 0, 24])


@about_fc2(4, r"-16")
def extent_negative(folder):
    """negative extent"""
    edit_zarray(folder, shape=[2, -16, 24])


@about_fc2(4)
def shape_huge(folder):
    """shape [2^40, 16, 24]: refused at once"""
    edit_zarray(folder, shape=[2**40, 16, 24])


@about_fc2(4, r"overflow|too (large|many|big)|exceed|2\^6[34]|64 bits|expected")
def shape_product_overflows(folder):
    """shape whose element count does not fit 64 bits"""
    edit_zarray(folder, shape=[2**32, 2**32, 24])


@about_fc2(4)
def chunk_huge(folder):
    """chunk of 2^62 rows over a small file: nothing of that size is allocated"""
    edit_zarray(folder, chunks=[1, 2**62, 24])


@about_fc2(5, r"zarr_format|zarr format|version", r"\b3\b")
def zarr_format_3(folder):
    """`zarr_format: 3`"""
    edit_zarray(folder, zarr_format=3)


@about_fc2(5, r"f8")
def dtype_float64(folder):
    """dtype `<f8`"""
    edit_zarray(folder, dtype="<f8")


@about_fc2(5, r">f2")
def dtype_big_endian(folder):
    """dtype `>f2`"""
    edit_zarray(folder, dtype=">f2")


@about_fc2(5, r"banana")
def dtype_unknown(folder):
    """dtype `banana`"""
    edit_zarray(folder, dtype="banana")


@about_fc2(5, r"compress", r"blosc")
def compressed(folder):
    """a compressor"""
    edit_zarray(folder, compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0})


@about_fc2(5, r"filter")
def filtered(folder):
    """a filter"""
    edit_zarray(folder, filters=[{"id": "delta", "dtype": "<f2"}])


@about_fc2(5, r"order", r"\bF\b")
def order_f(folder):
    """`order: F`"""
    edit_zarray(folder, order="F")


# ---------------------------------------------------------------- chunks

@about_fc2(4, r"1\.0\.0", r"missing|not found|no such")
def chunk_missing(folder):
    """chunk file missing, `fill_value: null`"""
    (array_folder(folder) / "1.0.0").unlink()


@about_fc2(4, r"1\.0\.0", r"missing|not found|no such")
def chunk_missing_with_fill_value(folder):
    """chunk file missing, `fill_value: 0`: an error all the same"""
    edit_zarray(folder, fill_value=0.0)
    (array_folder(folder) / "1.0.0").unlink()


@about_fc2(4, r"1\.0\.0", rf"\b{CHUNK_BYTES - 2}\b", rf"\b{CHUNK_BYTES}\b")
def chunk_too_short(folder):
    """chunk file of two bytes too few"""
    replace_chunk(folder, lambda path: path.write_bytes(b"\0" * (CHUNK_BYTES - 2)))


@about_fc2(4, r"1\.0\.0", rf"\b{CHUNK_BYTES + 2}\b", rf"\b{CHUNK_BYTES}\b")
def chunk_too_long(folder):
    """chunk file of two bytes too many"""
    replace_chunk(folder, lambda path: path.write_bytes(b"\0" * (CHUNK_BYTES + 2)))


@about_fc2(4, r"1\.0\.0")
def chunk_is_a_folder(folder):
    """folder in place of a chunk file"""
    replace_chunk(folder, lambda path: path.mkdir())


@about_fc2(4, r"1\.0\.0")
def chunk_is_a_fifo(folder):
    """FIFO in place of a chunk file: refused, not waited for"""
    replace_chunk(folder, os.mkfifo)


@about_fc2(4, r"1\.0\.0")
def chunk_is_a_symlink_loop(folder):
    """symbolic link to itself in place of a chunk file"""
    replace_chunk(folder, lambda path: path.symlink_to(path.name))


# ---------------------------------------------------------------- metadata.json, and which arrays there are

@broken(4, r"metadata\.json")
def metadata_missing(folder):
    """no metadata.json: the checkpoint was not finished"""
    (folder / "model_weights" / "metadata.json").unlink()


@broken(4, r"metadata\.json", r"JSON")
def metadata_not_json(folder):
    """metadata.json that is not JSON"""
    (folder / "model_weights" / "metadata.json").write_text("{")


def write_backend(folder, backend):
    (folder / "model_weights" / "metadata.json").write_text(
        json.dumps({"sharded_backend": backend, "sharded_backend_version": 1}))


@broken(5, r"banana")
def backend_unknown(folder):
    """`sharded_backend: banana`"""
    write_backend(folder, "banana")


@broken(4, r"torch_dist")
def backend_torch_dist_over_zarr_files(folder):
    """`sharded_backend: torch_dist` over zarr files"""
    write_backend(folder, "torch_dist")


@about_fc2(6, r"missing|not found|lacks")
def array_missing(folder):
    """folder of one array missing"""
    shutil.rmtree(array_folder(folder))


@broken(6, r"model\.decoder\.layers\.mlp\.extra\.weight", r"unexpected|not part|unknown")
def array_unexpected(folder):
    """array that no Llama has: not dropped silently"""
    extra = array_folder(folder, "model.decoder.layers.mlp.extra.weight")
    write_zarr(extra, "BF16", np.zeros((2, 16), np.uint16), (1, 16))


@broken(6, r"linear_fc1|linear_fc2", r"\b24\b", r"\b25\b")
def ffn_size_wrong(folder):
    """`ffn_hidden_size: 25` over 24 stored columns"""
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("ffn_hidden_size: 24", "ffn_hidden_size: 25"))


@broken(6, r"model\.decoder\.layers", r"\b2\b", r"\b3\b")
def layers_missing(folder):
    """`num_layers: 3` over two stored layers"""
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("num_layers: 2", "num_layers: 3"))


@broken(6, r"word_embeddings|output_layer", r"\b11\b", r"\b12\b", arguments=("--vocab_size=12",))
def vocabulary_larger_than_stored(folder):
    """`--vocab_size=12` over 11 stored rows"""
    assert folder.is_dir()


# ---------------------------------------------------------------- valid

@valid(GROUP, "nemo")
def written_by_this_suite(folder):
    """plain folder, as saved by one rank"""
    assert folder.is_dir()


@valid(GROUP, "nemo")
def dtype_v2_little_endian(folder):
    """dtype `<V2` for bfloat16"""
    edit_zarray(folder, dtype="<V2")


@valid(GROUP, "nemo")
def dtype_v2_no_endian(folder):
    """dtype `|V2` for bfloat16"""
    edit_zarray(folder, dtype="|V2")


@valid(GROUP, "nemo")
def chunks_of_two_ranks(folder):
    """chunk grid of tensor parallel size 2"""
    rechunk(folder, FC2, (1, 16, 12))
    rechunk(folder, QKV, (1, 16, 16))
    rechunk(folder, EMBEDDING, (6, 16))


@valid(GROUP, "nemo")
def chunks_that_do_not_divide(folder):
    """chunks that cut heads and layers unevenly, with padded edge chunks"""
    rechunk(folder, QKV, (2, 7, 5))
    rechunk(folder, FC2, (3, 5, 24))


@valid(GROUP, "nemo")
def separator_slash(folder):
    """`dimension_separator: /`"""
    rechunk(folder, FC2, (1, 16, 24), separator="/", dimension_separator="/")


@valid(GROUP, "nemo")
def fill_value_zero(folder):
    """`fill_value: 0.0`, all chunks present"""
    edit_zarray(folder, fill_value=0.0)


@valid(GROUP, "nemo")
def further_files(folder):
    """files and folders that are no arrays beside those that are"""
    (array_folder(folder) / "x.sync").write_bytes(b"")
    (folder / "model_weights" / "modelopt_state").mkdir()
    (folder / "model_weights" / "modelopt_state" / "note.txt").write_text("x")


@valid(GROUP, "nemo")
def optimizer_state(folder):
    """arrays of an optimizer"""
    write_zarr(array_folder(folder, "optimizer.state.exp_avg." + FC2), "F32", np.zeros((2, 16), np.uint32), (1, 16))


@valid(GROUP, "nemo")
def hostile_pickles(folder):
    """common.pt and extra state that would run a command if they were unpickled"""
    hostile = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R."
    tiny_model.write_torch_zip(folder / "model_weights" / "common.pt", hostile)
    for path in (folder / "model_weights").glob("*._extra_state/*.pt"):
        path.write_bytes(hostile)


@valid(GROUP, "nemo")
def prefix_absent(folder):
    """keys without `model.`"""
    for path in list((folder / "model_weights").glob("model.*")):
        path.rename(path.with_name(path.name.removeprefix("model.")))


@valid(GROUP, "nemo")
def vocabulary_padded(folder):
    """16 stored vocabulary rows for 11, the rest zeros"""
    named = tensors()
    rows = {name: Tensor("BF16", (16, 16), named[name].data + b"\0" * 5 * 16 * 2)
            for name in ("model.embed_tokens.weight", "lm_head.weight")}
    shutil.rmtree(folder)
    write_nemo(folder, named={**named, **rows})


@valid(GROUP, "nemo")
def embeddings_shared(folder):
    """`share_embeddings_and_output_weights: true`, no output layer"""
    settings = config(tie_word_embeddings=True)
    shutil.rmtree(folder)
    write_nemo(folder, settings)
    return settings, tensors(settings)
