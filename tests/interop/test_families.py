"""Every model family in every kind: tiny models of the real transformers classes (families.py) there and back, the arrays of
Megatron by an independent mapping (family_reference.py), all forms of experts, and what is refused by name."""

import json
import re
import shutil

import families
import family_reference
import models
import nemo_reference
import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
import trtllm_reference
from families import CASES, SPARSE, Case
from models import heads
from program import assert_nothing_published, convert, files, reshard
from safetensors.torch import load_file, save_file
from trtllm_models import assert_trtllm_files, hf_settings, rank_files, to_trtllm
from trtllm_reference import Layout

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

cases = pytest.mark.parametrize("name", CASES)
NEEDS = {"nemo": ["--hf_model_name=example/model"], "megatron": ["--hf_model_name=example/model"], "trtllm": ["--checkpoint_only"], "hf": []}


def that_go_to(kind, among=CASES):
    return pytest.mark.parametrize("name", [name for name in among if kind not in CASES[name].refused])


def pairs(refused):
    found = [(name, kind) for name in CASES for kind in families.KINDS if (kind in CASES[name].refused) == refused]
    return pytest.mark.parametrize("name, kind", found)


class Made:
    """The models and what they were converted to, each once."""

    def __init__(self, factory):
        self.factory, self.known = factory, {}

    def get(self, key, make):
        if key not in self.known:
            self.known[key] = make(self.factory.mktemp("made") / "it")
        return self.known[key]

    def source(self, name):
        packed = name.endswith("in_memory")
        return self.get(("hf", name), lambda path: families.write(path, CASES[name], name, packed=packed))

    def to(self, kind, name, *options):
        def make(path):
            convert(self.source(name).path, path, *NEEDS[kind], *options, to=kind)
            return path

        return self.get((kind, name, options), make)

    def logits(self, name):
        return self.get(("logits", name), lambda path: models.logits(self.source(name).path))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory)


def text_config(source):
    return source.config.get_text_config()


def assert_refused(source, target, kind, word, *options, codes=(5,)):
    """By one line that says the word, which is not just in the path, and nothing published."""
    result = convert(source, target, *NEEDS[kind], *options, to=kind, code=codes)
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("reshard: error: "), result
    assert re.search(word, lines[0].replace(str(source), "").replace(str(target), "")), f"no '{word}' in\n{result}"
    assert_nothing_published(target)


def assert_is(source, folder):
    models.assert_equal(families.text(models.read(folder)), families.text(source.tensors))


def assert_computes(made, name, folder):
    """transformers loads all of it, and computes what it does with the model. Which tokens are special is the tokenizer's affair."""
    ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    families.change_config(folder, lambda settings: settings if "text_config" in settings else {**ids, **settings})
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    assert torch.equal(models.logits(folder), made.logits(name))


def assert_is_without_a_template(made, name, folder):
    """The model again, of its own class, though another may compute the same."""
    assert_is(made.source(name), folder)
    assert_computes(made, name, folder)


# -- the tables ---------------------------------------------------------------------------------------------------------


@cases
def test_inspect_lists_the_tensors_that_the_real_class_stores(name, made):
    source = made.source(name)
    report = reshard("inspect", source.path, "--json").json()
    got = {t["name"]: (t["dtype"], tuple(t["shape"])) for t in report["tensors"]}
    kind = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
    stored = {n: t for n, t in source.tensors.items() if CASES[name].family != "gemma3" or "language_model" in n}
    assert got == {n: (kind[t.dtype], tuple(t.shape)) for n, t in stored.items()}
    assert report["parameters"] == sum(t.numel() for t in stored.values())


@pytest.fixture(scope="module")
def tables():
    return reshard("families", "--json").json()


def sizes(c):
    """What the letters of a table's shapes stand for."""
    moe = getattr(c, "moe_intermediate_size", c.intermediate_size)
    known = dict(V=c.vocab_size, H=c.hidden_size, L=c.num_hidden_layers, A=c.num_attention_heads, G=c.num_key_value_heads)
    known.update(D=nemo_reference.head_dim(c), F=c.intermediate_size, M=moe, S=getattr(c, "shared_expert_intermediate_size", None))
    known["E"] = getattr(c, family_reference.experts_of(c)) if family_reference.experts_of(c) else None
    return known


def extent(formula, known):
    product = 1
    for factor in formula.split("*"):
        product *= int(factor) if factor.isdigit() else known[factor]
    return product


