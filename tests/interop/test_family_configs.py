"""What the configs of NeMo and Megatron say of each family, and what a config.json means that does not say all.

Expected keys: NeMo 1's converters and megatron_gpt_model.py (release 2.3), whose model takes every field of megatron-core's
TransformerConfig by its own name; Megatron-Bridge's providers; Megatron-LM's arguments.py.
"""

import argparse
import json

import families
import family_reference
import models
import nemo_reference
import pytest
import test_megatron
import torch
import transformers
import yaml
from families import CASES
from models import heads
from program import convert
from test_families import NEEDS, PLAIN, Made, that_go_to

GEMMA = ("gemma", "gemma2", "gemma3_text")
PROVIDERS = dict(gemma="gemma_provider.GemmaModelProvider", gemma2="gemma2_provider.Gemma2ModelProvider")
PROVIDERS.update(gemma3_text="gemma3_provider.Gemma3ModelProvider")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory)


def mixture_fields(c):
    """TransformerConfig's of a model with experts; None where a key may as well be absent."""
    args = test_megatron.mixture(c)
    experts = args.pop("num_experts")
    if not experts:
        return dict(num_moe_experts=None)
    if c.model_type == "mixtral":
        args.pop("moe_ffn_hidden_size")  # is ffn_hidden_size where absent
    if args["moe_layer_freq"] == 1:
        args["moe_layer_freq"] = (None, 1)
    if not args["moe_router_pre_softmax"]:
        args["moe_router_pre_softmax"] = (None, False)
    return dict(args, num_moe_experts=experts)


def assert_says(got, wanted):
    """A tuple allows several values."""
    for key, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        assert got.get(key) in allowed, f"{key} is {got.get(key)}, expected {value}"


def window(c):
    return getattr(c, "sliding_window", None) if c.model_type not in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3") else None


@that_go_to("nemo")
def test_model_config_of_nemo_says_what_the_model_is(name, made):
    c = made.source(name).config.get_text_config()
    got = yaml.safe_load((made.to("nemo", name, "--nemo_weights=zarr") / "model_config.yaml").read_text())
    wide = nemo_reference.head_dim(c) * c.num_attention_heads != c.hidden_size
    wanted = dict(num_layers=c.num_hidden_layers, hidden_size=c.hidden_size, ffn_hidden_size=c.intermediate_size)
    wanted.update(num_attention_heads=c.num_attention_heads, num_query_groups=c.num_key_value_heads)
    wanted.update(kv_channels=nemo_reference.head_dim(c) if wide else (None, nemo_reference.head_dim(c)))
    wanted.update(layernorm_epsilon=c.rms_norm_eps, normalization="rmsnorm", init_method_std=c.initializer_range)
    wanted.update(share_embeddings_and_output_weights=c.tie_word_embeddings, bias=nemo_reference.biased(c))
    wanted.update(qkv_bias=True if test_megatron.qkv_bias(c) else (None, False), **mixture_fields(c))
    if "qwen3" in c.model_type or c.model_type == "gemma3_text":
        wanted.update(qk_layernorm=True)
    if c.model_type == "ernie4_5":
        wanted.update(rotary_interleaved=True, apply_rope_fusion=(None, False))
    if c.model_type not in GEMMA:
        wanted.update(activation="fast-swiglu", rotary_percentage=c.rope_parameters.get("partial_rotary_factor", 1.0))
        wanted.update(layernorm_zero_centered_gamma=(None, False), apply_embedding_scaling=(None, False), openai_gelu=(None, False))
        wanted.update(rotary_base=c.rope_parameters["rope_theta"], window_size=[window(c), 0] if window(c) else None)
    else:
        wanted.update(activation=("geglu", "fast-geglu"), openai_gelu=True, apply_embedding_scaling=True, rotary_percentage=1.0)
        wanted.update(layernorm_zero_centered_gamma=(None, False) if c.model_type == "gemma" else True)
    if c.model_type == "gemma2":
        caps = dict(attn_logit_softcapping=c.attn_logit_softcapping, final_logit_softcapping=c.final_logit_softcapping)
        wanted.update(mcore_customization_config=dict(caps, query_pre_attn_scalar=c.query_pre_attn_scalar))
        wanted.update(name="megatron_gemma2", window_size=[c.sliding_window, 0])
    assert_says(got, wanted)


