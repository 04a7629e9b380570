"""Make a report from run folders alone: ``python -m experiments.report runs/demo``.

Writes ``report.html``, ``provenance.json``, ``configs.json``, ``figures/*.svg``, ``figures/*.png``
and ``tables/`` into the folder (or ``--output``) and prints the path last. ``python -m
experiments.recompute runs/demo`` checks the tables against the curves, with statistics of its own.
``--watch`` makes it again whenever a run has gone on, until it is interrupted.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.report.headline import headline, warnings
from experiments.report.results import (
    CHECKPOINTS,
    STEPS,
    SUCCESS,
    Run,
    distinct,
    files_below,
    group_tasks,
    never_begun,
    read_runs,
)
from experiments.report.roles import unknown_controls
from experiments.report.summary import COSTS, Summary, summarise
from experiments.report.tables import all_tables, resampling_settings
from experiments.runs.entry import run_main, say
from experiments.runs.files import folder_to_write, replace_json, writing
from experiments.runs.provenance import write_provenance
from lamorel_ext.errors import CheckpointError, NotThereError

if TYPE_CHECKING:
    from experiments.report.sections import Pictures

log = logging.getLogger(__name__)

VIEWER = "viewer.html"
"""Where ``experiments.viewer`` writes, beside the report."""


@dataclass(frozen=True)
class Findings:
    """Everything that a report states.

    Attributes:
        title: Of the comparison.
        tasks: One by one.
        overall: All of them together, where there are several and an arm has runs on each.
        unfinished: Runs that are not complete; they are left out of everything else.
        absent: Folders of runs that the comparison asks for and that were never begun.
        samples: Resamples behind each interval of interquartile means, profiles and probabilities.
    """

    title: str
    tasks: tuple[Summary, ...]
    overall: Summary | None
    unfinished: tuple[Run, ...]
    absent: tuple[Path, ...]
    samples: int

    @property
    def whole(self) -> Summary:
        """What the first lines speak of."""
        return self.overall or self.tasks[0]


def make_report(folder: Path, output: Path | None = None) -> Path:
    """Read every run below ``folder`` and write the report.

    Returns:
        Path of ``report.html``.

    Raises:
        CheckpointError: There is no complete run, or a file cannot be read or written.
    """
    return write_report(find(folder), output or folder)


def watch(
    folder: Path,
    output: Path | None,
    every_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make the report now and whenever a curve or status below ``folder`` has changed; returns
    never.

    Args:
        folder: Of the runs; it may still be empty.
        output: See ``make_report``.
        every_s: Seconds between two looks.
        sleep: Waits for so many seconds.
    """
    seen, said = None, ""
    while True:
        if (state := _state(folder)) != seen:
            seen = state
            try:
                line = f"report: {make_report(folder, output)}, {len(state) // 2} runs"
            except CheckpointError as error:  # nothing is complete yet, or a line is half written
                line = f"no report yet: {str(error).splitlines()[0]}"
            if line != said:
                say(line)
                said = line
        sleep(every_s)


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """When the files that a report reads were written, and their sizes."""
    found = {}
    # Each checkpoint holds the curve so far.
    for path in files_below(folder, "metrics.csv", "status.json", leave_out=(CHECKPOINTS,)):
        with suppress(OSError):  # it is being replaced
            stat = path.stat()
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return found


def find(folder: Path) -> Findings:
    """Read every run below ``folder`` and compute what there is to say.

    Raises:
        CheckpointError: There is no complete run, or a file cannot be read.
    """
    from experiments.report.sections import unfinished_line

    runs = read_runs(folder)
    complete = [run for run in runs if run.state == "complete" and SUCCESS in run.columns]
    unfinished = [run for run in runs if run not in complete]
    if not complete:
        raise CheckpointError(
            f"{folder} holds {len(runs)} run(s), none of them complete:\n"
            + "\n".join(unfinished_line(run) for run in runs)
        )
    samples = complete[0].config.compare.bootstrap_samples
    tasks = group_tasks(complete, unfinished)
    for line in unknown_controls(arm for task in tasks for arm in task.arms):
        log.warning("%s", line)  # lamorel-ext-publish keeps the tables, and not the page
    everywhere = set.intersection(*({arm.label for arm in task.arms} for task in tasks))
    return Findings(
        title=f"Report: {complete[0].config.compare.name}",
        tasks=tuple(summarise([task], samples) for task in tasks),
        overall=summarise(tasks, samples) if len(tasks) > 1 and everywhere else None,
        unfinished=tuple(unfinished),
        absent=tuple(never_begun(runs, folder)),
        samples=samples,
    )


FIGURES = (
    *(f"{value}_by_{STEPS.removeprefix('env_')}" for value in ("success", "return", "teacher")),
    *(f"success_by_{cost}" for cost in COSTS),
    "difference_to_baseline",
    "difference_to_frozen_teacher",
    "controls",
    "scores",
    "profiles",
)
"""Names of figures; over several tasks with the task's name, or ``overall``, before them."""
TABLES = ("summary", "differences", "curves", "overall", "overall_differences", "profiles")


