"""Compute a report's tables again from its curves alone, with statistics of its own: ``python -m
experiments.recompute runs/demo``.

Reads ``curves.csv`` and ``resampling.json`` from the folder's ``tables``, or from the folder itself
(``docs/results/long``), recomputes every number of the other tables, and prints the largest
deviation of each kind. Fails above 1e-6, or where a row is missing. Shares no code with the report:
standard library, ``scipy.stats``, whose t tests and intervals these are, and numpy, which repeats
the resampling behind interquartile means, profiles and probabilities of improvement
(``numpy.random.default_rng(0)``, and for one task after the other ``integers(n, size=(samples,
n))``).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

LARGEST = 1e-6
COSTS = ("llm_calls", "llm_tokens", "seconds")
TABLES = ("summary", "differences", "curves", "overall", "overall_differences", "profiles")
NAMES = ("task", "arm", "minus", "against", "seed", "area_above")
LATER = ("area_by_", "evaluated_alike")
TESTS = ("p", "paired", "correlation")
"""How columns begin that tables of an earlier version lack: they state nothing there that could be
wrong.
"""
Row = dict[str, str]
Triple = tuple[float, float, float]
NOTHING = (math.nan, math.nan, math.nan)


class Curves:
    """The curves of a report.

    Args:
        rows: Of ``curves.csv``.
        settings: Of ``resampling.json``.
    """

    def __init__(self, rows: Sequence[Row], settings: dict[str, Any]) -> None:
        # Tables of an earlier version have bootstrapped means, and all ends cut, returns' too.
        self.students = settings.get("intervals") == "t"
        self.exchanged = "same_on_episodes" in settings
        self.cut: list[str] = settings.get("cut_at_0_and_1", ["success", "area", "return"])
        self.samples, self.seed = int(settings["samples"]), int(settings["seed"])
        self.tail, self.tie = (1 - settings["level"]) / 2, settings["tie"]
        self.runs: dict[tuple[str, str, int], list[Row]] = {}
        for row in rows:
            self.runs.setdefault((row["task"], row["arm"], int(row["seed"])), []).append(row)
        self.tasks = list(dict.fromkeys(task for task, _, _ in self.runs))
        self.arms = list(dict.fromkeys(arm for _, arm, _ in self.runs))
        self.until = {task: min(self._ends(task)) for task in self.tasks}

    def _ends(self, task: str) -> Iterator[float]:
        for (name, _, _), rows in self.runs.items():
            if name == task:
                yield float(rows[-1]["env_steps"])
                yield float(rows[-1]["total_steps"])

    def seeds(self, task: str, arm: str) -> list[int]:
        """Seeds of an arm on a task, ascending."""
        return sorted(seed for name, other, seed in self.runs if (name, other) == (task, arm))

    def column(self, task: str, arm: str, seed: int, name: str) -> list[float]:
        """One column of one run."""
        return [number(row.get(name, "")) for row in self.runs[task, arm, seed]]

    def end(self, task: str, arm: str, seed: int, name: str) -> float:
        """Value at the last evaluation; of a budget beyond the task's end on the straight line
        there.
        """
        steps, values = (self.column(task, arm, seed, key) for key in ("env_steps", name))
        until = self.until[task]
        if float(self.runs[task, arm, seed][-1]["total_steps"]) <= until or steps[-1] <= until:
            return values[-1]
        i = next(i for i in range(len(steps)) if steps[i] >= until)
        if i == 0 or steps[i] == until:
            return values[i]
        share = (until - steps[i - 1]) / (steps[i] - steps[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])

    def ends(self, task: str, arm: str, name: str) -> list[float]:
        """Seed by seed."""
        return [self.end(task, arm, seed, name) for seed in self.seeds(task, arm)]

    def area(self, task: str, arm: str, seed: int) -> float:
        """Mean success over the budget."""
        return mean_height(
            self.column(task, arm, seed, "env_steps"),
            self.column(task, arm, seed, "success"),
            self.until[task],
        )

    def areas(self, task: str, arm: str) -> list[float]:
        """Seed by seed."""
        return [self.area(task, arm, seed) for seed in self.seeds(task, arm)]

    def cheapest(self, task: str, arms: Sequence[str], cost: str) -> float:
        """What the cheapest run of some arms has spent; NaN where one of them spends nothing, or
        has spent more before its first row.
        """
        runs = [
            self.column(task, arm, seed, cost) for arm in arms for seed in self.seeds(task, arm)
        ]
        total = min((spent[-1] for spent in runs), default=math.nan)
        return total if all(spent[0] <= total and spent[-1] > 0 for spent in runs) else math.nan

    def area_by(self, task: str, arm: str, seed: int, cost: str, total: float) -> float:
        """Mean success while ``total`` of a cost was spent."""
        return mean_height(
            *without_standstill(
                self.column(task, arm, seed, cost), self.column(task, arm, seed, "success")
            ),
            total,
        )

    def is_exact(self, task: str, arm: str) -> bool:
        """Whether every evaluation of an arm went through all states."""
        return all(
            value == 1
            for seed in self.seeds(task, arm)
            for value in self.column(task, arm, seed, "eval_exact")
        )

    def everywhere(self) -> list[str]:
        """Arms that have runs on every task."""
        return [arm for arm in self.arms if all(self.seeds(task, arm) for task in self.tasks)]

    def interval(
        self, strata: Sequence[Sequence[float]], statistic: Callable[[list[np.ndarray]], float]
    ) -> Triple:
        """Estimate and ends; seeds are resampled within each task."""
        data = [np.array(values) for values in strata]
        estimate = statistic(data)
        if all(len(values) == 1 for values in data):
            return estimate, math.nan, math.nan
        generator = np.random.default_rng(self.seed)
        draws = [
            generator.integers(len(values), size=(self.samples, len(values))) for values in data
        ]
        found = sorted(
            statistic([values[draw[i]] for values, draw in zip(data, draws, strict=True)])
            for i in range(self.samples)
        )
        return estimate, quantile(found, self.tail), quantile(found, 1 - self.tail)

    def mean(
        self,
        strata: Sequence[Sequence[float]],
        lowest: float = -math.inf,
        highest: float = math.inf,
    ) -> Triple:
        """Mean over tasks of the mean over seeds, with its t interval."""
        if not self.students:
            return self.interval(strata, task_mean)
        estimate, low, high, _ = mean_test(strata, 1 - 2 * self.tail)
        return estimate, max(low, lowest), min(high, highest)

    def difference(
        self, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], exact: bool
    ) -> tuple[Triple, dict[str, float]]:
        """Ours minus theirs, seed by seed on each task, and the columns of its test; ``exact``
        where both arms went through all states.
        """
        if not all(ours):
            return NOTHING, {"p": math.nan, "paired": math.nan, "correlation": math.nan}
        r, paired = pairing(ours, theirs)
        apart = [
            [a - b for a, b in zip(x, y, strict=True)] for x, y in zip(ours, theirs, strict=True)
        ]
        level = 1 - 2 * self.tail
        if not self.students:
            return self.interval(apart, task_mean), {}
        if paired:
            estimate, low, high, p = mean_test(apart, level)
        # the difference of two means over tasks is twice the mean of both, one with its sign turned
        else:
            turned = [[-value for value in y] for y in theirs]
            half = mean_test([*ours, *turned], level)
            estimate, low, high, p = 2 * half[0], 2 * half[1], 2 * half[2], half[3]
        if self.exchanged and not exact and low == high:
            low = high = math.nan
            ways = [2 ** len(x) if paired else math.comb(2 * len(x), len(x)) for x in ours]
            p = 1.0 if abs(estimate) <= self.tie else 2 / math.prod(ways)
        return (estimate, low, high), {
            "p": p,
            "paired": math.nan if math.isnan(p) else float(paired),
            "correlation": r,
        }

    def improvement(
        self, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
    ) -> Triple:
        """Chance that a run of ours beats one of theirs, mean over tasks; both arms are resampled,
        ours first.
        """
        estimate = sum(self._wins(x, y) for x, y in zip(ours, theirs, strict=True)) / len(ours)
        if all(len(x) == 1 and len(y) == 1 for x, y in zip(ours, theirs, strict=True)):
            return estimate, math.nan, math.nan
        generator = np.random.default_rng(self.seed)
        totals = [0.0] * self.samples
        for x, y in zip(ours, theirs, strict=True):
            table = np.array([[self._wins([a], [b]) for b in y] for a in x])
            first = generator.integers(len(x), size=(self.samples, len(x)))
            second = generator.integers(len(y), size=(self.samples, len(y)))
            for i in range(self.samples):
                totals[i] += float(table[first[i]][:, second[i]].mean()) / len(ours)
        totals.sort()
        return estimate, quantile(totals, self.tail), quantile(totals, 1 - self.tail)

    def _wins(self, x: Sequence[float], y: Sequence[float]) -> float:
        points = sum(
            1.0 if a - b > self.tie else 0.5 if abs(a - b) <= self.tie else 0.0
            for a in x
            for b in y
        )
        return points / (len(x) * len(y))


# --- plain statistics -----------------------------------------------------------------------------


def number(cell: str) -> float:
    """NaN where the cell is empty."""
    return float(cell) if cell else math.nan


def quantile(ordered: Sequence[float], share: float) -> float:
    """Interpolated linearly between the two neighbours."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def task_mean(parts: list[np.ndarray]) -> float:
    """Mean over tasks of the mean over seeds."""
    return sum(float(part.sum()) / len(part) for part in parts) / len(parts)