@that_go_to("megatron")
def test_run_config_says_what_the_model_is(name, made):
    c = made.source(name).config.get_text_config()
    got = yaml.safe_load((made.to("megatron", name) / "iter_0000001" / "run_config.yaml").read_text())["model"]
    wanted = dict(ffn_hidden_size=c.intermediate_size, num_query_groups=c.num_key_value_heads, gated_linear_unit=True)
    wanted.update(kv_channels=nemo_reference.head_dim(c), normalization="RMSNorm", layernorm_epsilon=c.rms_norm_eps)
    wanted.update(share_embeddings_and_output_weights=c.tie_word_embeddings, add_bias_linear=nemo_reference.biased(c))
    wanted.update(add_qkv_bias=test_megatron.qkv_bias(c), vocab_size=c.vocab_size, **mixture_fields(c))
    if c.model_type not in GEMMA:
        classes = (test_megatron.MISTRAL, test_megatron.GPT) if c.model_type in ("mistral", "ministral3") else test_megatron.GPT
        wanted.update(_target_=classes, rotary_base=c.rope_parameters["rope_theta"])
        wanted.update(rotary_percent=c.rope_parameters.get("partial_rotary_factor", 1.0))
        wanted.update(rotary_interleaved=True if c.model_type == "ernie4_5" else (None, False))
        wanted.update(qk_layernorm="qwen3" in c.model_type, window_size=[window(c) - 1, 0] if window(c) else None)
        wanted.update(activation_func={"_target_": "torch.nn.functional.silu", "_call_": False})
    else:
        wanted.update(_target_="megatron.bridge.models.gemma." + PROVIDERS[c.model_type], layernorm_zero_centered_gamma=True)
        wanted.update(activation_func={"_target_": "megatron.core.activations.fast_gelu", "_call_": False})
    if c.model_type == "gemma2":
        wanted.update(attn_logit_softcapping=c.attn_logit_softcapping, final_logit_softcapping=c.final_logit_softcapping)
        wanted.update(query_pre_attn_scalar=c.query_pre_attn_scalar, window_size=[c.sliding_window - 1, 0])
    if c.model_type == "gemma3_text":
        ropes = [c.rope_parameters[kind] for kind in (families.SLIDING, families.FULL)]
        wanted.update(rotary_base=[rope["rope_theta"] for rope in ropes], window_size=c.sliding_window, qk_layernorm=True)
        wanted.update(rope_scaling_factor=ropes[1].get("factor", (None, 1.0)))
        if c.query_pre_attn_scalar != c.head_dim or got.get("softmax_scale") is not None:  # is that of the head size where absent
            assert got["softmax_scale"] == pytest.approx(c.query_pre_attn_scalar**-0.5, rel=1e-12)
        assert list(got["interleaved_attn_pattern"]) == [5, 1]
    assert_says(got, wanted)


@that_go_to("megatron", [name for name, case in CASES.items() if not families.zero_centred(case.family)])
def test_common_pt_has_the_arguments_of_megatron_lm(name, made):
    c = made.source(name).config
    with torch.serialization.safe_globals([argparse.Namespace]):
        got = vars(torch.load(made.to("megatron", name) / "iter_0000001" / "common.pt", weights_only=True)["args"])
    wanted = test_megatron.arguments(c)
    for key in ("make_vocab_size_divisible_by", "seq_length", "rope_scaling_factor", "num_query_groups", "window_size"):
        del wanted[key]
    if wanted.get("moe_layer_freq") == 1:
        wanted["moe_layer_freq"] = (1, None)
    wanted["rotary_interleaved"] = wanted["rotary_interleaved"] or (None, False)
    assert_says(got, {**wanted, "num_query_groups": c.num_key_value_heads})
    assert (tuple(got["window_size"]) if got.get("window_size") else None) == ((window(c) - 1, 0) if window(c) else None)


