"""A Slurm of this machine, a user of it, and what was launched there."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import launching

LOCAL_SLURM = pathlib.Path(__file__).parent / "local_slurm"
DAEMONS = ("slurmctld", "slurmd", "munged")
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
         "PREEMPTED"}


def missing():
    """Why there can be no Slurm here, or nothing."""
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    absent = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=SYSTEM_PATH)]
    return f"{', '.join(absent)} not installed: scripts/install-packages slurm" if absent else None


class Slurm:
    """The commands of the cluster. Jobs are dicts of what scontrol shows; those of an array are one each."""

    def __init__(self, folder, nodes=4, extra=""):
        self.folder = folder
        self.env = {**os.environ, "PATH": SYSTEM_PATH, "SLURM_CONF_EXTRA": extra,
                    "SLURM_CONF": str(folder / "ctl" / "slurm.conf")}
        subprocess.run([LOCAL_SLURM, "up", folder, str(nodes)], env=self.env, check=True)

    def down(self):
        subprocess.run([LOCAL_SLURM, "down", self.folder], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *words, check=True):
        return subprocess.run([str(word) for word in words], env=self.env, capture_output=True, text=True,
                              check=check).stdout

    def jobs(self):
        """All jobs that slurmctld knows, oldest first."""
        shown = self.run("scontrol", "--oneliner", "show", "job", check=False)
        jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in shown.splitlines() if line.startswith("JobId=")]
        return sorted(jobs, key=lambda job: int(job["JobId"]))

    def last_id(self):
        return max((int(job["JobId"]) for job in self.jobs()), default=0)

    def wait(self, condition, what, timeout=90):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} did not come about:\n" + self.run("scontrol", "show", "job")
            time.sleep(0.05)
        return found

    def settle(self):
        """Ends what a test left running."""
        self.run("scancel", "--user=root", "--full", check=False)
        self.wait(lambda: not self.run("squeue", "--noheader"), "an empty queue")


class Launch:
    """What one command submitted."""

    def __init__(self, cluster, command):
        self.cluster = cluster
        before = cluster.last_id()
        self.result = command()
        self.ids = range(before + 1, cluster.last_id() + 1)

    def jobs(self, name=None):
        """Tasks of an array get an id of their own when they start."""
        found = [job for job in self.cluster.jobs() if int(job.get("ArrayJobId", job["JobId"])) in self.ids]
        return found if name is None else [job for job in found if job["JobName"] == name]

    @property
    def id(self):
        """Of the first job, as Slurm names it on the command line."""
        job = self.jobs()[0]
        return job.get("ArrayJobId", job["JobId"])

    def states(self):
        return [job["JobState"] for job in self.jobs()]

    def ended(self, timeout=90):
        """The jobs, all of them at their end."""
        self.cluster.wait(lambda: self.states() and set(self.states()) <= ENDED, "the end of all jobs", timeout)
        return self.jobs()

    def completed(self, timeout=90):
        jobs = self.ended(timeout)
        assert {job["JobState"] for job in jobs} == {"COMPLETED"}, self.report()
        return jobs

    def report(self):
        """Everything that helps to see why it went wrong."""
        logs = {job["StdOut"] for job in self.jobs() if job.get("StdOut")}
        logs = {log for path in logs for log in pathlib.Path(path).parent.glob("*.log")}
        texts = [f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted(logs)]
        rows = [f"{job['JobId']} {job['JobName']} {job['JobState']} {job['Reason']} {job['ExitCode']}"
                for job in self.jobs()]
        return "\n".join([*rows, *texts, self.result.out, self.result.err])


class SlurmSite(launching.Site):
    """A site whose jobs run."""

    def __init__(self, root, cluster):
        super().__init__(root, SLURM_CONF=cluster.env["SLURM_CONF"])
        self.cluster = cluster

    def launch(self, *words, name="ns", **options):
        return Launch(self.cluster, lambda: self.run(name, *words, **options))

    def launch_convert(self, *words, **options):
        return Launch(self.cluster, lambda: self.convert(*words, **options))

    def processes(self):
        """Pid -> words of the conversions of this site that run now; a launch and srun are none."""
        found = {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                program = os.readlink(folder / "exe")
            except (OSError, UnicodeDecodeError):
                continue
            if program.startswith(str(self.jobs)) and "convert" in words:
                found[int(folder.name)] = words
        return found

    def halt_at(self, written, timeout=60):
        """Halts a conversion when it has written so many bytes; its pid. `go_on` undoes it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for pid in self.processes():
                if bytes_written(pid) >= written:
                    os.kill(pid, signal.SIGSTOP)
                    return pid
            time.sleep(0.002)
        raise AssertionError(f"no conversion wrote {written} bytes in {timeout} s")


def go_on(pid):
    """Lets a halted conversion go on, unless it has been killed."""
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def bytes_written(pid):
    try:
        return int(re.search(r"wchar: (\d+)", pathlib.Path(f"/proc/{pid}/io").read_text())[1])
    except OSError:
        return 0
