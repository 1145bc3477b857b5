"""How options are spelled, and what the program says to words that it does not know."""
import json
import os
import re
import shutil

import pytest

import tiny_model
from black_box import TO_HF, TO_NEMO, assert_refused, assert_unpublished, convert, run
from program import BINARY, hashes


def plan(*arguments, **options):
    result = run("plan", *arguments, "--json", **options)
    assert result.code == 0, result
    return json.loads(result.out)


@pytest.mark.parametrize("spelling", [
    ("{in}", "{out}", "--to=nemo"),
    ("{in}", "{out}", "--to", "nemo"),
    ("--to=nemo", "{in}", "{out}"),
    ("--input_model={in}", "--output_model={out}", "--convert_from=hf", "--convert_to=nemo"),
    ("--input-model={in}", "--output-model={out}", "--convert-from=hf", "--convert-to=nemo"),
    ("--input_model", "{in}", "--output-model", "{out}", "--convert_to", "nemo"),
    ("--in-path", "{in}", "--out-path={out}", "--to=nemo"),
    ("--in_path={in}", "--out_path", "{out}", "--to=nemo"),
    ("{in}", "{out}", "--to=hf", "--to=nemo"),
    ("{in}", "{out}", "--convert_to=hf", "--convert-to", "nemo"),
    ("{in}", "{out}", "--to=nemo", "--dtype=fp32", "--dtype=bf16"),
    ("{in}", "{out}", "--to=nemo", "--dtype=fp32", "--precision", "bf16"),
    ("{in}", "{out}", "--to=nemo", "--workers=3", "--max-memory=128MiB"),
], ids=" ".join)
def test_spellings_of_one_command(source, tmp_path, spelling):
    """'-' and '_' are equal in names, '=' and a blank before a value, the last of two wins; all mean the same plan."""
    words = [word.replace("{in}", str(source)).replace("{out}", str(tmp_path / "out")) for word in spelling]
    expected = plan(source, tmp_path / "out", *TO_NEMO)
    assert plan(*words, "--hf-model-name=example/model")["plan_id"] == expected["plan_id"]


@pytest.mark.parametrize("value, dtype", [("bf16", "BF16"), ("bf16-mixed", "BF16"), ("16", "F16"), ("16-mixed", "F16"),
                                          ("32", "F32"), ("fp32", "F32")])
def test_precision_of_the_scripts(source, tmp_path, value, dtype):
    convert(source, tmp_path / "out", "--to=hf", "--precision", value)
    assert {tensor.dtype for tensor in tiny_model.read_hf(tmp_path / "out").values()} == {dtype}


@pytest.mark.parametrize("word, meant", [("--overide", "--override"), ("--max_shard_sizes=1GB", "--max_shard_size"),
                                         ("--dtyp=bf16", "--dtype"), ("--ouput_model=x", "--output_model"),
                                         ("--clustr=slurm", "--cluster")])
def test_unknown_option_is_refused_with_the_one_that_was_meant(source, tmp_path, word, meant):
    result = run("convert", source, tmp_path / "out", *TO_NEMO, word)
    assert_refused(result, (2,), word.split("=")[0].replace("_", "[-_]"), r"did you mean", meant.replace("_", "[-_]"))
    assert not (tmp_path / "out").exists()


def test_unknown_option_like_no_other(source, tmp_path):
    assert_refused(run("convert", source, tmp_path / "out", *TO_NEMO, "--zzzzzzzzzz"), (2,), r"--zzzzzzzzzz")


def test_unknown_command():
    assert_refused(run("convrt"), (2,), r"convrt", r"did you mean", r"convert")


@pytest.mark.parametrize("words, said", [
    (("--dtype=int8",), r"int8.*|bf16"),
    (("--to=gguf",), r"gguf"),
    (("--model_type=gpt2",), r"gpt2"),
    (("--workers=many",), r"many"),
    (("--workers=0",), r"workers"),
    (("--workers=-1",), r"workers|-1"),
    (("--max_memory=lots",), r"lots"),
    (("--max_shard_size=5GiBs",), r"5GiBs"),
    (("--max_shard_size=0GB",), r"max_shard_size"),
    (("--max_shard_size=1B",), r"10GB(?!.*iB)"),
    (("--max_shard_size=5GiB",), r"a size in KB, MB, GB or TB"),
    (("--max_shard_size=20kib",), r"a size in KB, MB, GB or TB"),
    (("--vocab_size=-3",), r"vocab_size|-3"),
    (("--num_gpus=abc",), r"num_gpus.*abc"),
    (("--num_nodes=0",), r"num_nodes"),
    (("--verify=maybe",), r"--verify was given a value"),
    (("--override=false",), r"--override was given a value"),
    (("--io_engine=discard", "--verify"), r"--verify.*--io_engine"),
    (("--precision=int8",), r"the dtype 'int8'"),
    (("--max_memory=1MB",), r"1000000 bytes, expected at least \d+MiB"),
    (("--log_format=xml",), r"xml"),
    (("--allow_rope=yes",), r"yes|allow_rope"),
    (("--dtype",), r"no value behind --dtype, expected --dtype=DTYPE"),
    (("third",), r"third"),
])
def test_value_that_makes_no_sense(source, tmp_path, words, said):
    result = run("convert", source, tmp_path / "out", "--to=nemo", *words)
    assert_refused(result, (2,), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [(), ("{in}",), ("{in}", "{out}")])
