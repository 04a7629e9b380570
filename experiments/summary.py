"""From runs to the numbers of a report: one row per arm, one per comparison, and the sentence that answers the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.results import CALLS, RETURN, SECONDS, STEPS, SUCCESS, TOKENS, Arm, Run
from experiments.statistics import Interval, bootstrap, interquartile_mean, paired_differences, probability_of_improvement

SEEDS_FOR_A_CLAIM = 10
CONTROLS = ("random", "shuffled", "positive", "inverted")
REWARD_SCALE = 20.0
"""Lamorel and GLAM report returns multiplied by this."""


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds.

    Attributes:
        arm: The runs.
        success: Share of successful episodes at the last evaluation.
        returned: Unscaled return at the last evaluation.
        area: Mean success over the budget (area under the curve divided by its length).
        area_iqm: The same, as interquartile mean.
        steps_to_80: Environment steps of the median seed to 80 % success; None where most seeds never get there.
        steps_to_95: The same for 95 %.
        calls: Calls of the LLM per run.
        tokens: Tokens that the LLM processed per run.
        seconds: Seconds per run.
    """

    arm: Arm
    success: Interval
    returned: Interval
    area: Interval
    area_iqm: float
    steps_to_80: float | None
    steps_to_95: float | None
    calls: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Difference:
    """Area under the success curve of one arm minus that of another, seed by seed.

    Attributes:
        ours: Label.
        theirs: Label.
        per_seed: Difference by seed.
        interval: Over seeds.
        success: The same for success at the last evaluation.
        improvement: Chance that a run of ours beats a run of theirs.
    """

    ours: str
    theirs: str
    per_seed: dict[int, float]
    interval: Interval
    success: Interval
    improvement: float

    @property
    def seeds_won(self) -> int:
        """Seeds where ours is ahead."""
        return sum(value > 0 for value in self.per_seed.values())


@dataclass(frozen=True)
class Summary:
    """Everything that a report states.

    Attributes:
        until: Environment steps that areas reach to: the shortest curve's end, at most the budget.
        arms: In the order asked for.
        baseline: Label of the first arm.
        frozen: Label of the frozen teacher, where there is one.
        against_baseline: Every other arm against the baseline.
        against_frozen: Every other arm against the frozen teacher.
        unfinished: Runs that are not complete; they are left out of everything else.
    """

    until: float
    arms: tuple[ArmSummary, ...]
    baseline: str
    frozen: str | None
    against_baseline: tuple[Difference, ...]
    against_frozen: tuple[Difference, ...]
    unfinished: tuple[Run, ...]


def summarise(arms: Sequence[Arm], unfinished: Sequence[Run] = (), samples: int = 2000) -> Summary:
    """Compute everything. ``arms`` hold complete runs with at least one evaluation each, and the first arm is the baseline.

    Raises:
        ValueError: There are no arms.
    """
    if not arms:
        raise ValueError("no complete run to report on")
    runs = [run for arm in arms for run in arm.runs.values()]
    until = min(min(run.last(STEPS) for run in runs), min(float(run.config.run.total_steps) for run in runs))
    frozen = next((arm for arm in arms if _is_frozen(arm)), None)
    return Summary(
        until=until,
        arms=tuple(_summarise_arm(arm, until, samples) for arm in arms),
        baseline=arms[0].label,
        frozen=frozen.label if frozen else None,
        against_baseline=tuple(compare_arms(arm, arms[0], until, samples) for arm in arms[1:]),
        against_frozen=tuple(compare_arms(arm, frozen, until, samples) for arm in arms if arm is not frozen) if frozen else (),
        unfinished=tuple(unfinished),
    )


def compare_arms(ours: Arm, theirs: Arm, until: float, samples: int) -> Difference:
    """Pair two arms by seed. Without a common seed the intervals are NaN."""
    areas = [{seed: run.area(SUCCESS, until) for seed, run in arm.runs.items()} for arm in (ours, theirs)]
    finals = [{seed: run.last(SUCCESS) for seed, run in arm.runs.items()} for arm in (ours, theirs)]
    per_seed = paired_differences(*areas)
    return Difference(
        ours=ours.label,
        theirs=theirs.label,
        per_seed=per_seed,
        interval=_interval(list(per_seed.values()), samples),
        success=_interval(list(paired_differences(*finals).values()), samples),
        improvement=probability_of_improvement(list(areas[0].values()), list(areas[1].values())),
    )


