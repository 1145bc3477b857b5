"""The command lines that people have in their scripts, as they are: each ends in completed jobs, logs where they were
looked for and a checkpoint that verifies."""

import json
import pathlib
import re
import shlex
import shutil

import launching
import pytest
from program import files

NAME = "Meta-Llama-3.1-70B-Instruct"

CONFIG = """\
executor: slurm

containers:
  trtllm: {image}
  nemo: igitman/nemo-skills-nemo:0.4.1

job_name_prefix: "nemo_skills:"

job_dir: {jobs}

account: my_account
partition: batch

mounts:
  - {data}/hf:/hf_models
  - {data}/trt:/trt_models
  - {data}/nemo:/nemo_models

timeouts:
  batch: 06:00:00

env_vars:
  - HF_HOME=/hf_models/cache
"""

TO_TRTLLM = r"""
ns convert \
    --cluster=slurm \
    --input_model=/hf_models/Meta-Llama-3.1-70B-Instruct \
    --output_model=/trt_models/llama3.1-70b-instruct \
    --convert_from=hf \
    --convert_to=trtllm \
    --num_gpus=8 \
    --hf_model_name=meta-llama/Meta-Llama-3.1-70B-Instruct
"""

# Takes the words for pyxis away, which is not here, and keeps them.
SRUN = """#!/usr/bin/env python3
import json, os, sys
words = sys.argv[1:]
with open({record!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
os.execv({srun!r}, ["srun", *(w for w in words if not w.startswith(("--container-", "--no-container-", "--mpi")))])
"""


@pytest.fixture
def documented(site):
    """The folders of the documentation, the hub's cache and what stands for the image of TensorRT-LLM."""
    launching.write_llama(site.data / "hf" / NAME)
    launching.write_qwen(site.data / "hf" / "Qwen2.5-Math-7B-Instruct")
    launching.tiny_model.write_nemo(site.data / "nemo" / "llama3.1-70b-instruct", launching.SETTINGS)
    launching.write_hub_model(site.data / "hf" / "cache", f"meta-llama/{NAME}")
    (site.data / "trt").mkdir()
    launching.executable(site.bin / "trtllm-build", launching.TRTLLM_BUILD)
    srun = shutil.which("srun")
    launching.executable(site.bin / "srun", SRUN.format(record=str(site.root / "srun-calls"), srun=srun))
    configure(site, "igitman/nemo-skills-trtllm:0.4.1")
    return site


def configure(site, image):
    text = CONFIG.format(jobs=site.jobs, data=site.data, image=image or '""')
    (site.cwd / "cluster_configs" / "slurm.yaml").write_text(text)


def launch(site, line):
    program, *words = shlex.split(line.replace("\\\n", " "))
    return site.launch(*words, name=program)


def option(words, name):
    """The value of an option of srun that is `--name=value` or `--name value`."""
    for word, following in zip(words, [*words[1:], None]):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