def shape_of(tree, rows, known):
    """The shape of a stored tensor: parts are joined along an axis, or stacked."""
    if isinstance(tree, str):
        return [extent(x, known) for x in rows[tree]["shape"].split()]
    if "stack" in tree:
        return [known[tree["stack"]], *shape_of(tree["of"], rows, known)]
    shapes = [shape_of(member, rows, known) for member in tree["of"]]
    axis = tree["axis"]
    return [sum(s[i] for s in shapes) if i == axis else n for i, n in enumerate(shapes[0])]


def roles_of(tree):
    if isinstance(tree, str):
        return [tree]
    members = [tree["of"]] if "stack" in tree else tree["of"]
    return [role for member in members for role in roles_of(member)]


def table_of(tables, family):
    """Of gemma3 that of its text tower."""

    def names(row):
        return {row["name"], *row.get("model_types", []), *row.get("aliases", [])}

    found = [row for row in tables if names(row) & {family, family + "_text"}]
    assert len(found) == 1, (family, [row["name"] for row in tables])
    return found[0]


@cases
def test_the_table_has_the_names_and_shapes_of_the_real_class(name, made, tables):
    """Each stored tensor is one layout of one block of its layer's kind; each layout without a condition is stored in every
    layer, and of every expert, that its block is for."""
    source = made.source(name)
    c = text_config(source)
    stored = families.text(source.tensors) if CASES[name].family == "gemma3" else source.tensors
    known, kinds = sizes(c), ["moe" if has else "dense" for has in family_reference.plan(c)]
    left, missing = dict(stored), set()
    for block in table_of(tables, CASES[name].family)["blocks"]:
        rows = {row["role"]: row for row in block["rows"]}
        layers = [n for n, kind in enumerate(kinds) if block.get("layers", kind) == kind]
        for layout in block["hf"][0]:
            experts = range(known["E"]) if "{E}" in layout["name"] else [0]
            of_layers = layers if "{L}" in layout["name"] else [0]
            names = {layout["name"].replace("{L}", str(n)).replace("{E}", str(e)) for n in of_layers for e in experts}
            found = names & set(left)
            for n in found:
                assert tuple(left.pop(n).shape) == tuple(shape_of(layout["holds"], rows, known)), n
            conditions = [role for role in roles_of(layout["holds"]) if rows.get(role, {}).get("when")]
            if conditions:
                assert found in (set(), names), layout["name"]
            else:
                missing |= names - found
    assert not left, sorted(left)
    assert missing <= ({"lm_head.weight"} if c.tie_word_embeddings else set()), sorted(missing)


# -- there and back -----------------------------------------------------------------------------------------------------


@cases
def test_hf_to_hf(name, made):
    out = made.to("hf", name)
    assert_is(made.source(name), out)
    assert_computes(made, name, out)


@pairs(refused=True)
def test_what_a_kind_has_no_place_for_is_refused_by_name(name, kind, made, tmp_path):
    assert_refused(made.source(name).path, tmp_path / "out", kind, CASES[name].refused[kind])


