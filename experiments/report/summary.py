"""From runs to the numbers of a report: one row per arm, one per comparison; for each task, and
over all tasks together.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.report.results import (
    CALLS,
    EXACT,
    RETURN,
    SECONDS,
    STEPS,
    SUCCESS,
    TEACHER,
    TOKENS,
    Arm,
    Run,
    Task,
)
from experiments.report.roles import (
    REQUIRED_CONTROLS,
    control_of,
    impossible_control,
    is_feedback,
    is_frozen,
    own_controls,
    without_edge,
)
from experiments.report.statistics import (
    TIE,
    Contrast,
    Interval,
    contrast,
    holm,
    improvement_over_tasks,
    interquartile_mean_of_tasks,
    mean_interval,
    paired_differences,
    ranks,
    stratified_bootstrap,
)

SEEDS_FOR_A_CLAIM = 10
SIGNIFICANT = 0.05
"""Below this a p value, corrected for the arms that were compared, carries a word such as better.
"""
REWARD_SCALE = 20.0
"""Lamorel and GLAM report returns multiplied by this."""
THRESHOLDS = (0.80, 0.95)
COSTS = (CALLS, TOKENS, SECONDS)
BASELINE, FROZEN, NO_EDGE = "baseline", "frozen_teacher", "without_edge"
OWN_CONTROL = "own_control"
UNKNOWN = Contrast(Interval(math.nan, math.nan, math.nan), math.nan, False, math.nan)


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds, and over the tasks.

    Attributes:
        label: Of the arm.
        arms: The runs, by task.
        success: Share of successful episodes where the task ends (``Task.until``): at the last
            evaluation, or of a larger budget between two.
        returned: Unscaled return there.
        area: Mean success over the budget (area under the curve divided by its length).
        area_iqm: The same, as interquartile mean over the runs of all tasks.
        rank: Mean rank of the area among all arms, 1 the best, over the seeds that all arms have.
        followed: Success there of the teacher followed blindly; NaN without one.
        cost_to: What the median run had spent when an evaluation first reached a threshold, by
            threshold and cost; None where most runs never get there, and where there are several
            tasks.
        spent: Mean cost of a run.
    """

    label: str
    arms: Mapping[str, Arm]
    success: Interval
    returned: Interval
    area: Interval
    area_iqm: Interval
    rank: Interval
    followed: Interval
    cost_to: Mapping[tuple[float, str], float | None]
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
        against: What the other arm is to ours: ``baseline``, ``frozen_teacher``, ``own_control``,
            ``without_edge``, or the kind of control.
        per_run: Difference by task and seed.
        interval: Of the mean over tasks of the mean over seeds.
        success: The same for success where the task ends.
        improvement: Chance that a run of ours beats a run of theirs.
        p: Two-sided, of the difference of areas; NaN where a task has one pair or none.
        p_corrected: The same, after Holm's correction for all differences with the same
            ``against``.
        compared: How many those are.
        paired: True where the interval pairs the seeds, False where it is Welch's.
        correlation: Of the two arms' areas over seeds; NaN where one does not vary.
        by_cost: The same for the mean success over what was spent of a cost, up to ``cut_at``;
            empty for several tasks.
        cut_at: By cost, the total of the cheapest run of the two arms; only costs that both have,
            and that no run has passed before its first row.
        sampled: The side that was evaluated on held-out episodes on a task where the other one was
            evaluated exactly; empty where both are alike.
    """

    ours: str
    theirs: str
    against: str
    per_run: Mapping[tuple[str, int], float]
    interval: Interval
    success: Interval
    improvement: Interval
    p: float
    p_corrected: float
    compared: int
    paired: bool
    correlation: float
    by_cost: Mapping[str, Interval]
    cut_at: Mapping[str, float]
    sampled: tuple[str, ...]

    @property
    def is_ahead(self) -> bool:
        """True where the area is larger, shown after the correction."""
        return self.interval.estimate > 0 and self.p_corrected < SIGNIFICANT

    @property
    def is_behind(self) -> bool:
        """True where the area is smaller, shown after the correction."""
        return self.interval.estimate < 0 and self.p_corrected < SIGNIFICANT

    @property
    def alike(self) -> bool:
        """True where both were evaluated the same way, exactly or on episodes, on every task."""
        return not self.sampled

    @property
    def seeds(self) -> int:
        """Seeds that have a partner, on the task that has fewest of them."""
        return min(Counter(task for task, _ in self.per_run).values(), default=0)

    @property
    def is_tendency(self) -> bool:
        """True where there are too few seeds for a claim."""
        return self.seeds < SEEDS_FOR_A_CLAIM

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
        differences: By ``without_edge``, ``random``, ``shuffled``, ``inverted``: those that there
            are.
        reasons: Why one is not there.
    """

    label: str
    differences: Mapping[str, Difference]
    reasons: Mapping[str, str]

    @property
    def controls(self) -> list[Difference]:
        """Against each control that there is."""
        return [self.differences[kind] for kind in REQUIRED_CONTROLS if kind in self.differences]

    @property
    def unbeaten(self) -> list[Difference]:
        """Against the controls that the arm is not ahead of; with one seed it beats none."""
        return [difference for difference in self.controls if not difference.is_ahead]

    @property
    def not_run(self) -> list[str]:
        """Kinds of controls that could be and are not."""
        return [kind for kind in REQUIRED_CONTROLS if self.reasons.get(kind) == "missing"]


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
        against_own: Every arm of a method against the controls that the method declares.
        edges: Every feedback arm against its controls.
    """

    label: str
    tasks: tuple[Task, ...]
    arms: tuple[ArmSummary, ...]
    baseline: str
    frozen: str | None
    against_baseline: tuple[Difference, ...]
    against_frozen: tuple[Difference, ...]
    against_own: tuple[Difference, ...]
    edges: tuple[EdgeCheck, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All of them."""
        return (
            *self.against_baseline,
            *self.against_frozen,
            *self.against_own,
            *(d for edge in self.edges for d in edge.differences.values()),
        )