def sparse(folder, family):
    """Takes out of config.json all keys whose values are the defaults of the class, as files of the hub lack them."""
    whole = json.loads((folder / "config.json").read_text())
    default = getattr(transformers, families.CLASSES[family] + "Config")().to_dict()
    kept = {key: value for key, value in whole.items() if key in ("architectures", "model_type", "dtype") or default.get(key, ...) != value}
    (folder / "config.json").write_text(json.dumps(kept))
    return whole.keys() - kept.keys()


@pytest.mark.parametrize("kind", ["nemo", "megatron"])
@pytest.mark.parametrize("family", [*PLAIN, "ministral3", "internlm3"])
def test_keys_that_are_absent_have_the_defaults_of_the_class(family, kind, tmp_path):
    settings = PLAIN.get(family, heads(4, 2, rope_parameters=families.ministral_rope()) if family == "ministral3" else heads(4, 2))
    default = getattr(transformers, families.CLASSES[family] + "Config")()
    settings = dict(settings, head_dim=default.head_dim if family in ("seed_oss", "ernie4_5", "internlm3", "ministral3", *GEMMA) else 8)
    settings.update(rms_norm_eps=default.rms_norm_eps, initializer_range=default.initializer_range)
    if family == "granite":
        settings.update(attention_multiplier=8**-0.5)
        settings.update(hidden_size=32)
    source = families.write(tmp_path / "in", families.Case(family, settings), f"sparse {family}")
    before = models.logits(source.path)
    assert sparse(source.path, family) >= {"rms_norm_eps", "initializer_range"}
    assert torch.equal(models.logits(source.path), before)
    convert(source.path, tmp_path / "there", *NEEDS[kind], to=kind)
    convert(tmp_path / "there", tmp_path / "back", "--vocab_size=97", to="hf")
    # The class's own padding token is not one of so small a vocabulary.
    families.change_config(tmp_path / "back", lambda settings: {"pad_token_id": 0, **settings})
    models.assert_equal(models.read(tmp_path / "back"), source.tensors)
    assert torch.equal(models.logits(tmp_path / "back"), before)


