"""Our NeMo arrays through the zarr and tensorstore libraries."""

import models
import nemo_reference
import pytest
import tensorstore  # before zarr opens anything: registers numpy's bfloat16
import torch
import zarr
from program import convert


@pytest.fixture(scope="module", params=models.DTYPES)
def converted(request, tmp_path_factory):
    top = tmp_path_factory.mktemp(request.param)
    c = models.config("qwen2", **models.SHAPES["6x3"])
    source = models.write(top / "in", c, models.DTYPES[request.param], seed="zarr")
    convert(source.path, top / "out", "--hf_model_name=example/model", to="nemo")
    return top / "out" / "model_weights", nemo_reference.nemo_arrays(c, source.tensors)


def with_zarr(folder):
    return zarr.open(str(folder), "r")[:]


def with_tensorstore(folder):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder)}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


@pytest.mark.parametrize("library", [with_zarr, with_tensorstore])
def test_libraries_read_our_arrays(converted, library):
    weights, arrays = converted
    for key, array in arrays.items():
        got = library(weights / key)
        assert got.shape == tuple(array.value.shape)
        assert str(got.dtype) == str(array.value.dtype).removeprefix("torch."), key
        assert got.tobytes() == nemo_reference.raw(array.value), key


def test_zarr_sees_a_plain_array(converted):
    weights, arrays = converted
    for key, array in arrays.items():
        z = zarr.open(str(weights / key), "r")
        assert (z.chunks, z.compressor, z.filters, z.order, z.fill_value) == (array.chunk, None, None, "C", None)
        assert z.nchunks_initialized == z.nchunks


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_we_read_arrays_that_zarr_writes(stored, tmp_path):
    c = models.config("llama", **models.SHAPES["head_dim"])
    source = models.write(tmp_path / "in", c, stored, seed="library")
    nemo_reference.write_nemo(tmp_path / "nemo", c, source.tensors, stored)
    for key, array in nemo_reference.nemo_arrays(c, source.tensors).items():
        chunks = tuple(max(1, n // 3) for n in array.value.shape)  # edges of odd sizes
        path = str(tmp_path / "nemo" / "model_weights" / key)
        z = zarr.open(path, "w", shape=array.value.shape, chunks=chunks, dtype=array.value.numpy().dtype, compressor=None)
        z[:] = array.value.numpy()
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
