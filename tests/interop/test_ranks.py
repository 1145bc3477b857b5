"""NeMo checkpoints in files of ranks: written by a formula of its own for each name, and what the program writes."""

import models
import nemo_reference
import pytest
import torch
from program import assert_nothing_published, convert, reshard

GRIDS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)]
SHAPES = {"llama": models.heads(8, 4), "qwen2": models.heads(8, 4), "tied": models.heads(8, 4, tie_word_embeddings=True),
          "groups": models.heads(12, 4, size=4)}


def old_name(name):
    """Of NeMo before megatron-core."""
    if name.endswith("self_attention.linear_qkv.layer_norm_weight"):
        name = name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
    elif name.endswith("mlp.linear_fc1.layer_norm_weight"):
        name = name.replace("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight")
    for new, old in [("decoder.", "encoder."), ("linear_qkv", "query_key_value"), ("linear_proj", "dense"),
                     ("linear_fc1", "dense_h_to_4h"), ("linear_fc2", "dense_4h_to_h")]:
        name = name.replace(new, old)
    return "language_model." + name


def rank_state(c, hf, tensor, stage, tp, pp, rows):
    """What one rank holds, by its name of megatron-core without prefix, from HuggingFace's tensors."""
    size, groups = nemo_reference.head_dim(c), c.num_key_value_heads
    queries = c.num_attention_heads // groups
    layers = c.num_hidden_layers // pp
    found = {}

    def table(weight):
        padded = torch.cat([weight, weight.new_zeros(rows - weight.shape[0], weight.shape[1])])
        return padded.chunk(tp)[tensor]

    def qkv(layer, kind):
        q, k, v = (hf[f"model.layers.{layer}.self_attn.{x}_proj.{kind}"] for x in "qkv")
        slots = []
        for g in range(tensor * groups // tp, (tensor + 1) * groups // tp):
            slots.append(q[g * queries * size:(g + 1) * queries * size])
            slots += [x[g * size:(g + 1) * size] for x in (k, v)]
        return torch.cat(slots)

    if stage == 0:
        found["embedding.word_embeddings.weight"] = table(hf["model.embed_tokens.weight"])
    for local in range(layers):
        layer = stage * layers + local
        ours, theirs = f"decoder.layers.{local}.", f"model.layers.{layer}."
        found[ours + "self_attention.linear_qkv.weight"] = qkv(layer, "weight")
        if theirs + "self_attn.q_proj.bias" in hf:
            found[ours + "self_attention.linear_qkv.bias"] = qkv(layer, "bias")
        found[ours + "self_attention.linear_qkv.layer_norm_weight"] = hf[theirs + "input_layernorm.weight"]
        found[ours + "self_attention.linear_proj.weight"] = hf[theirs + "self_attn.o_proj.weight"].chunk(tp, 1)[tensor]
        gate, up = (hf[theirs + f"mlp.{x}_proj.weight"].chunk(tp)[tensor] for x in ("gate", "up"))
        found[ours + "mlp.linear_fc1.weight"] = torch.cat([gate, up])
        found[ours + "mlp.linear_fc1.layer_norm_weight"] = hf[theirs + "post_attention_layernorm.weight"]
        found[ours + "mlp.linear_fc2.weight"] = hf[theirs + "mlp.down_proj.weight"].chunk(tp, 1)[tensor]
    if stage == pp - 1:
        found["decoder.final_layernorm.weight"] = hf["model.norm.weight"]
        if not c.tie_word_embeddings:
            found["output_layer.weight"] = table(hf["lm_head.weight"])
        elif pp > 1:
            found["output_layer.weight"] = table(hf["model.embed_tokens.weight"])
    return {name: value.contiguous() for name, value in found.items()}


def file_of(tensor, stage, tp, pp):
    if tp * pp == 1:
        return "model_weights.ckpt"
    if pp == 1:
        return f"mp_rank_{tensor:02d}/model_weights.ckpt"
    return f"tp_rank_{tensor:02d}_pp_rank_{stage:03d}/model_weights.ckpt"


def write_ranks(folder, model, tp, pp, old=False, rows=None):
    c = model.config
    rows = rows or c.vocab_size
    cfg = nemo_reference.nemo_config(c, model.dtype, rows=rows)
    cfg.update(mcore_gpt=not old, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    folder.mkdir(parents=True)
    (folder / "model_config.yaml").write_text(nemo_reference.config_text(cfg))
    for stage in range(pp):
        for tensor in range(tp):
            path = folder / file_of(tensor, stage, tp, pp)
            path.parent.mkdir(exist_ok=True)
            state = rank_state(c, model.tensors, tensor, stage, tp, pp, rows)
            if old:
                state = {old_name(name): value for name, value in state.items()}
                state["language_model.rotary_pos_emb.inv_freq"] = torch.ones(4)
            torch.save({"model." + name: value for name, value in state.items()}, path)


def make(tmp_path, shape, **more):
    family = shape if shape == "qwen2" else "llama"
    settings = {"num_hidden_layers": 4, "intermediate_size": 48, **SHAPES[shape], **more}
    return models.write(tmp_path / "hf", models.config(family, **settings), torch.bfloat16, seed=f"ranks {shape}")


def assert_same(a, b):
    a, b = models.read(a), models.read(b)
    assert a.keys() == b.keys()
    for name in a:
        assert nemo_reference.raw(a[name]) == nemo_reference.raw(b[name]), name


@pytest.mark.parametrize("old", [False, True], ids=["mcore", "old"])
@pytest.mark.parametrize("tp, pp", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_are_merged(shape, tp, pp, old, tmp_path):
    model = make(tmp_path, shape)
    write_ranks(tmp_path / "nemo", model, tp, pp, old)
    convert(tmp_path / "nemo", tmp_path / "back", "--hf_model_name", model.path, to="hf")
    assert_same(model.path, tmp_path / "back")
    reshard("verify", model.path, tmp_path / "nemo")


@pytest.mark.parametrize("tp, pp", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_are_written(shape, tp, pp, tmp_path):
    model = make(tmp_path, shape)
    out = tmp_path / "nemo"
    convert(model.path, out, "--nemo_weights=ranks", f"--tp_size={tp}", f"--pp_size={pp}", to="nemo")
    for stage in range(pp):
        for tensor in range(tp):
            state = torch.load(out / file_of(tensor, stage, tp, pp), weights_only=True)
            expected = rank_state(model.config, model.tensors, tensor, stage, tp, pp, model.config.vocab_size)
            assert {name for name in state if not name.endswith("_extra_state")} == {"model." + name for name in expected}
            assert all(state[name] is None for name in state if name.endswith("_extra_state"))
            for name, value in expected.items():
                assert nemo_reference.raw(state["model." + name]) == nemo_reference.raw(value), name
    text = (out / "model_config.yaml").read_text()
    assert f"tensor_model_parallel_size: {tp}\n" in text and f"pipeline_model_parallel_size: {pp}\n" in text


def test_a_vocabulary_that_ranks_do_not_divide_is_padded_as_nemo_pads_it(tmp_path):
    model = make(tmp_path, "llama", vocab_size=36)  # 4 is the divisor of the config, 8 the multiple
    out = tmp_path / "nemo"
    convert(model.path, out, "--nemo_weights=ranks", "--tp_size=4", to="nemo")
    assert torch.load(out / "mp_rank_03/model_weights.ckpt", weights_only=True)["model.output_layer.weight"].shape[0] == 9
    odd = models.write(tmp_path / "odd", models.config("llama", vocab_size=34, **models.heads(8, 4)), torch.bfloat16)
    convert(odd.path, tmp_path / "padded", "--nemo_weights=ranks", "--tp_size=4", to="nemo")
    for tensor in range(4):  # 34 is even: rows are a multiple of 2 * 4
        state = torch.load(tmp_path / f"padded/mp_rank_{tensor:02d}/model_weights.ckpt", weights_only=True)
        expected = rank_state(odd.config, odd.tensors, tensor, 0, 4, 1, 40)
        for name, value in expected.items():
            assert nemo_reference.raw(state["model." + name]) == nemo_reference.raw(value), name
    convert(tmp_path / "padded", tmp_path / "back", "--vocab_size=34", to="hf")
    assert_same(odd.path, tmp_path / "back")


def test_ranks_in_a_packed_file_go_to_every_other_container(tmp_path):
    model = make(tmp_path, "llama")
    convert(model.path, tmp_path / "m.nemo", "--nemo_weights=ranks", "--tp_size=2", "--pp_size=2", to="nemo")
    for weights in ("zarr", "torch_dist"):
        convert(tmp_path / "m.nemo", tmp_path / weights, f"--nemo_weights={weights}", to="nemo")
        convert(tmp_path / weights, tmp_path / f"of_{weights}", "--hf_model_name", model.path, to="hf")
        assert_same(model.path, tmp_path / f"of_{weights}")
        text = (tmp_path / weights / "model_config.yaml").read_text()
        assert "tensor_model_parallel_size: 1\n" in text and f"dist_ckpt_format: {weights}\n" in text
    convert(tmp_path / "m.nemo", tmp_path / "trt", "--checkpoint_only", to="trtllm")
    reshard("verify", model.path, tmp_path / "trt")


def refuse(folder, tmp_path, codes, *says):
    result = convert(folder, tmp_path / "out", "--vocab_size=64", to="hf", code=codes)
    for word in says:
        assert word in result.err, f"no {word} in {result}"
    assert_nothing_published(tmp_path / "out")


def test_a_rank_that_is_missing_is_named(tmp_path):
    write_ranks(tmp_path / "nemo", make(tmp_path, "llama"), 2, 2)
    (tmp_path / "nemo/tp_rank_00_pp_rank_001/model_weights.ckpt").unlink()
    refuse(tmp_path / "nemo", tmp_path, (4,), "tp_rank_00_pp_rank_001/model_weights.ckpt", "all ranks")


def test_ranks_of_two_layouts_are_refused(tmp_path):
    model = make(tmp_path, "llama")
    write_ranks(tmp_path / "nemo", model, 2, 1)
    write_ranks(tmp_path / "other", model, 2, 2)
    (tmp_path / "other/tp_rank_00_pp_rank_000").rename(tmp_path / "nemo/tp_rank_00_pp_rank_000")
    refuse(tmp_path / "nemo", tmp_path, (4,), "one checkpoint")


@pytest.mark.parametrize("name", ["mp_rank_-1", "mp_rank_+3", "mp_rank_3", "mp_rank_ 3", "tp_rank_-1_pp_rank_-1"])
def test_a_folder_that_no_rank_is_called_is_not_one(name, tmp_path):
    model = make(tmp_path, "llama")
    write_ranks(tmp_path / "nemo", model, 2, 1)
    (tmp_path / "nemo" / name).mkdir()
    convert(tmp_path / "nemo", tmp_path / "out", "--vocab_size=64", to="hf")
    reshard("verify", model.path, tmp_path / "out")


def test_objects_of_modules_are_no_news(tmp_path):
    convert(make(tmp_path, "llama").path, tmp_path / "nemo", "--nemo_weights=ranks", "--tp_size=2", to="nemo")
    state = torch.load(tmp_path / "nemo/mp_rank_01/model_weights.ckpt", weights_only=True)
    assert any(key.endswith("_extra_state") for key in state)
    assert "_extra_state" not in reshard("inspect", tmp_path / "nemo").out


@pytest.mark.parametrize("name", ["decoder.layers.1.self_attention.linear_qkv.layer_norm_weight", "decoder.final_layernorm.weight"])
def test_replicas_that_differ_are_refused(name, tmp_path):
    write_ranks(tmp_path / "nemo", make(tmp_path, "llama"), 4, 1)
    path = tmp_path / "nemo/mp_rank_02/model_weights.ckpt"
    state = torch.load(path, weights_only=True)
    state["model." + name].view(torch.int16)[5].bitwise_xor_(1)
    torch.save(state, path)
    refuse(tmp_path / "nemo", tmp_path, (6,), name, "mp_rank_02/model_weights.ckpt")


def test_a_tied_table_of_the_last_stage_that_differs_is_refused(tmp_path):
    write_ranks(tmp_path / "nemo", make(tmp_path, "tied"), 1, 2)
    path = tmp_path / "nemo/tp_rank_00_pp_rank_001/model_weights.ckpt"
    state = torch.load(path, weights_only=True)
    state["model.output_layer.weight"].view(torch.int16)[3, 1].bitwise_xor_(1)
    torch.save(state, path)
    refuse(tmp_path / "nemo", tmp_path, (6,), "output_layer.weight")


def test_sizes_that_do_not_divide_are_refused_with_both_numbers(tmp_path):
    model = make(tmp_path, "llama")
    for option, says in [("--tp_size=3", "8 attention heads by 3"), ("--pp_size=3", "4 layers by 3"), ("--tp_size=8", "4 query groups by 8")]:
        result = convert(model.path, tmp_path / "out", "--nemo_weights=ranks", option, to="nemo", code=(6,))
        assert says in result.err and "expected sizes that divide" in result.err
    result = convert(model.path, tmp_path / "out", "--tp_size=2", to="nemo", code=(2,))
    assert "--nemo_weights=ranks" in result.err
