"""Family x direction x dtype x shape, byte for byte against an independent mapping (nemo_reference) and torch's casts."""

import dataclasses
import itertools

import models
import nemo_reference
import pytest
import torch
from program import assert_nothing_published, convert, files, hashes, reshard

STYLES = (4, 5)
ROPE = {"linear": models.LINEAR_ROPE, "llama3": models.LLAMA3_ROPE}
BIASED = dict(models.SHAPES["6x3"], attention_bias=True, mlp_bias=True)


@dataclasses.dataclass
class Cell:
    family: str
    settings: dict
    dtype: str
    style: int  # of config.json: transformers 4 or 5
    shards: int


def usual_cells():
    """Every family with every shape; dtype, style of config.json and number of shards take turns."""
    for i, (family, shape) in enumerate(itertools.product(models.CLASSES, models.SHAPES)):
        dtype = list(models.DTYPES)[i % 3]
        yield f"{family}-{shape}-{dtype}", Cell(family, models.SHAPES[shape], dtype, STYLES[i // 2 % 2], (1, 5)[i % 2])
    for i, dtype in enumerate(models.DTYPES):
        yield f"llama-biased-{dtype}", Cell("llama", BIASED, dtype, STYLES[i % 2], (1, 5)[i % 2])
    for style, kind in itertools.product(STYLES, ROPE):
        yield f"llama-{kind}-{style}", Cell("llama", dict(models.SHAPES["8x2"], rope_parameters=ROPE[kind]), "bf16", style, 1)
    for style, window in [(4, None), (5, None), (4, 32), (5, 32)]:
        yield f"mistral-window-{window}-{style}", Cell("mistral", dict(models.SHAPES["8x2"], sliding_window=window), "bf16", style, 1)


def all_cells():
    for family, shape, dtype, style, shards in itertools.product(models.CLASSES, models.SHAPES, models.DTYPES, STYLES, (1, 5)):
        yield f"{family}-{shape}-{dtype}-{style}-{shards}", Cell(family, models.SHAPES[shape], dtype, style, shards)


USUAL = dict(usual_cells())
CELLS = {**USUAL, **dict(all_cells())}
CASTS = [(a, b) for a, b in itertools.permutations(models.DTYPES, 2)]
PARAMETERS = [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in CELLS]
cells = pytest.mark.parametrize("source", PARAMETERS, indirect=True)
casts = pytest.mark.parametrize("stored, wanted", CASTS, ids=["-".join(x) for x in CASTS])


@pytest.fixture
def source(request, tmp_path):
    cell = CELLS[request.param]
    c = models.config(cell.family, **cell.settings)
    dtype = models.DTYPES[cell.dtype]
    return models.write(tmp_path / "in", c, dtype, seed=request.param, style=cell.style, shards=cell.shards)


def assert_nemo_folder(folder, c, tensors, dtype, name="example/model"):
    """Every file of the folder, byte for byte."""
    expected = {"model_config.yaml", "model_weights/common.pt", "model_weights/metadata.json"}
    expected |= {"model_weights/" + x for x in nemo_reference.object_files(c.num_hidden_layers)}
    got = files(folder)
    for key, array in nemo_reference.nemo_arrays(c, tensors).items():
        content = {".zarray": array.zarray().encode(), **dict(array.chunks())}
        for file, want in content.items():
            path = f"model_weights/{key}/{file}"
            assert path in got, path
            assert got[path].read_bytes() == want, path
            expected.add(path)
    assert set(got) == expected
    text = nemo_reference.config_text(nemo_reference.nemo_config(c, dtype, name=name))
    assert got["model_config.yaml"].read_text() == text


@cells
def test_hf_to_nemo(source, tmp_path):
    convert(source.path, tmp_path / "out", "--hf_model_name=example/model", to="nemo")
    assert_nemo_folder(tmp_path / "out", source.config, source.tensors, source.dtype)


@cells
def test_nemo_to_hf(source, tmp_path):
    groups = source.config.num_key_value_heads
    tp = next(t for t in (4, 3, 7, 2, 1) if groups % t == 0 and source.config.intermediate_size % t == 0)
    tp = tp if source.config.vocab_size % tp == 0 else 1
    nemo_reference.write_nemo(tmp_path / "nemo", source.config, source.tensors, source.dtype, tp=tp)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


@cells
def test_round_trip_has_the_hashes_of_hf_to_hf(source, tmp_path):
    template = f"--hf_model_name={source.path}"
    limit = "--max_shard_size=8KB"
    convert(source.path, tmp_path / "want", limit, to="hf")
    want = hashes(tmp_path / "want")
    nemo = []
    for workers in (1, 2, 5):
        there, back = tmp_path / f"nemo{workers}", tmp_path / f"hf{workers}"
        convert(source.path, there, template, f"--workers={workers}", to="nemo")
        convert(there, back, template, f"--workers={workers}", limit, to="hf")
        assert hashes(back) == want, f"{workers} workers"
        nemo.append(hashes(there))
    assert nemo[0] == nemo[1] == nemo[2]


@casts
@pytest.mark.parametrize("family", models.CLASSES)
def test_hf_to_nemo_with_a_cast(family, stored, wanted, tmp_path):
    source = models.write(tmp_path / "in", models.config(family, **models.SHAPES["6x3"]), models.DTYPES[stored], seed=family)
    convert(source.path, tmp_path / "out", "--hf_model_name=example/model", f"--dtype={wanted}", to="nemo")
    dtype = models.DTYPES[wanted]
    assert_nemo_folder(tmp_path / "out", source.config, models.cast(source.tensors, dtype), dtype)


@casts
@pytest.mark.parametrize("family", models.CLASSES)
def test_nemo_to_hf_with_a_cast(family, stored, wanted, tmp_path):
    source = models.write(tmp_path / "in", models.config(family, **models.SHAPES["6x3"]), models.DTYPES[stored], seed=family)
    nemo_reference.write_nemo(tmp_path / "nemo", source.config, source.tensors, models.DTYPES[stored], tp=3)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", f"--dtype={wanted}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), models.cast(source.tensors, models.DTYPES[wanted]))
    assert f'"dtype": "{models.DTYPE_NAMES[wanted]}"' in (tmp_path / "out" / "config.json").read_text()