@pytest.mark.parametrize("weights", ["zarr", "torch_dist"])
@that_go_to("nemo")
def test_through_nemo_with_a_template(name, weights, made, tmp_path):
    source = made.source(name)
    convert(made.to("nemo", name, f"--nemo_weights={weights}"), tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    assert_is(source, tmp_path / "out")


@that_go_to("nemo")
def test_a_nemo_model_config_alone_says_what_the_model_is(name, made, tmp_path):
    source = made.source(name)
    rows = text_config(source).vocab_size
    convert(made.to("nemo", name, "--nemo_weights=zarr"), tmp_path / "out", f"--vocab_size={rows}", to="hf")
    assert_is_without_a_template(made, name, tmp_path / "out")


@that_go_to("megatron")
def test_through_megatron(name, made, tmp_path):
    convert(made.to("megatron", name), tmp_path / "out", to="hf")
    assert_is_without_a_template(made, name, tmp_path / "out")


@that_go_to("megatron")
def test_through_megatron_with_a_template(name, made, tmp_path):
    source = made.source(name)
    convert(made.to("megatron", name), tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    assert_is(source, tmp_path / "out")


@that_go_to("megatron")
def test_the_arguments_of_megatron_lm_alone_are_enough_or_say_what_they_lack(name, made, tmp_path):
    """Where the arguments have no place for what run_config.yaml says, nothing may be guessed."""
    shutil.copytree(made.to("megatron", name), tmp_path / "in")
    (tmp_path / "in" / "iter_0000001" / "run_config.yaml").unlink()
    if convert(tmp_path / "in", tmp_path / "out", to="hf", code=(0, 4, 5, 6)).code == 0:
        assert_is_without_a_template(made, name, tmp_path / "out")


@pytest.mark.parametrize("template", [True, False], ids=["template", "derived"])
@that_go_to("trtllm")
def test_through_trtllm(name, template, made, tmp_path):
    source = made.source(name)
    options = [f"--hf_model_name={source.path}"] if template else []
    convert(made.to("trtllm", name), tmp_path / "out", *options, to="hf")
    got = families.text(models.read(tmp_path / "out"))
    if not template and source.config.tie_word_embeddings:  # the format does not say it
        models.assert_equal({"lm_head.weight": got.pop("lm_head.weight")}, {"lm_head.weight": got["model.embed_tokens.weight"]})
    models.assert_equal(got, source.tensors)
    if getattr(source.config, "sliding_window", None) is None or template:  # nor a window
        assert torch.equal(models.logits(tmp_path / "out"), made.logits(name))


@pairs(refused=False)
def test_verify_finds_the_kinds_equal(name, kind, made):
    options = ["--nemo_weights=zarr"] if kind == "nemo" else []
    report = reshard("verify", made.source(name).path, made.to(kind, name, *options), "--json").json()
    assert report["equal"]


# -- Megatron's arrays --------------------------------------------------------------------------------------------------


@that_go_to("nemo")
def test_zarr_holds_the_arrays_and_chunks_of_the_reference(name, made):
    source = made.source(name)
    got = files(made.to("nemo", name, "--nemo_weights=zarr") / "model_weights")
    got = {path: p for path, p in got.items() if "/" in path and "_extra_state/" not in path}
    wanted = {}
    for key, array in family_reference.nemo_arrays(text_config(source), families.text(source.tensors)).items():
        wanted[f"{key}/.zarray"] = array.zarray().encode()
        wanted.update({f"{key}/{chunk}": content for chunk, content in array.chunks()})
    assert set(got) == set(wanted), sorted(set(got) ^ set(wanted))
    for path, content in wanted.items():
        assert got[path].read_bytes() == content, path


def assert_torch_dist(folder, arrays):
    """The arrays as torch itself reads them, and their grid of chunks."""
    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    entries = {key: e for key, e in entries.items() if isinstance(e, dcp.metadata.TensorStorageMetadata)}
    got = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in entries.items()}
    dcp.load(got, storage_reader=reader, no_dist=True)
    models.assert_equal(got, {key: array.value for key, array in arrays.items()})
    for key, array in arrays.items():
        assert {tuple(chunk.sizes) for chunk in entries[key].chunks} == {array.chunk}, key


@that_go_to("nemo")
def test_torch_dist_of_nemo_holds_the_arrays_of_the_reference(name, made):
    source = made.source(name)
    arrays = family_reference.nemo_arrays(text_config(source), families.text(source.tensors))
    assert_torch_dist(made.to("nemo", name, "--nemo_weights=torch_dist") / "model_weights", arrays)


@that_go_to("megatron")
def test_torch_dist_of_megatron_holds_the_arrays_of_the_reference(name, made):
    source = made.source(name)
    arrays = family_reference.arrays(text_config(source), families.text(source.tensors))
    assert_torch_dist(made.to("megatron", name) / "iter_0000001", arrays)


# -- norm weights that kinds store differently --------------------------------------------------------------------------


def gemma(tmp_path, family, dtype):
    case = Case(family, heads(3, 1, intermediate_size=40, num_hidden_layers=3), dtype=dtype)
    return families.write(tmp_path / "in", case, f"{family} norms {dtype}", norms="random")


def norm_arrays(arrays):
    return {key: array for key, array in arrays.items() if "norm" in key}


def assert_norms(folder, wanted):
    got = files(folder / "model_weights")
    for key, array in norm_arrays(wanted).items():
        for chunk, content in array.chunks():
            assert got[f"{key}/{chunk}"].read_bytes() == content, key


@pytest.mark.parametrize("wanted", models.DTYPES)
@pytest.mark.parametrize("stored", models.DTYPES)
def test_gemma_norms_of_nemo_are_one_more_rounded_once(stored, wanted, tmp_path):
    source = gemma(tmp_path, "gemma", stored)
    dtype = models.DTYPES[wanted]
    options = [] if stored == wanted else [f"--dtype={wanted}"]
    convert(source.path, tmp_path / "nemo", *NEEDS["nemo"], *options, to="nemo")

    def norm(t):
        return (t.float() + 1).to(dtype)

    c = source.config
    plain = models.cast({n: t for n, t in source.tensors.items() if "norm" not in n}, dtype)
    shifted = {n: norm(t) for n, t in source.tensors.items() if "norm" in n}
    assert_norms(tmp_path / "nemo", family_reference.arrays(c, {**plain, **shifted}, "model."))
    if stored == wanted:
        reshard("verify", source.path, tmp_path / "nemo")
        convert(tmp_path / "nemo", tmp_path / "back", f"--hf_model_name={source.path}", to="hf")
        models.assert_equal(models.read(tmp_path / "back"), {**plain, **{n: (t.float() - 1).to(dtype) for n, t in shifted.items()}})


@pytest.mark.parametrize("wanted", models.DTYPES)
@pytest.mark.parametrize("stored", models.DTYPES)
def test_gemma_norms_of_a_nemo_model_become_one_less(stored, wanted, tmp_path):
    """From the reference's arrays, which hold the weights themselves: no value of them is the program's."""
    source = gemma(tmp_path, "gemma", stored)
    convert(source.path, tmp_path / "nemo", *NEEDS["nemo"], to="nemo")
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", f"--dtype={wanted}", to="hf")
    for name, t in models.read(tmp_path / "out").items():
        if "norm" in name:
            weight = (source.tensors[name].float() + 1).to(models.DTYPES[stored])
            assert nemo_reference.raw(t) == nemo_reference.raw((weight.float() - 1).to(models.DTYPES[wanted])), name


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_norms_of_megatron_are_those_of_huggingface(family, dtype, tmp_path):
    source = gemma(tmp_path, family, dtype)
    convert(source.path, tmp_path / "there", *NEEDS["megatron"], to="megatron")
    assert_torch_dist(tmp_path / "there" / "iter_0000001", family_reference.arrays(source.config, source.tensors))
    convert(tmp_path / "there", tmp_path / "back", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), source.tensors)


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_only_the_first_gemma_has_other_norms_in_nemo(family, dtype, tmp_path):
    source = gemma(tmp_path, family, dtype)
    convert(source.path, tmp_path / "there", *NEEDS["nemo"], to="nemo")
    assert_norms(tmp_path / "there", family_reference.arrays(source.config, source.tensors, "model."))
    convert(tmp_path / "there", tmp_path / "back", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), source.tensors)


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_gemma_norms_of_megatron_become_those_of_nemo(dtype, tmp_path):
    source = gemma(tmp_path, "gemma", dtype)
    convert(source.path, tmp_path / "megatron", *NEEDS["megatron"], to="megatron")
    convert(tmp_path / "megatron", tmp_path / "nemo", f"--hf_model_name={source.path}", to="nemo")
    assert_norms(tmp_path / "nemo", family_reference.nemo_arrays(source.config, source.tensors))


