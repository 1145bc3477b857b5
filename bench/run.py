#!/usr/bin/env python3
"""Measures reshard end to end and prints one Markdown table; bench/README.md says what the columns mean.

Imports nothing large: the peak memory of a child process is never below what this process held when it started it.
"""

import argparse
import filecmp
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
WORK = ROOT / "build" / "bench"
RESHARD = pathlib.Path(os.environ.get("RESHARD", ROOT / "build" / "release" / "reshard")).resolve()
CGROUPS = pathlib.Path("/sys/fs/cgroup")
DROP_CACHES = "/proc/sys/vm/drop_caches"
GB = 1e9
PARTS = ("planning", "speed", "trtllm", "containers", "memory", "large")
OUTPUTS = ("nemo", "out", "packed", "torch_dist", "items", "copy", "python")
HEADINGS = ("what", "cache", "wall s", "`cp` s", "wall / `cp`", "wall / `cp` writing as much", "CPU s per GB read",
            "`cp`: CPU s per GB", "peak RSS MiB")


class Run(typing.NamedTuple):
    seconds: float
    cpu: float
    peak: int


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command):
    """Runs it to the end; its CPU time and peak resident memory are those of all its processes."""
    begin = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stderr.close()
    if child.returncode:
        sys.exit(f"bench: {' '.join(map(str, command))}: exit {child.returncode}\n{errors}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def median(runs):
    return Run(*(statistics.median(values) for values in zip(*runs)))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def size(folder):
    return sum(path.stat().st_size for path in files(folder))


def remove(folder):
    """The file system does the work of deleting before the next run begins, not in it."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def warm(folder):
    buffer = bytearray(1 << 20)
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def touch_free_memory(count):
    """A virtual machine may hand free memory back to its host, and every page costs much more when it is next used:
    then the runs after a pause, and those that write more, would look slow. So both of a pair find memory in place."""
    run([sys.executable, "-c", f"bytes([1]) * {count}"])


def cool(folder):
    os.sync()
    if os.access(DROP_CACHES, os.W_OK):
        pathlib.Path(DROP_CACHES).write_text("3")
        return
    for path in files(folder):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def convert(source, target, to, *options):
    return [RESHARD, "convert", source, target, f"--to={to}", "--quiet", *options]


def durable(command, target):
    """`command`, then its target written to the disk, as reshard leaves its own."""
    return ["sh", "-c", '"$@" && sync -f "$0"', target, *command]


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, cache="", wall="", cp="", ratio="", per_byte="", cpu="", cp_cpu="", peak=""):
        self.rows.append((what, cache, wall, cp, ratio, per_byte, cpu, cp_cpu, peak))
        say("  " + " | ".join(filter(None, self.rows[-1])))

    def __str__(self):
        lines = [HEADINGS, ("---", "---", *["---:"] * (len(HEADINGS) - 2)), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mib(number):
    return f"{number / 2**20:.0f}"


def spread(numbers):
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def model(shape, layers=None, *options):
    folder = WORK / "-".join(filter(None, (shape, layers and f"{layers}-layers")))
    count = [f"--layers={layers}"] if layers else []
    run([sys.executable, BENCH / "make_model.py", folder, f"--shape={shape}", *count, *options])
    return folder


def copies(source, copy, count):
    """cp of `source`, `count` times, then all of it written to the disk."""
    once = 'cp -r --sparse=never "$1" "$0/$2"'
    script = " && ".join(['mkdir "$0"', *(once.replace("$2", str(n)) for n in range(count)), 'sync -f "$0"'])
    return ["sh", "-c", script, copy, source]


def against_copy(table, what, command, source, target, copy, prepare, runs):
    """`command`, which makes `target` from `source`, and cp of `source`, one after the other, `runs` times. Where the
    target is larger, also cp of `source` as many times as make up its bytes, or nearly."""
    ours, theirs, as_much = [], [], []
    source_bytes = size(source)

    def measure(command, made):
        prepare(source)
        touch_free_memory(3 * source_bytes)
        done = run(command)
        made_bytes = size(made)
        remove(made)
        return done, made_bytes

    for _ in range(runs):
        done, target_bytes = measure(command, target)
        ours.append(done)
        theirs.append(measure(copies(source, copy, 1), copy)[0])
        count = round(target_bytes / source_bytes)
        more = measure(copies(source, copy, count), copy)[0].seconds if count > 1 else theirs[-1].seconds
        as_much.append(more * target_bytes / source_bytes / max(count, 1))
    ratios = [a.seconds / b.seconds for a, b in zip(ours, theirs)]
    per_byte = [a.seconds / b for a, b in zip(ours, as_much)]
    ours, theirs = median(ours), median(theirs)
    table.add(what, "warm" if prepare is warm else "cold", f"{ours.seconds:.2f}", f"{theirs.seconds:.2f}",
              spread(ratios), spread(per_byte), f"{ours.cpu / source_bytes * GB:.2f}",
              f"{theirs.cpu / source_bytes * GB:.2f}", mib(ours.peak))


def measure_speed(table, hf, nemo, runs):
    for prepare in (warm, cool):
        for source, to in ((hf, "nemo"), (nemo, "hf")):
            template = [] if to == "nemo" else [f"--hf_model_name={hf}"]
            for dtype, options in (("bf16", []), ("fp32", ["--dtype=fp32"])):
                what = f"{'HF -> NeMo' if to == 'nemo' else 'NeMo -> HF'}, bf16 -> {dtype}"
                target = WORK / "out"
                command = convert(source, target, to, *template, *options)
                against_copy(table, what, command, source, target, WORK / "copy", prepare, runs)


class Cgroup:
    """A memory cgroup whose limit the kernel enforces: a process that needs more is killed. The page cache that a
    process fills counts too, but is given up first. Where none can be made, commands run without, and the rows say so.
    """

    def __init__(self, cap):
        v1, v2 = CGROUPS / "memory" / "reshard-bench", CGROUPS / "reshard-bench"
        self.folder = v1 if v1.parent.is_dir() else v2
        limit = "memory.limit_in_bytes" if self.folder == v1 else "memory.max"
        try:
            self.folder.mkdir(exist_ok=True)
            (self.folder / limit).write_text(str(int(cap.removesuffix("MiB")) << 20))
            self.what = f"`--max_memory={cap}` in a cgroup of {cap}"
        except OSError:
            self.folder, self.what = None, f"`--max_memory={cap}`, no cgroup"

    def around(self, command):
        if not self.folder:
            return command
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', self.folder / "cgroup.procs", *command]


def measure_trtllm(table, hf, nemo, runs):
    target = WORK / "out"
    plain = (("HF -> TensorRT-LLM, TP 8", hf, ["--tp_size=8"]),
             ("NeMo -> TensorRT-LLM, TP 8", nemo, ["--tp_size=8", f"--hf_model_name={hf}"]))
    # These wait for the processor, whatever the disk does.
    quantised = (("HF -> TensorRT-LLM, TP 8, int8 left to the builder", hf, ["--tp_size=8", "--use_weight_only"]),
                 ("HF -> TensorRT-LLM, TP 8, int8 for sm80", hf, ["--tp_size=8", "--use_weight_only", "--sm=80"]),
                 ("HF -> TensorRT-LLM, TP 8, FP8 by rows", hf, ["--tp_size=8", "--use_fp8_rowwise"]))
    for prepare, which in ((warm, plain + quantised), (cool, plain)):
        for what, source, options in which:
            against_copy(table, what, convert(source, target, "trtllm", "--checkpoint_only", *options), source, target,
                         WORK / "copy", prepare, runs)


def measure_containers(table, hf, runs):
    """Files with checksums of their data; the way back is from those that are made here."""
    packed, torch_dist, back = WORK / "packed", WORK / "torch_dist", WORK / "out"
    for prepare in (warm, cool):
        for what, made, command in (
                ("HF -> packed `.nemo`", packed, convert(hf, packed / "m.nemo", "nemo")),
                ("HF -> torch_dist", torch_dist, convert(hf, torch_dist, "nemo", "--nemo_weights=torch_dist")),
                ("HF -> packed `.nemo` with torch_dist", packed,
                 convert(hf, packed / "m.nemo", "nemo", "--nemo_weights=torch_dist")),
                ("HF -> PyTorch files", back, convert(hf, back, "hf", "--hf_weights=bin"))):
            against_copy(table, what, command, hf, made, WORK / "copy", prepare, runs)
        for what, source, made in (
                ("packed `.nemo` -> HF", packed, convert(hf, packed / "m.nemo", "nemo")),
                ("torch_dist -> HF", torch_dist, convert(hf, torch_dist, "nemo", "--nemo_weights=torch_dist"))):
            run(made)
            opened = packed / "m.nemo" if source == packed else source
            command = convert(opened, back, "hf", f"--hf_model_name={hf}")
            against_copy(table, what, command, source, back, WORK / "copy", prepare, runs)
            remove(source)


def measure_items(table, runs):
    """12 items a layer: tensors and objects."""
    deep, items = model("deep", None), WORK / "items"
    run(convert(deep, items, "nemo", "--nemo_weights=torch_dist"))
    done = median([run([RESHARD, "inspect", items, "--json"]) for _ in range(runs)])
    table.add("`inspect` of a torch_dist checkpoint of 12,000 items", "warm", f"{done.seconds:.3f}", peak=mib(done.peak))


def measure_memory(table, hf, nemo):
    for cap in ("64MiB", "256MiB"):
        cgroup = Cgroup(cap)
        for source, to in ((hf, "nemo"), (nemo, "hf")):
            template = [] if to == "nemo" else [f"--hf_model_name={hf}"]
            warm(source)
            done = run(cgroup.around(convert(source, WORK / "out", to, f"--max_memory={cap}", *template)))
            remove(WORK / "out")
            table.add(f"{'HF -> NeMo' if to == 'nemo' else 'NeMo -> HF'}, bf16, {cgroup.what}", "warm",
                      f"{done.seconds:.2f}", cpu=f"{done.cpu / size(source) * GB:.2f}", peak=mib(done.peak))


def measure_large(table, layers):
    hf = model("70b", layers, "--sparse")
    read = size(hf)
    name = f"{f'{layers} layers of ' if layers else ''}70B, {read / GB:.0f} GB of holes, nothing written"
    for cap in ("64MiB", "256MiB"):
        cgroup = Cgroup(cap)
        done = run(cgroup.around(convert(hf, WORK / "out", "nemo", f"--max_memory={cap}", "--io_engine=discard")))
        remove(WORK / "out")
        table.add(f"HF -> NeMo, {name}, {cgroup.what}", "", f"{done.seconds:.1f}",
                  cpu=f"{done.cpu / read * GB:.2f}", peak=mib(done.peak))


def measure_planning(table, runs):
    hf = model("405b", None, "--sparse")
    done = median([run([RESHARD, "plan", hf, WORK / "out", "--to=nemo", "--json"]) for _ in range(runs)])
    table.add("`plan` of HF -> NeMo, 405B", "warm", f"{done.seconds:.3f}", peak=mib(done.peak))
    ranks = ["--to=trtllm", "--tp_size=8", "--pp_size=2", "--json"]
    done = median([run([RESHARD, "plan", hf, WORK / "out", *ranks]) for _ in range(runs)])
    table.add("`plan` of HF -> TensorRT-LLM, 405B, TP 8, PP 2", "warm", f"{done.seconds:.3f}", peak=mib(done.peak))
    for shape in ("mixtral-8x22b", "qwen3-235b", "100k"):
        sparse = model(shape, None, "--sparse")
        for to in (["nemo", "--nemo_weights=torch_dist"], ["megatron"], ["hf"]):
            plan = [RESHARD, "plan", sparse, WORK / "out", f"--to={to[0]}", *to[1:], f"--hf_model_name={sparse}", "--json"]
            done = median([run(plan) for _ in range(runs)])
            table.add(f"`plan` of HF -> {' '.join(to)}, {shape}", "warm", f"{done.seconds:.3f}", peak=mib(done.peak))
    done = median([run([RESHARD, "--version"]) for _ in range(50)])
    table.add("`--version`, median of 50", "warm", f"{done.seconds:.4f}", peak=mib(done.peak))
    floor = median([run(["true"]) for _ in range(50)])
    table.add("`true`, median of 50: the floor of this measurement", "warm", f"{floor.seconds:.4f}",
              peak=mib(floor.peak))


def assert_same_chunks(folder, nemo):
    """The other way must do the same work: every chunk file that it wrote is one of ours, byte for byte."""
    chunks = [path.relative_to(folder) for path in files(folder) if not path.name.startswith(".")]
    different = [chunk for chunk in chunks if not filecmp.cmp(folder / chunk, nemo / chunk, shallow=False)]
    if different or not chunks:
        sys.exit(f"bench: the Python way wrote other bytes: {different[:3]}")


def measure_python(table, hf, nemo, runs):
    target = WORK / "python"
    ways = (("HF -> NeMo, bf16, in Python, tensor by tensor (weights only)", []),
            ("HF -> NeMo, bf16, in Python, the whole model in memory (weights only)", ["--whole"]))
    for prepare in (warm, cool):
        for what, options in ways:
            command = durable([sys.executable, BENCH / "python_way.py", hf, target, *options], target)
            against_copy(table, what, command, hf, target, WORK / "copy", prepare, runs)
    for _, options in ways:
        run([sys.executable, BENCH / "python_way.py", hf, target, *options])
        assert_same_chunks(target, nemo)
        remove(target)


def machine():
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) / 2**20
    kind = subprocess.run(["df", "--output=fstype", WORK], capture_output=True, text=True).stdout.split()[-1]
    version = subprocess.run([RESHARD, "--version"], capture_output=True, text=True).stdout.strip()
    return f"{version}; {os.cpu_count()} cores, {memory:.0f} GiB, {kind}, Linux {platform.release()}"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="pairs of reshard and cp for each median (5)")
    parser.add_argument("--layers", type=int, help="of the model that is written; 12 is 2.5 GB")
    parser.add_argument("--large_layers", type=int, help="of the 70B that is only read; 80 is the whole")
    parser.add_argument("--compare", action="store_true", help="also in Python, with torch, transformers and zarr")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="all of them by default")
    return parser.parse_args()


def main():
    options = parse()
    if not os.access(RESHARD, os.X_OK):
        sys.exit(f"bench: {RESHARD} does not exist; build it, or set RESHARD")
    WORK.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        remove(WORK / name)
    say("making the model")
    hf, nemo = model("small", options.layers, f"--shard_bytes={10**9}"), WORK / "nemo"
    need = 5 * size(hf)
    if shutil.disk_usage(WORK).free < need:
        sys.exit(f"bench: {WORK} has less than the {need / GB:.0f} GB that this needs")
    run(convert(hf, nemo, "nemo"))
    table = Table()
    try:
        if "planning" in options.parts:
            measure_planning(table, options.runs)
        if "speed" in options.parts:
            measure_speed(table, hf, nemo, options.runs)
        if "trtllm" in options.parts:
            measure_trtllm(table, hf, nemo, options.runs)
        if "containers" in options.parts:
            measure_containers(table, hf, options.runs)
            measure_items(table, options.runs)
        if "memory" in options.parts:
            measure_memory(table, hf, nemo)
        if options.compare:
            measure_python(table, hf, nemo, options.runs)
        if "large" in options.parts:
            measure_large(table, options.large_layers)
    finally:
        for name in OUTPUTS:
            remove(WORK / name)
    print(f"{machine()}; model of {size(hf) / GB:.2f} GB, medians of {options.runs}\n\n{table}")


if __name__ == "__main__":
    sys.exit(main())
