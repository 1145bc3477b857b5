"""Options of the original `ns convert` and of its scripts, with a cluster configuration, and its documented lines."""

import json
import os
import re

import launching
import pytest
import tiny_model
from program import files

# ---------------------------------------------------------------- options of the original

DOCUMENTED = {
    "cluster": "slurm", "input_model": "/models/in", "output_model": "/models/out", "model_type": "llama",
    "convert_from": "hf", "convert_to": "nemo", "hf_model_name": "example/model", "dtype": "bf16", "expname": "mine",
    "num_nodes": "1", "num_gpus": "8", "partition": "other", "run_after": "mine", "config_dir": "cluster_configs",
    "log_dir": "/models/logs", "time_min": "00:01:00", "reuse_code_exp": "x", "mount_paths": "/a:/b", "qos": "high",
    "installation_command": "true", "sbatch_kwargs": "{}", "sbatch_arguments": "{}",
}
FLAGS = ("exclusive", "no_exclusive", "no-exclusive", "reuse_code", "no_reuse_code", "no-reuse_code",
         "check_mounted_paths", "no_check_mounted_paths", "skip_hf_home_check", "no_skip_hf_home_check", "dry_run")


@pytest.mark.parametrize("option", DOCUMENTED)
@pytest.mark.parametrize("dashes", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_documented_options(site, option, dashes, joined):
    site.write_config()
    name = f"--{option}".replace("_", "-") if dashes else f"--{option}"
    words = [f"{name}={DOCUMENTED[option]}"] if joined else [name, DOCUMENTED[option]]
    site.convert("--dry_run", *words)
    assert option.split("_")[0] in site.convert("--dry_run", name, code=2).err.replace("-", "_")


@pytest.mark.parametrize("option", FLAGS)
def test_documented_flags(site, option):
    site.write_config()
    site.convert("--dry_run", f"--{option}")
    site.convert("--dry_run", f"--{option}".replace("_", "-"))


@pytest.mark.parametrize("word", ["--reuse_code", "--reuse_code_exp=x", "--skip_hf_home_check"])
def test_needless_options_are_told_in_one_line(site, word):
    site.write_config()
    plain, told = site.convert("--dry_run").err.splitlines(), site.convert("--dry_run", word).err.splitlines()
    extra = [line for line in told if line not in plain]
    assert len(extra) == 1 and word.split("=")[0].strip("-") in extra[0].replace("-", "_")


def to_trtllm(site, *words, code=0):
    site.write_config()
    return site.ns("convert", "--cluster=slurm", "--input_model=/models/in", "--output_model=/models/out",
                   "--convert_from=hf", "--convert_to=trtllm", "--num_gpus=2", "--dry_run", *words, code=code)


SCRIPT_WORDS = {
    "nemo": ["--override", "--over", "--precision 16", "--prec 16", "--in-path /models/in", "--out-path /models/out",
             "--hf-model-name x"],
    "trtllm": ["--model_dir /models/in", "--meta_ckpt_dir /models/in", "--tp_size 2", "--pp_size 1", "--moe_tp_size 2",
               "--moe_ep_size 1", "--vocab_size 19", "--n_positions 64", "--n_layer 2", "--n_head 8", "--n_kv_head 2",
               "--n_embd 64", "--inter_size 96", "--multiple_of 256", "--ffn_dim_multiplier 1.0",
               "--rms_norm_eps 1e-6", "--rotary_base 10000.0", "--hidden_act silu", "--use_weight_only",
               "--disable_weight_only_quant_plugin", "--weight_only_precision int8", "--weight_only_precision int4_awq",
               "--calib_dataset x", "--smoothquant 0.5", "-sq 0.5", "--per_channel", "--per_token", "--per_group",
               "--int8_kv_cache", "--fp8_kv_cache", "--use_fp8_rowwise", "--use_fp8", "--quant_ckpt_path /models/in",
               "--load_by_shard", "--load_model_on_cpu", "--group_size 128", "--use_parallel_embedding",
               "--embedding_sharding_dim 0", "--use_embedding_sharing", "--output_dir /models/out", "--workers 1",
               "--moe_num_experts 0", "--moe_top_k 0", "--moe_renorm_mode 1", "--save_config_only",
               "--remove_duplicated_kv_heads", "--log_level info", "--smooth 0.5", "--use_weight"],
}


@pytest.mark.parametrize("to, words", [(to, words) for to, each in SCRIPT_WORDS.items() for words in each])
def test_options_of_the_scripts_are_honoured_or_refused_with_a_reason(site, to, words):
    """Never unknown; `-sq` and prefixes as argparse has them."""
    site.write_config()
    run = to_trtllm if to == "trtllm" else lambda site, *words, code: site.convert("--dry_run", *words, code=code)
    result = run(site, *words.split(), code=(0, 2, 3, 5, 6))
    assert not re.search(r"did you mean|unknown|Traceback", result.err), result


def test_options_of_the_way_back(site):
    launching.tiny_model.write_nemo(site.data / "nemo", launching.SETTINGS)
    launching.write_hub_model(site.data / "hf-home", "example/model")
    site.write_config("local", executor="local", job_dir=None, env_vars=["HF_HOME"])
    for number, words in enumerate([["--max-shard-size", "5GB"], ["--max-shard", "5GB"], ["--cpu-only"], ["--cpu"],
                                    ["--tmp-out-path", "/models/x"], ["--precision", "bf16"], ["--hf-model", "x"]]):
        site.ns("convert", "--cluster=local", "--input_model=/models/nemo", f"--output_model=/models/out{number}",
                "--convert_from=nemo", "--convert_to=hf", "--num_gpus=1", *words, "--hf_model_name=example/model",
                HF_HOME="/models/hf-home")
        assert tiny_model.read_hf(site.data / f"out{number}") == tiny_model.tensors(launching.SETTINGS)


def test_no_prefixes_of_ns_options(site):
    """Click matches them whole, so a prefix is an unknown word."""
    site.write_config()
    for word in ("--partit=x", "--exp=x", "--conv=nemo"):
        assert word.split("=")[0] in site.convert("--dry_run", word, code=2).err


def test_words_for_the_first_step(site):
    result = to_trtllm(site, "--trt_prepare_args=--use_parallel_embedding --embedding_sharding_dim '1'")
    assert "--use_parallel_embedding" in result.out and "--embedding_sharding_dim=1" in result.out
    assert "did you mean" in to_trtllm(site, "--trt_prepare_args=--use_parallel_embeding", code=2).err


def test_words_for_trtllm_build_reach_the_second_job(site):
    site.write_config()
    site.ns("convert", "--cluster=slurm", "--input_model=/models/in", "--output_model=/models/out",
            "--convert_from=hf", "--convert_to=trtllm", "--num_gpus=2", "--max_batch_size", "64", "--", "--x", "a b")
    build = site.submitted()[-1].command
    position = build.index("--")
    assert build[position + 1:] == ["--x", "a b"] or {"--x", "a b"} <= set(build)


# ---------------------------------------------------------------- documented lines on this machine

@pytest.mark.parametrize("line", [
    "--input_model /models/in --output_model /models/out --model_type llama --convert_from hf --convert_to nemo "
    "--num_gpus 1 --hf_model_name meta-llama/Meta-Llama-3.1-8B",
    "--input_model=/models/nemo --output_model=/models/out --model_type=llama --convert_from=nemo --convert_to=hf "
    "--num_gpus=1 --hf_model_name=meta-llama/Meta-Llama-3.1-8B",
    "--input_model /models/in --output_model /models/out --model_type llama --convert_from hf --convert_to trtllm "
    "--num_gpus 1 --hf_model_name meta-llama/Meta-Llama-3.1-8B"])
def test_lines_with_a_configuration_of_this_machine(site, line):
    launching.tiny_model.write_nemo(site.data / "nemo", launching.SETTINGS)
    launching.write_hub_model(site.data / "hf-home", "meta-llama/Meta-Llama-3.1-8B")
    launching.executable(site.bin / "trtllm-build", launching.TRTLLM_BUILD)
    folder = site.root / "configs"
    site.write_config("test-local", folder, executor="local", job_dir=None, account=None, partition=None,
                      env_vars=["HF_HOME"])
    site.ns("convert", "--cluster", "test-local", "--config_dir", folder, *line.split(), HF_HOME="/models/hf-home")
    assert files(site.data / "out")
    site.reshard("verify", site.data / ("out-tmp" if "trtllm" in line else "out"))


@pytest.mark.parametrize("container, expected", [("some/image:1", True), ("", False)])
def test_an_engine_on_this_machine_is_built_in_the_container(site, container, expected):
    """Where trtllm-build is not on the PATH and docker is."""
    record = site.root / "docker-calls"
    build = launching.executable(site.root / "trtllm-build", launching.TRTLLM_BUILD)
    launching.executable(site.bin / "docker", "#!/usr/bin/env python3\nimport json, os, sys\n"
                         f"open({str(record)!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
                         f"os.execv({str(build)!r}, sys.argv[sys.argv.index('trtllm-build'):])\n")
    site.write_config("local", executor="local", job_dir=None, containers={"nemo": "n", "trtllm": container})
    site.ns("convert", "--cluster=local", "--input_model=/models/in", "--output_model=/models/out", "--convert_to=trtllm",
            "--num_gpus=8", "--max_batch_size=3", code=0 if expected else 3)
    if expected:
        words = json.loads(record.read_text())
        assert words[:2] == ["run", "--rm"] and "--ipc=host" in words and "--network=host" in words
        assert "--gpus=8" in words or words[words.index("--gpus") + 1] == "8"
        assert f"{site.data}:/models" in " ".join(words)
        image = words.index("some/image:1")
        assert words[image + 1] == "trtllm-build"
        assert words[words.index("--checkpoint_dir") + 1] == f"{site.data}/out-tmp"
