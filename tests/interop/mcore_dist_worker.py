"""Works off a list of jobs with the megatron-core that PYTHONPATH names: mcore_dist_worker.py JOBS.json RESULTS.json

Like mcore_worker.py, for checkpoints whose config is not NeMo 1's. A job is an object with "id", "do", "hf" and:
  load  weights, prefix, rows            a GPTModel of hf's config loads the folder strictly; the result is the greatest
                                         difference of its logits from those of transformers on hf
  save  to, prefix, backend, args, rows  fills a GPTModel from hf and saves it, beside arguments, a version and an
                                         iteration where args is an object, and with states of an optimizer and
                                         of random numbers
"""

import argparse
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import traceback

import mcore_cpu
import models
import torch


def load(c, job):
    model = mcore_cpu.build(c, torch.float32, job.get("rows"))
    state = mcore_cpu.sharded(model, job["prefix"])
    got = mcore_cpu.dist_checkpointing.load(state, job["weights"], strict="raise_all")
    weights = {k.removeprefix(job["prefix"]): v for k, v in got.items() if k in state and "core_attention._extra_state" not in k}
    model.load_state_dict(weights)
    assert isinstance(got.get("args"), argparse.Namespace) == (not job["prefix"])  # Megatron-LM's own have them
    got = mcore_cpu.logits(model, models.token_ids(c.vocab_size))[..., : c.vocab_size]
    return (got - models.logits(job["hf"])).abs().max().item()


def padded(tensors, rows):
    """Vocabularies of `rows` rows, zeros behind those that are there."""
    out = dict(tensors)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        if name in out and rows:
            out[name] = torch.cat([out[name], out[name].new_zeros(rows - len(out[name]), out[name].shape[1])])
    return out


def save(c, job):
    model = mcore_cpu.build(c, models.stored_dtype(job["hf"]), job.get("rows"))
    got = model.load_state_dict(padded(mcore_cpu.hf_to_gpt(c, models.read(job["hf"])), job.get("rows")), strict=False)
    assert not got.unexpected_keys and all(name.endswith("_extra_state") for name in got.missing_keys), got
    state = mcore_cpu.sharded(model, job["prefix"])
    if job.get("args") is not None:
        state["args"] = argparse.Namespace(**job["args"], params_dtype=torch.bfloat16)
        state.update(checkpoint_version=3.0, iteration=1)
        weight = next(x for x in state.values() if isinstance(x, mcore_cpu.ShardedTensor))
        moments = torch.ones_like(weight.data)
        state["rng_state"] = mcore_cpu.ShardedObject("rng_state", [{"seed": 1}], (1, 1), (0, 0))
        state["optimizer"] = {"exp_avg": mcore_cpu.ShardedTensor.from_rank_offsets("optimizer.state.exp_avg." + weight.key, moments)}
    mcore_cpu.dist_checkpointing.save(state, job["to"], sharded_strategy=(job["backend"], 1))
    return 0


def main(jobs, results):
    torch.set_num_threads(1)
    mcore_cpu.start(rendezvous=tempfile.mkdtemp() + "/rendezvous")
    done = {}
    for job in json.loads(pathlib.Path(jobs).read_text()):
        if "to" in job:
            pathlib.Path(job["to"]).mkdir(parents=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                done[job["id"]] = {"load": load, "save": save}[job["do"]](models.read_config(job["hf"]), job)
        except Exception:
            done[job["id"]] = traceback.format_exc()
    pathlib.Path(results).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
