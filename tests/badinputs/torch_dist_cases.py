"""Bad and odd torch distributed checkpoints: NeMo folders with torch_dist weights, HuggingFace folders with DCP weights."""
import dataclasses
import os

import numpy as np

import tiny_model
import torch_dist_file
from cases import BASES, bad, valid
from torch_dist_file import Item, built, hf_plan, item_bytes, item_of, nemo_plan
from torch_file import call, dict_of, number, pickled, storage, tensor, text

GROUP = "torch distributed checkpoint"
FC2 = "model.decoder.layers.mlp.linear_fc2.weight"
FC2_SAID = r"tensor 'model\.decoder\.layers\.mlp\.linear_fc2\.weight'"
FC1 = "model.decoder.layers.mlp.linear_fc1.weight"
METADATA = r"\.metadata"
FILE = r"__0_0\.distcp"


def write_hf_dcp(folder):
    folder.mkdir(parents=True)
    tiny_model.write_config(folder, tiny_model.config())
    hf_plan(tiny_model.tensors()).write(folder)


BASES["nemo torch_dist"] = (torch_dist_file.write_nemo, ("--to=hf",))
BASES["hf dcp"] = (write_hf_dcp, ("--to=hf",))


def broken(code, *says):
    return bad(GROUP, "nemo torch_dist", code, *says)


def odd():
    return valid(GROUP, "nemo torch_dist")


def rewrite(folder, change):
    """The weights anew; `change` takes their Plan and may return opcodes of the whole .metadata."""
    weights = folder / "model_weights"
    plan = nemo_plan()
    raw = change(plan)
    for path in weights.glob("*.distcp"):
        path.unlink()
    plan.write(weights)
    if isinstance(raw, bytes):
        (weights / ".metadata").write_bytes(raw)


def with_fc2(change):
    """A generator that changes the first of the two chunks [1, 16, 24] of fc2."""
    def make(folder):
        rewrite(folder, lambda plan: change(plan.tensors[FC2].items[0]))
    return make


def set_item(**fields):
    return with_fc2(lambda item: [setattr(item, name, value) for name, value in fields.items()])


def metadata_file(folder):
    return folder / "model_weights" / ".metadata"


# ---------------------------------------------------------------- .metadata

@broken(4, r"metadata\.json", r"lacks", r"\.metadata")
def metadata_missing(folder):
    """no `.metadata`, though metadata.json says torch_dist"""
    metadata_file(folder).unlink()


@broken(4, r"metadata\.json", r"zarr", r"\.metadata")
def backend_zarr_over_torch_dist_files(folder):
    """`sharded_backend: zarr` over torch_dist files"""
    path = folder / "model_weights" / "metadata.json"
    path.write_text(path.read_text().replace("torch_dist", "zarr"))


@broken(4, METADATA)
def metadata_empty(folder):
    """`.metadata` of 0 bytes"""
    metadata_file(folder).write_bytes(b"")


