"""What somebody who launches conversions has: a home, `ns` on the PATH, folders behind mounted names and a folder with
cluster configurations. And a stand-in for each program that a launch calls."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import program

sys.path.insert(0, str(program.ROOT / "tests" / "cli"))
import tiny_model  # noqa: E402

# Eight ranks: eight query heads, two groups that are repeated, columns that divide by eight.
SETTINGS = tiny_model.config(hidden_size=64, intermediate_size=96, num_attention_heads=8, num_key_value_heads=2,
                             vocab_size=19)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Makes of each rank of a complete checkpoint an "engine"; says how it was called.
TRTLLM_BUILD = """#!/usr/bin/env python3
import json, pathlib, sys
checkpoint, engine = (pathlib.Path(sys.argv[sys.argv.index(name) + 1]) for name in ("--checkpoint_dir", "--output_dir"))
config = json.loads((checkpoint / "config.json").read_text())
engine.mkdir(exist_ok=True)
for rank in range(config["mapping"]["world_size"]):
    weights = (checkpoint / f"rank{rank}.safetensors").read_bytes()
    (engine / f"rank{rank}.engine").write_bytes(b"engine of " + weights)
(engine / "config.json").write_text(json.dumps(sys.argv[1:]))
"""

# Has the words that it was called with and its environment kept, and prints what sbatch does.
SBATCH = """#!/usr/bin/env python3
import json, os, pathlib, sys
records = pathlib.Path({records!r})
number = 101 + len(list(records.iterdir()))
script = pathlib.Path(sys.argv[-1])
record = dict(words=sys.argv[1:], environment=dict(os.environ), path=str(script), script=script.read_text())
(records / str(number)).write_text(json.dumps(record))
print(number)
"""


def write_tokenizer(folder):
    for name in TOKENIZER:
        (folder / name).write_text(json.dumps({"name": name}))


def write_llama(folder, settings=SETTINGS, **options):
    tiny_model.write_hf(folder, settings, **options)
    write_tokenizer(folder)
    return folder


def write_qwen(folder):
    """Qwen2: the same with biases of query, key and value."""
    settings = {key: value for key, value in SETTINGS.items() if not key.endswith("_bias")}
    settings.update(architectures=["Qwen2ForCausalLM"], model_type="qwen2", use_sliding_window=False)
    named = tiny_model.tensors(settings)
    for name in list(named):
        if re.search(r"[qkv]_proj", name):
            bias = name.replace("weight", "bias")
            named[bias] = tiny_model.Tensor("BF16", named[name].shape[:1], named[name].data[:2 * named[name].shape[0]])
    tiny_model.write_hf(folder, settings, named)
    write_tokenizer(folder)
    return folder


def write_hub_model(cache, name):
    """A template, config and tokenizer, where the hub's cache keeps a model of this name."""
    repository = cache / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    tiny_model.write_config(snapshot, SETTINGS)
    write_tokenizer(snapshot)


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


class Site:
    """`env` is all that the program sees of the environment; `cwd` holds cluster_configs."""

    def __init__(self, root, **env):
        self.root = root
        self.home, self.cwd, self.bin = root / "home", root / "work", root / "bin"
        self.data, self.jobs, self.calls = root / "data", root / "jobs", root / "calls"
        for folder in (self.home, self.cwd / "cluster_configs", self.bin, self.data, self.calls):
            folder.mkdir(parents=True)
        (self.bin / "ns").symlink_to(program.BINARY)
        path = f"{self.bin}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.env = {"PATH": path, "HOME": str(self.home), "USER": "root", "LANG": "C.UTF-8", **env}

    def write_config(self, name="slurm", folder=None, **keys):
        """cluster_configs/NAME.yaml: Slurm, with /models standing for the data folder. None leaves a key out."""
        config = {"executor": "slurm", "account": "acct", "partition": "batch", "job_dir": str(self.jobs),
                  "mounts": [f"{self.data}:/models"], "containers": {"nemo": "", "trtllm": ""}, **keys}
        folder = folder or self.cwd / "cluster_configs"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}: {value if key == 'timeouts' else json.dumps(value)}" for key, value in config.items()
                 if value is not None]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
        return folder / f"{name}.yaml"

    def run(self, name, *words, code=0, timeout=120, **env):
        command = [str(self.bin / name if name == "ns" else program.BINARY), *map(str, words)]
        environment = {key: value for key, value in {**self.env, **env}.items() if value is not None}
        done = subprocess.run(command, env=environment, cwd=self.cwd, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=timeout)
        result = program.Result(command, done.returncode, done.stdout, done.stderr)
        allowed = code if isinstance(code, tuple) else (code,)
        assert code is None or done.returncode in allowed, f"expected exit {code}\n{result}"
        return result

    def ns(self, *words, **options):
        return self.run("ns", *words, **options)

    def reshard(self, *words, **options):
        return self.run("reshard", *words, **options)

    def convert(self, *words, source="/models/in", target="/models/out", to="nemo", cluster="slurm", **options):
        """`ns convert` of a HuggingFace folder with the options that must be there."""
        config = [f"--cluster={cluster}"] if cluster else []
        return self.ns("convert", *config, f"--input_model={source}", f"--output_model={target}", "--convert_from=hf",
                       f"--convert_to={to}", "--num_gpus=1", "--hf_model_name=example/model", *words, **options)

    def stand_in_for_sbatch(self):
        executable(self.bin / "sbatch", SBATCH.format(records=str(self.calls)))

    def submitted(self):
        """What the stand-in for sbatch was given, in order."""
        return [Submission(json.loads(path.read_text())) for path in sorted(self.calls.iterdir())]


class Submission:
    def __init__(self, record):
        self.words, self.env = record["words"], record["environment"]
        self.path, self.script = pathlib.Path(record["path"]), record["script"]

    @property
    def directives(self):
        """The #SBATCH lines, in order: name -> value, or None of a flag."""
        lines = re.findall(r"^#SBATCH --([a-z-]+)(?:[= ](.*))?$", self.script, re.M)
        return {name: shlex.split(value)[0] if value else None for name, value in lines}

    @property
    def options(self):
        """What sbatch was told on its command line, the same way."""
        found = [word[2:].partition("=") for word in self.words[:-1]]
        return {name: value or None for name, _, value in found}

    @property
    def command(self):
        """The words of the conversion, as the shell of the job reads them."""
        joined = self.script.replace("\\\n", " ")
        line = next(line for line in joined.splitlines() if re.search(r"\bconvert\b.*--(input_model|in_path)", line))
        return shlex.split(line)
