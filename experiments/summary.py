"""From runs to the numbers of a report: one row per arm, one per comparison; for each task, and over all tasks together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.results import CALLS, RETURN, SECONDS, STEPS, SUCCESS, TOKENS, Arm, Run, Task
from experiments.roles import (
    REQUIRED_CONTROLS,
    Missing,
    control_of,
    impossible_control,
    is_feedback,
    is_frozen,
    missing_controls,
    other_differences,
    without_edge,
)
from experiments.statistics import (
    TIE,
    Interval,
    improvement_over_tasks,
    interquartile_mean_of_tasks,
    paired_differences,
    ranks,
    stratified_bootstrap,
)

SEEDS_FOR_A_CLAIM = 10
REWARD_SCALE = 20.0
"""Lamorel and GLAM report returns multiplied by this."""
THRESHOLDS = (0.80, 0.95)
COSTS = (CALLS, TOKENS, SECONDS)
BASELINE, FROZEN, NO_EDGE = "baseline", "frozen_teacher", "without_edge"
UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds, and over the tasks.

    Attributes:
        label: Of the arm.
        arms: The runs, by task.
        success: Share of successful episodes at the last evaluation.
        returned: Unscaled return at the last evaluation.
        area: Mean success over the budget (area under the curve divided by its length).
        area_iqm: The same, as interquartile mean over the runs of all tasks.
        rank: Mean rank of the area among all arms, 1 the best, over the seeds that all arms have.
        cost_to: What the median run had spent when an evaluation first reached a threshold, by threshold and cost; None where most runs never
            get there, and where there are several tasks.
        area_by: Mean success over what was spent of a cost, up to the total of the cheapest arm that pays at all; empty for several tasks.
        spent: Mean cost of a run.
    """

    label: str
    arms: Mapping[str, Arm]
    success: Interval
    returned: Interval
    area: Interval
    area_iqm: Interval
    rank: Interval
    cost_to: Mapping[tuple[float, str], float | None]
    area_by: Mapping[str, Interval]
    spent: Mapping[str, float]

    @property
    def arm(self) -> Arm:
        """The arm on the first task."""
        return next(iter(self.arms.values()))

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for arm in self.arms.values() for run in arm.runs.values()]


@dataclass(frozen=True)
class Difference:
    """Area under the success curve of one arm minus that of another, seed by seed.

    Attributes:
        ours: Label.
        theirs: Label.
        against: What the other arm is to ours: ``baseline``, ``frozen_teacher``, ``without_edge``, or the kind of control.
        per_run: Difference by task and seed.
        interval: Of the mean over tasks of the mean over seeds.
        success: The same for success at the last evaluation.
        improvement: Chance that a run of ours beats a run of theirs.
    """

    ours: str
    theirs: str
    against: str
    per_run: Mapping[tuple[str, int], float]
    interval: Interval
    success: Interval
    improvement: Interval

    @property
    def pairs(self) -> int:
        """Runs that have a partner."""
        return len(self.per_run)

    @property
    def won(self) -> int:
        """Pairs where ours is ahead."""
        return sum(value > TIE for value in self.per_run.values())


@dataclass(frozen=True)
class EdgeCheck:
    """A feedback arm beside the arm without the edge and beside its controls.

    Attributes:
        label: Of the feedback arm.
        differences: By ``without_edge``, ``random``, ``shuffled``, ``inverted``: those that there are.
        reasons: Why one is not there.
        notes: What a control differs in besides the sign.
    """

    label: str
    differences: Mapping[str, Difference]
    reasons: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def decisive(self) -> tuple[Difference | None, Difference | None]:
        """Against the arm without the edge and against the random sign: what a benefit has to show in."""
        return self.differences.get(NO_EDGE), self.differences.get("random")