@pytest.mark.parametrize("said", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("kind", ["nemo", "megatron"])
def test_the_first_gemma_means_the_same_by_both_names_of_its_activation(kind, said, tmp_path):
    source = families.write(tmp_path / "in", families.Case("gemma", heads(4, 2)), "gelu")
    families.change_config(source.path, lambda settings: {**settings, "hidden_act": said})
    before = models.logits(source.path)
    convert(source.path, tmp_path / "there", *NEEDS[kind], to=kind)
    convert(tmp_path / "there", tmp_path / "back", "--vocab_size=97", to="hf")
    assert torch.equal(models.logits(tmp_path / "back"), before)


@pytest.mark.parametrize("spelled", ["num_experts", "num_local_experts"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_the_number_of_experts_is_read_by_both_its_names(family, spelled, tmp_path):
    source = families.write(tmp_path / "in", families.Case(family, PLAIN[family]), "experts")

    def change(settings):
        count = settings.pop("num_local_experts")
        return {**settings, spelled: count}

    families.change_config(source.path, change)
    convert(source.path, tmp_path / "out", *NEEDS["nemo"], to="nemo")
    arrays = family_reference.nemo_arrays(source.config, source.tensors)
    key = "model.decoder.layers.mlp.experts.experts.linear_fc1.weight"
    assert (tmp_path / "out" / "model_weights" / key / ".zarray").read_text() == arrays[key].zarray()


@pytest.mark.parametrize("said", [True, False])
def test_what_nemo_says_of_the_routers_of_mixtral_does_not_matter(said, tmp_path):
    """Its own converter says that they do not renormalise; the models of the class always do."""
    source = families.write(tmp_path / "in", families.Case("mixtral", PLAIN["mixtral"]), "softmax")
    config = tmp_path / "nemo" / "model_config.yaml"
    convert(source.path, tmp_path / "nemo", *NEEDS["nemo"], to="nemo")
    lines = [line for line in config.read_text().splitlines() if not line.startswith("moe_router_pre_softmax")]
    config.write_text("\n".join([*lines, f"moe_router_pre_softmax: {str(said).lower()}"]) + "\n")
    convert(tmp_path / "nemo", tmp_path / "back", "--vocab_size=97", to="hf")
    assert models.read_config(tmp_path / "back").model_type == "mixtral"
    assert torch.equal(models.logits(tmp_path / "back"), models.logits(source.path))


@pytest.mark.parametrize("said", [None, 0.0, 0.02])
@pytest.mark.parametrize("family", families.SPARSE)
def test_how_routers_were_trained_makes_no_other_model(family, said, tmp_path):
    """A loss that balances experts is the trainer's choice: a template may say another than the run did."""
    source = families.write(tmp_path / "in", families.Case(family, PLAIN[family]), "loss")
    convert(source.path, tmp_path / "nemo", *NEEDS["nemo"], to="nemo")
    config = tmp_path / "nemo" / "model_config.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("moe_aux_loss_coeff")]
    config.write_text("\n".join([*lines, *([] if said is None else [f"moe_aux_loss_coeff: {said}"])]) + "\n")
    convert(tmp_path / "nemo", tmp_path / "back", f"--hf_model_name={source.path}", to="hf")
    models.assert_equal(models.read(tmp_path / "back"), source.tensors)


SLIDES = dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)
MIXED = [families.FULL, families.SLIDING]
CHANGED = {  # what a class computes differently by a key of its config, of which a kind may know nothing
    "gemma all full": ("gemma2", dict(layer_types=[families.FULL] * 2, sliding_window=8)),
    "gemma2 full first": ("gemma2", dict(layer_types=MIXED, sliding_window=8)),
    "gemma2 no attention cap": ("gemma2", dict(attn_logit_softcapping=None)),
    "gemma2 no final cap": ("gemma2", dict(final_logit_softcapping=None)),
    "gemma2 low caps": ("gemma2", dict(final_logit_softcapping=1.0, attn_logit_softcapping=0.5)),
    "gemma3 full first": ("gemma3_text", dict(layer_types=MIXED, sliding_window=8)),
    "gemma3 every second": ("gemma3_text", dict(layer_types=MIXED[::-1] * 2, sliding_window=8, num_hidden_layers=4)),
    "gemma3 final cap": ("gemma3_text", dict(final_logit_softcapping=1.0)),
    "gemma3 attention cap": ("gemma3_text", dict(attn_logit_softcapping=0.5)),
    "gemma3 query": ("gemma3_text", dict(query_pre_attn_scalar=2)),
    "gemma3 both ways": ("gemma3_text", dict(use_bidirectional_attention=True)),
    "gemma both ways": ("gemma", dict(use_bidirectional_attention=True)),
    "gemma theta": ("gemma", dict(rope_parameters=families.default_rope(100.0))),
    "gemma2 theta": ("gemma2", dict(rope_parameters=families.default_rope(100.0))),
    "qwen2 window": ("qwen2", SLIDES),
    "qwen2 full first": ("qwen2", dict(SLIDES, layer_types=MIXED)),
    "qwen3 window": ("qwen3", SLIDES),
    "qwen3 all slide": ("qwen3", dict(SLIDES, layer_types=[families.SLIDING] * 2)),
    "qwen2_moe window": ("qwen2_moe", SLIDES),
    "qwen2_moe renormalised": ("qwen2_moe", dict(norm_topk_prob=True)),
    "qwen3_moe window": ("qwen3_moe", SLIDES),
    "qwen3_moe renormalised": ("qwen3_moe", dict(norm_topk_prob=True)),
    "qwen3_moe top 1": ("qwen3_moe", dict(num_experts_per_tok=1)),
    "mixtral top 1": ("mixtral", dict(num_experts_per_tok=1)),
    "smollm3 window": ("smollm3", dict(SLIDES, layer_types=MIXED)),
    "smollm3 interval": ("smollm3", dict(no_rope_layers=None, no_rope_layer_interval=2)),
    "phi3 half": ("phi3", dict(rope_parameters=families.default_rope(partial_rotary_factor=0.5))),
    "llama half": ("llama", dict(rope_parameters=families.default_rope(partial_rotary_factor=0.5))),
    "qwen3 half": ("qwen3", dict(rope_parameters=families.default_rope(partial_rotary_factor=0.5))),
    "llama dynamic": ("llama", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=6.0), max_position_embeddings=16)),
    "phi3 linear": ("llama", dict(rope_parameters=models.LINEAR_ROPE)),
    "gemma linear": ("gemma", dict(rope_parameters=models.LINEAR_ROPE)),
    "ernie4_5 linear": ("ernie4_5", dict(rope_parameters=models.LINEAR_ROPE)),
    "mixtral linear": ("mixtral", dict(rope_parameters=models.LINEAR_ROPE)),
    "qwen3_moe linear": ("qwen3_moe", dict(rope_parameters=models.LINEAR_ROPE)),
    "ministral3 scaled queries": ("ministral3", dict(rope_parameters=families.ministral_rope(llama_4_scaling_beta=0.5, original_max_position_embeddings=8))),
}


