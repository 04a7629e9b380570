"""The tables of a report for programs: full precision, empty where there is nothing.
``experiments.recompute`` checks them against ``curves``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.report.results import STEPS, SUCCESS, Task
from experiments.report.statistics import LEVEL, TIE, Interval, bootstrap_columns
from experiments.report.summary import (
    COSTS,
    REWARD_SCALE,
    THRESHOLDS,
    ArmSummary,
    Difference,
    Summary,
)
from experiments.runs.files import csv_cell

Table = tuple[list[str], list[list[str]]]
BUDGET = "total_steps"
ALIKE = "evaluated_alike"
"""1 where both sides of a difference were evaluated the same way, exactly or on episodes; 0 where
they were not.
"""
PROFILE_STEPS = 100
"""Performance profiles ask for success above 0, 1/100, ..., 1."""


def all_tables(tasks: Sequence[Summary], overall: Summary | None, samples: int) -> dict[str, Table]:
    """Every table by its name: those over all tasks only where there are several."""
    tables = {
        "summary": summary_table(tasks),
        "differences": difference_table(tasks),
        "curves": curve_table([task for summary in tasks for task in summary.tasks]),
    }
    if overall is not None:
        tables["overall"] = overall_table(overall)
        tables["overall_differences"] = overall_difference_table(overall)
        tables["profiles"] = profile_table(overall, samples)
    return tables


def resampling_settings(samples: int) -> dict[str, object]:
    """What another program needs to repeat the intervals; see ``report.statistics``."""
    return {
        "intervals": "t",
        "cut_at_0_and_1": ["success", "area"],
        "same_on_episodes": "no interval, least p of exchanged labels",
        "generator": "numpy.random.default_rng",
        "seed": 0,
        "samples": samples,
        "level": LEVEL,
        "quantiles": "linear",
        "tie": TIE,
    }


def summary_table(tasks: Sequence[Summary]) -> Table:
    """One row per task and arm."""
    rows = []
    for summary in tasks:
        for row in summary.arms:
            reached = {
                f"{cost.removeprefix('env_')}_to_{100 * level:.0f}": row.cost_to[level, cost]
                for cost in (STEPS, *COSTS)
                for level in THRESHOLDS
            }
            numbers = {**reached, **{cost: row.spent[cost] for cost in COSTS}}
            cells = {
                "task": summary.label,
                "arm": row.label,
                "seeds": str(len(row.runs)),
                **_named("success", row.success),
                **_named("return", row.returned),
                "return_x20": csv_cell(REWARD_SCALE * row.returned.estimate),
                **_named("area", row.area),
                **_named("area_iqm", row.area_iqm),
                **{name: csv_cell(number) for name, number in numbers.items()},
            }
            rows.append(cells)
    return list(rows[0]), [list(row.values()) for row in rows]


def difference_table(tasks: Sequence[Summary]) -> Table:
    """One row per comparison and seed, and one without a seed for the mean and its interval."""
    by_costs = [
        name
        for cost in COSTS
        for name in (*_ends(f"area_by_{cost}_difference"), f"area_by_{cost}_until")
    ]
    header = ["task", "arm", "minus", "against", "seed", *_difference_columns(), *by_costs]
    rows = []
    for summary in tasks:
        for difference in summary.differences:
            names = [summary.label, difference.ours, difference.theirs, difference.against]
            empty = [""] * (len(header) - len(names) - 2)
            rows += [
                [*names, str(seed), csv_cell(value), *empty]
                for (_, seed), value in difference.per_run.items()
            ]
            by_cost = [
                cell
                for cost in COSTS
                for cell in _cut_cells(difference.by_cost, difference.cut_at, cost)
            ]
            rows.append([*names, "", *_difference_cells(difference), *by_cost])
    return header, rows


def curve_table(tasks: Sequence[Task]) -> Table:
    """One row per evaluation, with every column that the runs recorded, and the run's budget."""
    every = [run for task in tasks for arm in task.arms for run in arm.runs.values()]
    names = list(dict.fromkeys(name for run in every for name in run.columns if name != STEPS))
    rows = []
    for task in tasks:
        for arm in task.arms:
            for seed, run in arm.runs.items():
                for point, steps in enumerate(run.columns[STEPS]):
                    values = [
                        run.columns[name][point] if name in run.columns else math.nan
                        for name in names
                    ]
                    place = [
                        task.label,
                        arm.label,
                        str(seed),
                        csv_cell(float(steps)),
                        str(run.config.run.total_steps),
                    ]
                    rows.append([*place, *(csv_cell(float(value)) for value in values)])
    return ["task", "arm", "seed", STEPS, BUDGET, *names], rows