def test_missing_arguments(source, tmp_path, words):
    words = [word.replace("{in}", str(source)).replace("{out}", str(tmp_path / "out")) for word in words]
    assert_refused(run("convert", *words), (2,), r"input_model|output_model|convert_to|--to|IN|OUT")


def test_memory_below_the_need_names_the_need(source, tmp_path):
    assert_refused(run("convert", source, tmp_path / "out", *TO_NEMO, "--max_memory=1KiB"), (2,), r"max_memory", r"\d")


@pytest.mark.parametrize("base, word, said", [
    ("hf", "--num_gpus=8", r"num_gpus"), ("hf", "--num_nodes=2", r"num_nodes"), ("nemo", "--cpu-only", r"cpu[-_]only"),
    ("nemo", "--tmp-out-path=x.pt", r"tmp[-_]out[-_]path")])
def test_needless_option_is_accepted_with_one_line(tmp_path, base, word, said):
    write, arguments = {"hf": (tiny_model.write_hf, TO_NEMO), "nemo": (tiny_model.write_nemo, TO_HF)}[base]
    write(tmp_path / "in")
    plain = convert(tmp_path / "in", tmp_path / "plain", *arguments)
    result = convert(tmp_path / "in", tmp_path / "out", *arguments, word)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "plain")
    lines = [line for line in (result.out + result.err).splitlines() if re.search(said, line)]
    assert len(lines) == 1, result
    assert len((result.out + result.err).splitlines()) == len((plain.out + plain.err).splitlines()) + 1, result


@pytest.mark.parametrize("source_kind, arguments, word", [
    ("hf", ("--to=hf",), "--vocab_size=7"), ("hf", ("--to=hf",), "--allow_rope=config_only"),
    ("hf", ("--to=hf",), "--hf_model_name=does/not"), ("hf", TO_NEMO, "--max_shard_size=1GB")])
def test_option_that_means_nothing_between_two_kinds_is_told(tmp_path, source_kind, arguments, word):
    source = tiny_model.write_hf(tmp_path / "in")
    result = convert(source, tmp_path / "out", *arguments, word)
    assert f"{word.split('=')[0]} is not needed: it means nothing from {source_kind} to" in result.err, result


@pytest.mark.parametrize("option", ["--load_by_shard", "--load_model_on_cpu"])
def test_options_of_the_original_that_change_nothing(source, tmp_path, option):
    words = ("--to=trtllm", "--checkpoint_only")
    convert(source, tmp_path / "plain", *words)
    result = convert(source, tmp_path / "out", *words, option)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "plain")
    assert f"{option} is not needed" in result.err


@pytest.mark.parametrize("word", ["--vocab_size=7", "--hf_model_name=does/not"])
def test_hint_that_means_nothing_for_what_is_looked_at_is_told(source, nemo, word):
    name = word.split("=")[0]
    for words in (("inspect", source), ("verify", source, source)):
        result = run(*words, word)
        assert result.code == 0 and f"{name} is not needed: it means nothing for hf" in result.err, result
        assert "not needed" not in run(*words, word, "--quiet").err
    assert "not needed" not in run("inspect", nemo, "--vocab_size=11").err
    assert "not needed" not in run("verify", source, nemo, "--vocab_size=11").err


def test_notes_and_errors_of_inspect_as_json_lines(source, tmp_path):
    note, = run("inspect", source, "--vocab_size=7", "--log_format=json").err.splitlines()
    assert json.loads(note)["event"] == "note"
    error, = run("inspect", tmp_path / "none", "--log_format=json").err.splitlines()
    assert json.loads(error)["code"] == "not_found"


@pytest.mark.parametrize("words, is_json", [
    (("--log_format=json", "--log-format", "text"), False), (("--log_format=text", "--log-format", "json"), True),
    (("--", "--log_format=json"), False)])
def test_of_two_log_formats_the_last_counts(tmp_path, words, is_json):
    assert run("inspect", tmp_path / "none", *words).err.startswith("{" if is_json else "reshard: error")


