"""NeMo 2: contexts by the real fiddle, weights by the real megatron-core, both ways.

NeMo itself needs a GPU's libraries to be imported; tests/interop/nemo2_standins.py stands in for its classes.
"""

import dataclasses
import json
import shutil

import fiddle
import megatron_jobs
import models
import nemo2_standins as nemo
import nemo_reference
import pytest
import torch
import yaml
from fiddle._src.experimental import serialization
from program import convert, files, reshard

SHAPES = models.SHAPES
TOKENIZER = {"tokenizer.json": '{"a": 1}', "tokenizer_config.json": "{}", "merges.txt": "a b\n"}
SMALL_LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=2.0)
SMALL_LLAMA3.update(original_max_position_embeddings=4096)


@dataclasses.dataclass
class Case:
    family: str
    settings: dict
    dtype: torch.dtype = torch.float32
    cls: str = ""  # of the config
    runs: bool = True  # megatron-core computes what transformers does, without NeMo's own rope scaling


CASES = {
    "llama": Case("llama", SHAPES["8x2"], cls="LlamaConfig"),
    "llama-bf16": Case("llama", SHAPES["3x1"], torch.bfloat16, "LlamaConfig"),
    "llama-tied": Case("llama", SHAPES["tied"], torch.float16, "LlamaConfig"),
    "llama-biased": Case("llama", dict(SHAPES["8x2"], attention_bias=True, mlp_bias=True), cls="LlamaConfig"),
    "llama-linear": Case("llama", dict(SHAPES["8x2"], rope_parameters=models.LINEAR_ROPE), cls="LlamaConfig"),
    "llama-llama3": Case("llama", dict(SHAPES["8x2"], rope_parameters=SMALL_LLAMA3), cls="Llama31Config", runs=False),
    "llama-vocab97": Case("llama", SHAPES["vocab97"], cls="LlamaConfig"),
    "mistral": Case("mistral", dict(SHAPES["8x2"], sliding_window=None), torch.bfloat16, "MistralConfig7B"),
    "mistral-window": Case("mistral", dict(SHAPES["head_dim"], sliding_window=32), cls="MistralConfig7B"),
    "qwen2": Case("qwen2", dict(SHAPES["8x2"], rope_parameters=dict(rope_type="default", rope_theta=1000000)), cls="Qwen2Config"),
    "qwen2-tied": Case("qwen2", SHAPES["tied"], torch.bfloat16, "Qwen2Config"),
    "qwen3": Case("qwen3", SHAPES["8x2"], cls="Qwen3Config"),
    "qwen3-head_dim": Case("qwen3", SHAPES["head_dim"], torch.bfloat16, "Qwen3Config"),
}
cases = pytest.mark.parametrize("name", CASES)