@broken(4, METADATA, r"cut off")
def metadata_cut_off(folder):
    """first half of `.metadata`"""
    raw = metadata_file(folder).read_bytes()
    metadata_file(folder).write_bytes(raw[: len(raw) // 2])


@broken(4, METADATA)
def metadata_is_a_fifo(folder):
    """FIFO in place of `.metadata`: refused, not waited for"""
    metadata_file(folder).unlink()
    os.mkfifo(metadata_file(folder))


@broken(4, METADATA, r"class Metadata")
def metadata_is_a_dict(folder):
    """`.metadata` that holds a plain dict"""
    metadata_file(folder).write_bytes(pickled(b"}", 4))


@broken(4, METADATA, r"class Metadata")
def metadata_calls_a_command(folder):
    """`.metadata` that is a call of `os.system`: not called"""
    metadata_file(folder).write_bytes(pickled(call("os", "system", text("touch hacked")), 4))


@broken(4, METADATA, r"state_dict_metadata")
def keys_are_a_call(folder):
    """call of `builtins.eval` in place of the dict of tensors: not called"""
    rewrite(folder, lambda plan: plan.more.update(state_dict_metadata=call("builtins", "eval", text("{}"))))


@broken(4, METADATA, r"storage_data")
def storage_missing(folder):
    """no `storage_data`"""
    rewrite(folder, lambda plan: plan.more.update(storage_data=b"N"))


@broken(4, METADATA, r"MetadataIndex")
def storage_key_is_a_text(folder):
    """text as a key of `storage_data`"""
    rewrite(folder, lambda plan: plan.more.update(storage_data=dict_of([("x", b"N")])))


@broken(5, METADATA, r"EXT1")
def metadata_with_an_extension_code(folder):
    """`.metadata` with the opcode EXT1"""
    metadata_file(folder).write_bytes(pickled(b"\x82\x01", 4))


@broken(5, METADATA, r"objects")
def metadata_nested_deeply(folder):
    """`.metadata` of 1,000,000 tuples in one another"""
    metadata_file(folder).write_bytes(pickled(b")" + b"\x85" * 1000000, 4))


@broken(4, METADATA, r"chunks")
def one_list_of_chunks_for_many_tensors(folder):
    """10,000 tensors that share one list of 10,000 chunks"""
    def change(plan):
        items = [Item((i,), (1,), b"") for i in range(10000)]
        shared = b"](" + b"".join(item.chunk() for item in items) + b"eq\xff"
        first = torch_dist_file.Tensor("bfloat16", (10000,), [], shared)
        other = torch_dist_file.Tensor("bfloat16", (10000,), [], b"h\xff")
        entries = [(f"x.{i}", first.entry() if i == 0 else other.entry()) for i in range(10000)]
        plan.more["state_dict_metadata"] = dict_of(entries)
    rewrite(folder, change)


@broken(4, METADATA, FC2_SAID, r"twice")
def tensor_twice(folder):
    """one key twice in the dict of tensors"""
    def change(plan):
        entries = [(key, entry.entry()) for key, entry in plan.tensors.items()]
        plan.more["state_dict_metadata"] = dict_of(entries + [(FC2, plan.tensors[FC2].entry())])
    rewrite(folder, change)


@broken(4, r"model_weights", r"linear_fc2\.weight", r"two prefixes")
def tensor_under_two_prefixes(folder):
    """one tensor under `model.` and under `module.`"""
    def change(plan):
        plan.tensors["module." + FC2.removeprefix("model.")] = plan.tensors[FC2]
    rewrite(folder, change)


@broken(4, METADATA, r"key")
def key_with_an_escape(folder):
    """terminal escape in a key"""
    rewrite(folder, lambda plan: plan.tensors.update({"\x1b[31mred.weight": plan.tensors[FC2]}))


@broken(5, METADATA, FC2_SAID, r"qint8")
def dtype_quantised(folder):
    """dtype `torch.qint8`"""
    rewrite(folder, lambda plan: setattr(plan.tensors[FC2], "dtype", "qint8"))


@broken(4, METADATA, FC2_SAID, r"2\^62")
def shape_huge(folder):
    """shape [2^40, 2^40, 24]"""
    rewrite(folder, lambda plan: setattr(plan.tensors[FC2], "shape", (2**40, 2**40, 24)))


@broken(5, METADATA, FC2_SAID, r"\b17 axes")
def seventeen_axes(folder):
    """shape of 17 axes"""
    rewrite(folder, lambda plan: setattr(plan.tensors[FC2], "shape", (1,) * 17))


@broken(4, METADATA, FC2_SAID, r"size")
def extent_negative(folder):
    """extent -2"""
    rewrite(folder, lambda plan: setattr(plan.tensors[FC2], "shape", (-2, 16, 24)))


# ---------------------------------------------------------------- chunks

@broken(4, METADATA, FC2_SAID, r"overlap", r"\[0, 0, 0\]", r"\[1, 16, 24\]")
def chunks_overlap(folder):
    """two chunks that share half their elements"""
    def change(plan):
        plan.tensors[FC2].items[1].at = (0, 8, 0)
        plan.tensors[FC2].items[1].shape = (1, 8, 24)
    rewrite(folder, change)


@broken(4, METADATA, FC2_SAID, r"gap", r"\b384\b", r"\b768\b")
def chunks_leave_a_gap(folder):
    """one of two chunks missing"""
    rewrite(folder, lambda plan: plan.tensors[FC2].items.pop())


@broken(4, METADATA, FC2_SAID, r"\[0, 0, 0\]", r"not stored")
def chunk_not_stored(folder):
    """chunk that `storage_data` does not have"""
    set_item(stored=False)(folder)


@broken(4, METADATA, FC2_SAID, r"within \[2, 16, 24\]")
def chunk_outside_its_tensor(folder):
    """chunk beyond the tensor's rows"""
    set_item(shape=(1, 17, 24))(folder)


@broken(4, METADATA, FC2_SAID, r"axes")
def chunk_of_other_ndim(folder):
    """chunk with fewer axes than its tensor"""
    set_item(at=(0, 0), shape=(16, 24))(folder)


@broken(4, METADATA, FC2_SAID, r"stored twice")
def chunk_stored_twice(folder):
    """two entries of `storage_data` for one chunk"""
    rewrite(folder, lambda plan: plan.tensors[FC2].items.append(dataclasses.replace(plan.tensors[FC2].items[0])))


@broken(4, METADATA, FC2_SAID, r"\.\./__0_0\.distcp", r"below the folder")
def file_outside_the_folder(folder):
    """`../` in the path of a file"""
    set_item(file="../__0_0.distcp")(folder)


@broken(4, METADATA, FC2_SAID, r"/dev/zero", r"below the folder")
def file_absolute(folder):
    """absolute path of a file"""
    set_item(file="/dev/zero")(folder)


@broken(5, METADATA, FC2_SAID, r"transform")
def item_transformed(folder):
    """item that went through an extension (compression)"""
    set_item(more={"transform_descriptors": b"](" + text("zstd") + b"e"})(folder)


# ---------------------------------------------------------------- items

@broken(4, FILE, r"missing")
def file_missing(folder):
    """no `.distcp` file"""
    (folder / "model_weights" / "__0_0.distcp").unlink()


@broken(4, FILE, r"cut off")
def file_cut_off(folder):
    """last 200 bytes of the `.distcp` file missing"""
    path = folder / "model_weights" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-200])


