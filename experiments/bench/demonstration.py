"""How long ``make demo`` takes after set-up, and on what."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from experiments.bench.harness import Detail, Row, make_row, rounded
from experiments.bench.launching import REPOSITORY
from experiments.bench.subjects import Subjects
from lamorel_ext.config import load_config

HALVES = ("1/2", "2/2")
PARTS = ("updating", "scoring", "evaluating", "learning", "collecting", "saving")
"""Of a run's seconds, as ``system.jsonl`` has them."""
TAIL = 3000


def demo_s(subjects: Subjects) -> list[Row]:
    """Two processes that do every second run each, as the Makefile starts them, and the report.

    Raises:
        RuntimeError: A process failed.
    """
    config = load_config([], "demo")
    steps, seeds = subjects.setting.demo_steps, config.compare.seeds
    measured = seeds[: subjects.setting.demo_seeds]
    with tempfile.TemporaryDirectory() as scratch:
        given = [f"compare.output_dir={scratch}/demo", f"compare.seeds={[*measured]}"]
        if steps != config.run.total_steps:
            given.append(f"run.total_steps={steps}")
        start = time.perf_counter()
        halves = [_start([*given, "--part", half]) for half in HALVES]
        for half in halves:
            _end(half)
        _end(_start(given))
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


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        *("-m", "experiments.compare", "--config-name", "demo"),
        *arguments,
    ]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {said[-TAIL:]}")


def _spent(folder: Path) -> Counter[str]:
    """Seconds of all runs by what they were spent on."""
    spent: Counter[str] = Counter()
    for file in folder.rglob("system.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            spent.update({name: values[f"seconds_{name}"] for name in PARTS})
    return spent