def middle_mean(parts: list[np.ndarray]) -> float:
    """Mean of all values without the lowest and the highest quarter."""
    ordered = sorted(float(value) for part in parts for value in part)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def mean_test(strata: Sequence[Sequence[float]], level: float) -> tuple[float, float, float, float]:
    """Mean of the strata's means, the ends of its t interval, and the p value of its being zero."""
    estimate = sum(statistics.fmean(values) for values in strata) / len(strata)
    if min(map(len, strata)) < 2:
        return estimate, math.nan, math.nan, math.nan
    if len(strata) == 1 and spread(strata[0]):
        found = stats.ttest_1samp(strata[0], 0.0)
        ends = found.confidence_interval(level)
        return estimate, float(ends.low), float(ends.high), float(found.pvalue)
    parts = [
        (
            statistics.variance(values) / len(values) / len(strata) ** 2 if spread(values) else 0.0,
            len(values) - 1,
        )
        for values in strata
    ]
    error = math.sqrt(sum(part for part, _ in parts))
    if error == 0:
        return estimate, estimate, estimate, float(abs(estimate) <= 1e-12)
    known = stats.t(error**4 / sum(part**2 / degrees for part, degrees in parts))
    half = float(known.ppf((1 + level) / 2)) * error
    return estimate, estimate - half, estimate + half, 2 * float(known.sf(abs(estimate) / error))