@broken(4, FILE, FC2_SAID, r"cut off|within")
def item_behind_the_file(folder):
    """item that begins behind the end of its file"""
    set_item(offset=10**9)(folder)


@broken(4, METADATA, FC2_SAID, r"2\^62")
def item_of_2_63_bytes(folder):
    """item of 2^63 - 1 bytes"""
    set_item(length=2**63 - 1)(folder)


@broken(4, METADATA, FC2_SAID, r"below zero")
def item_offset_negative(folder):
    """item at byte -1"""
    set_item(offset=-1)(folder)


@broken(4, FILE, FC2_SAID)
def item_shorter_than_its_zip(folder):
    """item of 100 bytes less than its zip has"""
    with_fc2(lambda item: setattr(item, "length", len(item.content) - 100))(folder)


@broken(4, FILE, FC2_SAID)
def item_is_zeros(folder):
    """zeros in place of an item"""
    with_fc2(lambda item: setattr(item, "content", bytes(len(item.content))))(folder)


@broken(4, FILE, FC2_SAID, r"no tensor")
def item_is_a_list(folder):
    """item that holds a list"""
    set_item(content=item_bytes(pickled(b"](Ne"), b"\0" * 768))(folder)


@broken(4, FILE, FC2_SAID, r"no tensor")
def item_calls_a_command(folder):
    """item that is a call of `os.system`: not called"""
    set_item(content=item_bytes(pickled(call("os", "system", text("touch hacked"))), b"\0" * 768))(folder)


@broken(4, FILE, FC2_SAID, r"\[1, 24, 16\]", r"\[1, 16, 24\]")
def item_of_another_shape(folder):
    """item of shape [1, 24, 16] for a chunk of [1, 16, 24]"""
    set_item(content=item_of("BF16", np.zeros((1, 24, 16), np.uint16)))(folder)


@broken(4, FILE, FC2_SAID, r"\bF16\b", r"\bBF16\b")
def item_of_another_dtype(folder):
    """item in F16 of a tensor in BF16"""
    set_item(content=item_of("F16", np.zeros((1, 16, 24), np.uint16)))(folder)


@broken(4, FILE, FC2_SAID)
def item_beyond_its_storage(folder):
    """item that begins one element too late in its storage"""
    set_item(content=item_of("BF16", np.zeros((1, 16, 24), np.uint16), offset=1))(folder)


@broken(4, FILE, FC2_SAID)
def item_storage_too_short(folder):
    """storage with fewer bytes than the pickle says"""
    pickle = pickled(tensor(storage("0", 384), (1, 16, 24)))
    set_item(content=item_bytes(pickle, b"\0" * 766))(folder)


@broken(6, r"linear_fc2\.weight", r"missing")
def tensor_missing(folder):
    """one tensor missing"""
    rewrite(folder, lambda plan: plan.tensors.pop(FC2) and None)


@broken(6, r"mlp\.extra\.weight", r"unexpected")
def tensor_unexpected(folder):
    """tensor that no Llama has: not dropped silently"""
    rewrite(folder, lambda plan: plan.tensors.update({"model.decoder.layers.mlp.extra.weight": plan.tensors[FC2]}))


@bad(GROUP, "hf dcp", 6, r"model\.embed_tokens\.weight", r"'', 'ema\.'")
def two_models(folder):
    """HuggingFace folder with two models behind two prefixes"""
    plan = hf_plan(tiny_model.tensors())
    plan.tensors.update(hf_plan(tiny_model.tensors(), "ema.").tensors)
    plan.write(folder)


@bad(GROUP, "hf dcp", 6, METADATA, r"model\.embed_tokens\.weight")
def no_model(folder):
    """HuggingFace folder with an optimizer alone"""
    hf_plan(tiny_model.tensors(), "optimizer.state.").write(folder)


@bad(GROUP, "hf dcp", 4, FILE, r"missing")
def hf_file_missing(folder):
    """HuggingFace folder with `.metadata` and no `.distcp` file"""
    (folder / "__0_0.distcp").unlink()


# ---------------------------------------------------------------- valid

