"""Statistics over seeds and tasks, as pure functions: intervals, paired differences, areas under curves.

A seed is the unit everywhere: what is resampled is seeds, never episodes or steps, because runs that share a seed share their episodes. Over
several tasks the seeds are resampled within each task (stratified); the tasks are taken as given, not as a sample of others.

The resampling, so that another programme can repeat it to the last digit: one ``numpy.random.default_rng(0)`` for each interval; from it, for one
task after the other, ``integers(n, size=(samples, n))`` says which of the task's ``n`` values (seeds ascending) each resample takes. Where two
arms are resampled apart from each other (probability of improvement), each task draws for the first arm, then for the second. The interval's
ends are the 2.5 % and 97.5 % quantiles of the statistic, interpolated linearly.

Sources: Efron and Tibshirani (1993) for the percentile bootstrap; Agarwal et al. (2021, arXiv 2108.13264) for the interquartile mean, the
probability of improvement, performance profiles and stratification, with the definitions of their library rliable; Wilson (1927) for the
interval of a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Values = Sequence[float] | np.ndarray
Strata = Sequence[np.ndarray]
TIE = 1e-12
"""Scores that are no further apart are equal: the order in which a mean was added up must not decide who wins."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; ``low`` and ``high`` are NaN where one value alone gives none."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True where the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the last axis without its lowest and highest quarter; a quarter is rounded down to whole values, as rliable does.

    Args:
        values: ``(..., n)``.
    """
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return mean(ordered[..., cut : ordered.shape[-1] - cut])


def mean_of_tasks(tasks: Strata) -> np.ndarray:
    """Mean over tasks of each task's mean over seeds: every task counts the same, however many seeds it has.

    Args:
        tasks: One array ``(..., n)`` per task.
    """
    return np.asarray(np.mean([mean(values) for values in tasks], axis=0))


def interquartile_mean_of_tasks(tasks: Strata) -> np.ndarray:
    """Interquartile mean over the runs of all tasks together. See ``mean_of_tasks`` for the shapes."""
    return interquartile_mean(np.concatenate(tasks, axis=-1))


def resamples(sizes: Sequence[int], samples: int, seed: int = 0) -> list[np.ndarray]:
    """Which values each resample takes: one array ``(samples, n)`` of indices per size ``n``."""
    generator = np.random.default_rng(seed)
    return [generator.integers(size, size=(samples, size)) for size in sizes]


def stratified_bootstrap(
    tasks: Sequence[Values],
    statistic: Callable[[Strata], np.ndarray] = mean_of_tasks,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over the seeds within each task.

    Args:
        tasks: ``(n,)`` per task, one value per seed.
        statistic: Reduces the last axis of one array ``(samples, n)`` per task.
        samples: Resamples.
        level: Coverage asked for.
        seed: Of the resampling, so that a report is the same each time it is made.

    Raises:
        ValueError: There are no tasks, or one has no values.
    """
    data = [np.asarray(values, dtype=np.float64) for values in tasks]
    if not data or any(values.ndim != 1 or not values.size for values in data):
        raise ValueError(f"expected one value per seed, got shapes {[values.shape for values in data]}")
    estimate = float(statistic(data))
    if all(values.size == 1 for values in data):
        return Interval(estimate, math.nan, math.nan)
    drawn = resamples([values.size for values in data], samples, seed)
    return Interval(estimate, *_ends(statistic([values[draws] for values, draws in zip(data, drawn, strict=True)]), level))


