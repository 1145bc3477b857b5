"""Megatron-LM and Megatron-Bridge: arguments by the real argparse and torch, weights by the real megatron-core.

Their trainers need a GPU's libraries to be imported; what of a config they read is written down here.
"""

import argparse
import dataclasses
import os
import pathlib
import pickle
import shutil
import types

import family_reference
import megatron_jobs
import models
import nemo_reference
import pytest
import torch
import yaml
from program import convert, files, reshard

SHAPES = models.SHAPES
TOKENIZER = {"tokenizer.json": '{"a": 1}', "tokenizer_config.json": "{}"}
GPT, MISTRAL = "megatron.bridge.models.gpt_provider.GPTModelProvider", "megatron.bridge.models.mistral.mistral_provider.MistralModelProvider"


@dataclasses.dataclass
class Case:
    family: str
    settings: dict
    dtype: torch.dtype = torch.float32
    rows: int = None  # vocabulary rows of what Megatron saves, where they are padded
    versions: tuple = tuple(megatron_jobs.VERSIONS)  # whose forward has all that the model needs


CASES = {
    "llama": Case("llama", SHAPES["8x2"]),
    "llama-bf16": Case("llama", SHAPES["3x1"], torch.bfloat16),
    "llama-mha": Case("llama", SHAPES["4x4"], torch.float16),
    "llama-tied": Case("llama", SHAPES["tied"]),
    "llama-biased": Case("llama", dict(SHAPES["8x2"], attention_bias=True, mlp_bias=True)),
    "llama-linear": Case("llama", dict(SHAPES["8x2"], rope_parameters=models.LINEAR_ROPE)),
    "llama-llama3": Case("llama", dict(SHAPES["8x2"], rope_parameters=models.LLAMA3_ROPE), versions=("0.12", "0.16")),
    "llama-padded": Case("llama", SHAPES["vocab97"], rows=128),
    "mistral-window": Case("mistral", dict(SHAPES["head_dim"], sliding_window=32)),
    "qwen2": Case("qwen2", SHAPES["8x2"]),
    "qwen3": Case("qwen3", SHAPES["head_dim"], torch.bfloat16),
}
cases = pytest.mark.parametrize("name", CASES)
DTYPES = {torch.float32: "torch.float32", torch.float16: "torch.float16", torch.bfloat16: "torch.bfloat16"}


def window(c):
    return getattr(c, "sliding_window", None) if c.model_type in ("mistral", "mixtral", "ministral3", "phi3") else None


def mixture(c):
    """Those of a model with experts, of releases that have a switch for the gate of the shared ones."""
    experts = family_reference.experts_of(c)
    if not experts:
        return dict(num_experts=None)
    sparse = family_reference.plan(c)
    args = dict(num_experts=getattr(c, experts), moe_router_topk=c.num_experts_per_tok)
    args.update(moe_router_pre_softmax=not getattr(c, "norm_topk_prob", True))
    args.update(moe_layer_freq=1 if all(sparse) else [int(s) for s in sparse])
    args.update(moe_ffn_hidden_size=getattr(c, "moe_intermediate_size", c.intermediate_size))
    if c.model_type == "qwen2_moe":
        args.update(moe_shared_expert_intermediate_size=c.shared_expert_intermediate_size, moe_shared_expert_gate=True)
    return args


def qkv_bias(c):
    """Query, key and value have a bias, and nothing else has."""
    if c.model_type == "internlm3":  # all or none: as transformers has the model
        return False
    return c.model_type == "qwen2" or getattr(c, "qkv_bias", False) or c.model_type == "seed_oss" and c.attention_bias and not c.mlp_bias


def arguments(c, rows=None):
    """The arguments of Megatron-LM (megatron/training/arguments.py) that make a transformers config's model."""
    theta, linear, llama3 = nemo_reference.rope(c)
    grouped = c.num_key_value_heads != c.num_attention_heads
    args = dict(
        num_layers=c.num_hidden_layers,
        hidden_size=c.hidden_size,
        ffn_hidden_size=c.intermediate_size,
        num_attention_heads=c.num_attention_heads,
        group_query_attention=grouped,
        num_query_groups=c.num_key_value_heads if grouped else 1,
        kv_channels=nemo_reference.head_dim(c),
        max_position_embeddings=c.max_position_embeddings,
        seq_length=16,
        position_embedding_type="rope",
        rotary_base=theta,
        rotary_percent=c.rope_parameters.get("partial_rotary_factor", 1.0),
        rotary_interleaved=c.model_type == "ernie4_5",
        rotary_seq_len_interpolation_factor=linear,
        use_rope_scaling=bool(llama3),
        rope_scaling_factor=llama3 or 8.0,
        add_bias_linear=nemo_reference.biased(c),
        add_qkv_bias=qkv_bias(c),
        qk_layernorm=c.model_type in ("qwen3", "qwen3_moe"),
        swiglu=True,
        squared_relu=False,
        normalization="RMSNorm",
        norm_epsilon=c.rms_norm_eps,
        init_method_std=c.initializer_range,
        apply_layernorm_1p=False,
        untie_embeddings_and_output_weights=not c.tie_word_embeddings,
        make_vocab_size_divisible_by=128 if rows else 1,
        tensor_model_parallel_size=1,
        padded_vocab_size=rows or c.vocab_size,
        vocab_size=c.vocab_size,
        **mixture(c),
        window_size=(window(c) - 1, 0) if window(c) else None,
    )
    return args