@casts
def test_nemo_to_nemo_with_a_cast(stored, wanted, tmp_path):
    source = models.write(tmp_path / "in", models.config("qwen3", **models.SHAPES["8x2"]), models.DTYPES[stored], seed="cast")
    nemo_reference.write_nemo(tmp_path / "nemo", source.config, source.tensors, models.DTYPES[stored], tp=2)
    convert(tmp_path / "nemo", tmp_path / "out", f"--dtype={wanted}", "--model_type=qwen", to="nemo")
    arrays = nemo_reference.nemo_arrays(source.config, models.cast(source.tensors, models.DTYPES[wanted]))
    got = files(tmp_path / "out" / "model_weights")
    for key, array in arrays.items():
        for file, want in array.chunks():
            assert got[f"{key}/{file}"].read_bytes() == want, key
    precision = {"bf16": "bf16", "fp16": "16", "fp32": "32"}[wanted]
    assert f"\nprecision: {precision}\n" in (tmp_path / "out" / "model_config.yaml").read_text()


@pytest.mark.parametrize("chunk", [(1, 7, 5), (2, 16, 48), (1, 1, 48), (3, 100, 100)], ids=str)
def test_any_chunk_grid_reads_the_same(chunk, tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["6x3"]), torch.float16, seed="grid")
    nemo_reference.write_nemo(tmp_path / "nemo", source.config, source.tensors, torch.float16)
    arrays = nemo_reference.nemo_arrays(source.config, source.tensors)
    for key, array in arrays.items():
        array.chunk = chunk[-array.value.ndim :]
        folder = tmp_path / "nemo" / "model_weights" / key
        for old in folder.iterdir():
            old.unlink()
        (folder / ".zarray").write_text(array.zarray())
        for name, content in array.chunks():
            (folder / name).write_bytes(content)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_padded_vocabularies_are_cut_to_the_template(family, tmp_path):
    source = models.write(tmp_path / "in", models.config(family, **models.SHAPES["vocab97"]), torch.bfloat16, seed="padded")
    nemo_reference.write_nemo(tmp_path / "nemo", source.config, source.tensors, torch.bfloat16, rows=128)
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    convert(tmp_path / "nemo", tmp_path / "cut", "--vocab_size=97", f"--model_type={models.GROUPS[family]}", to="hf")
    models.assert_equal(models.read(tmp_path / "cut"), source.tensors)


def test_untied_embeddings_are_written_twice_and_read_back_as_one(tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["tied"]), torch.bfloat16, seed="untie")
    convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", "--untie_embeddings", to="nemo")
    got = files(tmp_path / "nemo" / "model_weights")
    for key, array in nemo_reference.nemo_arrays(source.config, source.tensors, shared=False).items():
        for file, want in array.chunks():
            assert got[f"{key}/{file}"].read_bytes() == want, key
    assert "\nshare_embeddings_and_output_weights: false\n" in (tmp_path / "nemo" / "model_config.yaml").read_text()
    convert(tmp_path / "nemo", tmp_path / "out", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


@pytest.mark.parametrize("biases", ["attention_bias", "mlp_bias"])
def test_biases_a_nemo_model_cannot_say_are_refused(biases, tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["6x3"], **{biases: True}), torch.bfloat16)
    result = convert(source.path, tmp_path / "out", "--hf_model_name=example/model", to="nemo", code=5)
    assert "bias" in result.err
    assert_nothing_published(tmp_path / "out")


ROPES = {"llama3 of another factor": dict(models.LLAMA3_ROPE, factor=32.0)}
ROPES["yarn"] = dict(rope_type="yarn", rope_theta=10000.0, factor=2.0, original_max_position_embeddings=32)
ROPES["dynamic"] = dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_rope_that_no_nemo_model_reads_is_refused_or_kept_for_the_way_back(rope, style, tmp_path):
    c = models.config("llama", **models.SHAPES["6x3"], rope_parameters=rope)
    source = models.write(tmp_path / "in", c, torch.bfloat16, style=style)
    result = convert(source.path, tmp_path / "no", "--hf_model_name=example/model", to="nemo", code=5)
    assert "allow_rope" in result.err and rope["rope_type"] in result.err
    assert_nothing_published(tmp_path / "no")
    convert(source.path, tmp_path / "nemo", "--hf_model_name=example/model", "--allow_rope=config_only", to="nemo")
    convert(tmp_path / "nemo", tmp_path / "out", "--model_type=llama", f"--vocab_size={c.vocab_size}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)
    back = models.read_config(tmp_path / "out").rope_parameters
    assert {k: v for k, v in back.items() if k in rope} == rope


def test_without_a_name_or_tokenizer_the_source_folder_is_the_tokenizer(tmp_path):
    source = models.write(tmp_path / "in", models.config("llama", **models.SHAPES["4x4"]), torch.bfloat16)
    result = reshard("convert", source.path, tmp_path / "out", "--to=nemo")
    assert str(source.path) in result.err
    assert_nemo_folder(tmp_path / "out", source.config, source.tensors, torch.bfloat16, name=str(source.path))