# -- every form of experts ----------------------------------------------------------------------------------------------

EXPERTS = [name for name, case in CASES.items() if case.family in SPARSE and "nemo" not in case.refused]
FORMED = ["mixtral-3x1", "mixtral-tied", "qwen2_moe-all", "qwen2_moe-step", "qwen3_moe-all", "qwen3_moe-mlp_only"]


@pytest.mark.parametrize("name", EXPERTS)
def test_packed_experts_of_huggingface_become_those_of_its_files(name, made, tmp_path):
    """What a model has in memory, and training stacks store."""
    source = made.source(name)
    packed = families.write(tmp_path / "packed", CASES[name], name, packed=True)
    assert [n for n in packed.tensors if n.endswith("mlp.experts.gate_up_proj")], "the class packs nothing"
    convert(packed.path, tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    assert reshard("verify", packed.path, source.path, "--json").json()["equal"]


@pytest.mark.parametrize("name", FORMED)
def test_packed_experts_of_huggingface_become_megatrons(name, made, tmp_path):
    packed = families.write(tmp_path / "packed", CASES[name], name, packed=True)
    convert(packed.path, tmp_path / "out", *NEEDS["megatron"], to="megatron")
    source = made.source(name)
    assert_torch_dist(tmp_path / "out" / "iter_0000001", family_reference.arrays(source.config, source.tensors))


def write_torch_dist(folder, tensors):
    """Over the weights of a checkpoint of ours, which gives the config; torch's own writer."""
    for path in [*folder.glob("*.distcp"), folder / ".metadata"]:
        path.unlink()
    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)


def write_zarr(folder, tensors):
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    for key, t in tensors.items():
        array = nemo_reference.Array(t, tuple(t.shape))
        (folder / key).mkdir()
        (folder / key / ".zarray").write_text(array.zarray())
        for chunk, content in array.chunks():
            (folder / key / chunk).write_bytes(content)


CONTAINERS = {
    "nemo zarr": ("nemo", "--nemo_weights=zarr", "model_weights", "model.", write_zarr),
    "nemo torch_dist": ("nemo", "--nemo_weights=torch_dist", "model_weights", "model.", write_torch_dist),
    "megatron": ("megatron", "--nemo_weights=torch_dist", "iter_0000001", "", write_torch_dist),
}