def provider(c, dtype, rows=None):
    """The model of a run_config.yaml as Megatron-Bridge dumps it: fields of its provider, objects by their target."""
    theta, linear, llama3 = nemo_reference.rope(c)
    return dict(
        _target_=MISTRAL if c.model_type == "mistral" else GPT,
        num_layers=c.num_hidden_layers,
        hidden_size=c.hidden_size,
        ffn_hidden_size=c.intermediate_size,
        num_attention_heads=c.num_attention_heads,
        num_query_groups=c.num_key_value_heads,
        kv_channels=nemo_reference.head_dim(c),
        seq_length=c.max_position_embeddings,
        position_embedding_type="rope",
        rotary_base=theta,
        rotary_percent=1.0,
        seq_len_interpolation_factor=linear,
        rope_scaling=bool(llama3),
        rope_scaling_factor=llama3 or 1.0,
        add_bias_linear=nemo_reference.biased(c),
        add_qkv_bias=c.model_type == "qwen2",
        qk_layernorm=c.model_type == "qwen3",
        gated_linear_unit=True,
        activation_func={"_target_": "torch.nn.functional.silu", "_call_": False},
        attention_backend={"_target_": "megatron.core.transformer.enums.AttnBackend", "_call_": True, "_args_": [5]},
        normalization="RMSNorm",
        layernorm_epsilon=c.rms_norm_eps,
        init_method_std=c.initializer_range,
        share_embeddings_and_output_weights=c.tie_word_embeddings,
        make_vocab_size_divisible_by=128 if rows else 1,
        should_pad_vocab=bool(rows),
        vocab_size=c.vocab_size,
        window_size=[window(c) - 1, 0] if window(c) else None,
        params_dtype={"_target_": DTYPES[dtype], "_call_": False},
        softmax_type="vanilla",
        num_moe_experts=None,
        multi_latent_attention=False,
    )


OUTER = ("vocab_size", "seq_length", "position_embedding_type", "rotary_base", "rotary_percent", "rope_scaling", "rope_scaling_factor")
OUTER += ("share_embeddings_and_output_weights", "make_vocab_size_divisible_by", "should_pad_vocab", "seq_len_interpolation_factor")