def summarise(tasks: Sequence[Task], samples: int = 2000) -> Summary:
    """Compute everything over ``tasks`` together; the first arm is the baseline.

    Raises:
        ValueError: No arm has runs on every task.
    """
    common = [
        arm
        for arm in (tasks[0].arms if tasks else ())
        if all(task.arm(arm.label) for task in tasks)
    ]
    if not common:
        raise ValueError("no arm has a complete run on every task")
    table = _Table(tasks, [arm.label for arm in common], samples)
    frozen = next((arm for arm in common if is_frozen(arm.config)), None)
    labels = [arm.label for arm in common]
    against_baseline = _corrected(
        [table.difference(label, labels[0], BASELINE) for label in labels[1:]]
    )
    against_frozen = _corrected(
        [
            table.difference(label, frozen.label, FROZEN)
            for label in labels
            if frozen and label != frozen.label
        ]
    )
    return Summary(
        label=tasks[0].label if len(tasks) == 1 else f"{len(tasks)} tasks",
        tasks=tuple(tasks),
        arms=tuple(table.arm(label) for label in labels),
        baseline=labels[0],
        frozen=frozen.label if frozen else None,
        against_baseline=against_baseline,
        against_frozen=against_frozen,
        against_own=_corrected(
            [
                table.difference(arm.label, control.label, OWN_CONTROL)
                for arm in common
                for control in own_controls(arm, common)
            ]
        ),
        edges=_corrected_edges(
            [_check_edge(arm, common, table) for arm in common if is_feedback(arm.config)]
        ),
    )


