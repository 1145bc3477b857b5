"""Works off a list of jobs with the megatron-core that PYTHONPATH names: mcore_worker.py JOBS.json RESULTS.json

A job is an object with "id", "do" and:
  load  hf, nemo, rows    builds the GPTModel that nemo/model_config.yaml describes and loads nemo/model_weights strictly;
                          the result is the greatest difference of its logits from those of transformers on hf
  save  hf, to, te        fills a GPTModel from hf and saves it
  again hf, nemo, to      loads nemo/model_weights strictly into ranks, which save it
"backend" is the format that is saved, zarr by default; "ranks" is how many tensor-parallel ranks and pipeline stages work
it off, [1, 1] by default. A result is a number, or the text of an exception.
"""

import contextlib
import io
import json
import multiprocessing
import pathlib
import sys
import tempfile
import traceback
import types

import mcore_cpu
import models
import torch
from omegaconf import OmegaConf


def filled(c, hf):
    model = mcore_cpu.build(c, models.stored_dtype(hf))
    got = model.load_state_dict(mcore_cpu.hf_to_gpt(c, models.read(hf)), strict=False)
    missing = [name for name in got.missing_keys if not name.endswith("_extra_state")]
    assert not missing and not got.unexpected_keys, (missing, got.unexpected_keys)
    return model


def described(nemo, vocab_size):
    """model_config.yaml as mcore_cpu.build wants it; NeMo has the vocabulary's size from the tokenizer."""
    y = OmegaConf.load(pathlib.Path(nemo) / "model_config.yaml")
    rope = dict(rope_type="default", rope_theta=y.rotary_base)
    if y.get("seq_len_interpolation_factor"):
        rope.update(rope_type="linear", factor=y.seq_len_interpolation_factor)
    if y.get("scale_positional_embedding"):
        rope.update(rope_type="llama3", factor=8)
    return types.SimpleNamespace(
        model_type="qwen2" if y.get("qkv_bias") else "qwen3" if y.get("qk_layernorm") else "llama",
        num_hidden_layers=y.num_layers,
        hidden_size=y.hidden_size,
        intermediate_size=y.ffn_hidden_size,
        num_attention_heads=y.num_attention_heads,
        num_key_value_heads=y.num_query_groups,
        head_dim=y.kv_channels,
        rms_norm_eps=y.layernorm_epsilon,
        max_position_embeddings=y.encoder_seq_length,
        tie_word_embeddings=y.share_embeddings_and_output_weights,
        attention_bias=y.bias,
        mlp_bias=y.bias,
        rope_parameters=rope,
        vocab_size=vocab_size,
    )


def load(c, job):
    model = mcore_cpu.build(described(job["nemo"], c.vocab_size), torch.float32, job.get("rows"))
    mcore_cpu.load(model, pathlib.Path(job["nemo"]) / "model_weights", strict="raise_all")
    got = mcore_cpu.logits(model, models.token_ids(c.vocab_size))[..., : c.vocab_size]
    return (got - models.logits(job["hf"])).abs().max().item()


def save(c, job):
    te = job.get("te", False)
    mcore_cpu.save(filled(c, job["hf"]), job["to"], job.get("backend", "zarr"), core_attention=not te, te=te)
    return 0


def again(c, job):
    model = mcore_cpu.build(c, models.stored_dtype(job["hf"]))
    mcore_cpu.load(model, pathlib.Path(job["nemo"]) / "model_weights", strict="raise_all")
    mcore_cpu.save(model, job["to"], job.get("backend", "zarr"))
    return 0


def work(rank, tp, pp, jobs, rendezvous, results):
    torch.set_num_threads(1)
    mcore_cpu.start(rank, tp * pp, tp, pp, rendezvous)
    for job in jobs:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = {"load": load, "save": save, "again": again}[job["do"]](models.read_config(job["hf"]), job)
        except Exception:
            result = traceback.format_exc()
        results.put((job["id"], result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run(jobs, tp, pp):
    """The parent must not have a process group of its own: ranks are forked."""
    queue = multiprocessing.get_context("fork").Manager().Queue()
    rendezvous = tempfile.mkdtemp() + "/rendezvous"
    torch.multiprocessing.start_processes(work, (tp, pp, jobs, rendezvous, queue), tp * pp, start_method="fork")
    results = {}
    while not queue.empty():
        name, result = queue.get()
        results[name] = result if isinstance(result, str) else results.get(name, result)
    return results


if __name__ == "__main__":
    todo = json.loads(pathlib.Path(sys.argv[1]).read_text())
    for job in todo:
        if "to" in job:
            pathlib.Path(job["to"]).mkdir(parents=True)
    done = {}
    for tp, pp in sorted({tuple(job.get("ranks", [1, 1])) for job in todo}):
        done.update(run([job for job in todo if job.get("ranks", [1, 1]) == [tp, pp]], tp, pp))
    pathlib.Path(sys.argv[2]).write_text(json.dumps(done))