def test_option_that_means_something_is_not_told(source, nemo, tmp_path):
    for folder, words in ((source, (*TO_NEMO, "--allow_rope=config_only")), (nemo, (*TO_HF, "--max_shard_size=1GB"))):
        assert "not needed" not in run("plan", folder, tmp_path / "out", *words).err


def test_words_behind_two_dashes_are_paths(source, tmp_path):
    folder = source.rename(tmp_path / "--json")
    result = run("inspect", "--", folder.name, cwd=tmp_path)
    assert result.code == 0 and folder.name in result.out, result
    assert run("verify", "--json", "--", folder.name, folder.name, cwd=tmp_path).out.startswith("{")
    assert run("convert", "--to=hf", folder, "--", "--out", cwd=tmp_path).code == 0
    assert (tmp_path / "--out" / "model.safetensors").exists()


def test_short_help(source):
    assert run("inspect", source, "-h").out == run("inspect", "--help").out


def link_named_ns(folder):
    folder.mkdir()
    (folder / "ns").symlink_to(BINARY)
    return folder


def test_called_ns_it_wants_to_be_told_the_target_too(source, tmp_path):
    """As the original does: no kind is its default."""
    program = link_named_ns(tmp_path / "bin") / "ns"
    assert_refused(run("convert", source, tmp_path / "out", program=program), (2,), r"no target kind.*--to")


@pytest.mark.parametrize("missing", ["--input_model", "--output_model", "--convert_to", "--num_gpus"])
def test_called_ns_it_demands_what_the_original_demands(source, tmp_path, missing):
    words = [f"--input_model={source}", f"--output_model={tmp_path / 'out'}", "--convert_to=hf", "--num_gpus=1"]
    program = link_named_ns(tmp_path / "bin") / "ns"
    words = [word for word in words if not word.startswith(missing + "=")]
    said = {"--input_model": "no input", "--output_model": "no output", "--convert_to": "no target kind"}
    assert_refused(run("convert", *words, program=program), (2,), said.get(missing, "no --num_gpus"))


@pytest.mark.parametrize("words, whole", [
    (("--over",), "--override"), (("--max-shard", "1GB"), "--max_shard_size=1GB"), (("--prec=16",), "--precision=16"),
    (("--hf-model=x/y",), "--hf_model_name=x/y")])
def test_beginnings_of_the_options_of_scripts(source, tmp_path, words, whole):
    """argparse takes them where they are not ambiguous."""
    assert plan(source, tmp_path / "out", "--to=hf", *words) == plan(source, tmp_path / "out", "--to=hf", whole)


@pytest.mark.parametrize("word", ["--input", "--convert_t=hf", "--clust=x", "--num=1", "--o"])
def test_beginnings_of_the_options_of_ns_are_not_taken(source, tmp_path, word):
    """Click takes none, and what two options begin with is neither."""
    assert_refused(run("convert", source, tmp_path / "o", "--to=hf", word), (2,), "is not known")


def test_beginnings_of_options_of_a_trtllm_target(source, tmp_path):
    planned = plan(source, tmp_path / "out", "--to=trtllm", "--use_weight", "--weight_only_prec", "int4")
    assert planned == plan(source, tmp_path / "out", "--to=trtllm", "--use_weight_only", "--weight_only_precision=int4")
    assert_refused(run("plan", source, tmp_path / "out", "--to=trtllm", "--max_b"), (2,), "--max_b is not known")
    assert_refused(run("plan", source, tmp_path / "out", "--to=trtllm", "-sq", "0.5"), (5,), "activations")


def test_a_value_may_look_like_an_option(source, tmp_path):
    """As in Click, an option takes the next word, whatever it is."""
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf", "--workers", "--verify"), (2,), "workers.*--verify")
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf", "--workers", "-3"), (2,), "workers.*-3")


def test_a_precision_without_a_value_is_int8(source, tmp_path):
    words = (source, tmp_path / "out", "--to=trtllm", "--use_weight_only", "--weight_only_precision")
    assert plan(*words) == plan(*words[:-1])
    assert plan(*words, "--tp_size=1") == plan(*words[:-1])


@pytest.mark.parametrize("words, whole", [
    ("--use_weight_only --weight_only_precision int4", ("--use_weight_only", "--weight_only_precision=int4")),
    ("--use-weight-only  '--weight_only_precision=int4' --workers 3",
     ("--use_weight_only", "--weight_only_precision=int4")),
    ("--n_layer 7 --moe_top_k 2 --load_by_shard --dtype float16", ("--dtype=fp16",)),
])
def test_options_of_the_checkpoint_in_one_word(source, tmp_path, words, whole):
    given = plan(source, tmp_path / "out", "--to=trtllm", "--dtype=bf16", "--trt_prepare_args", words)
    assert given["plan_id"] == plan(source, tmp_path / "out", "--to=trtllm", "--dtype=bf16", *whole)["plan_id"]