def headline(summary: Summary) -> list[str]:
    """The answer, in sentences: which arm is better than the baseline, by how much, and how sure that is.

    Beside the frozen teacher stands the best of the teachers that get feedback: the two differ in nothing but the edge.
    """
    if not summary.against_baseline:
        return [f"Only one arm, {summary.baseline}, has complete runs: there is nothing to compare it with."]
    best = max(summary.against_baseline, key=lambda difference: _or_low(difference.interval.estimate))
    sentences = [_verdict(best)]
    if summary.frozen and summary.frozen != summary.baseline:
        taught = {row.arm.label for row in summary.arms if _is_taught(row.arm)}
        rivals = [difference for difference in summary.against_frozen if difference.ours in taught]
        sentences += [_verdict(max(rivals, key=lambda difference: _or_low(difference.interval.estimate)))] if rivals else []
    better = [difference.ours for difference in summary.against_baseline if difference.interval.low > 0]
    worse = [difference.ours for difference in summary.against_baseline if difference.interval.high < 0]
    if better:
        sentences.append(f"Better than {summary.baseline}, with an interval above zero: {', '.join(better)}.")
    if worse:
        sentences.append(f"Worse than {summary.baseline}, with an interval below zero: {', '.join(worse)}.")
    return [*sentences, _caution(summary)]


def _verdict(difference: Difference) -> str:
    interval, pairs = difference.interval, len(difference.per_seed)
    if not pairs:
        return f"{difference.ours} and {difference.theirs} share no seed."
    word = "better than" if interval.low > 0 else "worse than" if interval.high < 0 else "not distinguishable from"
    return (
        f"{difference.ours} is {word} {difference.theirs}: area under the success curve "
        f"{signed(interval.estimate)} {bracket(interval, signed)}, ahead in {difference.seeds_won} of {pairs} paired seeds."
    )


def _caution(summary: Summary) -> str:
    tried = len(summary.arms)
    pairs = max(len(difference.per_seed) for difference in summary.against_baseline)
    text = f"{tried} arms were tried; the best of several looks better than it is."
    if pairs < SEEDS_FOR_A_CLAIM:
        text += f" {pairs} paired {'seed shows' if pairs == 1 else 'seeds show'} a tendency; a claim needs {SEEDS_FOR_A_CLAIM}."
    return text


def signed(value: float) -> str:
    """Three digits with a sign; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def plain(value: float) -> str:
    """Three digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def bracket(interval: Interval, show: Callable[[float], str] = plain) -> str:
    """The two ends of an interval."""
    return f"[{show(interval.low)}, {show(interval.high)}]"


def _summarise_arm(arm: Arm, until: float, samples: int) -> ArmSummary:
    runs = list(arm.runs.values())
    areas = [run.area(SUCCESS, until) for run in runs]
    return ArmSummary(
        arm=arm,
        success=bootstrap([run.last(SUCCESS) for run in runs], samples=samples),
        returned=bootstrap([run.last(RETURN) for run in runs], samples=samples),
        area=bootstrap(areas, samples=samples),
        area_iqm=float(interquartile_mean(np.array(areas))),
        steps_to_80=_median_steps(runs, 0.80),
        steps_to_95=_median_steps(runs, 0.95),
        calls=_mean_last(runs, CALLS),
        tokens=_mean_last(runs, TOKENS),
        seconds=_mean_last(runs, SECONDS),
    )


def _median_steps(runs: Sequence[Run], threshold: float) -> float | None:
    """Of the median seed, one that never gets there counting as infinite."""
    steps = [run.steps_to(threshold) for run in runs]
    median = float(np.median([math.inf if value is None else value for value in steps]))
    return median if math.isfinite(median) else None


def _mean_last(runs: Sequence[Run], column: str) -> float:
    return float(np.mean([run.last(column) for run in runs])) if all(column in run.columns for run in runs) else math.nan


def _is_frozen(arm: Arm) -> bool:
    config = arm.config
    return config.arm.agent == "student" and config.arm.teacher == "llm" and config.feedback.signal == "none"


def _is_taught(arm: Arm) -> bool:
    """True for a student's teacher that gets a signal, controls left out."""
    config = arm.config
    return config.arm.agent == "student" and config.arm.teacher == "llm" and config.feedback.signal not in ("none", *CONTROLS)


def _interval(values: list[float], samples: int) -> Interval:
    return bootstrap(values, samples=samples) if values else Interval(math.nan, math.nan, math.nan)


def _or_low(value: float) -> float:
    return -math.inf if math.isnan(value) else value
