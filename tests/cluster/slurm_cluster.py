"""A Slurm of two nodes on one host, inside the namespaces of ``tests.cluster``."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "10.77.0.1"
NODES = ("n1", "n2")
PATIENCE_S = 600.0
"""A busy machine takes two minutes to start four ranks."""
CONF = """\
ClusterName=two
SlurmctldHost=box({address})
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=60
MinJobAge=3600
NodeName=n1 NodeHostname=box NodeAddr={address} Port=17001 CPUs=8
NodeName=n2 NodeHostname=box NodeAddr={address} Port=17002 CPUs=8
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """A running cluster.

    Args:
        folder: Its configuration, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words: str, text: str | None = None, cwd: Path | None = None) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run(
            words,
            input=text,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{' '.join(words[:4])}: {done.stdout}{done.stderr}"
        return done.stdout

    def field(self, job: str, name: str) -> str:
        """A field of ``scontrol show job``, the first one of an array's."""
        found = re.search(rf"\b{name}=(\S*)", self.run("scontrol", "show", "job", job))
        return found[1] if found else ""

    def states(self, job: str) -> list[str]:
        """State of the job, of an array's jobs each."""
        return re.findall(r"\bJobState=(\S*)", self.run("scontrol", "show", "job", job))

    def wait_for(self, job: str, *wanted: str) -> None:
        """Wait until every job of the array, or the one, is in one of the states."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(state in wanted for state in self.states(job)):
            assert time.monotonic() < deadline, (
                f"job {job} is {self.states(job)} after {PATIENCE_S:g} s, expected {wanted}:"
                f" {self.run('scontrol', 'show', 'job', job)}\n"
                + "\n".join(self.run("squeue", "--all").splitlines())
            )
            time.sleep(0.5)

    def end_jobs(self) -> None:
        """At once."""
        self.run("scancel", "--user=root", "--state=PENDING")
        self.run("scancel", "--full", "--signal=KILL", "--user=root")
        self.run("scancel", "--user=root")


@contextmanager
def running_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start munge, the controller and both nodes; end them with whatever they run."""
    folder.chmod(0o755)
    for name in ("munge", "state", *NODES):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, address=ADDRESS))
    subprocess.run(["hostname", "box"], check=True)
    cluster, daemons = SlurmCluster(folder), []
    try:
        daemons.append(_munge(folder / "munge"))
        conf = ["-D", "-f", str(folder / "slurm.conf")]
        for words in (["slurmctld", *conf], *(["slurmd", "-N", node, *conf] for node in NODES)):
            with (folder / f"{words[0]}.out").open("a") as log:
                daemons.append(
                    subprocess.Popen(words, stdout=log, stderr=log, env=cluster.environment)
                )
        _wait_for_nodes(cluster)
        yield cluster
        cluster.end_jobs()
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:  # it waits for a job; all end with the namespace
                daemon.kill()


def _munge(folder: Path) -> subprocess.Popen[bytes]:
    """Its daemon refuses to run as root."""
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    subprocess.run(["chown", "-R", "munge:munge", str(folder)], check=True)
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
    words = [f"--{option}={folder / name}" for option, name in files.items()]
    daemon = subprocess.Popen(
        ["runuser", "-u", "munge", "--", "munged", "-F", *words, f"--log-file={folder / 'log'}"],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (folder / "socket").exists():
        assert time.monotonic() < deadline and daemon.poll() is None, "munged does not start"
        time.sleep(0.1)
    return daemon


def _wait_for_nodes(cluster: SlurmCluster) -> None:
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
        if done.stdout.split() == ["idle"] * len(NODES):
            return
        assert time.monotonic() < deadline, f"{done.stdout}{done.stderr}; logs: {cluster.folder}"
        time.sleep(0.5)