def test_options_of_the_checkpoint_in_one_word_that_are_wrong(source, tmp_path):
    for words, said in (("--use_weight_onyl", "did you mean --use_weight_only"), ("'open", "quotes")):
        result = run("plan", source, tmp_path / "out", "--to=trtllm", f"--trt_prepare_args={words}")
        assert_refused(result, (2,), said)
    result = run("convert", source, tmp_path / "out", "--to=hf", "--trt_prepare_args=--nonsense")
    assert result.code == 0 and "--trt_prepare_args is not needed" in result.err, result


@pytest.mark.parametrize("word", ["--reuse_code", "--no-reuse_code", "--reuse_code_exp=x", "--skip_hf_home_check"])
def test_options_about_the_originals_code_are_needless(source, tmp_path, word):
    result = run("convert", source, tmp_path / "out", "--to=hf", word)
    assert result.code == 0 and "is not needed" in result.err, result


@pytest.mark.parametrize("words, said", [
    (("--sbatch_kwargs=[1]",), "JSON object"), (("--sbatch_arguments={",), "JSON object"),
    (("--sbatch-kwargs={\"a\": {}}",), "JSON object"), (("--time_min=soon",), "time_min.*soon"),
    (("--expname=a/b",), "expname"), (("--expname=",), "expname"), (("--mount_paths=/a",), "SRC:DST"),
    (("--convert_tasks=0",), "convert_tasks"), (("--convert_task=1",), "less than --convert_tasks"),
    (("--exclusive=yes",), "was given a value")])
def test_values_of_launching_options_that_make_no_sense(source, tmp_path, words, said):
    assert_refused(run("convert", source, tmp_path / "out", "--to=hf", *words), (2,), said)


def test_other_commands_of_ns_go_to_the_next_one_on_the_path(tmp_path):
    first, second = link_named_ns(tmp_path / "first"), tmp_path / "second"
    second.mkdir()
    (second / "ns").write_text("#!/bin/sh\necho other \"$@\"\n")
    (second / "ns").chmod(0o755)
    path = {"PATH": f"{first}:{second}:/usr/bin:/bin"}
    assert run("generate", "--x", "a b", program=first / "ns", env=path).out == "other generate --x a b\n"
    assert_refused(run("generate", program=first / "ns", env={"PATH": str(first)}), (2,),
                   r"generate.*no other ns on the PATH")
    assert_refused(run("generate", env=path), (2,), r"generate")


def test_called_ns_it_writes_bf16(tmp_path):
    source = tiny_model.write_hf(tmp_path / "in", named=tiny_model.tensors(dtype="F32"))
    (tmp_path / "ns").symlink_to(BINARY)
    words = (f"--input_model={source}", "--convert_from=hf", "--convert_to=hf", "--num_gpus=1")
    assert run("convert", *words, f"--output_model={tmp_path / 'a'}", program=tmp_path / "ns").code == 0
    assert run("convert", *words, f"--output_model={tmp_path / 'b'}").code == 0
    assert {tensor.dtype for tensor in tiny_model.read_hf(tmp_path / "a").values()} == {"BF16"}
    assert {tensor.dtype for tensor in tiny_model.read_hf(tmp_path / "b").values()} == {"F32"}


def test_name_of_a_template_that_is_not_here(nemo, tmp_path):
    result = run("convert", nemo, tmp_path / "out", "--to=hf", "--hf_model_name=example/not-in-the-cache")
    assert_refused(result, (3,), r"example/not-in-the-cache", r"folder|cache|download")
    assert_unpublished(tmp_path / "out")


def test_a_given_kind_settles_a_folder_that_may_be_of_two(source, nemo, tmp_path):
    for name in os.listdir(source):
        shutil.copy(source / name, nemo / name)
    embedding = nemo / "model_weights" / "model.embedding.word_embeddings.weight" / "0.0"
    for kind, other in [("hf", embedding), ("nemo", nemo / "model.safetensors")]:
        other.rename(tmp_path / "away")  # what the other kind cannot be read without
        options = TO_HF[1:] if kind == "nemo" else ()
        result = run("convert", nemo, tmp_path / f"from-{kind}", f"--from={kind}", "--to=hf", *options)
        assert result.code == 0, result
        (tmp_path / "away").rename(other)
    assert_refused(run("convert", nemo, tmp_path / "out", "--from=trtllm", "--to=hf"), (6,), "trtllm", r"\bhf\b")


def test_a_checkpoint_of_tensorrt_llm_is_no_huggingface_folder(source, tmp_path):
    convert(source, tmp_path / "trtllm", "--to=trtllm", "--checkpoint_only")
    result = run("convert", tmp_path / "trtllm", tmp_path / "out", "--from=hf", "--to=hf")
    assert_refused(result, (6,), "kind trtllm", "expected hf")
