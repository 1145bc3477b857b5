"""TensorRT-LLM checkpoints whose writer padded the tables itself, so that the config counts padding: NeMo's exporter, others."""

import itertools
import json

import models
import pytest
import trtllm_reference
from program import assert_nothing_published, convert, hashes, reshard
from safetensors.torch import load_file, save_file
from trtllm_models import Cell, assert_trtllm_folder, hf_settings, sample, to_trtllm, write_model
from trtllm_reference import Layout

VOCABULARY = 45
EMBEDDING, HEAD = "transformer.vocab_embedding.weight", "lm_head.weight"
LAYOUTS = {
    "tp1": Layout(),
    "tp2": Layout(2),
    "tp4 pp2": Layout(4, 2),
    "rows": Layout(4, 2, 0),
    "columns": Layout(2, 1, 1),
    "shared": Layout(2, 1, 0, True),
    "shared whole": Layout(1, 1, None, True),
}
# whose config.json it is: of NeMo's exporter, with and without `mapping`, or one like TensorRT-LLM's own
WRITERS = ["exporter", "exporter flat", "other"]
CELLS = {
    " ".join(map(str, cell)): cell for cell in itertools.product(LAYOUTS, (46, 64, 256), ("option", "template"), WRITERS)
}


def write(tmp_path, layout, rows, writer="exporter"):
    """A model, and a checkpoint of it with tables of so many rows."""
    shape = "tied-odd" if layout.shared else "groups4-odd"
    source = write_model(tmp_path / "in", Cell("llama", shape, Layout(), "bf16", 4, 1), "padding")
    folder, settings = tmp_path / "trtllm", {**hf_settings(source), "vocab_size": rows}
    tensors = trtllm_reference.with_rows(source.tensors, rows)
    trtllm_reference.write_trtllm(folder, source.config, tensors, settings, layout, source.dtype)
    if writer != "other":
        cfg = trtllm_reference.exporter_config(settings, layout, source.dtype, mapping=writer == "exporter")
        (folder / "config.json").write_text(trtllm_reference.config_text(cfg))
    return source, folder


def told(by, source):
    return f"--vocab_size={VOCABULARY}" if by == "option" else f"--hf_model_name={source.path}"


def edit(folder, rank, name, row):
    path = folder / f"rank{rank}.safetensors"
    tensors = load_file(path)
    tensors[name][row, 3] = 0.5
    save_file(tensors, path)


@pytest.mark.parametrize("cell", sample(CELLS, 5))
def test_rows_that_the_writer_added_are_dropped(cell, tmp_path):
    layout, rows, by, writer = CELLS[cell]
    source, folder = write(tmp_path, LAYOUTS[layout], rows, writer)
    convert(folder, tmp_path / "out", told(by, source), to="hf")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["vocab_size"] == VOCABULARY
    want = dict(source.tensors)
    if not settings["tie_word_embeddings"]:
        want.setdefault("lm_head.weight", want["model.embed_tokens.weight"])
    models.assert_equal(models.read(tmp_path / "out"), want)


@pytest.mark.parametrize("by", ["option", "template"])
def test_a_checkpoint_cut_anew_has_the_padding_of_its_own_ranks_only(by, tmp_path):
    source, folder = write(tmp_path, Layout(4, 2, 0), 64)
    to_trtllm(folder, tmp_path / "out", Layout(2), told(by, source))
    assert_trtllm_folder(tmp_path / "out", source, Layout(2), source.dtype)


def test_nemo_gets_the_vocabulary_alone(tmp_path):
    source, folder = write(tmp_path, Layout(4), 64)
    for way, target in (folder, "a"), (source.path, "b"):
        convert(way, tmp_path / target, f"--hf_model_name={source.path}", to="nemo")
    a, b = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert {name: a[name] for name in a if name.startswith("model_weights")} == {
        name: b[name] for name in b if name.startswith("model_weights")
    }
    assert a["model_config.yaml"] == b["model_config.yaml"]


@pytest.mark.parametrize("by", ["option", "template"])
@pytest.mark.parametrize("name, row, writer", list(zip((EMBEDDING, HEAD, HEAD), (45, 13, 31), WRITERS)))
def test_rows_behind_the_vocabulary_that_are_not_zero_are_refused(name, row, writer, by, tmp_path):
    source, folder = write(tmp_path, Layout(2), 64, writer)
    edit(folder, 1, name, row)
    result = convert(folder, tmp_path / "out", told(by, source), to="hf", code=6)
    who = "--vocab_size" if by == "option" else "template"
    assert all(word in result.err for word in [name, "45", "64", "not zero", who, "config.json"]), result
    assert "model_config" not in result.err
    assert_nothing_published(tmp_path / "out")
    report = reshard("verify", folder, source.path, told(by, source), "--json", code=1).json()
    assert [t["name"] for t in report["tensors"] if t["verdict"] != "equal"] == [f"rank1/{name}"]


@pytest.mark.parametrize("writer", ["exporter", "exporter flat"])
def test_an_exporter_does_not_say_how_many_rows_are_the_vocabulary(writer, tmp_path):
    source, folder = write(tmp_path, Layout(2), 64, writer)
    result = convert(folder, tmp_path / "out", to="hf", code=6)
    assert all(word in result.err for word in ["64", "--vocab_size", "--hf_model_name"]), result
    assert_nothing_published(tmp_path / "out")
    for args, notes in ([], 1), (["--vocab_size=45"], 0):
        report = reshard("inspect", folder, "--json", *args).json()
        assert len(report["notes"]) == notes, report
    assert reshard("verify", folder, source.path, "--vocab_size=45", "--json").json()["equal"] is True


@pytest.mark.parametrize("writer", WRITERS)
def test_all_rows_may_be_the_vocabulary(writer, tmp_path):
    source, folder = write(tmp_path, Layout(1), VOCABULARY, writer)
    convert(folder, tmp_path / "out", "--vocab_size=45", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), source.tensors)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_vocabulary_of_more_rows_than_are_stored_is_refused(writer, tmp_path):
    source, folder = write(tmp_path, Layout(2), 64, writer)
    result = convert(folder, tmp_path / "out", "--vocab_size=65", to="hf", code=6)
    assert "65" in result.err and "64" in result.err and "--vocab_size" in result.err, result
    result = convert(folder, tmp_path / "out", "--vocab_size=44", f"--hf_model_name={source.path}", to="hf", code=6)
    assert "44" in result.err and "45" in result.err and "template" in result.err, result
    settings = {**hf_settings(source), "vocab_size": 65}
    (source.path / "config.json").write_text(json.dumps(settings))
    result = convert(folder, tmp_path / "out", f"--hf_model_name={source.path}", to="hf", code=6)
    assert "65" in result.err and "64" in result.err and "template" in result.err, result
    assert_nothing_published(tmp_path / "out")


def test_a_source_that_says_its_vocabulary_is_not_told_another(tmp_path):
    """The option means nothing for a HuggingFace source, nor for the comparison with the files that were written."""
    source, _ = write(tmp_path, Layout(2), 64)
    to_trtllm(source.path, tmp_path / "out", Layout(2), "--vocab_size=7", "--verify")
    assert_trtllm_folder(tmp_path / "out", source, Layout(2), source.dtype)