def overall_table(overall: Summary) -> Table:
    """One row per arm, over all tasks."""
    rows = [
        {
            "arm": row.label,
            "tasks": str(len(row.arms)),
            "runs": str(len(row.runs)),
            **_named("success", row.success),
            **_named("area", row.area),
            **_named("area_iqm", row.area_iqm),
            **_named("mean_rank", row.rank),
        }
        for row in overall.arms
    ]
    return list(rows[0]), [list(row.values()) for row in rows]


def overall_difference_table(overall: Summary) -> Table:
    """One row per comparison, over all tasks."""
    return ["arm", "minus", "against", "pairs", *_difference_columns()], [
        [d.ours, d.theirs, d.against, str(d.pairs), *_difference_cells(d)]
        for d in overall.differences
    ]


def profile_table(overall: Summary, samples: int) -> Table:
    """One row per arm and level: the share of runs whose area is above it, the mean over tasks."""
    rows = []
    for row in overall.arms:
        columns = zip(*profile(row, overall, samples), strict=True)
        rows += [
            [row.label, csv_cell(level / PROFILE_STEPS), *map(csv_cell, values)]
            for level, values in enumerate(columns)
        ]
    return ["arm", "area_above", *_ends("share")], rows


def profile(
    row: ArmSummary, overall: Summary, samples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of runs whose area is above 0, 1/100, ..., 1, with its interval; each ``(101,)``."""
    levels = np.arange(PROFILE_STEPS + 1) / PROFILE_STEPS
    until = {task.label: task.until for task in overall.tasks}
    areas = [
        np.array([run.area(SUCCESS, until[task]) for run in arm.runs.values()])
        for task, arm in row.arms.items()
    ]
    return bootstrap_columns(
        [(scores[:, None] > levels + TIE).astype(np.float64) for scores in areas], samples
    )


def _difference_columns() -> list[str]:
    tests = ["p", "p_corrected", "compared", "paired", "correlation"]
    others = [*_ends("success_difference"), *_ends("probability_of_improvement")]
    return ["area_difference", "low", "high", *tests, *others, ALIKE]


def _difference_cells(difference: Difference) -> list[str]:
    known = not math.isnan(difference.p)
    counts = [str(difference.compared), str(int(difference.paired))] if known else ["", ""]
    return [
        *_cells(difference.interval),
        csv_cell(difference.p),
        csv_cell(difference.p_corrected),
        *counts,
        csv_cell(difference.correlation),
        *_cells(difference.success),
        *_cells(difference.improvement),
        str(int(difference.alike)),
    ]


def _cut_cells(
    intervals: Mapping[str, Interval], cut_at: Mapping[str, float], cost: str
) -> list[str]:
    """Mean success over a cost, with where it ends; empty where there is none."""
    return [*_cells(intervals[cost]), csv_cell(cut_at[cost])] if cost in intervals else [""] * 4


def _ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _cells(interval: Interval) -> list[str]:
    return [csv_cell(value) for value in (interval.estimate, interval.low, interval.high)]


def _named(name: str, interval: Interval) -> dict[str, str]:
    return dict(zip(_ends(name), _cells(interval), strict=True))
