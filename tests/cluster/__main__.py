"""The launchers on a real Slurm with two nodes, and two machines with a network between them, all
on this host: ``make cluster-test``, or ``python -m tests.cluster -k requeue`` for some of it.

Needs root and Debian's packages slurm-wlm, munge and iproute2; where they are missing it says so,
and ends with 0. Everything runs in namespaces of its own (processes, network, mounts, host name),
so that nothing of the host is touched, and nothing is left once this process has ended, however it
did.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INSIDE = "--inside"
PROGRAMS = {
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "runuser": "util-linux",
    "ip": "iproute2",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "munged": "munge",
}
"""What is needed, with the package that has it."""
NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--mount-proc")
OWN = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork", "--kill-child"]


def missing() -> str:
    """Why nothing can run here; empty where it can."""
    if os.geteuid() != 0:
        return "root is needed, to make namespaces"
    packages = {package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    if packages:
        return f"missing: apt-get install {' '.join(sorted(packages))}"
    done = subprocess.run([*OWN, "true"], capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


def run_apart(arguments: list[str]) -> int:
    """Run the tests in namespaces of their own; whatever ends this process ends them."""
    command = [sys.executable, "-m", "tests.cluster", INSIDE, *arguments]
    child = subprocess.Popen([*OWN, *command], start_new_session=True)

    def end(signum: int, frame: object) -> None:
        child.kill()
        sys.exit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, end)
    return child.wait()


def be_first_process(arguments: list[str]) -> int:
    """Inside: start pytest, and collect processes that lost their parent, as an init does."""
    files = [str(path) for path in sorted(HERE.glob("on_*.py"))]
    child = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *arguments]
    )
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def main() -> int:
    """Entry of ``python -m tests.cluster``."""
    if sys.argv[1:2] == [INSIDE]:
        return be_first_process(sys.argv[2:])
    if reason := missing():
        print(f"cluster-test skipped: {reason}")
        return 0
    return run_apart(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