def spread(values: Sequence[float]) -> bool:
    """Whether values differ by more than rounding."""
    return max(values) - min(values) > 1e-12


def pairing(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> tuple[float, bool]:
    """Correlation over seeds within tasks, and whether it is above zero (one-sided, 5 %)."""
    x, y = (
        [value - statistics.fmean(values) for values in arm for value in values]
        for arm in (ours, theirs)
    )
    if not spread(x) or not spread(y):
        return math.nan, False
    product = sum(a * b for a, b in zip(x, y, strict=True))
    r = max(-1.0, min(1.0, product / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))))
    degrees = len(x) - len(ours) - 1
    if degrees < 1 or r <= 0:
        return r, False
    return r, r >= 1 - 1e-12 or stats.t.sf(r * math.sqrt(degrees / (1 - r * r)), degrees) < 0.05


def mean_height(places: Sequence[float], heights: Sequence[float], until: float) -> float:
    """Area under straight lines between the points from the first to ``until``, divided by that
    length.
    """
    if until == places[0]:
        return heights[0]
    total = 0.0
    for x0, y0, x1, y1 in zip(places, heights, places[1:], heights[1:], strict=False):
        if x0 >= until or x1 == x0:
            continue
        end = min(x1, until)
        height = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        total += (end - x0) * (y0 + height) / 2
    return total / (until - places[0])