def _corrected(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """With p values corrected for all of ``differences``; those without an interval count for
    nothing.
    """
    values = holm([difference.p for difference in differences])
    compared = sum(not math.isnan(value) for value in values)
    return tuple(
        dataclasses.replace(difference, p_corrected=value, compared=compared)
        for difference, value in zip(differences, values, strict=True)
    )


def _corrected_edges(edges: Sequence[EdgeCheck]) -> tuple[EdgeCheck, ...]:
    """Each kind of control corrected over the feedback arms: an arm has to beat all kinds, which
    needs no correction.
    """
    found: list[dict[str, Difference]] = [{} for _ in edges]
    for kind in (NO_EDGE, *REQUIRED_CONTROLS):
        places = [place for place, edge in enumerate(edges) if kind in edge.differences]
        for place, difference in zip(
            places, _corrected([edges[place].differences[kind] for place in places]), strict=True
        ):
            found[place][kind] = difference
    return tuple(
        dataclasses.replace(edge, differences=own) for edge, own in zip(edges, found, strict=True)
    )


def _check_edge(arm: Arm, arms: Sequence[Arm], table: _Table) -> EdgeCheck:
    partners = {
        NO_EDGE: without_edge(arm, arms),
        **{kind: control_of(arm, kind, arms) for kind in REQUIRED_CONTROLS},
    }
    found = {kind: partner for kind, partner in partners.items() if partner is not None}
    return EdgeCheck(
        label=arm.label,
        differences={
            kind: table.difference(arm.label, partner.label, kind)
            for kind, partner in found.items()
        },
        reasons={
            kind: impossible_control(arm.config, kind) or "missing"
            for kind in partners
            if kind not in found
        },
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
        self._runs = {
            label: {task.label: arm for task in tasks if (arm := task.arm(label))}
            for label in labels
        }
        until = {task.label: task.until for task in tasks}
        self._areas = self._scores(lambda task, run: run.area(SUCCESS, until[task]))
        self._finals = self._scores(lambda task, run: run.at(SUCCESS, until[task]))
        self._returns = self._scores(lambda task, run: run.at(RETURN, until[task]))
        self._teachers = self._scores(
            lambda task, run: run.at(TEACHER, until[task]) if TEACHER in run.columns else math.nan
        )
        self._ranks = _rank_by_seed(self._areas)

    def _scores(self, score: Callable[[str, Run], float]) -> dict[str, dict[str, dict[int, float]]]:
        """By arm, task and seed."""
        return {
            label: {
                task: {seed: score(task, run) for seed, run in arm.runs.items()}
                for task, arm in arms.items()
            }
            for label, arms in self._runs.items()
        }

    def arm(self, label: str) -> ArmSummary:
        """The row of one arm."""
        runs = self._all_runs(label)
        areas = _strata(self._areas[label])
        one_task = len(self._runs[label]) == 1
        return ArmSummary(
            label=label,
            arms=self._runs[label],
            success=mean_interval(_strata(self._finals[label])).within(0, 1),
            returned=mean_interval(_strata(self._returns[label])),
            area=mean_interval(areas).within(0, 1),
            area_iqm=stratified_bootstrap(areas, interquartile_mean_of_tasks, self._samples),
            rank=self._rank(label),
            followed=mean_interval(_strata(self._teachers[label])).within(0, 1),
            cost_to=(
                {
                    (level, cost): median_cost(runs, level, cost)
                    for level in THRESHOLDS
                    for cost in (STEPS, *COSTS)
                }
                if one_task
                else {}
            ),
            spent={cost: mean_total(runs, cost) for cost in COSTS},
        )

    def difference(self, ours: str, theirs: str, against: str) -> Difference:
        """Pair two arms by task and seed.

        Without a common seed on every task the intervals are NaN.
        """
        cut_at = self._cheapest([ours, theirs])
        exact = is_exact([*self._all_runs(ours), *self._all_runs(theirs)])
        by_cost = {
            cost: _contrast(
                {"": self._areas_by(ours, cost, total)},
                {"": self._areas_by(theirs, cost, total)},
                exact,
            ).interval
            for cost, total in cut_at.items()
        }
        found = _contrast(self._areas[ours], self._areas[theirs], exact)
        return Difference(
            ours=ours,
            theirs=theirs,
            against=against,
            per_run={
                (task, seed): value
                for task, areas in self._areas[ours].items()
                for seed, value in paired_differences(areas, self._areas[theirs][task]).items()
            },
            interval=found.interval,
            success=_contrast(self._finals[ours], self._finals[theirs], exact).interval,
            improvement=improvement_over_tasks(
                _strata(self._areas[ours]), _strata(self._areas[theirs]), self._samples
            ),
            p=found.p,
            p_corrected=found.p,
            compared=1,
            paired=found.paired,
            correlation=found.correlation,
            by_cost=by_cost,
            cut_at=cut_at,
            sampled=self._sampled(ours, theirs),
        )

    def _rank(self, label: str) -> Interval:
        strata = _strata(self._ranks[label])
        return mean_interval(strata).within(1, len(self._runs)) if all(strata) else UNKNOWN.interval

    def _sampled(self, ours: str, theirs: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for task in self._runs[ours]:
            sides = {label: self._runs[label][task].runs.values() for label in (ours, theirs)}
            sampled = [label for label, runs in sides.items() if not is_exact(list(runs))]
            if len(sampled) == 1:
                found[sampled[0]] = None
        return tuple(found)

    def _areas_by(self, label: str, cost: str, total: float) -> dict[int, float]:
        """On the only task, by seed."""
        (arm,) = self._runs[label].values()
        return {seed: run.area_by(cost, total) for seed, run in arm.runs.items()}

    def _cheapest(self, labels: Sequence[str]) -> dict[str, float]:
        """What the cheapest run of these arms has spent, of each cost that all of them have; not of
        one that another run has spent before its curve begins, and nothing for several tasks.
        """
        runs = [run for label in labels for run in self._all_runs(label)]
        one_task = all(len(self._runs[label]) == 1 for label in labels)
        cheapest = {
            cost: min(run.last(cost) for run in runs)
            for cost in COSTS
            if runs and one_task and pays(runs, cost)
        }
        return {
            cost: total
            for cost, total in cheapest.items()
            if all(run.columns[cost][0] <= total for run in runs)
        }

    def _all_runs(self, label: str) -> list[Run]:
        return [run for arm in self._runs[label].values() for run in arm.runs.values()]


def pays(runs: Sequence[Run], cost: str) -> bool:
    """True where every run has spent something."""
    return all(cost in run.columns and run.last(cost) > 0 for run in runs)


def is_exact(runs: Sequence[Run]) -> bool:
    """True where every evaluation went through all states."""
    return all(EXACT in run.columns and bool((run.columns[EXACT] == 1).all()) for run in runs)


def median_cost(runs: Sequence[Run], threshold: float, cost: str) -> float | None:
    """Of the median run, one that never gets there counting as infinite."""
    median = float(np.median([run.cost_to(threshold, cost) for run in runs]))
    return median if math.isfinite(median) else None


def signed(value: float) -> str:
    """Three digits with a sign; a dash for NaN."""
    return (
        "–" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")
    )  # + 0.0: no sign before a negative zero


def plain(value: float) -> str:
    """Three digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def bracket(interval: Interval, show: Callable[[float], str] = plain) -> str:
    """The two ends of an interval."""
    return f"[{show(interval.low)}, {show(interval.high)}]"


def _strata(by_task: Mapping[str, Mapping[int, float]]) -> list[list[float]]:
    return [list(by_seed.values()) for by_seed in by_task.values()]


def _contrast(
    ours: Mapping[str, Mapping[int, float]],
    theirs: Mapping[str, Mapping[int, float]],
    exact: bool,
) -> Contrast:
    """Over the seeds that both arms have; unknown where there is none on some task."""
    shared = {task: sorted(by_seed.keys() & theirs[task].keys()) for task, by_seed in ours.items()}
    if not all(shared.values()):
        return UNKNOWN
    return contrast(
        [
            ([ours[task][s] for s in seeds], [theirs[task][s] for s in seeds])
            for task, seeds in shared.items()
        ],
        exact,
    )


def _rank_by_seed(
    areas: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> dict[str, dict[str, dict[int, float]]]:
    """Rank of each arm on each task, for every seed that all arms have there."""
    found: dict[str, dict[str, dict[int, float]]] = {label: {} for label in areas}
    for task in next(iter(areas.values())):
        shared = sorted(set.intersection(*(set(by_task[task]) for by_task in areas.values())))
        table = {
            seed: ranks([by_task[task][seed] for by_task in areas.values()]) for seed in shared
        }
        for place, label in enumerate(areas):
            found[label][task] = {seed: float(table[seed][place]) for seed in shared}
    return found


def mean_total(runs: Sequence[Run], column: str) -> float:
    """Mean over runs of what a column counts; NaN where a run lacks the column."""
    return (
        float(np.mean([run.total(column) for run in runs]))
        if all(column in run.columns for run in runs)
        else math.nan
    )
