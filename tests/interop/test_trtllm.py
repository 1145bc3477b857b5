"""TensorRT-LLM checkpoints: against the real conversion code's output, and family x TP x PP x dtype x layout against formulas."""

import dataclasses
import itertools
import json
import subprocess
import sys

import models
import nemo_reference
import pytest
import torch
import trtllm_reference
from program import BINARY, ROOT, assert_nothing_published, convert, files, hashes, reshard
from safetensors.torch import load_file, save_file
from trtllm_models import EMBEDDING_DIMS, FAMILIES, SHAPES, Cell, assert_trtllm_folder, hf_settings, rank_files, to_trtllm, write_model
from trtllm_reference import Layout

FIXTURES = ROOT / "tests" / "fixtures" / "trtllm"
FACTS = {p.parent.name: json.loads(p.read_text()) for p in sorted(FIXTURES.glob("*/case.json"))}
ROPE_TABLES = {"embed_positions", "rotary_inv_freq", "embed_positions_for_gpt_attention"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ---------------------------------------------------------------- what the real code wrote


@pytest.fixture(params=FACTS)
def fixture(request):
    return FIXTURES / request.param, FACTS[request.param]


def fixture_options(facts):
    embedding_dim = facts["embedding_sharding_dim"] if facts["use_parallel_embedding"] else None
    layout = Layout(facts["tp_size"], facts["pp_size"], embedding_dim)
    return layout, [f"--dtype={facts['dtype']}", f"--trtllm_version={facts['trtllm_version']}"]


def test_hf_gives_the_ranks_and_the_config_of_the_real_code(fixture, tmp_path):
    folder, facts = fixture
    layout, options = fixture_options(facts)
    to_trtllm(folder / "hf", tmp_path / "out", layout, *options)
    assert (tmp_path / "out" / "config.json").read_text() == (folder / "trtllm" / "config.json").read_text()
    got, want = rank_files(tmp_path / "out"), rank_files(folder / "trtllm")
    assert list(sorted(got)) == list(sorted(want)) == list(layout.ranks)
    assert set(files(tmp_path / "out")) == {"config.json", *(p.name for p in want.values())}
    for rank in layout.ranks:
        tensors = load_file(want[rank])
        assert ROPE_TABLES <= set(tensors)
        models.assert_equal(load_file(got[rank]), {n: t for n, t in tensors.items() if n not in ROPE_TABLES})


@pytest.mark.parametrize("template", [True, False], ids=["template", "derived"])
def test_what_the_real_code_wrote_gives_the_tensors_of_hf(template, fixture, tmp_path):
    folder, facts = fixture
    convert(folder / "trtllm", tmp_path / "out", *([f"--hf_model_name={folder / 'hf'}"] if template else []), to="hf")
    dtype = DTYPES[facts["dtype"]]
    stored = models.cast(models.read(folder / "hf"), dtype)
    tied = json.loads((folder / "hf" / "config.json").read_text())["tie_word_embeddings"]
    if tied and not template:  # the format does not say that the two are one, but they are equal
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
        got = models.read(tmp_path / "out")
        got.setdefault("lm_head.weight", got["model.embed_tokens.weight"])
        models.assert_equal(got, stored)
    else:
        models.assert_equal(models.read(tmp_path / "out"), stored)
    report = reshard("verify", folder / "trtllm", tmp_path / "out", "--json").json()
    routers = {t["verdict"] for t in report["tensors"] if t["name"].endswith("mlp.router.weight")}
    assert {t["verdict"] for t in report["tensors"]} - routers == {"equal"} and routers <= {"equal_rounded"}  # they are float32 there


def test_what_the_real_code_wrote_gives_other_ranks(fixture, tmp_path):
    """Through the real code's checkpoint or straight from the model: the same files."""
    folder, facts = fixture
    _, options = fixture_options(facts)
    layout = Layout(1)
    to_trtllm(folder / "hf", tmp_path / "direct", layout, *options)
    to_trtllm(folder / "trtllm", tmp_path / "other", layout, *options)
    assert hashes(tmp_path / "other") == hashes(tmp_path / "direct")


# ---------------------------------------------------------------- the matrix

def all_cells():
    """dtype, style of config.json and number of shards take turns."""
    grid = itertools.product(FAMILIES, (1, 2, 4, 8), (1, 2, 3), SHAPES)
    kept = [x for x in grid if not (x[3].startswith("shared") and x[2] > 1) and not (x[3].startswith("bias") and x[0] != "llama")]
    for i, (family, tp, pp, shape) in enumerate(kept):
        layout = Layout(tp, pp, EMBEDDING_DIMS.get(shape), shape.startswith("shared"))
        dtype = list(models.DTYPES)[i % 3]
        yield f"{family}-{shape}-tp{tp}-pp{pp}-{dtype}", Cell(family, shape, layout, dtype, (4, 5)[i // 2 % 2], (1, 5)[i // 4 % 2])


CELLS = dict(all_cells())
CASTS = list(itertools.permutations(models.DTYPES, 2))


def sample(step):
    """The cells as parameters; all but every step-th are for `scripts/test --all`."""
    marks = [[] if i % step == 0 else pytest.mark.slow for i in range(len(CELLS))]
    return pytest.mark.parametrize("cell", [pytest.param(name, marks=m) for name, m in zip(CELLS, marks)])


@sample(2)
def test_hf_to_trtllm(cell, tmp_path):
    name, cell = cell, CELLS[cell]
    source = write_model(tmp_path / "in", cell, name)
    to_trtllm(source.path, tmp_path / "out", cell.layout)
    assert_trtllm_folder(tmp_path / "out", source, cell.layout, source.dtype)


@sample(7)
def test_hf_to_trtllm_with_a_cast(cell, tmp_path):
    name, cell = cell, CELLS[cell]
    stored, wanted = CASTS[list(CELLS).index(name) // 7 % len(CASTS)]
    source = write_model(tmp_path / "in", dataclasses.replace(cell, dtype=stored), name)
    to_trtllm(source.path, tmp_path / "out", cell.layout, f"--dtype={wanted}")
    assert_trtllm_folder(tmp_path / "out", source, cell.layout, models.DTYPES[wanted])


@sample(3)
def test_trtllm_to_hf(cell, tmp_path):
    """From a checkpoint that the program did not write, with the tables that TensorRT-LLM stores besides."""
    name, cell = cell, CELLS[cell]
    source = write_model(tmp_path / "in", cell, name)
    tables = cell.style == 4
    trtllm_reference.write_trtllm(
        tmp_path / "trtllm", source.config, source.tensors, hf_settings(source), cell.layout, source.dtype, tables=tables
    )
    convert(tmp_path / "trtllm", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    assert (tmp_path / "out" / "config.json").read_bytes() == (source.path / "config.json").read_bytes()


@sample(6)
def test_round_trips_have_the_hashes_of_hf_to_hf(cell, tmp_path):
    name, cell = cell, CELLS[cell]
    source = write_model(tmp_path / "in", cell, name)
    template, limit = f"--hf_model_name={source.path}", "--max_shard_size=20KB"
    convert(source.path, tmp_path / "want", limit, to="hf")
    want = hashes(tmp_path / "want")
    to_trtllm(source.path, tmp_path / "trtllm", cell.layout)
    convert(tmp_path / "trtllm", tmp_path / "back", template, limit, to="hf")
    assert hashes(tmp_path / "back") == want

    other = Layout(*next(x for x in itertools.product((2, 4, 1), (3, 1)) if x != (cell.layout.tp, cell.layout.pp)))
    to_trtllm(source.path, tmp_path / "direct", other)
    to_trtllm(tmp_path / "trtllm", tmp_path / "other", other)
    assert hashes(tmp_path / "other") == hashes(tmp_path / "direct")

    if "bias" in cell.shape:
        return  # a NeMo model cannot have biases of the attention alone
    convert(source.path, tmp_path / "nemo", template, to="nemo")
    to_trtllm(tmp_path / "nemo", tmp_path / "from_nemo", cell.layout, template)
    assert hashes(tmp_path / "from_nemo") == hashes(tmp_path / "trtllm")
    convert(tmp_path / "from_nemo", tmp_path / "nemo_again", template, to="nemo")
    assert hashes(tmp_path / "nemo_again") == hashes(tmp_path / "nemo")
    convert(tmp_path / "nemo_again", tmp_path / "hf_again", template, limit, to="hf")
    assert hashes(tmp_path / "hf_again") == want


@pytest.mark.parametrize("family", FAMILIES)
def test_nemo_without_a_template_gives_what_hf_gives(family, tmp_path):
    cell = Cell(family, "groups4-odd", Layout(2, 3), "bf16", 5, 1)
    source = write_model(tmp_path / "in", cell, family)
    nemo_reference.write_nemo(tmp_path / "nemo", source.config, source.tensors, source.dtype, tp=1, rows=64)
    to_trtllm(tmp_path / "nemo", tmp_path / "out", cell.layout, "--vocab_size=45", f"--model_type={models.GROUPS[family]}")
    assert_trtllm_folder(tmp_path / "out", source, cell.layout, source.dtype)


# ---------------------------------------------------------------- back to transformers, and verify


@pytest.mark.parametrize("shape", ["groups2", "head_dim", "tied", "tied-odd", "shared-odd", "vocab9", "bias"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_is_written_without_a_template(family, shape, tmp_path):
    if shape == "bias" and family != "llama":
        return
    layout = Layout(4, 1, EMBEDDING_DIMS.get(shape), shape.startswith("shared"))
    source = write_model(tmp_path / "in", Cell(family, shape, layout, "bf16", 5, 1), shape)
    to_trtllm(source.path, tmp_path / "trtllm", layout)
    convert(tmp_path / "trtllm", tmp_path / "out", to="hf")
    c = models.read_config(tmp_path / "out")
    assert c.model_type == family
    model, report = models.model_class(family).from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    want = {**source.tensors, "lm_head.weight": source.tensors.get("lm_head.weight", source.tensors["model.embed_tokens.weight"])}
    models.assert_equal({name: p.detach() for name, p in model.state_dict().items()}, want)
    assert nemo_reference.rope(c) == nemo_reference.rope(source.config)
    if source.config.max_position_embeddings <= 32 or family != "mistral":
        assert torch.equal(models.logits(tmp_path / "out"), models.logits(source.path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_rope_comes_back_without_a_template(kind, family, tmp_path):
    rope = dict(linear=models.LINEAR_ROPE, llama3=models.LLAMA3_ROPE)[kind]
    source = models.write(tmp_path / "in", models.config(family, **SHAPES["mha"], rope_parameters=rope), torch.bfloat16, style=4)
    to_trtllm(source.path, tmp_path / "trtllm", Layout(2))
    convert(tmp_path / "trtllm", tmp_path / "out", to="hf")
    assert models.read_config(tmp_path / "out").rope_parameters == models.read_config(source.path).rope_parameters


@pytest.mark.parametrize("shape", ["groups2", "tied-odd", "columns"])
@pytest.mark.parametrize("family", FAMILIES)
def test_verify_compares_all_kinds(family, shape, tmp_path):
    cell = Cell(family, shape, Layout(4, 2, EMBEDDING_DIMS.get(shape)), "bf16", 4, 1)
    source = write_model(tmp_path / "in", cell, family)
    template = f"--hf_model_name={source.path}"
    convert(source.path, tmp_path / "nemo", template, to="nemo")
    to_trtllm(source.path, tmp_path / "trtllm", cell.layout)
    to_trtllm(source.path, tmp_path / "other", Layout(2))
    folders = [source.path, tmp_path / "nemo", tmp_path / "trtllm", tmp_path / "other"]
    for a, b in itertools.permutations(folders, 2):
        report = reshard("verify", a, b, "--json").json()
        assert report["equal"] and {t["verdict"] for t in report["tensors"]} == {"equal"}, (a, b)


@pytest.mark.parametrize("shape", ["tied-odd", "groups2", "rows-odd"])
def test_a_model_has_as_many_parameters_in_every_kind(shape, tmp_path):
    """However many ranks hold a copy, and whatever pads a table."""
    source = write_model(tmp_path / "in", Cell("llama", shape, Layout(), "bf16", 4, 1), shape)
    to_trtllm(source.path, tmp_path / "trtllm", Layout(4, 2, EMBEDDING_DIMS.get(shape)))
    convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    expected = sum(tensor.numel() for tensor in source.tensors.values())
    for folder in (source.path, tmp_path / "nemo", tmp_path / "trtllm"):
        template = [] if folder == source.path else [f"--hf_model_name={source.path}"]
        assert reshard("inspect", folder, *template, "--json").json()["parameters"] == expected


def test_verify_names_a_tensor_that_differs_and_holds_a_checkpoint_to_its_receipt(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "verify")
    to_trtllm(source.path, tmp_path / "trtllm", Layout(2))
    reshard("verify", tmp_path / "trtllm")
    path = tmp_path / "trtllm" / "rank1.safetensors"
    tensors = load_file(path)
    tensors["transformer.layers.3.mlp.gate.weight"][1, 2] += 1
    save_file(tensors, path)
    report = reshard("verify", source.path, tmp_path / "trtllm", "--json", code=1).json()
    different = [t["name"] for t in report["tensors"] if t["verdict"] != "equal"]
    assert different == ["model.layers.3.mlp.up_proj.weight"]
    result = reshard("verify", tmp_path / "trtllm", code=1)
    assert path.name in result.out + result.err


def test_convert_with_verify_publishes_the_same_files(tmp_path):
    source = write_model(tmp_path / "in", Cell("qwen2", "columns", Layout(), "bf16", 4, 5), "verify")
    layout = Layout(4, 3, 1)
    to_trtllm(source.path, tmp_path / "plain", layout)
    to_trtllm(source.path, tmp_path / "verified", layout, "--verify")
    assert hashes(tmp_path / "verified") == hashes(tmp_path / "plain")


def test_a_checkpoint_of_other_options_is_not_already_complete(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "again")
    arguments = ["convert", source.path, tmp_path / "out", "--to=trtllm", "--checkpoint_only", "--tp_size=2"]
    reshard(*arguments)
    again = reshard(*arguments)
    assert "already complete" in again.out + again.err
    before = hashes(tmp_path / "out")
    for other in ["--tp_size=4", "--pp_size=2", "--use_parallel_embedding", "--trtllm_version=0.13", "--use_weight_only", "--fp8_kv_cache"]:
        reshard(*arguments, other, code=3)
    assert hashes(tmp_path / "out") == before


# ---------------------------------------------------------------- refusals of a request


def test_options_of_the_embedding_are_recorded_as_given(tmp_path):
    """The axis is recorded even where the embedding is whole, as the original does it."""
    source = write_model(tmp_path / "in", Cell("llama", "mha", Layout(), "bf16", 4, 1), "axis")
    to_trtllm(source.path, tmp_path / "out", Layout(2), "--embedding_sharding_dim=1")
    cfg = trtllm_reference.config(hf_settings(source), Layout(2), source.dtype)
    cfg["embedding_sharding_dim"] = 1
    assert (tmp_path / "out" / "config.json").read_text() == trtllm_reference.config_text(cfg)


def test_the_names_of_the_pipeline_scripts_are_the_same_options(tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "groups2", Layout(), "bf16", 4, 1), "names")
    to_trtllm(source.path, tmp_path / "a", Layout(4, 2))
    options = ["--num_gpus=4", "--num_nodes=2", "--dtype=bf16", "--checkpoint_only"]
    convert(source.path, tmp_path / "b", *options, to="trtllm")
    convert(source.path, tmp_path / "c", *options, "--tp_size=4", "--pp_size=2", to="trtllm")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c")


TIED = dict(tie_word_embeddings=True)
REFUSED = {
    "layers by stages": ("llama", {}, ["--pp_size=4"], (5, 6), ["6", "4", "layers"]),
    "heads by ranks": ("llama", models.heads(6, 2), ["--tp_size=4"], (5, 6), ["6", "4", "heads"]),
    "groups by ranks": ("llama", models.heads(12, 6, 4), ["--tp_size=4"], (5, 6), ["6", "4", "groups"]),
    "ranks by groups": ("llama", models.heads(12, 3, 4), ["--tp_size=4"], (5, 6), ["3", "4", "groups"]),
    "ffn by ranks": ("qwen2", dict(intermediate_size=50), ["--tp_size=4"], (5, 6), ["50", "4"]),
    "hidden by ranks": (
        "mistral",
        dict(models.heads(8, 4), hidden_size=42, head_dim=4),
        ["--tp_size=4", "--use_parallel_embedding", "--embedding_sharding_dim=1"],
        (5, 6),
        ["42", "4"],
    ),
    "mlp_bias": ("llama", dict(mlp_bias=True), [], (5,), ["mlp_bias"]),
    "mlp_bias and attention_bias": ("llama", dict(mlp_bias=True, attention_bias=True), [], (5,), ["mlp_bias"]),
    "qwen3": ("qwen3", {}, [], (5,), ["qwen3"]),
    "sharing of untied": ("llama", {}, ["--use_embedding_sharing"], (5, 6), ["--use_embedding_sharing", "tie_word_embeddings"]),
    "sharing over stages": ("llama", TIED, ["--use_embedding_sharing", "--pp_size=2"], (5, 6), ["--use_embedding_sharing", "2"]),
    "sharing of a whole embedding": ("qwen2", TIED, ["--use_embedding_sharing", "--tp_size=2"], (5, 6), ["--use_parallel_embedding"]),
    "sharing by columns": (
        "qwen2",
        TIED,
        ["--use_embedding_sharing", "--tp_size=2", "--use_parallel_embedding", "--embedding_sharding_dim=1"],
        (5, 6),
        ["--embedding_sharding_dim=0"],
    ),
    "two numbers of ranks": ("llama", {}, ["--tp_size=2", "--num_gpus=4"], (2,), ["--tp_size", "--num_gpus", "2", "4"]),
    "two numbers of stages": ("llama", {}, ["--pp_size=2", "--num_nodes=3"], (2,), ["--pp_size", "--num_nodes", "2", "3"]),
    "no ranks": ("llama", {}, ["--tp_size=0"], (2,), ["--tp_size", "0"]),
    "unknown version": ("llama", {}, ["--trtllm_version=0.11"], (2,), ["0.11", "0.12"]),
    "unknown axis": ("llama", {}, ["--embedding_sharding_dim=2"], (2,), ["--embedding_sharding_dim", "2"]),
    "precision without weight only": ("llama", {}, ["--weight_only_precision=int4"], (2,), ["--use_weight_only"]),
    "unknown precision": ("llama", {}, ["--use_weight_only", "--weight_only_precision=int2"], (2,), ["int2", "int8"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_before_any_byte(case, tmp_path):
    family, settings, options, codes, says = REFUSED[case]
    settings = {**models.heads(8, 4, 4), "num_hidden_layers": 6, "intermediate_size": 48, **settings}
    source = models.write(tmp_path / "in", models.config(family, **settings), torch.bfloat16)
    result = convert(source.path, tmp_path / "out", "--checkpoint_only", *options, to="trtllm", code=codes)
    first = result.err.splitlines()[0]
    assert first.startswith("reshard: error: ")
    assert 2 in codes or "reading" in first and str(source.path) in first, first
    for word in says:
        assert word in result.err, word
    assert_nothing_published(tmp_path / "out")


OPTIONS = ["--tp_size=2", "--pp_size=2", "--use_parallel_embedding", "--embedding_sharding_dim=1", "--use_embedding_sharing"]
OPTIONS += ["--trtllm_version=0.13", "--use_weight_only", "--fp8_kv_cache", "--checkpoint_only"]


@pytest.mark.parametrize("target", ["hf", "nemo"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_layout_are_for_trtllm_targets_only(option, target, tmp_path):
    source = write_model(tmp_path / "in", Cell("llama", "mha", Layout(), "bf16", 4, 1), "options")
    result = convert(source.path, tmp_path / "out", option, "--hf_model_name=example/model", to=target, code=2)
    assert option.split("=")[0] in result.err and "trtllm" in result.err
    assert_nothing_published(tmp_path / "out")


def test_weights_of_two_dtypes_need_one_named(tmp_path):
    """config.json has one dtype for all, and a builder goes by it."""

    def norms_in_float32(tensors):
        tensors.update({name: t.float() for name, t in tensors.items() if "norm" in name})

    source = models.write(tmp_path / "in", models.config("llama", **SHAPES["mha"]), torch.bfloat16, change=norms_in_float32)
    result = to_trtllm(source.path, tmp_path / "out", Layout(2), code=6)
    assert all(word in result.err for word in ["BF16", "F32", "--dtype"])
    assert_nothing_published(tmp_path / "out")
    to_trtllm(source.path, tmp_path / "out", Layout(2), "--dtype=bf16")
    assert_trtllm_folder(tmp_path / "out", source, Layout(2), torch.bfloat16)


# ---------------------------------------------------------------- width and memory


@pytest.mark.parametrize("layout", [Layout(8, 8), Layout(1, 8), Layout(16, 2, 0)], ids=["tp8-pp8", "pp8", "tp16-pp2"])
@pytest.mark.parametrize("shards", [1, 5])
def test_any_width_reads_every_byte_once(shards, layout, tmp_path):
    c = models.config("llama", **models.heads(16, 4, 8, vocab_size=100), num_hidden_layers=8, intermediate_size=160)
    source = models.write(tmp_path / "in", c, torch.bfloat16, seed="wide", shards=shards)
    plan = reshard("plan", source.path, tmp_path / "out", "--to=trtllm", "--checkpoint_only", *layout.options(), "--json").json()
    assert plan["bytes_read"] == sum(t.nbytes for t in source.tensors.values())
    assert [f["path"] for f in plan["files"]] == [f"rank{rank}.safetensors" for rank in layout.ranks] + ["config.json"]
    to_trtllm(source.path, tmp_path / "out", layout, "--max_memory=64MiB")
    assert_trtllm_folder(tmp_path / "out", source, layout, source.dtype)
    sizes = {name: path.stat().st_size for name, path in files(tmp_path / "out").items()}
    assert sizes == {f["path"]: f["size"] for f in plan["files"]}
    template = f"--hf_model_name={source.path}"
    convert(tmp_path / "out", tmp_path / "back", template, "--max_memory=64MiB", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), source.tensors)


# A process of its own between, since a child is counted with what its parent held when it began.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def peak_kilobytes(*arguments):
    """(standard output, peak resident memory) of a command of the program."""
    command = [sys.executable, "-c", MEASURE, BINARY, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr.split()[-1])


def sparse_model(folder, *options):
    """Writes a folder whose data are holes; returns the bytes of its shards."""
    subprocess.run([sys.executable, ROOT / "bench" / "make_model.py", folder, "--sparse", *options], check=True, timeout=120)
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def test_a_plan_of_405b_takes_little_memory(tmp_path):
    size = sparse_model(tmp_path / "in", "--shape=405b")
    options = ["--to=trtllm", "--checkpoint_only", "--tp_size=8", "--pp_size=2", "--max_memory=64MiB"]
    out, peak = peak_kilobytes("plan", tmp_path / "in", tmp_path / "out", *options, "--json")
    plan = json.loads(out)
    assert len(plan["files"]) == 17
    assert plan["peak_memory"] <= 64 << 20
    assert plan["bytes_read"] == plan["source"]["bytes"] and 0 < size - plan["bytes_read"] < size / 1000  # the headers
    assert peak < 64 << 10


@pytest.mark.slow
def test_a_conversion_to_many_ranks_keeps_to_its_memory(tmp_path):
    sparse_model(tmp_path / "in", "--shape=small", "--layers=2")
    options = ["--to=trtllm", "--checkpoint_only", "--tp_size=8", "--pp_size=2", "--max_memory=64MiB", "--io_engine=discard"]
    _, peak = peak_kilobytes("convert", tmp_path / "in", tmp_path / "out", *options)
    assert peak < 64 << 10
