"""Submission through the system's ssh, to a real sshd on this machine with a key and a port of its own."""

import getpass
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
from slurm_site import go_on

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment no
LogLevel VERBOSE
SetEnv SLURM_CONF={slurm_conf} PATH={path}
"""


class Sshd:
    def __init__(self, folder, site):
        self.folder, self.site = folder, site
        folder.mkdir()
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation wants this one
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "config").write_text(SSHD_CONFIG.format(
            port=self.port, folder=folder, slurm_conf=site.env["SLURM_CONF"], path=site.env["PATH"]))
        self.process = subprocess.Popen([SSHD, "-D", "-f", folder / "config", "-E", folder / "log"])
        self.wait()
        # Whose host key nobody has seen before: what a user does once by hand.
        known = subprocess.run(["ssh-keyscan", "-p", str(self.port), "127.0.0.1"], capture_output=True, text=True).stdout
        (site.home / ".ssh").mkdir(mode=0o700)
        (site.home / ".ssh" / "known_hosts").write_text(known)

    def wait(self):
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def tunnel(self, **changes):
        return {"host": "127.0.0.1", "port": self.port, "user": getpass.getuser(), "job_dir": str(self.site.jobs),
                "identity": str(self.folder / "user_key"), **changes}

    def logins(self):
        return (self.folder / "log").read_text().count("Accepted publickey")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


@pytest.fixture
def sshd(site):
    if not SSHD:
        pytest.skip("no sshd: scripts/install-packages slurm")
    sshd = Sshd(site.root / "sshd", site)
    # ssh reads the files of the user as the password file names the home, whatever HOME is.
    (site.root / "ssh_config").write_text(f"UserKnownHostsFile {site.home}/.ssh/known_hosts\n")
    wrapper = shutil.which("ssh")
    (site.bin / "ssh").write_text(f"#!/bin/sh\nexec {wrapper} -F {site.root}/ssh_config \"$@\"\n")
    (site.bin / "ssh").chmod(0o755)
    yield sshd
    sshd.stop()


def test_from_another_machine(llama, sshd):
    llama.write_config(job_dir=None, ssh_tunnel=sshd.tunnel())
    before = sshd.logins()
    launched = llama.launch_convert("--expname=far")
    assert sshd.logins() - before <= 2, "connections are shared"
    launched.completed()
    llama.reshard("verify", llama.data / "in", llama.data / "out")
    identity, = (llama.jobs / "far").iterdir()
    assert (identity / "nemo-run_sbatch.sh").exists()
    assert (llama.home / ".nemo_run" / "experiments" / "far" / identity.name / "reshard.json").exists()
    one, = llama.reshard("status", "far", "--json").json()["experiments"]
    assert one["state"] == "COMPLETED"
    log, = (llama.data / "out" / "conversion-logs").glob("main_*")
    assert log.read_text().strip() in llama.reshard("logs", "far").out


def test_commands_of_a_far_cluster(large, sshd):
    large.write_config(job_dir=None, ssh_tunnel=sshd.tunnel())
    launched = large.launch_convert("--convert_tasks=2")
    pid = large.halt_at(50 << 20)
    assert large.reshard("status", "conversion", "--json").json()["experiments"][0]["state"] == "RUNNING"
    large.reshard("cancel", "conversion")
    go_on(pid)
    launched.ended()
    assert large.reshard("status", "conversion", "--json").json()["experiments"][0]["state"] == "CANCELLED"


def test_variables_and_a_user_of_nobody(llama, sshd):
    """As later files of the original have them; `user: null` is who calls."""
    tunnel = sshd.tunnel(user=None, job_dir="$JOBS", identity="${KEYS}/user_key")
    llama.write_config(job_dir=None, ssh_tunnel=tunnel)
    llama.launch_convert(JOBS=str(llama.jobs), KEYS=str(sshd.folder)).completed()


def test_a_command_before_the_others(llama, sshd):
    record = llama.root / "before"
    llama.write_config(job_dir=None, ssh_tunnel=sshd.tunnel(pre_command=f"echo once >> {record}"))
    llama.launch_convert().completed()
    assert record.exists()
    llama.write_config(job_dir=None, ssh_tunnel=sshd.tunnel(pre_command="false"))
    llama.convert(target="/models/other", code=7)


@pytest.mark.parametrize("change, said", [
    ({"identity": "/no/such/key"}, "identity|key|Permission"), ({"port": 1}, "refused|127.0.0.1"),
    ({"job_dir": "/proc/not/here"}, "job_dir|/proc/not/here")])
def test_what_goes_wrong_is_told(llama, sshd, change, said):
    llama.write_config(job_dir=None, ssh_tunnel=sshd.tunnel(**change))
    result = llama.convert(code=(3, 7))
    assert re.search(said, result.err)
    assert not llama.cluster.run("squeue", "--noheader")


def test_no_secret_crosses(llama, sshd):
    llama.write_config(job_dir=None, ssh_tunnel=sshd.tunnel(), env_vars=["HF_TOKEN"])
    llama.launch_convert(HF_TOKEN="hf_neverEverToBeSeen").completed()
    for path in [*llama.root.rglob("*"), *llama.cluster.folder.rglob("*")]:
        assert not path.is_file() or b"hf_neverEverToBeSeen" not in path.read_bytes(), path
