"""Torch distributed checkpoints written from their description alone, so that a test can break each part of one.

.metadata is put together from opcodes (torch_file); every field of it lies in a Plan until it is written.
"""
import dataclasses
import io
import itertools
import json

import numpy as np

import tiny_model
import torch_file
from torch_file import dict_of, number, numbers, pickled, row_major, text

MODULE = "torch.distributed.checkpoint.metadata"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LIST_OF_NONE = pickled(b"](Ne")


def global_(module, name):
    return f"c{module}\n{name}\n".encode()


def built(module, name, fields):
    """An object whose state is a dict of opcodes."""
    return global_(module, name) + b")\x81" + dict_of(fields.items()) + b"b"


def size(extents):
    return global_("torch", "Size") + b"(" + numbers(extents) + b"tR"


@dataclasses.dataclass
class Item:
    """A chunk of a tensor, and where it lies."""

    at: tuple
    shape: tuple
    content: bytes
    file: str = "__0_0.distcp"
    offset: int = None  # behind those before it in its file
    length: int = None
    stored: bool = True
    more: dict = dataclasses.field(default_factory=dict)  # fields of _StorageInfo

    def chunk(self):
        return built(MODULE, "ChunkStorageMetadata", {"offsets": size(self.at), "sizes": size(self.shape)})


@dataclasses.dataclass
class Tensor:
    dtype: str  # of torch
    shape: tuple
    items: list
    chunks: bytes = None  # opcodes of the list, where not those of the items
    more: dict = dataclasses.field(default_factory=dict)

    def entry(self, module=MODULE):
        layout = global_("torch.serialization", "_get_layout") + b"(" + text("torch.strided") + b"tR"
        memory = global_(module, "_MEM_FORMAT_ENCODING") + b"(K\x00tR"
        state = b"(" + global_("torch", self.dtype) + layout + b"\x89" + memory + b"\x89t"
        properties = global_(module, "TensorProperties") + b")\x81" + state + b"b"
        chunks = b"](" + b"".join(item.chunk() for item in self.items) + b"e" if self.chunks is None else self.chunks
        fields = {"properties": properties, "size": size(self.shape), "chunks": chunks, **self.more}
        return built(MODULE, "TensorStorageMetadata", fields)


def item_bytes(pickle, storage):
    """The zip that torch.save makes of one tensor."""
    stream = io.BytesIO()
    torch_file.write_members(stream, {"data.pkl": pickle, "byteorder": b"little", "data/0": storage, "version": b"3\n"}, "archive")
    return stream.getvalue()


def item_of(dtype, values, shape=None, strides=None, offset=0, storage=None):
    """`values`: the bits of the elements; `storage`: another, larger one."""
    raw = np.ascontiguousarray(values).tobytes() if storage is None else storage
    of = torch_file.storage("0", len(raw) // torch_file.ITEM_SIZES[dtype], torch_file.STORAGES[dtype])
    shape = values.shape if shape is None else shape
    return item_bytes(pickled(torch_file.tensor(of, shape, row_major(shape) if strides is None else strides, offset)), raw)


@dataclasses.dataclass
class Plan:
    tensors: dict  # key -> Tensor
    objects: dict  # key -> content of its item
    more: dict = dataclasses.field(default_factory=dict)  # fields of Metadata

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        files, stored = {}, []

        def put(key, at, item):
            if not item.stored:
                return
            raw = files.setdefault(item.file, b"")
            offset = len(raw) if item.offset is None else item.offset
            files[item.file] = raw + item.content
            length = len(item.content) if item.length is None else item.length
            index = {"fqn": text(key), "index": b"N", **({} if at is None else {"offset": size(at)})}
            info = {"relative_path": text(item.file), "offset": number(offset), "length": number(length), **item.more}
            stored.append(built(MODULE, "MetadataIndex", index))
            stored.append(built("torch.distributed.checkpoint.filesystem", "_StorageInfo", info))

        for key, content in self.objects.items():
            put(key, None, Item((), (), content))
        for key, tensor in self.tensors.items():
            for item in tensor.items:
                put(key, item.at, item)
        entries = [(key, global_(MODULE, "BytesStorageMetadata") + b")\x81") for key in self.objects]
        entries += [(key, tensor.entry()) for key, tensor in self.tensors.items()]
        fields = {"state_dict_metadata": dict_of(entries), "planner_data": b"N", "storage_data": b"}(" + b"".join(stored) + b"u"}
        (folder / ".metadata").write_bytes(pickled(built(MODULE, "Metadata", {**fields, **self.more}), 4))
        for name, raw in files.items():
            path = folder / name
            if folder.resolve() in path.resolve().parents:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)


def tensor_of(dtype, values, chunks):
    """In chunks of this shape, the last ones clipped."""
    items = []
    for place in itertools.product(*(range(0, extent, chunk) for extent, chunk in zip(values.shape, chunks))):
        part = values[tuple(slice(i, i + chunk) for i, chunk in zip(place, chunks))]
        items.append(Item(place, part.shape, item_of(dtype, part)))
    return Tensor(DTYPES[dtype], values.shape, items)


def nemo_plan(settings=tiny_model.CONFIG, named=None):
    named = tiny_model.tensors(settings) if named is None else named
    arrays = tiny_model.nemo_arrays(settings, named)
    layers = settings["num_hidden_layers"]
    content = io.BytesIO()
    torch_file.write_members(content, {"data.pkl": LIST_OF_NONE, "version": b"3\n"}, "archive")
    objects = {f"model.decoder.layers.mlp.linear_fc1._extra_state/shard_{layer}_{layers}": content.getvalue() for layer in range(layers)}
    return Plan({key: tensor_of(*array) for key, array in arrays.items()}, objects)


def write_nemo(folder, settings=tiny_model.CONFIG, plan=None):
    weights = folder / "model_weights"
    (plan or nemo_plan(settings)).write(weights)
    tiny_model.write_torch_zip(weights / "common.pt", bytes.fromhex("80027d71002e"))
    (weights / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1,
                                                       "common_backend": "torch", "common_backend_version": 1}))
    text_ = tiny_model.MODEL_CONFIG_YAML.format(**settings, tied="false")
    (folder / "model_config.yaml").write_text(text_.replace("dist_ckpt_format: zarr", "dist_ckpt_format: torch_dist"))
    return folder


def hf_plan(named, prefix=""):
    plan = {prefix + name: tensor_of(t.dtype, tiny_model.array(t), t.shape) for name, t in named.items()}
    return Plan(plan, {})
