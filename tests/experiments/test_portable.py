"""A portable run gives the same curve whatever kernels the machine would have chosen, and a process
that cannot be portable says so.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamorel_ext.portable import VARIABLES, NotPortableError, hold_portable

RUN = (
    "arm=teacher_feedback+signal=gae run.total_steps=32 "
    "env.num_envs=4 student.num_steps=8 run.eval_every=32 "
    "run.evaluation=episodes run.eval_episodes=2 run.trace_every=0 run.portable=true"
)
MACHINES = [
    {},
    {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4",
        "OPENBLAS_CORETYPE": "Haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OMP_NUM_THREADS": "2",
    },
]


def curve(folder: Path, machine: dict[str, str]) -> list[list[str]]:
    environment = {
        key: value for key, value in os.environ.items() if key not in VARIABLES
    } | machine
    command = [sys.executable, "-m", "experiments.train", *RUN.split(), f"run.output_dir={folder}"]
    subprocess.run(command, env=environment, check=True, timeout=600, capture_output=True)
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [[value for key, value in row.items() if key != "seconds"] for row in rows]


def test_a_portable_run_gives_the_same_curve_to_the_last_digit_on_every_machine(
    tmp_path: Path,
) -> None:
    curves = [curve(tmp_path / str(number), machine) for number, machine in enumerate(MACHINES)]
    assert len(curves[0]) == 2 and curves[1] == curves[0]


def test_a_process_that_was_not_started_so_is_refused_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    with pytest.raises(
        NotPortableError,
        match=(
            "run.portable: these variables must be set before Python starts: "
            ".*MKL_CBWR='COMPATIBLE'"
        ),
    ):
        hold_portable()