@pytest.mark.parametrize("image", ["igitman/nemo-skills-trtllm:0.4.1", ""])
def test_the_documented_line(documented, image):
    configure(documented, image)
    launched = launch(documented, TO_TRTLLM)
    convert, build = launched.completed()
    assert convert["JobName"] == "nemo_skills:conversion" and build["JobName"] == "nemo_skills:conversion-build"
    assert "TresPerNode" not in convert and build["TresPerNode"] == "gres:gpu:8"
    assert convert["Account"] == build["Account"] == "my_account"

    out = documented.data / "trt" / "llama3.1-70b-instruct"
    documented.reshard("verify", documented.data / "hf" / NAME, f"{out}-tmp")
    documented.reshard("verify", f"{out}-tmp")
    for rank in range(8):
        weights = pathlib.Path(f"{out}-tmp", f"rank{rank}.safetensors").read_bytes()
        assert (out / f"rank{rank}.engine").read_bytes() == b"engine of " + weights
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files(out))
    words = json.loads((out / "config.json").read_text())
    assert words == ["--checkpoint_dir", f"{out}-tmp", "--output_dir", str(out), "--gpt_attention_plugin", "bfloat16",
                     "--use_paged_context_fmha", "enable", "--max_input_len", "4096", "--max_seq_len", "8192",
                     "--max_num_tokens", "8192", "--max_batch_size", "128"]

    logs = out / "conversion-logs"
    assert {path.name for path in logs.iterdir()} == {
        f"conversion_{convert['JobId']}_sbatch.log", f"main_conversion_{convert['JobId']}_srun.log",
        f"conversion-build_{build['JobId']}_sbatch.log", f"main_conversion-build_{build['JobId']}_srun.log"}

    calls = [json.loads(line) for line in (documented.root / "srun-calls").read_text().splitlines()]
    contained = [words for words in calls if option(words, "container-image")]
    assert len(contained) == bool(image)
    for words in contained:
        assert option(words, "container-image") == image and "--no-container-mount-home" in words
        mounts = option(words, "container-mounts").split(",")
        assert f"{documented.data}/hf:/hf_models" in mounts and f"{documented.data}/trt:/trt_models" in mounts
        assert f"{documented.data}/trt:{documented.data}/trt" in mounts, "checkpoint and engine under their own names"


SISTERS = {
    "hf to nemo": ("""ns convert --cluster=slurm --input_model=/hf_models/Meta-Llama-3.1-70B-Instruct
        --output_model=/nemo_models/new --convert_from=hf --convert_to=nemo --num_gpus=8
        --hf_model_name=meta-llama/Meta-Llama-3.1-70B-Instruct""", "hf/Meta-Llama-3.1-70B-Instruct", "nemo/new"),
    "nemo to hf": ("""ns convert --cluster=slurm --input_model=/nemo_models/llama3.1-70b-instruct
        --output_model=/hf_models/new --convert_from=nemo --convert_to=hf --num_gpus=8
        --hf_model_name=meta-llama/Meta-Llama-3.1-70B-Instruct""", "nemo/llama3.1-70b-instruct", "hf/new"),
    "qwen": ("""ns convert --cluster=slurm --input_model=/hf_models/Qwen2.5-Math-7B-Instruct --model_type=qwen
        --output_model=/nemo_models/qwen --convert_from=hf --convert_to=nemo --num_gpus=8
        --hf_model_name=Qwen/Qwen2.5-Math-7B-Instruct --expname=qwen-2.5""", "hf/Qwen2.5-Math-7B-Instruct",
             "nemo/qwen"),
}


@pytest.mark.parametrize("sister", SISTERS)
def test_its_sisters(documented, sister):
    line, source, target = SISTERS[sister]
    launched = launch(documented, line)
    job, = launched.completed()
    out = documented.data / target
    documented.reshard("verify", documented.data / source, out)
    documented.reshard("verify", out)
    title = "qwen-2.5" if sister == "qwen" else "conversion"
    assert {path.name for path in (out / "conversion-logs").iterdir()} == {
        f"{title}_{job['JobId']}_sbatch.log", f"main_{title}_{job['JobId']}_srun.log"}
    assert job["NumNodes"] == "1" and job["NumCPUs"] == "8" and job["TimeLimit"] == "06:00:00"
    assert re.search(r"mem=4G", job["TRES"]) and "gpu" not in job["TRES"]


def test_there_and_back(documented):
    """A chain that is submitted at once, each waiting for the one before."""
    first = launch(documented, SISTERS["hf to nemo"][0] + " --expname=there")
    second = launch(documented, """ns convert --cluster=slurm --input_model=/nemo_models/new --output_model=/hf_models/back
        --convert_from=nemo --convert_to=hf --num_gpus=8 --hf_model_name=meta-llama/Meta-Llama-3.1-70B-Instruct
        --expname=back --run_after=there""")
    first.completed()
    second.completed()
    documented.reshard("verify", documented.data / "hf" / NAME, documented.data / "hf" / "back")
