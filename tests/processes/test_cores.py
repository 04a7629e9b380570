"""Cores are counted as a process may use them."""

import os
from pathlib import Path

import pytest

from lamorel_ext.processes.cores import usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores of two threads each: 0 and 4 are one core, 1 and 5 another."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    return tmp_path


def test_two_threads_of_a_core_are_one_core(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = machine / "nowhere"
    assert usable_cores(machine, nowhere) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4})
    assert usable_cores(machine, nowhere) == 2
    assert usable_cores(nowhere, nowhere) == 3  # nothing is known of siblings


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1), ("900000 100000\n", 4)],
)
def test_a_container_has_its_share_of_the_machines_time(
    quota: str, cores: int, machine: Path
) -> None:
    (machine / "cpu.max").write_text(quota)
    assert usable_cores(machine, machine / "cpu.max") == cores