@dataclass(frozen=True)
class Summary:
    """Everything that is stated about one task, or about several together.

    Attributes:
        label: The task's, or how many there are.
        tasks: The runs; arms that do not have complete runs on every task are left out of ``arms``.
        arms: In the order asked for.
        baseline: Label of the first arm.
        frozen: Label of the frozen teacher, where there is one.
        against_baseline: Every other arm against the baseline.
        against_frozen: Every other arm against the frozen teacher.
        edges: Every feedback arm against its controls.
        missing: Controls that there are not.
    """

    label: str
    tasks: tuple[Task, ...]
    arms: tuple[ArmSummary, ...]
    baseline: str
    frozen: str | None
    against_baseline: tuple[Difference, ...]
    against_frozen: tuple[Difference, ...]
    edges: tuple[EdgeCheck, ...]
    missing: tuple[Missing, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All of them."""
        return (*self.against_baseline, *self.against_frozen, *(d for edge in self.edges for d in edge.differences.values()))

    @property
    def seeds(self) -> int:
        """Seeds per arm and task, of the arm that has most."""
        return max(len(arm.runs) for row in self.arms for arm in row.arms.values())


def summarise(tasks: Sequence[Task], samples: int = 2000) -> Summary:
    """Compute everything over ``tasks`` together; the first arm is the baseline.

    Raises:
        ValueError: No arm has runs on every task.
    """
    common = [arm for arm in (tasks[0].arms if tasks else ()) if all(task.arm(arm.label) for task in tasks)]
    if not common:
        raise ValueError("no arm has a complete run on every task")
    table = _Table(tasks, [arm.label for arm in common], samples)
    frozen = next((arm for arm in common if is_frozen(arm.config)), None)
    labels = [arm.label for arm in common]
    return Summary(
        label=tasks[0].label if len(tasks) == 1 else f"{len(tasks)} tasks",
        tasks=tuple(tasks),
        arms=tuple(table.arm(label) for label in labels),
        baseline=labels[0],
        frozen=frozen.label if frozen else None,
        against_baseline=tuple(table.difference(label, labels[0], BASELINE) for label in labels[1:]),
        against_frozen=tuple(table.difference(label, frozen.label, FROZEN) for label in labels if label != frozen.label) if frozen else (),
        edges=tuple(_check_edge(arm, common, table) for arm in common if is_feedback(arm.config)),
        missing=tuple(missing_controls(common)),
    )


def _check_edge(arm: Arm, arms: Sequence[Arm], table: _Table) -> EdgeCheck:
    partners = {NO_EDGE: without_edge(arm, arms), **{kind: control_of(arm, kind, arms) for kind in REQUIRED_CONTROLS}}
    found = {kind: partner for kind, partner in partners.items() if partner is not None}
    apart = {kind: other_differences(arm, partner) for kind, partner in found.items() if kind != NO_EDGE}
    return EdgeCheck(
        label=arm.label,
        differences={kind: table.difference(arm.label, partner.label, kind) for kind, partner in found.items()},
        reasons={kind: impossible_control(arm.config, kind) or "missing" for kind in partners if kind not in found},
        notes=tuple(f"{found[kind].label} also differs in {', '.join(keys)}" for kind, keys in apart.items() if keys),
    )


class _Table:
    """The scores of all arms on all tasks, computed once.

    Args:
        tasks: Of the summary.
        labels: Arms that every task has.
        samples: Resamples behind each interval.
    """

    def __init__(self, tasks: Sequence[Task], labels: Sequence[str], samples: int) -> None:
        self._samples = samples
        self._runs = {label: {task.label: _arm_of(task, label) for task in tasks} for label in labels}
        until = {task.label: task.until for task in tasks}
        self._areas = self._scores(lambda task, run: run.area(SUCCESS, until[task]))
        self._finals = self._scores(lambda task, run: run.last(SUCCESS))
        self._returns = self._scores(lambda task, run: run.last(RETURN))
        self._ranks = _rank_by_seed(self._areas)
        self._totals = {cost: self._cheapest(cost) for cost in COSTS} if len(tasks) == 1 else {}

    def _scores(self, score: Callable[[str, Run], float]) -> dict[str, dict[str, dict[int, float]]]:
        """By arm, task and seed."""
        return {
            label: {task: {seed: score(task, run) for seed, run in arm.runs.items()} for task, arm in arms.items()}
            for label, arms in self._runs.items()
        }

    def arm(self, label: str) -> ArmSummary:
        """The row of one arm."""
        runs = [run for arm in self._runs[label].values() for run in arm.runs.values()]
        areas = _strata(self._areas[label])
        one_task = len(self._runs[label]) == 1
        return ArmSummary(
            label=label,
            arms=self._runs[label],
            success=stratified_bootstrap(_strata(self._finals[label]), samples=self._samples),
            returned=stratified_bootstrap(_strata(self._returns[label]), samples=self._samples),
            area=stratified_bootstrap(areas, samples=self._samples),
            area_iqm=stratified_bootstrap(areas, interquartile_mean_of_tasks, self._samples),
            rank=self._interval(_strata(self._ranks[label])),
            cost_to={(level, cost): median_cost(runs, level, cost) for level in THRESHOLDS for cost in (STEPS, *COSTS)} if one_task else {},
            area_by={cost: self._area_by(runs, cost, total) for cost, total in self._totals.items() if total and pays(runs, cost)},
            spent={cost: _mean_last(runs, cost) for cost in COSTS},
        )

    def difference(self, ours: str, theirs: str, against: str) -> Difference:
        """Pair two arms by task and seed. Without a common seed on every task the intervals are NaN."""
        areas = _pair(self._areas[ours], self._areas[theirs])
        return Difference(
            ours=ours,
            theirs=theirs,
            against=against,
            per_run={(task, seed): value for task, values in areas.items() for seed, value in values.items()},
            interval=self._interval(_strata(areas)),
            success=self._interval(_strata(_pair(self._finals[ours], self._finals[theirs]))),
            improvement=improvement_over_tasks(_strata(self._areas[ours]), _strata(self._areas[theirs]), self._samples),
        )

    def _interval(self, strata: Sequence[Sequence[float]]) -> Interval:
        return stratified_bootstrap(strata, samples=self._samples) if all(strata) else UNKNOWN

    def _area_by(self, runs: Sequence[Run], cost: str, total: float) -> Interval:
        return stratified_bootstrap([[run.area_by(cost, total) for run in runs]], samples=self._samples)

    def _cheapest(self, cost: str) -> float | None:
        """What the cheapest run of all arms that pay has spent."""
        groups = [[run for arm in arms.values() for run in arm.runs.values()] for arms in self._runs.values()]
        return min((run.last(cost) for runs in groups if pays(runs, cost) for run in runs), default=None)


def pays(runs: Sequence[Run], cost: str) -> bool:
    """True where every run has spent something."""
    return all(cost in run.columns and run.last(cost) > 0 for run in runs)


def median_cost(runs: Sequence[Run], threshold: float, cost: str) -> float | None:
    """Of the median run, one that never gets there counting as infinite."""
    spent = [run.cost_to(threshold, cost) for run in runs]
    median = float(np.median([math.inf if value is None else value for value in spent]))
    return median if math.isfinite(median) else None


def signed(value: float) -> str:
    """Three digits with a sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def plain(value: float) -> str:
    """Three digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def bracket(interval: Interval, show: Callable[[float], str] = plain) -> str:
    """The two ends of an interval."""
    return f"[{show(interval.low)}, {show(interval.high)}]"


def _arm_of(task: Task, label: str) -> Arm:
    arm = task.arm(label)
    if arm is None:
        raise ValueError(f"{label} has no complete run on {task.label}")
    return arm


def _strata(by_task: Mapping[str, Mapping[int, float]]) -> list[list[float]]:
    return [list(by_seed.values()) for by_seed in by_task.values()]


def _pair(ours: Mapping[str, Mapping[int, float]], theirs: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    return {task: paired_differences(by_seed, theirs[task]) for task, by_seed in ours.items()}


def _rank_by_seed(areas: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, dict[str, dict[int, float]]]:
    """Rank of each arm on each task, for every seed that all arms have there."""
    found: dict[str, dict[str, dict[int, float]]] = {label: {} for label in areas}
    for task in next(iter(areas.values())):
        shared = sorted(set.intersection(*(set(by_task[task]) for by_task in areas.values())))
        table = {seed: ranks([by_task[task][seed] for by_task in areas.values()]) for seed in shared}
        for place, label in enumerate(areas):
            found[label][task] = {seed: float(table[seed][place]) for seed in shared}
    return found


def _mean_last(runs: Sequence[Run], column: str) -> float:
    return float(np.mean([run.last(column) for run in runs])) if all(column in run.columns for run in runs) else math.nan