@pytest.mark.parametrize("kind", families.KINDS)
@pytest.mark.parametrize("what", CHANGED)
def test_what_a_config_means_is_kept_or_refused(what, kind, tmp_path):
    """Never lost: what comes back without a template computes the same, or nothing is written."""
    family, changes = CHANGED[what]
    settings = {**PLAIN.get(family, heads(4, 2)), **changes}
    source = families.write(tmp_path / "in", families.Case(family, settings, dtype="fp32"), what)
    there = convert(source.path, tmp_path / "there", *NEEDS[kind], to=kind, code=(0, 5))
    if there.code == 5:
        assert len(there.err.splitlines()) == 1, there
        return
    if kind == "trtllm" and "window" in json.dumps(changes):
        return  # an option of TensorRT-LLM's runtime
    convert(tmp_path / "there", tmp_path / "back", *(["--vocab_size=97"] if kind != "trtllm" else []), to="hf")
    families.change_config(tmp_path / "back", lambda settings: {"pad_token_id": 0, **settings})
    torch.testing.assert_close(models.logits(tmp_path / "back"), models.logits(source.path), rtol=1e-5, atol=1e-5)


def test_a_text_config_lacks_what_its_class_has_as_default(tmp_path):
    """As those of the hub do."""
    settings = heads(8, 4, hidden_size=32, head_dim=256, sliding_window=4096, query_pre_attn_scalar=256, rms_norm_eps=1e-6)
    source = families.write(tmp_path / "in", families.Case("gemma3", settings), "text config")
    before = models.logits(source.path)
    default = transformers.Gemma3TextConfig().to_dict()

    def change(config):
        text = {key: value for key, value in config["text_config"].items() if key == "model_type" or default.get(key, ...) != value}
        assert not {"head_dim", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "rope_parameters"} & set(text)
        return {key: value for key, value in {**config, "text_config": text}.items() if key != "tie_word_embeddings"}

    families.change_config(source.path, change)
    assert torch.equal(models.logits(source.path), before)
    for kind in ("nemo", "megatron"):
        convert(source.path, tmp_path / kind, *NEEDS[kind], to=kind)
        convert(tmp_path / kind, tmp_path / f"{kind} back", "--vocab_size=97", to="hf")
        models.assert_equal(families.text(models.read(tmp_path / f"{kind} back")), families.text(source.tensors))
        assert torch.equal(models.logits(tmp_path / f"{kind} back"), before)