def earlier_files(tables: Path, figures: Path) -> set[Path]:
    """The tables and figures of an earlier report, whose tasks its ``summary.csv`` names."""
    labels: dict[str, None] = {}
    with suppress(OSError, ValueError, csv.Error):
        with (tables / "summary.csv").open(newline="", encoding="utf-8") as file:
            labels = dict.fromkeys(row.get("task") or "" for row in csv.DictReader(file))
    prefixes = ["", "overall_", *(f"{name}_" for name in file_names(list(labels)))]
    paths = [tables / f"{name}.csv" for name in TABLES]
    for name in (prefix + figure for prefix in prefixes for figure in FIGURES):
        paths += [figures / f"{name}.svg", figures / f"{name}.png"]
    return {path for path in paths if path.is_file()}


def write_report(findings: Findings, output: Path) -> Path:
    """Write page, figures and tables; see ``make_report``."""
    from experiments.report.plots import draw_overall, draw_task

    several = len(findings.tasks) > 1
    overall = draw_overall(findings.overall, findings.samples) if findings.overall else {}
    names = file_names([task.label for task in findings.tasks])
    tasks = [
        draw_task(task, f"{name}_" if several else "")
        for task, name in zip(findings.tasks, names, strict=True)
    ]
    target = output / "report.html"
    with writing(output):
        for name in ("figures", "tables"):
            (output / name).mkdir(parents=True, exist_ok=True)
        stale = earlier_files(output / "tables", output / "figures")
        for pictures in (overall, *tasks):
            for drawn in (drawn for group in pictures.values() for drawn in group):
                svg, png = (output / "figures" / f"{drawn.name}.{kind}" for kind in ("svg", "png"))
                svg.write_text(drawn.svg, encoding="utf-8")
                png.write_bytes(drawn.png)
                stale -= {svg, png}
        for name, (header, rows) in all_tables(
            findings.tasks, findings.overall, findings.samples
        ).items():
            table = output / "tables" / f"{name}.csv"
            with table.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])
            stale.discard(table)
        replace_json(output / "tables" / "resampling.json", resampling_settings(findings.samples))
        write_provenance(findings.tasks, output)
        viewer = VIEWER if (output / VIEWER).exists() else None
        target.write_text(compose_page(findings, overall, tasks, viewer), encoding="utf-8")
        for path in stale:
            path.unlink()
    return target


def file_names(labels: Sequence[str]) -> list[str]:
    """Labels as parts of files' names, no two alike and none too long to be one."""
    plain = [re.sub("[^A-Za-z0-9_]+", "_", label).strip("_")[:200] for label in labels]
    return distinct(plain, "_{}")


def compose_page(
    findings: Findings, overall: Pictures, tasks: Sequence[Pictures], viewer: str | None = None
) -> str:
    """The page, from what there is to say, the figures over all tasks and of each, and the name of
    the viewer's page beside it.
    """
    from experiments.report import page
    from experiments.report.sections import overall_sections, provenance_sections, task_sections

    several = len(findings.tasks) > 1
    sections = overall_sections(findings.overall, overall) if findings.overall else []
    for task, pictures in zip(findings.tasks, tasks, strict=True):
        sections += task_sections(task, pictures, f"{task.label}: " if several else "")
    if viewer:
        sections.append(
            page.section(
                "The loop, step by step",
                page.link(
                    viewer,
                    "Recorded rollouts: guidance, action, advantage, sign, and the LLM after it",
                ),
            )
        )
    sections += provenance_sections(findings.tasks, findings.unfinished, findings.absent)
    answer = headline(findings.whole, findings.tasks if findings.overall else findings.tasks[1:])
    return page.page(findings.title, answer, sections, warnings(findings.tasks))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-report", description="Make a report from run folders."
    )
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument(
        "--output",
        type=folder_to_write,
        default=None,
        help="where to write; the folder of the runs if not given",
    )
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="make the report again whenever a run has progressed; look every SECONDS (10)",
    )
    return parser.parse_args(argv)


def seconds(text: str) -> float:
    """Of ``--watch``; argparse names a type by its function."""
    number = float(text)
    if not 0 < number < threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return number


def report(argv: Sequence[str]) -> int:
    """Make the report and print its path."""
    options = parse(argv)
    if options.watch is not None:
        if not os.path.isdir(options.folder):  # False too where it is closed to us
            raise NotThereError(f"{options.folder}: no such folder")
        watch(options.folder, options.output, options.watch)
    say(f"report: {make_report(options.folder, options.output)}")
    return 0


def main() -> int:
    """Entry of ``lamorel-ext-report``."""
    return run_main(report, reads=True)
