"""The paper's run of 2,100 steps as a user starts it: launched, from beginning to end, nothing
estimated.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.bench.harness import Detail, Row, make_row, rounded
from experiments.bench.subjects import Subjects

REPOSITORY = Path(__file__).resolve().parents[2]
FIGURE_ARMS = ("llm_policy", "teacher_feedback+signal=previous+every=1+epochs=1")
"""Of Figure 2b: the baseline, and feedback to the teacher after every step."""

FIGURE_STEPS = 2100
FIGURE_BAR_MIN = 40.0
FIGURE_THREADS = 2
"""Threads of the server: it and the client wait for each other, so that two cores are all that a
run ever uses.
"""
TAIL = 3000


def whole_figure(subjects: Subjects) -> Row:
    """Minutes for one seed of both arms, one after the other: start, evaluations, checkpoints and
    end included.

    Raises:
        RuntimeError: A launch failed.
    """
    steps = subjects.setting.whole_steps
    detail: dict[str, Detail] = {
        "estimate": False,
        "steps_per_arm": steps,
        "processes": 2,
        "threads_of_the_server": FIGURE_THREADS,
    }
    seconds = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for arm in FIGURE_ARMS:
            start = time.perf_counter()
            _launch(arm, launch_overrides(subjects, steps, Path(scratch) / arm))
            took = time.perf_counter() - start
            detail[f"{arm}_min"] = rounded(took / 60)
            seconds += took
    bar = (
        FIGURE_BAR_MIN if steps == FIGURE_STEPS else None
    )  # a shorter run is a trial of the way, not a figure
    return replace(
        make_row("figure2_2100", [seconds / 60], bar, "min", better="lower", detail=detail),
        threads=FIGURE_THREADS,
    )


def launch_overrides(subjects: Subjects, steps: int, folder: Path) -> tuple[str, ...]:
    """What differs from ``figure2_2100``: the model, one seed, one server, and the length where it
    is not the paper's.
    """
    changes = [
        f"lamorel_args.llm_args.model_path={subjects.folder}",
        f"lamorel_args.llm_args.num_threads={FIGURE_THREADS}",
        "lamorel_args.distributed_setup_args.n_llm_processes=1",
        "run.num_threads=1",
        "run.seed=0",
        f"run.output_dir={folder}",
    ]
    if steps != FIGURE_STEPS:  # rollouts are whole: shorter ones make a shorter run
        changes += [
            f"run.total_steps={steps}",
            f"student.num_steps={min(steps, 256)}",
            f"ppo.num_steps={min(steps, 256)}",
        ]
    return tuple(changes)


def _launch(arm: str, overrides: Sequence[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "launchers",
        "train",
        "--config-name",
        "figure2_2100",
        f"arm={arm}",
        *overrides,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {done.returncode}:"
            f" {done.stdout[-TAIL:]}{done.stderr[-TAIL:]}"
        )
