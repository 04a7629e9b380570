"""CPU seconds that pass before a program does anything: its help, and what a client imports."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence

from experiments.bench.harness import Row, make_row
from experiments.bench.launching import REPOSITORY
from experiments.bench.subjects import Subjects

CLIENT = (
    "import experiments.train, experiments.runs.run_folder, lamorel_ext.rpc.runtime,"
    " lamorel_ext.training.building, lamorel_ext.training.run"
)
"""What a client with its servers elsewhere imports before it meets them."""


def help_s(subjects: Subjects) -> list[Row]:
    """``python -m experiments.train --help``."""
    return [_row(subjects, "help_s", 1.0, ["-m", "experiments.train", "--help"])]


def client_start_s(subjects: Subjects) -> list[Row]:
    """A process that has imported what a client needs."""
    return [_row(subjects, "client_start_s", None, ["-c", CLIENT])]


def _row(subjects: Subjects, name: str, bar: float | None, arguments: Sequence[str]) -> Row:
    seconds = [_cpu_seconds(arguments) for _ in range(subjects.setting.repetitions)]
    return make_row(name, seconds, bar, "CPU s", better="lower")


def _cpu_seconds(arguments: Sequence[str]) -> float:
    """User and system seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
