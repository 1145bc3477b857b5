"""Runs jobs of mcore_dist_worker.py with every megatron-core that lies in the virtual environment."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
VERSIONS = ["0.8", "0.12", "0.16"]


def run(jobs, folder):
    """jobs: version -> list of jobs. Returns (version, id) -> result."""
    running, results = {}, {}
    for version, todo in jobs.items():
        packages = pathlib.Path(sys.prefix) / f"mcore-{version}"
        assert packages.is_dir(), f"{packages} does not exist: scripts/test installs megatron-core there"
        (folder / f"jobs-{version}.json").write_text(json.dumps(todo))
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=f"{packages}{os.pathsep}{HERE}", PYTHONWARNINGS="ignore")
        command = [sys.executable, HERE / "mcore_dist_worker.py", f"jobs-{version}.json", f"results-{version}.json"]
        log = open(folder / f"log-{version}", "w")
        running[version] = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    for version, process in running.items():
        assert process.wait(600) == 0, (folder / f"log-{version}").read_text()
        for name, result in json.loads((folder / f"results-{version}.json").read_text()).items():
            results[version, name] = result
    return results
