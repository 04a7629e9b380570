"""What a user starts, from beginning to end: the paper's run of 2,100 steps, launched; and the
demonstration.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from experiments.bench.harness import Detail, Row, make_row, rounded
from experiments.bench.launching import REPOSITORY
from experiments.bench.subjects import Subjects
from lamorel_ext.config import load_config

FIGURE_ARMS = ("llm_policy", "teacher_feedback+signal=previous+every=1+epochs=1")
"""Of Figure 2b: the baseline, and feedback to the teacher after every step."""

FIGURE_STEPS = 2100
FIGURE_BAR_MIN = 40.0
FIGURE_THREADS = 2
"""Threads of the server: it and the client wait for each other, so that two cores are all that a
run ever uses.
"""
HALVES = ("1/2", "2/2")
"""Of the demonstration's runs; the Makefile starts a process for each."""
PARTS = ("updating", "scoring", "evaluating", "learning", "collecting", "saving")
"""Of a run's seconds, as ``system.jsonl`` has them."""
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


def demo_s(subjects: Subjects) -> list[Row]:
    """Two processes that do every second run each, as the Makefile starts them, and the report.

    Raises:
        RuntimeError: A process failed.
    """
    config = load_config([], "demo")
    steps, seeds = subjects.setting.demo_steps, config.compare.seeds
    measured = seeds[: subjects.setting.demo_seeds]
    with tempfile.TemporaryDirectory() as scratch:
        given = ["experiments.compare", "--config-name", "demo"]
        given += [f"compare.output_dir={scratch}/demo", f"compare.seeds={[*measured]}"]
        if steps != config.run.total_steps:
            given.append(f"run.total_steps={steps}")
        start = time.perf_counter()
        with ThreadPoolExecutor(len(HALVES)) as both:
            list(both.map(lambda half: _run([*given, "--part", half]), HALVES))
        _run(given)
        seconds = time.perf_counter() - start
        spent = _spent(Path(scratch))
    whole = sum(spent.values())
    shares = {name: rounded(spent[name] / whole) for name in PARTS}
    detail: dict[str, Detail] = {
        "estimate": len(measured) < len(seeds),
        "seeds_measured": len(measured),
        "steps": steps,
        "processes": len(HALVES),
    }
    detail |= {f"share_{name}": share for name, share in shares.items()}
    in_the_way = (
        f"updates of the model are {shares['updating']:.0%} of the runs' seconds and scores"
        f" {shares['scoring']:.0%}; iteration_llm_policy and iteration_teacher_feedback say what"
        " those are made of"
    )
    return [
        make_row(
            "demo_s", [seconds * len(seeds) / len(measured)], 60.0, "s", "lower", detail, in_the_way
        )
    ]


def _launch(arm: str, overrides: Sequence[str]) -> None:
    _run(["launchers", "train", "--config-name", "figure2_2100", f"arm={arm}", *overrides])


def _run(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {done.returncode}:"
            f" {done.stdout[-TAIL:]}{done.stderr[-TAIL:]}"
        )


def _spent(folder: Path) -> Counter[str]:
    """Seconds of all runs by what they were spent on."""
    spent: Counter[str] = Counter()
    for file in folder.rglob("system.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            spent.update({name: values[f"seconds_{name}"] for name in PARTS})
    return spent