@odd()
def written_by_this_suite(folder):
    """plain folder, as saved by one rank"""
    assert folder.is_dir()


@odd()
def views_of_larger_storages(folder):
    """chunks of fc1 that are views of one storage, which each item has whole (megatron-core 0.8)"""
    def change(plan):
        entry = plan.tensors[FC1]
        values = tiny_model.nemo_arrays(tiny_model.CONFIG, tiny_model.tensors())[FC1][1]
        for item in entry.items:
            layer, row, _ = item.at
            start = row * values.shape[2]
            item.content = item_of("BF16", None, item.shape, offset=start, storage=values[layer].tobytes())
    rewrite(folder, change)


@odd()
def transposed_item(folder):
    """item that is stored transposed"""
    def change(plan):
        values = tiny_model.nemo_arrays(tiny_model.CONFIG, tiny_model.tensors())[FC2][1]
        item = plan.tensors[FC2].items[0]
        raw = np.ascontiguousarray(values[0].T).tobytes()
        item.content = item_of("BF16", None, item.shape, (384, 1, 16), storage=raw)
    rewrite(folder, change)


@odd()
def several_files_in_folders(folder):
    """chunks in several files, one of them in a folder"""
    def change(plan):
        for number_, item in enumerate(item for entry in plan.tensors.values() for item in entry.items):
            item.file = ("__0_0.distcp", "__1_0.distcp", "ranks/__2_0.distcp")[number_ % 3]
    rewrite(folder, change)


@odd()
def uneven_chunks(folder):
    """chunks that are no grid"""
    def change(plan):
        values = tiny_model.nemo_arrays(tiny_model.CONFIG, tiny_model.tensors())[FC2][1]
        boxes = [((0, 0, 0), (2, 5, 7)), ((0, 5, 0), (2, 11, 7)), ((0, 0, 7), (1, 16, 17)), ((1, 0, 7), (1, 16, 17))]
        parts = [(at, shape, values[tuple(slice(a, a + n) for a, n in zip(at, shape))]) for at, shape in boxes]
        plan.tensors[FC2].items = [Item(at, shape, item_of("BF16", part)) for at, shape, part in parts]
    rewrite(folder, change)


@odd()
def empty_chunk(folder):
    """chunk without elements, of a rank that has no share"""
    def change(plan):
        nothing = np.zeros((0, 16, 24), np.uint16)
        plan.tensors[FC2].items.append(Item((2, 0, 0), nothing.shape, item_of("BF16", nothing)))
    rewrite(folder, change)


@odd()
def plans_and_other_attributes(folder):
    """attributes of .metadata that call what they like: they lead to no tensor, and nothing is called"""
    def change(plan):
        plan.more["all_local_plans"] = call("os", "system", text("touch hacked"))
        plan.more["storage_meta"] = built("torch.distributed.checkpoint.metadata", "StorageMeta", {"checkpoint_id": text("/x")})
    rewrite(folder, change)


@odd()
def numbers_as_plain_tuples(folder):
    """sizes that are tuples, not torch.Size"""
    def change(plan):
        plan.tensors[FC2].more["size"] = b"(" + b"".join(map(number, plan.tensors[FC2].shape)) + b"t"
    rewrite(folder, change)


@odd()
def optimizer_state(folder):
    """tensors of an optimizer, flattened and of any dtype, and objects"""
    def change(plan):
        flat = torch_dist_file.Tensor("qint8", (7,), [])
        plan.tensors["optimizer.state.exp_avg." + FC2] = flat
        plan.tensors["chained_0.optimizer.state.exp_avg"] = flat
        plan.objects["rng_state/shard_0.0_1.1"] = b"no zip"
    rewrite(folder, change)


@odd()
def common_hostile(folder):
    """common.pt that is a call of `os.system`: it is not read"""
    tiny_model.write_torch_zip(folder / "model_weights" / "common.pt", pickled(call("os", "system", text("touch hacked"))))


@odd()
def no_metadata_json(folder):
    """no metadata.json, as torch itself leaves a checkpoint"""
    (folder / "model_weights" / "metadata.json").unlink()


@odd()
def config_says_zarr(folder):
    """`dist_ckpt_format: zarr` in model_config.yaml over torch_dist weights"""
    path = folder / "model_config.yaml"
    path.write_text(path.read_text().replace("dist_ckpt_format: torch_dist", "dist_ckpt_format: zarr"))


@valid(GROUP, "hf dcp")
def hf_behind_a_prefix(folder):
    """HuggingFace folder whose keys begin with `app.model.`, beside those of an optimizer"""
    plan = hf_plan(tiny_model.tensors(), "app.model.")
    plan.tensors.update(hf_plan(tiny_model.tensors(), "app.optim.state.").tensors)
    plan.objects["app.lr_scheduler"] = b"no zip"
    plan.write(folder)