@pytest.mark.parametrize("form", family_reference.FORMS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", FORMED)
def test_experts_of_megatron_are_read_in_every_form(name, container, form, made, tmp_path):
    kind, option, where, prefix, write = CONTAINERS[container]
    source = made.source(name)
    c = source.config
    stacked = {key: array.value for key, array in family_reference.arrays(c, source.tensors, prefix).items()}
    shutil.copytree(made.to(kind, name, option), tmp_path / "in")
    write(tmp_path / "in" / where, family_reference.FORMS[form](stacked, c.num_hidden_layers))
    convert(tmp_path / "in", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


def rank_of(c, tensors, tp, r):
    """A rank's part of flat tensors (`sequential` or `grouped`): halves of fc1 are cut each, groups of heads stay whole."""
    out = {}
    for key, t in tensors.items():
        if "linear_fc1.weight" in key:
            t = torch.cat([half.chunk(tp)[r] for half in t.chunk(2)])
        elif "linear_qkv.weight" in key or "linear_qkv.bias" in key or "word_embeddings" in key or "output_layer" in key:
            t = t.chunk(tp)[r]
        elif "linear_proj.weight" in key or "linear_fc2.weight" in key:
            t = t.chunk(tp, 1)[r]
        out["model." + key] = t.contiguous().clone()
    return out


RANKED = {
    "mixtral": heads(8, 4, num_local_experts=3, intermediate_size=24, vocab_size=98),
    "qwen2_moe": heads(8, 2, **families.moe(5, 12, 20), intermediate_size=48, vocab_size=98),
    "qwen3_moe": heads(4, 4, **families.moe(3, 12), decoder_sparse_step=2, intermediate_size=48, vocab_size=98),
}


@pytest.mark.parametrize("form", ["sequential", "grouped"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", RANKED)
def test_experts_in_files_of_ranks_are_merged(family, tp, form, tmp_path):
    source = families.write(tmp_path / "in", Case(family, RANKED[family]), f"{family} ranks")
    c = source.config
    convert(source.path, tmp_path / "nemo", *NEEDS["nemo"], to="nemo")
    shutil.rmtree(tmp_path / "nemo" / "model_weights")
    config = tmp_path / "nemo" / "model_config.yaml"
    config.write_text(config.read_text().replace("tensor_model_parallel_size: 1\n", f"tensor_model_parallel_size: {tp}\n"))
    stacked = {key: array.value for key, array in family_reference.arrays(c, source.tensors).items()}
    flat = family_reference.FORMS[form](stacked, c.num_hidden_layers)
    for r in range(tp):
        path = tmp_path / "nemo" / (f"mp_rank_{r:02d}/model_weights.ckpt" if tp > 1 else "model_weights.ckpt")
        path.parent.mkdir(exist_ok=True)
        torch.save(rank_of(c, flat, tp, r), path)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", RANKED)
def test_experts_are_written_to_files_of_ranks_and_come_back(family, tp, tmp_path):
    source = families.write(tmp_path / "in", Case(family, RANKED[family]), f"{family} ranks")
    c = source.config
    options = ["--nemo_weights=ranks", f"--tp_size={tp}"]
    convert(source.path, tmp_path / "nemo", *NEEDS["nemo"], *options, to="nemo")
    stacked = {key: array.value for key, array in family_reference.arrays(c, source.tensors).items()}
    flat = family_reference.FORMS["sequential"](stacked, c.num_hidden_layers)
    for r in range(tp):
        path = tmp_path / "nemo" / (f"mp_rank_{r:02d}/model_weights.ckpt" if tp > 1 else "model_weights.ckpt")
        state = torch.load(path, weights_only=True)
        models.assert_equal({k: v for k, v in state.items() if not k.endswith("_extra_state")}, rank_of(c, flat, tp, r))
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


# -- text towers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model.language_model.model."])
@pytest.mark.parametrize("kind", ["hf", "nemo", "megatron"])
def test_a_text_tower_is_found_by_each_prefix_that_files_have(kind, prefix, made, tmp_path):
    source = made.source("gemma3-multimodal")
    shutil.copytree(source.path, tmp_path / "in")
    for path in (tmp_path / "in").glob("*.safetensors*"):
        path.unlink()
    old = "language_model.model."
    renamed = {prefix + n.removeprefix(old) if n.startswith(old) else n: t for n, t in source.tensors.items()}
    save_file(renamed, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    convert(tmp_path / "in", tmp_path / "out", *NEEDS[kind], to=kind)
    if kind == "hf":
        assert_is(source, tmp_path / "out")
    else:
        assert reshard("verify", source.path, tmp_path / "out", "--json").json()["equal"]


# -- TensorRT-LLM of mixtures -------------------------------------------------------------------------------------------

GRIDS = [(1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 2), (4, 2, 1), (4, 4, 3), (8, 2, 1), (8, 4, 3), (1, 1, 3)]  # tp, moe_ep, pp
MIXTURES = {
    "mixtral": dict(num_local_experts=4, intermediate_size=48, num_hidden_layers=6),
    "qwen2_moe": dict(families.moe(4, 32, 16, top=3), intermediate_size=48, num_hidden_layers=6),
}


@pytest.mark.parametrize("version", [12, 14])
@pytest.mark.parametrize("tp, ep, pp", GRIDS)
@pytest.mark.parametrize("family", MIXTURES)
def test_ranks_of_trtllm_hold_what_the_formulas_say(family, tp, ep, pp, version, tmp_path):
    settings = dict(heads(8, 8 if tp == 8 else 4, 4), **MIXTURES[family], vocab_size=45)
    style = 4 if tp > 2 else 5
    source = families.write(tmp_path / "in", Case(family, settings, style=style, dtype="fp32"), f"{family} {tp}")
    layout = Layout(tp, pp, moe_ep=ep)
    to_trtllm(source.path, tmp_path / "out", layout, "--dtype=bf16", f"--trtllm_version=0.{version}")
    ranks = [trtllm_reference.rank_tensors(source.config, source.tensors, layout, r, torch.bfloat16) for r in layout.ranks]
    cfg = trtllm_reference.config(hf_settings(source), layout, torch.bfloat16, version)
    assert_trtllm_files(tmp_path / "out", ranks, cfg)
    convert(tmp_path / "out", tmp_path / "back", f"--hf_model_name={source.path}", "--dtype=bf16", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), models.cast(source.tensors, torch.bfloat16))


@pytest.mark.parametrize("family", MIXTURES)
def test_one_size_of_the_experts_gives_the_other(family, tmp_path):
    settings = dict(heads(8, 4, 4), **MIXTURES[family])
    source = families.write(tmp_path / "in", Case(family, settings), family)
    whole = to_trtllm(source.path, tmp_path / "both", Layout(4, moe_ep=2))
    assert whole.code == 0
    for i, option in enumerate(["--moe_tp_size=2", "--moe_ep_size=2"]):
        to_trtllm(source.path, tmp_path / str(i), Layout(4), option)
        for r, path in rank_files(tmp_path / str(i)).items():
            models.assert_equal(load_file(path), load_file(rank_files(tmp_path / "both")[r]))


WRONG = {
    "product": ["--tp_size=4", "--moe_tp_size=4", "--moe_ep_size=2"],
    "experts": ["--tp_size=8", "--moe_ep_size=8"],  # of 4
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_ranks_do_not_divide_are_refused(family, what, tmp_path):
    source = families.write(tmp_path / "in", Case(family, dict(heads(8, 8, 4), **MIXTURES[family])), family)
    assert_refused(source.path, tmp_path / "out", "trtllm", "moe_ep_size|experts", *WRONG[what], codes=(2, 5, 6))


@pytest.mark.parametrize("option", ["--moe_tp_size=2", "--moe_ep_size=2"])
def test_sizes_of_experts_are_for_models_that_have_some(option, tmp_path):
    source = families.write(tmp_path / "in", Case("llama", heads(8, 4, 4, intermediate_size=48)), "dense")
    result = convert(source.path, tmp_path / "out", "--checkpoint_only", "--tp_size=2", option, to="trtllm", code=(0, 2, 5, 6))
    if result.code == 0:  # TensorRT-LLM takes any product that is right, and so it stands in the config
        mapping = json.loads((tmp_path / "out" / "config.json").read_text())["mapping"]
        assert mapping["moe_tp_size"] * mapping["moe_ep_size"] == 2


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
def test_longrope_can_be_carried_for_the_way_back(kind, made, tmp_path):
    source = made.source("phi3-longrope")
    convert(source.path, tmp_path / "there", *NEEDS[kind], "--allow_rope=config_only", to=kind)
    convert(tmp_path / "there", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    assert_is(source, tmp_path / "out")
    convert(tmp_path / "there", tmp_path / "derived", "--vocab_size=97", to="hf")
    assert_is_without_a_template(made, "phi3-longrope", tmp_path / "derived")


# -- refusals -----------------------------------------------------------------------------------------------------------

PLAIN = {
    "llama": heads(4, 2),
    "mistral": heads(4, 2),
    "granite": heads(4, 2, 16, **families.multipliers(16)),
    "smollm3": heads(4, 2, no_rope_layers=[1, 1]),
    "seed_oss": heads(4, 2),
    "ernie4_5": heads(4, 2),
    "qwen2": heads(4, 2),
    "qwen3": heads(4, 2),
    "qwen2_moe": heads(4, 2, **families.moe(3, 12, 20)),
    "qwen3_moe": heads(4, 2, **families.moe(3, 12)),
    "mixtral": heads(4, 2, num_local_experts=3, intermediate_size=36),
    "phi3": heads(4, 2),
    "gemma": heads(4, 2),
    "gemma2": heads(4, 2),
    "gemma3_text": heads(4, 2),
}


def plain(tmp_path, family, cls=None, **changes):
    """A model of the family with keys of its config.json changed."""
    source = families.write(tmp_path / "in", Case(family, PLAIN[family]), f"plain {family}", cls=cls)
    families.change_config(source.path, lambda settings: {**settings, **changes})
    return source


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
@pytest.mark.parametrize("key, value", [("embedding_multiplier", 12.0), ("residual_multiplier", 0.22), ("logits_scaling", 8.0)])
def test_multipliers_of_granite_are_refused_by_name(key, value, kind, tmp_path):
    source = plain(tmp_path, "granite", **{key: value})
    assert_refused(source.path, tmp_path / "out", kind, key)


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
@pytest.mark.parametrize("value", [1.0, 0.0078125])
def test_the_attention_multiplier_of_granite_is_refused_or_kept(value, kind, tmp_path):
    """It stands for the division by the root of the head size, here 4; megatron-core of late has a place for it."""
    source = plain(tmp_path, "granite", attention_multiplier=value)
    result = convert(source.path, tmp_path / "there", *NEEDS[kind], to=kind, code=(0, 5))
    if result.code == 5:
        assert "attention_multiplier" in result.err
    else:
        convert(tmp_path / "there", tmp_path / "back", "--vocab_size=97", to="hf")
        assert torch.equal(models.logits(tmp_path / "back"), models.logits(source.path))


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
def test_layers_without_rope_are_refused_by_name(kind, tmp_path):
    source = plain(tmp_path, "smollm3", no_rope_layers=[1, 0])
    assert_refused(source.path, tmp_path / "out", kind, "no_rope_layers|rope")


HEADS = {
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "mixtral": "MixtralForSequenceClassification",
    "qwen2": "Qwen2ForTokenClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "qwen3_moe": "Qwen3MoeForTokenClassification",
    "phi3": "Phi3ForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForTokenClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
}


@pytest.mark.parametrize("kind", ["hf", "nemo", "megatron", "trtllm"])
@pytest.mark.parametrize("family", HEADS)
def test_other_heads_are_refused_by_name(family, kind, tmp_path):
    source = plain(tmp_path, family, getattr(transformers, HEADS[family]))
    assert "score.weight" in source.tensors
    assert_refused(source.path, tmp_path / "out", kind, HEADS[family])


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
@pytest.mark.parametrize("family", PLAIN)
def test_another_activation_is_refused_by_name(family, kind, tmp_path):
    key = "hidden_activation" if family in ("gemma2", "gemma3_text") else "hidden_act"
    source = plain(tmp_path, family, **{key: "relu6"})
    assert_refused(source.path, tmp_path / "out", kind, "relu6")


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
@pytest.mark.parametrize("family", PLAIN)
def test_another_rope_type_is_refused_by_name(family, kind, tmp_path):
    rope = dict(rope_type="spiral", rope_theta=10000.0, factor=2.0)
    if family == "gemma3_text":
        rope = {families.FULL: rope, families.SLIDING: families.default_rope()}
    source = plain(tmp_path, family, rope_parameters=rope)
    assert_refused(source.path, tmp_path / "out", kind, "spiral")


EXTRA = {  # tensors that look like they belong
    "self_attn.q_proj.bias": [family for family in PLAIN if family not in ("qwen2", "qwen2_moe", "seed_oss", "phi3")],
    "self_attn.q_norm.weight": [family for family in PLAIN if family not in ("qwen3", "qwen3_moe", "gemma3_text")],
    "mlp.extra_proj.weight": list(PLAIN),
    "mlp.shared_expert.gate_proj.weight": ["qwen3_moe", "mixtral"],
    "pre_feedforward_layernorm.weight": ["llama", "gemma"],
}


@pytest.mark.parametrize("added, family", [(name, family) for name, found in EXTRA.items() for family in found])
def test_a_tensor_that_the_config_does_not_speak_of_is_refused_by_name(added, family, tmp_path):
    """Tensors and config disagree, which is a code of its own."""
    source = plain(tmp_path, family)
    name = "model.layers.1." + added
    save_file({**source.tensors, name: torch.ones(32, dtype=source.dtype)}, source.path / "model.safetensors", {"format": "pt"})
    assert_refused(source.path, tmp_path / "out", "hf", re.escape(name), codes=(5, 6))


def quantised(source, config, linear):
    """The folder with its linear weights replaced by what `linear` makes of each."""
    tensors = {}
    for name, t in source.tensors.items():
        projection = name.endswith("weight") and t.ndim == 2 and "_proj" in name or re.search(r"\.w[123]\.weight", name)
        tensors.update(linear(name.removesuffix("weight"), t) if projection else {name: t})
    save_file(tensors, source.path / "model.safetensors", {"format": "pt"})
    families.change_config(source.path, lambda settings: {**settings, "quantization_config": config})


def fp8(name, t):
    return {name + "weight": t.to(torch.float8_e4m3fn), name + "weight_scale_inv": torch.ones(1, 1)}


def awq(name, t):
    rows, columns = t.shape
    words = {"qweight": (columns, rows // 8), "qzeros": (columns // 32, rows // 8)}
    found = {name + key: torch.zeros(shape, dtype=torch.int32) for key, shape in words.items()}
    return {**found, name + "scales": torch.ones(columns // 32, rows, dtype=torch.float16)}


def gptq(name, t):
    rows, columns = t.shape
    words = {"qweight": (columns // 8, rows), "qzeros": (columns // 32, rows // 8)}
    found = {name + key: torch.zeros(shape, dtype=torch.int32) for key, shape in words.items()}
    found[name + "g_idx"] = torch.arange(columns, dtype=torch.int32) // 32
    return {**found, name + "scales": torch.ones(columns // 32, rows, dtype=torch.float16)}


def mxfp4(name, t):
    rows, columns = t.shape
    shapes = {"weight_blocks": (rows, columns // 32, 16), "weight_scales": (rows, columns // 32)}
    return {name + key: torch.zeros(shape, dtype=torch.uint8) for key, shape in shapes.items()}


QUANTISED = {
    "fp8": (dict(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128]), fp8),
    "awq": (dict(quant_method="awq", bits=4, group_size=32, version="gemm", zero_point=True), awq),
    "gptq": (dict(quant_method="gptq", bits=4, group_size=32, desc_act=False, sym=True), gptq),
    "mxfp4": (dict(quant_method="mxfp4", modules_to_not_convert=["lm_head"]), mxfp4),
}
EVEN = dict(intermediate_size=64, moe_intermediate_size=64)  # whole groups of 32


@pytest.mark.parametrize("kind", ["hf", "nemo", "megatron"])
@pytest.mark.parametrize("method", QUANTISED)
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "mixtral", "gemma"])
def test_quantised_weights_are_refused_and_said_to_be(family, method, kind, tmp_path):
    settings = {key: EVEN.get(key, value) for key, value in dict(PLAIN[family], intermediate_size=64).items()}
    source = families.write(tmp_path / "in", Case(family, settings), f"quantised {family}")
    quantised(source, *QUANTISED[method])
    assert_refused(source.path, tmp_path / "out", kind, f"(?i){method}")


def test_a_class_of_another_model_type_is_refused(tmp_path):
    for i, (family, other) in enumerate([("qwen3", "Qwen3MoeForCausalLM"), ("gemma", "Gemma2ForCausalLM"), ("mixtral", "MistralForCausalLM")]):
        source = plain(tmp_path / str(i), family, architectures=[other])
        assert_refused(source.path, tmp_path / "out", "nemo", other, codes=(5, 6))


def test_every_family_has_several_configs():
    counts = [sum(case.family == family for case in CASES.values()) for family in families.CLASSES]
    assert min(counts) >= 2 and len(CASES) == sum(counts)


@pytest.mark.parametrize("family, key, value", [("gemma2", "attn_logit_softcapping", 7.0), ("qwen3_moe", "num_experts_per_tok", 1)])
def test_verify_tells_models_apart_by_keys_of_their_family(family, key, value, tmp_path):
    source = plain(tmp_path, family)
    shutil.copytree(source.path, tmp_path / "other")
    families.change_config(tmp_path / "other", lambda settings: {**settings, key: value})
    report = reshard("verify", source.path, tmp_path / "other", "--json", code=None).json()
    assert not report["equal"]
    assert key in json.dumps(report["hyperparameters"])