def nested(flat):
    """The same as Megatron-Bridge has it since its models have builders."""
    inner = {k: v for k, v in flat.items() if k not in OUTER and k != "_target_"}
    inner.update(_target_="megatron.bridge.models.transformer_config.BridgeTransformerConfig", activation_func="silu")
    outer = {k: v for k, v in flat.items() if k in OUTER}
    names = dict(_builder_="megatron.bridge.models.gpt.GPTModelBuilder", _target_="megatron.bridge.models.gpt.BridgeGPTModelConfig")
    return {**names, "transformer": inner, **outer}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Case -> (model, our Megatron folder)."""
    made = {}
    for name, case in CASES.items():
        top = tmp_path_factory.mktemp(name)
        model = models.write(top / "hf", models.config(case.family, **case.settings), case.dtype, seed=name)
        for file, text in TOKENIZER.items():
            (model.path / file).write_text(text)
        convert(model.path, top / "megatron", "--hf_model_name=example/model", to="megatron")
        made[name] = model, top / "megatron"
    return made


# -- what we write ----------------------------------------------------------------------------------------------------


@cases
def test_common_pt_has_the_arguments_that_megatron_lm_reads(name, folders):
    model, folder = folders[name]
    path = folder / "iter_0000001" / "common.pt"
    with torch.serialization.safe_globals([argparse.Namespace]):
        safely = torch.load(path, weights_only=True)
    common = torch.load(path, weights_only=False)
    assert safely["args"] == common["args"] and isinstance(common["args"], argparse.Namespace)
    assert (common["checkpoint_version"], common["iteration"]) == (3.0, 1)
    got, wanted = vars(common["args"]), arguments(model.config)
    wanted.update(seq_length=model.config.max_position_embeddings, num_query_groups=model.config.num_key_value_heads)
    if not wanted["use_rope_scaling"]:
        del wanted["rope_scaling_factor"]
    del wanted["make_vocab_size_divisible_by"]
    for key, value in wanted.items():
        assert (tuple(got[key]) if isinstance(value, tuple) else got[key]) == value, key
    assert model.config.vocab_size % got["make_vocab_size_divisible_by"] == 0
    assert got["params_dtype"] == model.dtype
    assert (got["tokenizer_type"], got["tokenizer_model"]) == ("HuggingFaceTokenizer", "example/model")


@cases
def test_run_config_has_what_megatron_bridge_reads(name, folders):
    model, folder = folders[name]
    run = yaml.safe_load((folder / "iter_0000001" / "run_config.yaml").read_text())
    wanted = provider(model.config, model.dtype)
    for key in ("attention_backend", "softmax_type", "num_moe_experts", "multi_latent_attention", "make_vocab_size_divisible_by"):
        del wanted[key]
    left_out = ["seq_len_interpolation_factor"] if not wanted["seq_len_interpolation_factor"] else []
    left_out += ["rope_scaling", "rope_scaling_factor"] if not wanted["rope_scaling"] else []
    for key in left_out:  # older releases of Bridge do not know them
        del wanted[key]
        assert key not in run["model"]
    for key, value in wanted.items():
        assert run["model"][key] == value, key
    assert run["model"]["hf_model_id"] == run["tokenizer"]["tokenizer_model"] == "example/model"
    assert (run["model"]["tensor_model_parallel_size"], run["model"]["pipeline_model_parallel_size"]) == (1, 1)
    assert not run["checkpoint"]["save_rng"] and not run["checkpoint"]["save_optim"]


def test_a_folder_that_names_the_tokenizer_is_named_whole(folders, tmp_path):
    path = folders["llama"][0].path
    convert(path, tmp_path / "out", f"--hf_model_name={path}/../{path.name}", to="megatron")
    run = yaml.safe_load((tmp_path / "out" / "iter_0000001" / "run_config.yaml").read_text())
    assert run["tokenizer"]["tokenizer_model"] == run["model"]["hf_model_id"] == str(path.resolve())


def test_the_folder_is_laid_out_as_their_tools_find_it(folders):
    folder = folders["llama"][1]
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "1"
    assert {p.name: p.read_text() for p in (folder / "iter_0000001" / "tokenizer").iterdir()} == TOKENIZER


def test_the_tracker_is_published_last(folders, tmp_path):
    plan = reshard("plan", folders["llama"][0].path, tmp_path / "out", "--to=megatron", "--json").json()
    assert plan["files"][-1]["path"] == "latest_checkpointed_iteration.txt", plan["files"]


def assert_is(model, out):
    models.assert_equal(models.read(out), model.tensors)
    back = models.read_config(out)
    for field in ("model_type", "hidden_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(back, field) == getattr(model.config, field), field
    assert nemo_reference.rope(back) == nemo_reference.rope(model.config)
    assert window(back) == window(model.config)


@cases
def test_round_trip_is_bit_for_bit(name, folders, tmp_path):
    model, folder = folders[name]
    convert(folder, tmp_path / "hf", to="hf")
    assert_is(model, tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == TOKENIZER["tokenizer.json"]


@cases
def test_the_arguments_alone_are_enough(name, folders, tmp_path):
    model, folder = folders[name]
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "iter_0000001" / "run_config.yaml").unlink()
    convert(tmp_path / "in", tmp_path / "hf", to="hf")
    assert_is(model, tmp_path / "hf")


@pytest.mark.parametrize("to", ["nemo", "nemo2", "trtllm"])
def test_other_kinds_come_from_it(to, folders, tmp_path):
    model, folder = folders["llama-bf16"]
    extra = {"trtllm": ["--checkpoint_only"], "nemo": [f"--hf_model_name={model.path}"], "nemo2": []}[to]
    convert(folder, tmp_path / "there", *extra, to=to)
    convert(tmp_path / "there", tmp_path / "back", *([f"--hf_model_name={model.path}"] if to == "nemo" else []), to="hf")
    models.assert_equal(models.read(tmp_path / "back"), model.tensors)


@pytest.mark.parametrize("rope", [dict(models.LLAMA3_ROPE, high_freq_factor=2.0), dict(rope_type="yarn", rope_theta=1e4, factor=2.0)])
def test_rope_scalings_that_megatron_has_no_place_for_are_refused(rope, tmp_path):
    model = models.write(tmp_path / "hf", models.config("llama", **SHAPES["8x2"], rope_parameters=rope), torch.bfloat16)
    result = convert(model.path, tmp_path / "out", "--hf_model_name=example/model", to="megatron", code=5)
    assert "a Megatron model has no place for rope scaling" in result.err and "stays in the hf kind" in result.err, result


# -- what Megatron-LM and Megatron-Bridge write -----------------------------------------------------------------------


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
            rows = CASES[name].rows
            common = dict(hf=str(model.path), prefix="")
            jobs[version].append(dict(common, id=f"load {name}", do="load", weights=str(folder / "iter_0000001")))
            for backend in backends(version):
                to = str(top / version / backend / name / "iter_0000100")
                more = dict(backend=backend, args=arguments(model.config, rows), rows=rows)
                jobs[version].append(dict(common, id=f"save {name} {backend}", do="save", to=to, **more))
    return megatron_jobs.run(jobs, top), top


@pytest.mark.parametrize("version", megatron_jobs.VERSIONS)
@cases
def test_a_gpt_model_loads_our_weights_strictly_and_computes_what_transformers_does(name, version, folders, megatron):
    difference = megatron[0][version, f"load {name}"]
    assert not isinstance(difference, str), difference
    if version in CASES[name].versions:
        assert difference < 1e-4


def saved(megatron, version, backend, name, top):
    """A copy of what Megatron saved, with the file that its trainer writes beside it."""
    results, folder = megatron
    assert results[version, f"save {name} {backend}"] == 0, results[version, f"save {name} {backend}"]
    shutil.copytree(folder / version / backend / name, top)
    (top / "latest_checkpointed_iteration.txt").write_text("100")
    return top


@pytest.mark.parametrize("version, backend", SAVED)
@cases
def test_what_megatron_lm_saves_reads_back_bit_for_bit(name, version, backend, folders, megatron, tmp_path):
    source = saved(megatron, version, backend, name, tmp_path / "in")
    convert(source, tmp_path / "out", to="hf")
    assert_is(folders[name][0], tmp_path / "out")


@pytest.mark.parametrize("form", [dict, nested])
@cases
def test_what_megatron_bridge_saves_reads_back_bit_for_bit(name, form, folders, megatron, tmp_path):
    model = folders[name][0]
    source = saved(megatron, "0.16", "torch_dist", name, tmp_path / "in")
    run = dict(model=form(provider(model.config, model.dtype, CASES[name].rows)), optimizer={"_target_": "megatron.core.Optimizer", "lr": 1e-4})
    (source / "iter_0000100" / "run_config.yaml").write_text(yaml.safe_dump(run))
    convert(source, tmp_path / "out", to="hf")
    assert_is(model, tmp_path / "out")


def test_an_iteration_alone_and_a_release_are_read(folders, megatron, tmp_path):
    source = saved(megatron, "0.16", "torch_dist", "llama", tmp_path / "in")
    convert(source / "iter_0000100", tmp_path / "one", to="hf")
    (source / "iter_0000100").rename(source / "release")
    (source / "latest_checkpointed_iteration.txt").write_text("release\n")
    convert(source, tmp_path / "two", to="hf")
    for out in ("one", "two"):
        assert_is(folders["llama"][0], tmp_path / out)


def test_optimizer_state_is_no_part_of_the_model(folders, megatron, tmp_path):
    source = saved(megatron, "0.16", "torch_dist", "llama", tmp_path / "in")
    said = reshard("inspect", source, "--json").json()
    assert (said["kind"], said["family"]) == ("megatron", "llama"), said
    assert not [t for t in said.get("tensors", []) if "optimizer" in str(t)], said


@pytest.mark.parametrize("windows", [31, 32])
def test_a_window_of_an_older_bridge_is_told_by_the_template(windows, folders, megatron, tmp_path):
    """Megatron-Bridge before 0.4 wrote the window itself; megatron-core does not count the present token."""
    model = folders["mistral-window"][0]
    source = saved(megatron, "0.16", "torch_dist", "mistral-window", tmp_path / "in")
    config = dict(provider(model.config, model.dtype), window_size=[windows, 0])
    (source / "iter_0000100" / "run_config.yaml").write_text(yaml.safe_dump(dict(model=config)))
    convert(source, tmp_path / "out", f"--hf_model_name={model.path}", to="hf")
    assert models.read_config(tmp_path / "out").sliding_window == 32


class Odd:
    """An object of a class that only its trainer has; unpickling it would do something."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def test_arguments_that_are_objects_are_inert(folders, tmp_path):
    model, folder = folders["llama"]
    shutil.copytree(folder, tmp_path / "in")
    path = tmp_path / "in" / "iter_0000001" / "common.pt"
    common = torch.load(path, weights_only=False)
    common["args"].timers, common["args"].shape = Odd(tmp_path / "trace"), types.SimpleNamespace(a=torch.float16)
    common["args"].rerun = {"mode": [1, 2]}
    torch.save(common, path)
    (path.parent / "run_config.yaml").unlink()
    convert(tmp_path / "in", tmp_path / "out", to="hf")
    assert_is(model, tmp_path / "out")
    assert not (tmp_path / "trace").exists()
    assert pickle.loads(pickle.dumps(Odd(tmp_path / "trace"))) == 0 and (tmp_path / "trace").exists()  # it would have
