"""Make a report from run folders alone: ``python -m experiments.report runs/demo``.

Writes ``report.html``, ``figures/*.svg``, ``figures/*.png`` and ``tables/*.csv`` into the folder (or ``--output``) and prints the path last.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import page
from experiments.entry import run_main
from experiments.figures import Picture, draw_all
from experiments.files import csv_cell, writing
from experiments.identity import differing_keys, method
from experiments.results import STEPS, SUCCESS, Arm, Run, group_arms, read_runs
from experiments.statistics import Interval
from experiments.summary import (
    REWARD_SCALE,
    ArmSummary,
    Difference,
    Summary,
    bracket,
    headline,
    plain,
    signed,
    summarise,
)
from lamorel_ext.errors import CheckpointError

Table = tuple[list[str], list[list[str]]]


def make_report(folder: Path, output: Path | None = None) -> Path:
    """Read every run below ``folder`` and write the report.

    Returns:
        Path of ``report.html``.

    Raises:
        CheckpointError: There is no complete run, or a file cannot be read or written.
    """
    runs = read_runs(folder)
    complete = [run for run in runs if run.state == "complete" and SUCCESS in run.columns]
    unfinished = [run for run in runs if run not in complete]
    if not complete:
        raise CheckpointError(
            f"{folder} holds {len(runs)} run(s), none of them complete:\n" + "\n".join(_unfinished_line(run) for run in runs)
        )
    samples = complete[0].config.compare.bootstrap_samples
    arms = group_arms(complete)
    summary = summarise(arms, unfinished, samples)
    pictures = draw_all(arms, summary.against_baseline, summary.against_frozen, samples)
    return _write(output or folder, _title(complete), summary, pictures)


def _write(output: Path, title: str, summary: Summary, pictures: Sequence[Picture]) -> Path:
    arms = [row.arm for row in summary.arms]
    tables = {"summary": summary_table(summary), "differences": difference_table(summary), "curves": curve_table(arms)}
    target = output / "report.html"
    with writing(output):
        for name in ("figures", "tables"):
            (output / name).mkdir(parents=True, exist_ok=True)
        for drawn in pictures:
            (output / "figures" / f"{drawn.name}.svg").write_text(drawn.svg, encoding="utf-8")
            (output / "figures" / f"{drawn.name}.png").write_bytes(drawn.png)
        for name, (header, rows) in tables.items():
            with (output / "tables" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])
        target.write_text(page.page(title, headline(summary), _sections(summary, pictures)), encoding="utf-8")
    return target


# --- tables for programs: full precision, empty where there is nothing --------------------------------------------------------


def summary_table(summary: Summary) -> Table:
    """One row per arm."""
    header = ["arm", "seeds", "success", "success_low", "success_high", "return", "return_low", "return_high", "return_x20", "area",
              "area_low", "area_high", "area_iqm", "steps_to_80", "steps_to_95", "llm_calls", "llm_tokens", "seconds"]  # fmt: skip
    rows = []
    for row in summary.arms:
        intervals = [value for i in (row.success, row.returned) for value in (i.estimate, i.low, i.high)]
        numbers = [*intervals, REWARD_SCALE * row.returned.estimate, row.area.estimate, row.area.low, row.area.high, row.area_iqm,
                   row.steps_to_80, row.steps_to_95, row.calls, row.tokens, row.seconds]  # fmt: skip
        rows.append([row.arm.label, str(len(row.arm.runs)), *(csv_cell(number) for number in numbers)])
    return header, rows


def difference_table(summary: Summary) -> Table:
    """One row per comparison and seed, and one without a seed for the mean and its interval."""
    header = ["arm", "minus", "seed", "area_difference", "low", "high", "probability_of_improvement"]
    rows = []
    for difference in (*summary.against_baseline, *summary.against_frozen):
        names, interval = [difference.ours, difference.theirs], difference.interval
        rows += [[*names, str(seed), csv_cell(value), "", "", ""] for seed, value in difference.per_seed.items()]
        rows.append([*names, "", *(csv_cell(value) for value in (interval.estimate, interval.low, interval.high, difference.improvement))])
    return header, rows


def curve_table(arms: Sequence[Arm]) -> Table:
    """One row per evaluation, with every column that the runs recorded."""
    names = list(dict.fromkeys(name for arm in arms for run in arm.runs.values() for name in run.columns if name != STEPS))
    rows = []
    for arm in arms:
        for seed, run in arm.runs.items():
            for point, steps in enumerate(run.columns[STEPS]):
                values = [run.columns[name][point] if name in run.columns else math.nan for name in names]
                rows.append([arm.label, str(seed), csv_cell(float(steps)), *(csv_cell(float(value)) for value in values)])
    return ["arm", "seed", STEPS, *names], rows


# --- the page: rounded, for people ----------------------------------------------------------------------------------------------


def _sections(summary: Summary, pictures: Sequence[Picture]) -> list[str]:
    sections = [page.section("Arms", _arms_table(summary), page.note(_how_to_read(summary)))]
    sections += [page.section("Curves", *(page.picture(drawn) for drawn in pictures))]
    if summary.against_baseline:
        sections.append(page.section(f"Against the baseline, {summary.baseline}", _differences(summary.against_baseline)))
    if summary.frozen and summary.frozen != summary.baseline:
        sections.append(page.section(f"Against the frozen teacher, {summary.frozen}", _differences(summary.against_frozen)))
    sections.append(page.section("Signals and costs", _telemetry(summary)))
    sections.append(page.section("What the arms differ in", _config_differences(summary)))
    if summary.unfinished:
        lines = "\n".join(_unfinished_line(run) for run in summary.unfinished)
        sections.append(page.section(f"Runs left out: {len(summary.unfinished)}", page.preformatted(lines)))
    return [*sections, page.section("How these runs were made", *_provenance(summary))]


def _arms_table(summary: Summary) -> str:
    header = ["arm", "seeds", "success at the end", "return at the end", "return × 20", "area under success", "IQM", "steps to 80 %",
              "steps to 95 %"]  # fmt: skip
    rows = []
    for row in summary.arms:
        rows.append([
            row.arm.label, str(len(row.arm.runs)), _with_interval(row.success),
            _with_interval(row.returned), plain(REWARD_SCALE * row.returned.estimate),
            _with_interval(row.area), plain(row.area_iqm), _count(row.steps_to_80), _count(row.steps_to_95),
        ])  # fmt: skip
    return page.table(header, rows)


def _with_interval(interval: Interval, show: Callable[[float], str] = plain) -> str:
    """A line may break before the bracket, not within it."""
    return f"{show(interval.estimate)} " + bracket(interval, show).replace(" ", "\N{NO-BREAK SPACE}")


def _how_to_read(summary: Summary) -> str:
    kinds = sorted({_kind(row) for row in summary.arms})
    return (
        f"Brackets are 95 % bootstrap intervals over seeds. The area is the mean success over the first {summary.until:,.0f} environment steps; "
        "IQM is its interquartile mean over seeds. Steps to a level are those of the median seed, a dash where it never gets there. "
        f"Evaluation: {'; '.join(kinds)}."
    )


def _kind(row: ArmSummary) -> str:
    exact = [run.columns["eval_exact"] for run in row.arm.runs.values() if "eval_exact" in run.columns]
    if exact and all(values.all() for values in exact):
        return "exact, by enumeration of all states"
    return f"{row.arm.config.run.eval_episodes} held-out episodes each"


def _differences(differences: Sequence[Difference]) -> str:
    seeds = sorted({seed for difference in differences for seed in difference.per_seed})
    header = ["arm", "area, difference", "success at the end, difference", "seeds won", "P(better)", *(f"seed {seed}" for seed in seeds)]
    rows = [
        [
            difference.ours,
            _with_interval(difference.interval, signed),
            _with_interval(difference.success, signed),
            f"{difference.seeds_won} of {len(difference.per_seed)}",
            plain(difference.improvement),
            *(signed(difference.per_seed.get(seed, math.nan)) for seed in seeds),
        ]
        for difference in differences
    ]
    return page.table(header, rows)


def _telemetry(summary: Summary) -> str:
    """Means over the curves of all seeds: what the feedback edge did, and what the run cost."""
    header = ["arm", *(title for _, title in TELEMETRY), "LLM calls", "LLM tokens", "seconds"]
    rows = []
    for row in summary.arms:
        means = [_telemetry_mean(row.arm, column) for column, _ in TELEMETRY]
        rows.append([row.arm.label, *(plain(value) for value in means), _count(row.calls), _count(row.tokens), _count(row.seconds)])
    return page.table(header, rows)


TELEMETRY = (
    ("feedback_f_positive", "share of f > 0"),
    ("feedback_f_zero", "share of f = 0"),
    ("feedback_entropy", "teacher's entropy, nats"),
    ("feedback_kl", "KL from the start, nats"),
    ("feedback_grad_norm", "gradient norm before clipping"),
)


def _telemetry_mean(arm: Arm, column: str) -> float:
    values = [value for run in arm.runs.values() for value in run.columns.get(column, ()) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def _config_differences(summary: Summary) -> str:
    values = [method(row.arm.config) for row in summary.arms]
    keys = differing_keys(values)
    if not keys:
        return page.note("Nothing but their seeds.")
    return page.table(
        ["arm", *keys], [[row.arm.label, *(str(value[key]) for key in keys)] for row, value in zip(summary.arms, values, strict=True)]
    )


def _provenance(summary: Summary) -> list[str]:
    runs = [run for row in summary.arms for run in row.arm.runs.values()]
    commands = dict.fromkeys(str(run.versions.get("command", "unknown")) for run in runs)
    versions = dict.fromkeys(_version_line(run) for run in runs)
    models = dict.fromkeys(run.config.lamorel_args.llm_args.model_path for run in runs)
    levels = dict.fromkeys(run.config.env.level for run in runs)
    return [
        page.preformatted("\n".join(commands)),
        page.note(f"Model: {', '.join(models)}. Level: {', '.join(levels)}. {len(runs)} runs, {len(summary.arms)} arms tried."),
        *(page.note(line) for line in versions),
    ]


def _version_line(run: Run) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.versions.items() if name not in ("command", "started"))


def _unfinished_line(run: Run) -> str:
    error = str(run.status.get("error") or "").splitlines()
    return f"{run.folder}: {run.state}" + (f": {error[0]}" if error else "")


def _title(runs: Sequence[Run]) -> str:
    return f"Report: {runs[0].config.compare.name}"


def _count(number: float | None) -> str:
    return "–" if number is None or math.isnan(number) else f"{number:,.0f}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="lamorel-ext-report", description="Make a report from run folders.")
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--output", type=Path, default=None, help="where to write; the folder of the runs if not given")
    return parser.parse_args(argv)


def report(argv: Sequence[str]) -> int:
    """Make the report and print its path."""
    options = parse(argv)
    print(f"report: {make_report(options.folder, options.output)}")
    return 0


def main() -> int:
    """Entry of ``lamorel-ext-report``."""
    return run_main(report)


if __name__ == "__main__":
    sys.exit(main())
