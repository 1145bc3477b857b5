"""scripts/smollm2.py against the gguf package (files and block formats) and torch (rounding)."""

import pathlib
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import smollm2  # noqa: E402


def random_values(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def gguf_file(path, tensors, **keys):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in keys.items():
        writer.add_uint32(name.replace("__", "."), value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return smollm2.Gguf(path.read_bytes())


@pytest.mark.parametrize("kind", [Type.F32, Type.Q4_1, Type.Q8_0])
def test_dequantises_as_the_gguf_package(tmp_path, kind):
    values = random_values(6, 96)
    ours = gguf_file(tmp_path / "x.gguf", {"x": (values, kind)}).tensor("x")
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    assert ours.shape == values.shape and ours.tobytes() == theirs.tobytes()


def test_refuses_a_type_that_it_does_not_know(tmp_path):
    file = gguf_file(tmp_path / "x.gguf", {"x": (random_values(2, 32), Type.Q5_0)})
    with pytest.raises(SystemExit, match="'x' has ggml type 6"):
        file.tensor("x")


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_undoes_the_row_permutation(heads):
    head_size, columns = 8, 5
    half = head_size // 2
    hf = random_values(heads * head_size, columns)
    permuted = np.empty_like(hf)
    for h in range(heads):
        for j in range(2):
            for i in range(half):
                permuted[h * head_size + 2 * i + j] = hf[h * head_size + j * half + i]
    assert (smollm2.unpermute(permuted, heads) == hf).all()


def test_rounds_to_bf16_as_torch():
    values = np.concatenate([random_values(1000), np.float32([0, -0.0, 1.00390625, 1.01171875, 1e-40, 3.4028235e38])])
    theirs = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    assert (smollm2.to_bf16(values).view(np.int16) == theirs).all()


def test_writes_what_safetensors_reads(tmp_path):
    q, k, norm = random_values(16, 8), random_values(8, 8), random_values(8)
    file = gguf_file(
        tmp_path / "x.gguf",
        {"blk.1.attn_q.weight": (q, Type.F32), "blk.1.attn_k.weight": (k, Type.F32), "output_norm.weight": (norm, Type.F32)},
        llama__attention__head_count=2,
        llama__attention__head_count_kv=1,
    )
    smollm2.write_safetensors(file, tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    expected = {
        "model.layers.1.self_attn.q_proj.weight": smollm2.unpermute(q, 2),
        "model.layers.1.self_attn.k_proj.weight": smollm2.unpermute(k, 1),
        "model.norm.weight": norm,
    }
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(tensors[name], torch.from_numpy(values).bfloat16()), name
