"""Statistics over seeds, as pure functions: intervals, paired differences, areas under curves.

A seed is the unit everywhere: what is resampled is seeds, never episodes or steps, because runs that share a seed share their episodes.
Sources: Efron and Tibshirani (1993) for the percentile bootstrap; Agarwal et al. (2021, arXiv 2108.13264) for the interquartile mean and the
probability of improvement; Wilson (1927) for the interval of a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Values = Sequence[float] | np.ndarray


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
    """Mean of the middle half of the last axis; values cut by a quartile count by the part that lies inside.

    Args:
        values: ``(..., n)``.
    """
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    edges = np.arange(n + 1, dtype=np.float64)
    inside = np.clip(edges[1:], n / 4, 3 * n / 4) - np.clip(edges[:-1], n / 4, 3 * n / 4)
    return np.asarray((ordered * inside).sum(axis=-1) / inside.sum())


def bootstrap(
    values: Values,
    statistic: Callable[[np.ndarray], np.ndarray] = mean,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over seeds.

    Args:
        values: ``(n,)``, one per seed.
        statistic: Reduces the last axis of ``(samples, n)``.
        samples: Resamples.
        level: Coverage asked for.
        seed: Of the resampling, so that a report is the same each time it is made.

    Raises:
        ValueError: There are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f"expected one value per seed, got shape {data.shape}")
    estimate = float(statistic(data))
    if data.size == 1:
        return Interval(estimate, math.nan, math.nan)
    draws = np.random.default_rng(seed).integers(data.size, size=(samples, data.size))
    low, high = np.quantile(statistic(data[draws]), [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def paired_differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """``ours - theirs`` for each seed that both have, in the order of seeds."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def probability_of_improvement(ours: Values, theirs: Values) -> float:
    """Chance that a run of ours beats one of theirs, ties counting half (the Mann-Whitney statistic over ``n * m`` pairs)."""
    x, y = np.asarray(ours, dtype=np.float64)[:, None], np.asarray(theirs, dtype=np.float64)[None, :]
    if not x.size or not y.size:
        raise ValueError("expected at least one run on each side")
    return float(np.mean((x > y) + 0.5 * (x == y)))


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