def expected_fields(c, dtype):
    """The fields of a config by the transformers config, from their meaning."""
    theta, linear, _ = nemo_reference.rope(c)
    window = getattr(c, "sliding_window", None) if c.model_type == "mistral" else None
    return dict(
        num_layers=c.num_hidden_layers,
        hidden_size=c.hidden_size,
        ffn_hidden_size=c.intermediate_size,
        num_attention_heads=c.num_attention_heads,
        num_query_groups=c.num_key_value_heads,
        kv_channels=nemo_reference.head_dim(c),
        vocab_size=c.vocab_size,
        seq_length=c.max_position_embeddings,
        layernorm_epsilon=c.rms_norm_eps,
        init_method_std=c.initializer_range,
        rotary_base=theta,
        seq_len_interpolation_factor=linear,
        share_embeddings_and_output_weights=c.tie_word_embeddings,
        add_bias_linear=nemo_reference.biased(c),
        add_qkv_bias=c.model_type == "qwen2",
        qk_layernorm=c.model_type == "qwen3",
        window_size=[window, 0] if window else None,
        normalization="RMSNorm",
        gated_linear_unit=True,
        position_embedding_type="rope",
        activation_func=torch.nn.functional.silu,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Case -> (model, our NeMo 2 folder)."""
    made = {}
    for name, case in CASES.items():
        top = tmp_path_factory.mktemp(name)
        model = models.write(top / "hf", models.config(case.family, **case.settings), case.dtype, seed=name)
        for file, text in TOKENIZER.items():
            (model.path / file).write_text(text)
        convert(model.path, top / "nemo2", to="nemo2")
        made[name] = model, top / "nemo2"
    return made


# -- what we write ----------------------------------------------------------------------------------------------------


def unordered(text):
    """A fiddle document without the order of arguments, which is that of the class's parameters in a version of NeMo."""
    document = json.loads(text)
    for value in document["objects"].values():
        values = [item[1] if item[0].startswith("Index(") and isinstance(item[1], str) else item for item in value["items"]]
        value["items"] = sorted(values, key=json.dumps)
    return json.dumps(document)


def assert_fiddle_writes(text):
    assert unordered(serialization.dump_json(serialization.load_json(text))) == unordered(text)


@cases
def test_io_json_is_what_fiddle_itself_writes_of_it(name, folders):
    assert_fiddle_writes((folders[name][1] / "context" / "io.json").read_text())


@cases
def test_the_context_builds_the_model_that_the_weights_are_of(name, folders):
    model, folder = folders[name]
    built = nemo.load(folder / "context").model
    assert type(built.config).__name__ == CASES[name].cls
    assert type(built) is nemo.model_class(model.config.model_type)
    got = dataclasses.asdict(built.config)
    for field, value in expected_fields(model.config, model.dtype).items():
        assert got[field] == value, field
    if CASES[name].cls == "Llama31Config":
        assert [got[f] for f in ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")] == [32.0, 1.0, 2.0, 4096]
    if model.config.model_type == "qwen3":
        assert got["max_position_embeddings"] == model.config.max_position_embeddings


@cases
def test_parts_of_the_context_load_alone(name, folders):
    context = folders[name][1] / "context"
    assert type(nemo.load(context, "model")) is type(nemo.load(context).model)
    assert nemo.load(context, "model.config") == nemo.load(context).model.config
    assert nemo.load(context, "model.tokenizer").pretrained_model_name == str(context / "nemo_tokenizer")


@cases
def test_model_yaml_has_every_value_of_the_model(name, folders):
    folder = folders[name][1]
    built = nemo.load(folder / "context").model
    said = yaml.safe_load((folder / "context" / "model.yaml").read_text())
    assert said["_target_"] == f"{type(built).__module__}.{type(built).__qualname__}"
    config = said["config"]
    assert config.pop("_target_") == f"{type(built.config).__module__}.{CASES[name].cls}"
    assert config.pop("params_dtype") == {"_target_": str(built.config.params_dtype), "_call_": False}
    assert config.pop("activation_func") == {"_target_": "torch.nn.functional.silu", "_call_": False}
    for field, value in config.items():
        assert getattr(built.config, field) == value, field
    for field in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels"):
        assert field in config


def test_the_tokenizer_comes_along_byte_for_byte(folders):
    folder = folders["llama"][1] / "context" / "nemo_tokenizer"
    assert {p.name: p.read_text() for p in folder.iterdir()} == TOKENIZER


def test_without_tokenizer_files_the_context_names_one_of_the_hub(tmp_path):
    model = models.write(tmp_path / "hf", models.config("llama", **SHAPES["8x2"]), torch.bfloat16)
    convert(model.path, tmp_path / "out", "--hf_model_name=example/model", to="nemo2")
    assert_fiddle_writes((tmp_path / "out" / "context" / "io.json").read_text())
    assert nemo.load(tmp_path / "out" / "context", "model.tokenizer").pretrained_model_name == "example/model"


@cases
def test_round_trip_is_bit_for_bit(name, folders, tmp_path):
    model, folder = folders[name]
    convert(folder, tmp_path / "hf", to="hf")
    models.assert_equal(models.read(tmp_path / "hf"), model.tensors)
    back = models.read_config(tmp_path / "hf")
    for field in ("model_type", "hidden_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(back, field) == getattr(model.config, field), field
    assert nemo_reference.rope(back) == nemo_reference.rope(model.config)
    assert getattr(back, "sliding_window", None) == getattr(model.config, "sliding_window", None)
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == TOKENIZER["tokenizer.json"]


@pytest.mark.parametrize("to", ["nemo", "trtllm", "megatron"])
def test_other_kinds_come_from_it(to, folders, tmp_path):
    model, folder = folders["llama"]
    extra = {"trtllm": ["--checkpoint_only"], "nemo": [f"--hf_model_name={model.path}"], "megatron": []}[to]
    convert(folder, tmp_path / "there", *extra, to=to)
    convert(tmp_path / "there", tmp_path / "back", *([f"--hf_model_name={model.path}"] if to == "nemo" else []), to="hf")
    models.assert_equal(models.read(tmp_path / "back"), model.tensors)


def test_nemo_1_becomes_nemo_2(folders, tmp_path):
    model, folder = folders["qwen2"]
    convert(model.path, tmp_path / "nemo", "--hf_model_name=example/model", to="nemo")
    convert(tmp_path / "nemo", tmp_path / "nemo2", f"--hf_model_name={model.path}", to="nemo2")
    expected = {n: p.read_bytes() for n, p in files(folder / "weights").items()}
    assert {n: p.read_bytes() for n, p in files(tmp_path / "nemo2" / "weights").items()} == expected
    reshard("verify", tmp_path / "nemo2", folder)


def test_a_context_of_the_same_model_is_copied_as_it_is(folders, tmp_path):
    model, folder = folders["llama"]
    given = tmp_path / "given"
    shutil.copytree(folder / "context", given)
    (given / "0f0e").write_bytes(b"a pickle")
    convert(model.path, tmp_path / "out", f"--nemo2_context={given}", to="nemo2")
    assert {n: p.read_bytes() for n, p in files(tmp_path / "out" / "context").items()} == {n: p.read_bytes() for n, p in files(given).items()}


def test_a_context_of_another_model_is_refused(folders, tmp_path):
    result = convert(folders["llama"][0].path, tmp_path / "out", f"--nemo2_context={folders['qwen3-head_dim'][1]}/context", to="nemo2", code=6)
    assert "hidden_size is 40, expected 64 as the model has" in result.err, result


@pytest.mark.parametrize("options", [(), ("--dtype=fp16",)])
def test_a_checkpoint_of_the_kind_keeps_its_context_until_it_is_not_true_any_more(options, folders, tmp_path):
    folder = folders["mistral"][1]
    convert(folder, tmp_path / "out", *options, to="nemo2")
    kept = (tmp_path / "out" / "context" / "io.json").read_text() == (folder / "context" / "io.json").read_text()
    assert kept == (not options)
    assert nemo.load(tmp_path / "out" / "context", "model.config").params_dtype == (torch.float16 if options else torch.bfloat16)


# -- what NeMo's libraries write --------------------------------------------------------------------------------------


def context_of(model, case, folder, **more):
    """io.json as fiddle writes what an importer of NeMo gives: only what is not a class's default need be there."""
    fields = expected_fields(model.config, model.dtype)
    for implied in ("normalization", "gated_linear_unit", "position_embedding_type", "activation_func", "qk_layernorm", "add_qkv_bias"):
        del fields[implied]
    fields = {k: v for k, v in fields.items() if v is not None or k == "window_size" and case.family == "mistral"}
    if case.family == "qwen3":
        fields["max_position_embeddings"] = fields["seq_length"]
    if case.cls == "Llama31Config":
        fields.update(scale_factor=32.0, high_freq_factor=2.0, old_context_len=4096)
    fields.update(more)
    config = fiddle.Config(getattr(nemo, case.cls), **fields)
    tokenizer = fiddle.Config(nemo.AutoTokenizer, pretrained_model_name="nemo_tokenizer")
    context = fiddle.Config(nemo.TrainerContext, model=fiddle.Config(nemo.model_class(case.family), config=config, tokenizer=tokenizer), trainer=None)
    folder.mkdir(parents=True)
    (folder / "io.json").write_text(serialization.dump_json(context))
    return config


def yaml_of(config):
    """model.yaml as NeMo dumps it: every field, classes and functions by name."""
    built = fiddle.build(config)

    def plain(value):
        if isinstance(value, torch.dtype):
            return {"_target_": str(value), "_call_": False}
        if callable(value):
            return {"_target_": f"{value.__module__}.{value.__qualname__}", "_call_": False}
        return value

    fields = {field.name: plain(getattr(built, field.name)) for field in dataclasses.fields(built)}
    target = f"{type(built).__module__}.{type(built).__qualname__}"
    return yaml.safe_dump({"_target_": "nemo.Model", "config": {"_target_": target, **fields}})


def backends(version):
    return ["torch_dist"] if version == "0.16" else ["torch_dist", "zarr"]


SAVED = [(version, backend) for version in megatron_jobs.VERSIONS for backend in backends(version)]


@pytest.fixture(scope="session")
def megatron(folders, tmp_path_factory):
    top = tmp_path_factory.mktemp("megatron")
    jobs = {}
    for version in megatron_jobs.VERSIONS:
        jobs[version] = []
        for name, (model, folder) in folders.items():
            common = dict(hf=str(model.path), prefix="module.")
            jobs[version].append(dict(common, id=f"load {name}", do="load", weights=str(folder / "weights")))
            for backend in backends(version):
                to = str(top / version / backend / name / "weights")
                jobs[version].append(dict(common, id=f"save {name} {backend}", do="save", to=to, backend=backend))
    return megatron_jobs.run(jobs, top), top


@pytest.mark.parametrize("version", megatron_jobs.VERSIONS)
@cases
def test_a_gpt_model_loads_our_weights_strictly_and_computes_what_transformers_does(name, version, folders, megatron):
    difference = megatron[0][version, f"load {name}"]
    assert not isinstance(difference, str), difference
    if CASES[name].runs:
        assert difference < 1e-4


@pytest.mark.parametrize("version, backend", SAVED)
@cases
def test_what_megatron_saves_reads_back_bit_for_bit(name, version, backend, folders, megatron, tmp_path):
    results, top = megatron
    assert results[version, f"save {name} {backend}"] == 0, results[version, f"save {name} {backend}"]
    model = folders[name][0]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "weights").symlink_to(top / version / backend / name / "weights")
    context_of(model, CASES[name], tmp_path / "in" / "context")
    convert(tmp_path / "in", tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)
    back = models.read_config(tmp_path / "out")
    assert (back.model_type, back.max_position_embeddings) == (model.config.model_type, model.config.max_position_embeddings)
    assert nemo_reference.rope(back) == nemo_reference.rope(model.config)


@cases
def test_model_yaml_alone_is_enough(name, folders, tmp_path):
    model, folder = folders[name]
    shutil.copytree(folder, tmp_path / "in")
    shutil.rmtree(tmp_path / "in" / "context")
    config = context_of(model, CASES[name], tmp_path / "in" / "context")
    (tmp_path / "in" / "context" / "model.yaml").write_text(yaml_of(config))
    (tmp_path / "in" / "context" / "io.json").unlink()
    convert(tmp_path / "in", tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)
    assert models.read_config(tmp_path / "out").model_type == CASES[name].family


def test_weights_may_lie_beside_the_context(folders, tmp_path):
    model, folder = folders["llama"]
    shutil.copytree(folder / "weights", tmp_path / "in")
    shutil.copytree(folder / "context", tmp_path / "in" / "context")
    convert(tmp_path / "in", tmp_path / "out", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)


def test_a_vocabulary_that_the_context_does_not_count_must_be_given(folders, tmp_path):
    model, folder = folders["llama"]
    shutil.copytree(folder / "weights", tmp_path / "in" / "weights")
    context_of(model, CASES["llama"], tmp_path / "in" / "context", vocab_size=None)
    result = convert(tmp_path / "in", tmp_path / "out", to="hf", code=6)
    assert "--vocab_size" in result.err, result
    convert(tmp_path / "in", tmp_path / "out", f"--vocab_size={model.config.vocab_size}", to="hf")
    models.assert_equal(models.read(tmp_path / "out"), model.tensors)


def test_inspect_and_plan_know_it(folders, tmp_path):
    said = reshard("inspect", folders["llama"][1], "--json").json()
    assert (said["kind"], said["family"]) == ("nemo2", "llama"), said
    plan = reshard("plan", folders["llama"][0].path, tmp_path / "out", "--to=nemo2", "--json").json()
    assert plan["files"][-1]["path"] == "weights/metadata.json", plan["files"]