def bootstrap(
    values: Values,
    statistic: Callable[[np.ndarray], np.ndarray] = mean,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over the seeds of one task. See ``stratified_bootstrap``.

    Args:
        values: ``(n,)``, one per seed.
        statistic: Reduces the last axis of ``(samples, n)``.
        samples: Resamples.
        level: Coverage asked for.
        seed: Of the resampling.

    Raises:
        ValueError: There are no values.
    """
    return stratified_bootstrap([values], lambda tasks: statistic(tasks[0]), samples, level, seed)


def bootstrap_columns(tasks: Sequence[np.ndarray], samples: int = 2000, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``stratified_bootstrap`` of the mean for each column, all columns with the same resamples.

    Args:
        tasks: ``(n, columns)`` per task.
        samples: Resamples.
        level: Coverage asked for.

    Returns:
        Estimates, lower ends and upper ends, each ``(columns,)``; the ends are NaN where no task has two values.
    """
    estimates = np.mean([values.mean(axis=0) for values in tasks], axis=0)
    if all(len(values) == 1 for values in tasks):
        return estimates, np.full_like(estimates, np.nan), np.full_like(estimates, np.nan)
    drawn = resamples([len(values) for values in tasks], samples)
    means = np.zeros((samples, len(estimates)))
    for values, draws in zip(tasks, drawn, strict=True):
        counts = (draws[:, :, None] == np.arange(len(values))).sum(axis=1)
        means += counts @ values / (len(values) * len(tasks))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return estimates, low, high


def _ends(resampled: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """``ours - theirs`` for each seed that both have, in the order of seeds."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def probability_of_improvement(ours: Values, theirs: Values) -> float:
    """Chance that a run of ours beats one of theirs, ties counting half (the Mann-Whitney statistic over ``n * m`` pairs)."""
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if not x.size or not y.size:
        raise ValueError("expected at least one run on each side")
    return float(_wins(x, y))


def improvement_over_tasks(ours: Sequence[Values], theirs: Sequence[Values], samples: int = 2000, level: float = 0.95) -> Interval:
    """Mean over tasks of ``probability_of_improvement``; the runs of the two arms are resampled apart from each other.

    Args:
        ours: ``(n,)`` per task.
        theirs: ``(m,)`` per task, in the same order of tasks.
        samples: Resamples.
        level: Coverage asked for.
    """
    estimate = float(np.mean([probability_of_improvement(x, y) for x, y in zip(ours, theirs, strict=True)]))
    pairs = [(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)) for x, y in zip(ours, theirs, strict=True)]
    if all(x.size == 1 and y.size == 1 for x, y in pairs):
        return Interval(estimate, math.nan, math.nan)
    drawn = iter(resamples([values.size for pair in pairs for values in pair], samples))
    resampled = np.mean([_wins(x[next(drawn)], y[next(drawn)]) for x, y in pairs], axis=0)
    return Interval(estimate, *_ends(resampled, level))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of the pairs ``(..., n)`` times ``(..., m)`` in which x is above y."""
    apart = x[..., :, None] - y[..., None, :]
    return np.asarray(((apart > TIE) + 0.5 * (np.abs(apart) <= TIE)).mean(axis=(-1, -2)))


def ranks(scores: Values) -> np.ndarray:
    """Rank of each score, 1 for the highest; equal ones share the mean of their ranks."""
    values = np.asarray(scores, dtype=np.float64)
    apart = values[None, :] - values[:, None]
    return np.asarray((apart > TIE).sum(axis=1) + ((np.abs(apart) <= TIE).sum(axis=1) + 1) / 2)


def area_under_curve(steps: Values, values: Values, until: float | None = None) -> float:
    """Mean height of the curve between its first step and ``until``, by the trapezoidal rule.

    Args:
        steps: ``(n,)``, increasing.
        values: ``(n,)``.
        until: Where to stop, at most the last step; None is the last step. The curve is interpolated there.

    Raises:
        ValueError: Steps do not increase, or the curve ends before ``until``.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.size != y.size or not x.size or np.any(np.diff(x) <= 0):
        raise ValueError("expected as many values as steps, and steps that increase")
    end = float(x[-1]) if until is None else float(until)
    if not x[0] <= end <= x[-1]:
        raise ValueError(f"the curve runs from {x[0]:g} to {x[-1]:g}, asked for {end:g}")
    if end == x[0]:
        return float(y[0])
    kept = x < end
    x, y = np.append(x[kept], end), np.append(y[kept], np.interp(end, x, y))
    return float(np.trapezoid(y, x) / (end - x[0]))


def steps_to(steps: Values, values: Values, threshold: float) -> float | None:
    """First step of an evaluation that reaches ``threshold``; None where none does."""
    reached = np.asarray(values, dtype=np.float64) >= threshold
    return float(np.asarray(steps, dtype=np.float64)[int(reached.argmax())]) if reached.any() else None


def curve_on(grid: Values, steps: Values, values: Values) -> np.ndarray:
    """The curve at the points of ``grid``, interpolated; NaN outside the curve's own range."""
    return np.interp(grid, steps, values, left=np.nan, right=np.nan)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate.

    Raises:
        ValueError: ``successes`` is not between 0 and ``trials``, or there are no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))
