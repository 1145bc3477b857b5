"""Writes the golden files of this folder. Needs torch 2.13; the tests do not."""

import argparse
import io
import os
import pathlib
from collections import OrderedDict, defaultdict

import torch

os.chdir(os.path.dirname(os.path.abspath(__file__)))


def count(*shape, dtype=torch.float32):
    """0, 1, 2, ... in row-major order."""
    size = torch.Size(shape).numel()
    return torch.arange(size, dtype=torch.float32).to(dtype).reshape(shape)


# What the writer lays out: every kind of storage, none and many axes, no elements.
torch.save(
    {
        "model.embed.weight": count(5, 3, dtype=torch.bfloat16),
        "scalar": count().reshape(()),
        "empty": torch.zeros(0, 3),
        "four": count(2, 1, 3, 2, dtype=torch.float16),
        "float8": count(300, dtype=torch.float8_e4m3fn),
        "unsigned": count(7, dtype=torch.uint16),
        "flag": count(2, dtype=torch.bool),
        "long": count(4, 4, dtype=torch.int64),
        "again": count(2, 2, dtype=torch.bfloat16),
    },
    "plain.pt",
)
torch.save({"one": count(3)}, "single.pt")
with open("tensor.pt", "wb") as file:  # to a stream, whose name torch does not know
    torch.save(count(1, 2, 3), file)


def odd():
    """Views and wrappers of every kind, and objects beside them."""
    base = count(6, 4)
    state = OrderedDict()
    state["whole"] = base
    state["rows"] = base[2:4]
    state["columns"] = base[:, 1:3]
    state["transposed"] = base.t()
    state["expanded"] = count(3).expand(2, 3)
    state["parameter"] = torch.nn.Parameter(count(2, 2))
    state["float8"] = count(4, dtype=torch.float8_e5m2)[1:3]
    state["layer._extra_state"] = io.BytesIO(b"state")
    state["step"] = 7
    state["nothing"] = None
    state._metadata = OrderedDict(version=2)
    hyper = argparse.Namespace(path=pathlib.PurePosixPath("x"), table=defaultdict(list, {"a": [1, 2**70, 0.5, {1, 2}]}))
    return {"epoch": 3, "hyper_parameters": hyper, "state_dict": state}


torch.save(odd(), "odd.ckpt")
torch.save(odd(), "odd-legacy.ckpt", _use_new_zipfile_serialization=False)
# Twelve storages, whose keys a stream sorts otherwise than they came.
torch.save({f"t{i}": count(i + 1) + i for i in range(12)}, "legacy.bin", _use_new_zipfile_serialization=False)