def without_standstill(
    places: Sequence[float], heights: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Of several points at one place the last."""
    kept = [i for i in range(len(places)) if i + 1 == len(places) or places[i + 1] > places[i]]
    return [places[i] for i in kept], [heights[i] for i in kept]


def median_place(
    places: Sequence[Sequence[float]], heights: Sequence[Sequence[float]], level: float
) -> float:
    """Median over runs of the first place at which the height reaches ``level``; NaN where it is
    infinite.
    """
    firsts = [
        next((x for x, y in zip(xs, ys, strict=True) if y >= level), math.inf)
        for xs, ys in zip(places, heights, strict=True)
    ]
    firsts.sort()
    middle = len(firsts) // 2
    median = firsts[middle] if len(firsts) % 2 else (firsts[middle - 1] + firsts[middle]) / 2
    return median if math.isfinite(median) else math.nan


# --- the tables -----------------------------------------------------------------------------------


def expected_summary(curves: Curves, row: Row) -> dict[str, float]:
    """What a row of ``summary.csv`` should hold."""
    task, arm = row["task"], row["arm"]
    seeds, areas = curves.seeds(task, arm), curves.areas(task, arm)
    found = {"seeds": float(len(seeds))}
    found |= triple("success", curves.mean([curves.ends(task, arm, "success")], 0, 1))
    ends = (0.0, 1.0) if "return" in curves.cut else (-math.inf, math.inf)
    found |= triple("return", curves.mean([curves.ends(task, arm, "return")], *ends))
    found["return_x20"] = 20 * found["return"]
    found |= triple("area", curves.mean([areas], 0, 1)) | triple(
        "area_iqm", curves.interval([areas], middle_mean)
    )
    success = [curves.column(task, arm, seed, "success") for seed in seeds]
    for name in ("env_steps", *COSTS):
        spent = [curves.column(task, arm, seed, name) for seed in seeds]
        known = not any(math.isnan(value) for values in spent for value in values)
        for level in (80, 95):
            found[f"{name.removeprefix('env_')}_to_{level}"] = (
                median_place(spent, success, level / 100) if known else math.nan
            )
        if name in COSTS:
            found[name] = sum(values[-1] for values in spent) / len(seeds)
    return found


def expected_difference(curves: Curves, row: Row, tasks: Sequence[str]) -> dict[str, float]:
    """What a row of ``differences.csv`` or ``overall_differences.csv`` should hold."""
    ours, theirs = row["arm"], row["minus"]
    shared = [
        [seed for seed in curves.seeds(task, ours) if seed in curves.seeds(task, theirs)]
        for task in tasks
    ]
    if row.get("seed"):
        seed = int(row["seed"])
        return {
            "area_difference": (
                curves.area(tasks[0], ours, seed) - curves.area(tasks[0], theirs, seed)
            )
        }
    paired = list(zip(tasks, shared, strict=True))

    exact = all(curves.is_exact(task, arm) for task in tasks for arm in (ours, theirs))

    def apart(score: Callable[..., float], *options: str) -> tuple[Triple, dict[str, float]]:
        first, second = (
            [[score(task, arm, seed, *options) for seed in seeds] for task, seeds in paired]
            for arm in (ours, theirs)
        )
        return curves.difference(first, second, exact)

    every = [[curves.areas(task, arm) for task in tasks] for arm in (ours, theirs)]
    (mean, low, high), test = apart(curves.area)
    found = {"area_difference": mean, "low": low, "high": high} | test
    found |= triple("success_difference", apart(curves.end, "success")[0])
    found |= {"pairs": float(sum(map(len, shared)))} if "pairs" in row else {}
    found["evaluated_alike"] = float(
        all(curves.is_exact(task, ours) == curves.is_exact(task, theirs) for task in tasks)
    )
    for cost in COSTS if "seed" in row else ():
        total = curves.cheapest(tasks[0], [ours, theirs], cost)
        seeds = shared[0] if total == total else []
        first, second = (
            [[curves.area_by(tasks[0], arm, seed, cost, total) for seed in seeds]]
            for arm in (ours, theirs)
        )
        found |= triple(f"area_by_{cost}_difference", curves.difference(first, second, exact)[0])
        found[f"area_by_{cost}_until"] = total
    return found | triple("probability_of_improvement", curves.improvement(every[0], every[1]))


def expected_overall(curves: Curves, row: Row) -> dict[str, float]:
    """What a row of ``overall.csv`` should hold."""
    arm = row["arm"]
    areas = [curves.areas(task, arm) for task in curves.tasks]
    finals = [curves.ends(task, arm, "success") for task in curves.tasks]
    ranked = [_ranks(curves, task, arm) for task in curves.tasks]
    found = {"tasks": float(len(areas)), "runs": float(sum(map(len, areas)))} | triple(
        "success", curves.mean(finals, 0, 1)
    )
    found |= triple("area", curves.mean(areas, 0, 1)) | triple(
        "area_iqm", curves.interval(areas, middle_mean)
    )
    return found | triple(
        "mean_rank", curves.mean(ranked, 1, len(curves.everywhere())) if all(ranked) else NOTHING
    )


def _ranks(curves: Curves, task: str, arm: str) -> list[float]:
    """Rank of an arm among all arms, for each seed that all of them have."""
    arms = curves.everywhere()
    shared = [
        seed
        for seed in curves.seeds(task, arm)
        if all(seed in curves.seeds(task, other) for other in arms)
    ]
    found = []
    for seed in shared:
        mine = curves.area(task, arm, seed)
        others = [curves.area(task, other, seed) for other in arms]
        above = sum(other - mine > curves.tie for other in others)
        equal = sum(abs(other - mine) <= curves.tie for other in others)
        found.append(above + (equal + 1) / 2)
    return found


def expected_profile(curves: Curves, row: Row) -> dict[str, float]:
    """What a row of ``profiles.csv`` should hold."""
    level = float(row["area_above"])
    above = [
        [float(area > level + curves.tie) for area in curves.areas(task, row["arm"])]
        for task in curves.tasks
    ]
    return triple("share", curves.interval(above, task_mean))


def triple(name: str, values: Triple) -> dict[str, float]:
    """A number and its two ends under their columns."""
    return {name: values[0], f"{name}_low": values[1], f"{name}_high": values[2]}


# --- comparing ------------------------------------------------------------------------------------


def check(folder: Path) -> tuple[dict[str, float], list[str], list[str]]:
    """Recompute everything in ``folder``/tables, or in ``folder`` itself where it holds the tables.

    Returns:
        The largest deviation by table and column, and what is wrong besides: rows that are missing
        or too many, numbers where there should be none. Last, remarks on columns that an earlier
        version did not write, or wrote alone.
    """
    where = folder / "tables" if (folder / "tables").is_dir() else folder
    tables = {
        path.stem: read_table(path) for path in sorted(where.glob("*.csv")) if path.stem in TABLES
    }
    settings = json.loads((where / "resampling.json").read_text(encoding="utf-8"))
    curves = Curves(tables["curves"], settings)
    deviations: dict[str, float] = {}
    absent: dict[str, None] = {}
    unchecked = {
        f"{name}.{column}": None
        for name, rows in tables.items()
        if name != "curves"
        for column in (rows or [{}])[0]
        if column not in (*NAMES, "p_corrected", "compared")  # wrong_corrections has these two
    }
    problems = [*missing_rows(curves, tables), *wrong_corrections(tables)]
    for name, rows in tables.items():
        for place, row in enumerate(rows, start=2):
            try:
                wanted = _expected(name, curves, row)
            except (KeyError, ZeroDivisionError, ValueError) as error:
                problems.append(
                    f"{name}.csv, line {place}: the curves have nothing of the kind ({error})"
                )
                continue
            for column, value in wanted.items():
                key = f"{name}.{column}"
                unchecked.pop(key, None)
                if column not in row and (column.startswith(LATER) or column in TESTS):
                    absent[key] = None
                    continue
                if column not in row or bool(row[column]) == math.isnan(value):
                    problems.append(
                        f"{name}.csv, line {place}: {column} is {row.get(column, 'missing')!r}, the"
                        f" curves give {value}"
                    )
                elif row[column]:
                    deviations[key] = max(
                        deviations.get(key, 0.0),
                        abs(float(row[column]) - value) / max(1.0, abs(value)),
                    )
    return (
        deviations,
        problems,
        [
            f"{what}, as in tables of an earlier version:"
            f" {', '.join(key for key in keys if not key.endswith(('_low', '_high')))}"
            for what, keys in (
                ("columns that are not there", absent),
                ("columns that nothing is compared with", unchecked),
            )
            if keys
        ],
    )


def _expected(name: str, curves: Curves, row: Row) -> dict[str, float]:
    if name == "summary":
        return expected_summary(curves, row)
    if name == "differences":
        return expected_difference(curves, row, [row["task"]])
    if name == "overall_differences":
        return expected_difference(curves, row, curves.tasks)
    if name == "overall":
        return expected_overall(curves, row)
    return expected_profile(curves, row) if name == "profiles" else {}


def missing_rows(curves: Curves, tables: dict[str, list[Row]]) -> list[str]:
    """Rows that the curves call for, and that are not there."""
    has = {(row["task"], row["arm"]) for row in tables.get("summary", [])}
    problems = [
        f"summary.csv has no row for {arm} on {task}"
        for task, arm in {(t, a): 0 for t, a, _ in curves.runs}
        if (task, arm) not in has
    ]
    listed = {
        (row["task"], row["arm"], row["minus"], row["seed"])
        for row in tables.get("differences", [])
    }
    compared = dict.fromkeys(names[:3] for names in listed)
    for task, ours, theirs in compared:
        wanted = [
            str(seed) for seed in curves.seeds(task, ours) if seed in curves.seeds(task, theirs)
        ]
        absent = [seed for seed in (*wanted, "") if (task, ours, theirs, seed) not in listed]
        problems += [
            f"differences.csv has no row for {ours} minus {theirs} on {task}, seed {seed or 'none'}"
            for seed in absent
        ]
    for task in curves.tasks:
        first, *others = dict.fromkeys(arm for name, arm, _ in curves.runs if name == task)
        problems += [
            f"differences.csv has no row for {arm} minus {first} on {task}"
            for arm in others
            if (task, arm, first) not in compared
        ]
    return problems + (_missing_overall(curves, tables) if len(curves.tasks) > 1 else [])


def _missing_overall(curves: Curves, tables: dict[str, list[Row]]) -> list[str]:
    """The same of the tables over all tasks."""
    arms = curves.everywhere()
    named = {row["arm"] for row in tables.get("overall", [])}
    problems = [f"overall.csv has no row for {arm}" for arm in arms if arm not in named]
    pairs = {(row["arm"], row["minus"]) for row in tables.get("overall_differences", [])}
    problems += [
        f"overall_differences.csv has no row for {arm} minus {arms[0]}"
        for arm in arms[1:]
        if (arm, arms[0]) not in pairs
    ]
    shown = {(row["arm"], row["area_above"]) for row in tables.get("profiles", [])}
    levels = [f"{level / 100:g}" for level in range(101)]
    return problems + [
        f"profiles.csv has no row for {arm} above {level}"
        for arm in arms
        for level in levels
        if (arm, level) not in shown
    ]


def wrong_corrections(tables: dict[str, list[Row]]) -> list[str]:
    """Where ``p_corrected`` is not what Holm's correction makes of the column ``p``, over rows with
    the same task and ``against``.
    """
    families: dict[tuple[str, str, str], list[Row]] = {}
    for name in ("differences", "overall_differences"):
        for row in tables.get(name, []):
            if row.get("p"):
                families.setdefault((name, row.get("task", ""), row["against"]), []).append(row)
    problems = []
    for (name, task, against), rows in families.items():
        ordered = sorted(rows, key=lambda row: float(row["p"]))
        least = 0.0
        for place, row in enumerate(ordered):
            least = max(least, min(1.0, float(row["p"]) * (len(ordered) - place)))
            if abs(float(row["p_corrected"] or "nan") - least) > LARGEST or row["compared"] != str(
                len(ordered)
            ):
                problems.append(
                    f"{name}.csv: {row['arm']} minus {row['minus']} ({task or 'all tasks'},"
                    f" {against}) has p_corrected {row['p_corrected']!r} for {row['compared']}"
                    f" arms, Holm gives {least:.6g} for {len(ordered)}"
                )
    return problems


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m experiments.recompute``."""
    parser = argparse.ArgumentParser(
        prog="lamorel-ext-recompute", description="Check a report's tables against its curves."
    )
    parser.add_argument("folder", type=Path, help="folder of the report, or of its tables")
    folder = parser.parse_args(argv).folder
    try:
        deviations, problems, remarks = check(folder)
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        ArithmeticError,
        AttributeError,
        RecursionError,
        csv.Error,
    ) as error:
        print(f"error: {folder} holds no report that can be checked: {error!r}", file=sys.stderr)
        return 2
    largest = max(deviations.values(), default=math.inf)
    lines = [f"{deviation:.1e}  {column}" for column, deviation in deviations.items()]
    lines += [*remarks, *(f"wrong: {problem}" for problem in problems)]
    lines.append(
        f"largest deviation: {largest:.1e}; at most {LARGEST:.0e} is allowed; {len(problems)} other"
        " problem(s)"
    )
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # the reader has seen enough; the status says the rest
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    return 0 if largest <= LARGEST and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
