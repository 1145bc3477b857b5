"""A process of one megatron-core version that works off a list of jobs (mcore_worker.py)."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


class Run:
    """Begins at once; several run side by side."""

    def __init__(self, version, folder, jobs):
        packages = pathlib.Path(sys.prefix) / f"mcore-{version}"
        assert packages.is_dir(), f"{packages} does not exist: scripts/test installs megatron-core there"
        self.version, self.folder = version, folder
        (folder / "jobs.json").write_text(json.dumps(jobs))
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=f"{packages}{os.pathsep}{HERE}", PYTHONWARNINGS="ignore")
        command = [sys.executable, HERE / "mcore_worker.py", "jobs.json", "results.json"]
        log = open(folder / "log", "w")
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def results(self):
        assert self.process.wait(900) == 0, (self.folder / "log").read_text()
        return json.loads((self.folder / "results.json").read_text())
