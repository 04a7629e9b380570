"""What the tests in namespaces share: the network of the host, and the curve that every way of
starting a run must give.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import ADDRESS

ROOT = Path(__file__).parents[2]
SHARED = Path("/mnt")
SMALL = (
    "--config-name", "demo", "arm=teacher_feedback+signal=gae", "run.total_steps=1024",
)  # fmt: skip
"""A run of two rollouts with one client and two servers; on two machines, two ranks and one."""


def launch_words(*arguments: str) -> list[str]:
    """``python -m launchers`` of this environment."""
    return [sys.executable, "-m", "launchers", *arguments]


def curve(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv`` without what a clock says."""
    with (folder / "metrics.csv").open() as file:
        return [
            {
                key: value
                for key, value in row.items()
                if "seconds" not in key and "per_s" not in key
            }
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="session", autouse=True)
def host_network() -> None:
    """Loopback, and one address that is none: names of one's own host are looked up by it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for words in (
        "link set lo up",
        "link add lan0 type veth peer name lan1",
        f"addr add {ADDRESS}/24 dev lan0",
        "link set lan0 up",
        "link set lan1 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    # These mounts end with this process; Munge's own user must get in, unlike in pytest's folders.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(SHARED)], check=True)
    hosts = SHARED / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{ADDRESS} box n1 n2\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The curve of ``SMALL`` on one machine without Slurm."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    words = launch_words("train", *SMALL, f"run.output_dir={folder}")
    subprocess.run(words, cwd=ROOT, check=True, timeout=300, capture_output=True)
    found = curve(folder)
    assert len(found) > 1
    return found
