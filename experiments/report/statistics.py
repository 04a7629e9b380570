"""Statistics over seeds and tasks, as pure functions: intervals, differences of arms, areas.

A seed is the unit everywhere, never an episode or a step, because runs that share a seed share
their episodes. The tasks are taken as given, not as a sample of others.

Means, and differences of means, have Student's t intervals. Over several tasks the variances of
the tasks' means add up and the degrees of freedom are Welch's and Satterthwaite's. Two arms are
paired by seed only where their correlation over seeds is above zero in a one-sided test at 5 %;
otherwise their variances add up as Welch (1947) has it. ``experiments.coverage`` simulates what
these intervals cover. Where arms were evaluated on episodes and every seed shows the same
difference, its spread is finer than so many episodes can show: there is no interval, and p is the
least that exchanging the arms' labels can give, within pairs or over all seeds.

Interquartile means, performance profiles and the probability of improvement have rliable's
percentile bootstrap over the seeds within each task. No word of a report rests on those. One
``numpy.random.default_rng(0)`` for each interval; from it, for one task after the other,
``integers(n, size=(samples, n))`` says which of the task's ``n`` values (seeds ascending) each
resample takes. Where two arms are resampled apart from each other (probability of improvement),
each task draws for the first arm, then for the second. The interval's ends are the 2.5 % and
97.5 % quantiles of the statistic, interpolated linearly.

Sources: Student (1908); Welch (1947); Satterthwaite (1946); Holm (1979) for several arms at once;
Agarwal et al. (2021, arXiv 2108.13264) for the interquartile mean, the probability of improvement,
performance profiles and stratification, with the definitions of their library rliable; Wilson
(1927) for the interval of a rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Values = Sequence[float] | np.ndarray
Strata = Sequence[np.ndarray]
LEVEL = 0.95
"""Coverage of every interval."""
TIE = 1e-12
"""Scores that are no further apart are equal: the order in which a mean was added up must not
decide who wins.
"""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; ``low`` and ``high`` are NaN where there is one value."""

    estimate: float
    low: float
    high: float

    def within(self, lowest: float, highest: float) -> Interval:
        """The same, with ends that the quantity can take."""
        low, high = (float(np.clip(end, lowest, highest)) for end in (self.low, self.high))
        return Interval(self.estimate, low, high)


@dataclass(frozen=True)
class Contrast:
    """Ours minus theirs, the mean over tasks.

    Attributes:
        interval: Of the difference, 95 %, of this comparison alone.
        p: Two-sided, of the test that belongs to the interval; NaN where there is none.
        paired: True where the seeds were paired, False where the arms' variances were added.
        correlation: Of the two arms over seeds, within tasks; NaN where one does not vary.
    """

    interval: Interval
    p: float
    paired: bool
    correlation: float


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the last axis without its lowest and highest quarter; a quarter is rounded down to
    whole values, as rliable does.

    Args:
        values: ``(..., n)``.
    """
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return mean(ordered[..., cut : ordered.shape[-1] - cut])


def mean_of_tasks(tasks: Strata) -> np.ndarray:
    """Mean over tasks of each task's mean over seeds: every task counts the same, however many
    seeds it has.

    Args:
        tasks: One array ``(..., n)`` per task.
    """
    return np.asarray(np.mean([mean(values) for values in tasks], axis=0))


def interquartile_mean_of_tasks(tasks: Strata) -> np.ndarray:
    """Interquartile mean over the runs of all tasks together.

    See ``mean_of_tasks`` for the shapes.
    """
    return interquartile_mean(np.concatenate(tasks, axis=-1))


def resamples(sizes: Sequence[int], samples: int) -> list[np.ndarray]:
    """Which values each resample takes: one array ``(samples, n)`` of indices per size ``n``."""
    generator = np.random.default_rng(0)  # a report is the same each time it is made
    return [generator.integers(size, size=(samples, size)) for size in sizes]


def stratified_bootstrap(
    tasks: Sequence[Values], statistic: Callable[[Strata], np.ndarray], samples: int = 2000
) -> Interval:
    """Percentile bootstrap over the seeds within each task.

    Args:
        tasks: ``(n,)`` per task, one value per seed.
        statistic: Reduces the last axis of one array ``(samples, n)`` per task.
        samples: Resamples.

    Raises:
        ValueError: There are no tasks, or one has no values.
    """
    data = _checked(tasks)
    estimate = float(statistic(data))
    if all(values.size == 1 for values in data):
        return Interval(estimate, math.nan, math.nan)
    drawn = resamples([values.size for values in data], samples)
    resampled = statistic([values[draws] for values, draws in zip(data, drawn, strict=True)])
    return Interval(estimate, *_ends(resampled))


def mean_interval(tasks: Sequence[Values]) -> Interval:
    """Student's t interval of the mean over tasks of each task's mean over seeds.

    Args:
        tasks: ``(n,)`` per task, one value per seed. One value alone on a task gives no interval.

    Raises:
        ValueError: There are no tasks, or one has no values.
    """
    data = _checked(tasks)
    variances = np.array([_variance_of_mean(values) for values in data])
    degrees = np.array([values.size - 1 for values in data])
    return _t_interval(float(mean_of_tasks(data)), variances / len(data) ** 2, degrees)[0]


def mean_columns(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``mean_interval`` of each column of ``(n, columns)``: estimates, lower and upper ends."""
    intervals = [mean_interval([column]) for column in values.T]
    estimates, low, high = zip(*((i.estimate, i.low, i.high) for i in intervals), strict=True)
    return np.array(estimates), np.array(low), np.array(high)


def contrast(pairs: Sequence[tuple[Values, Values]], exact: bool = True) -> Contrast:
    """Ours minus theirs, paired by seed where that gives something and with Welch's variance
    otherwise.

    Args:
        pairs: Per task ours and theirs, each ``(n,)``, the same seeds in the same order.
        exact: False where values come from episodes, so that they may be equal without being known
            to be.

    Raises:
        ValueError: There are no tasks, or one has no values.
    """
    ours, theirs = _checked([x for x, _ in pairs]), _checked([y for _, y in pairs])
    both = list(zip(ours, theirs, strict=True))
    correlation, paired = _correlation(both)
    estimate = float(np.mean([float((x - y).mean()) for x, y in both]))
    samples = [x - y for x, y in both] if paired else [*ours, *theirs]
    variances = np.array([_variance_of_mean(values) for values in samples]) / len(both) ** 2
    degrees = np.array([values.size - 1 for values in samples])
    interval, p = _t_interval(estimate, variances, degrees)
    if not exact and variances.sum() == 0:
        interval = Interval(estimate, math.nan, math.nan)
        p = 1.0 if abs(estimate) <= TIE else _least_p([x.size for x, _ in both], paired)
    return Contrast(interval, p, paired, correlation)


def _least_p(sizes: Sequence[int], paired: bool) -> float:
    """Two-sided, of the one arrangement of labels among all that puts every higher value on one
    side.
    """
    return 2.0 / math.prod(2**size if paired else math.comb(2 * size, size) for size in sizes)


def holm(values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979); NaN stays and counts for nothing."""
    known = sorted((p, place) for place, p in enumerate(values) if not math.isnan(p))
    corrected, largest = list(values), 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def _checked(tasks: Sequence[Values]) -> list[np.ndarray]:
    data = [np.asarray(values, dtype=np.float64) for values in tasks]
    if not data or any(values.ndim != 1 or not values.size for values in data):
        raise ValueError(
            f"expected one value per seed, got shapes {[values.shape for values in data]}"
        )
    return data


def _variance_of_mean(values: np.ndarray) -> float:
    """NaN for one value; exactly zero where the values differ by rounding alone."""
    if values.size < 2:
        return math.nan
    return float(values.var(ddof=1)) / values.size if np.ptp(values) > TIE else 0.0


def _t_interval(estimate: float, shares: np.ndarray, degrees: np.ndarray) -> tuple[Interval, float]:
    """Interval and two-sided p value, from the parts of the variance and the degrees of freedom of
    each.
    """
    total = float(shares.sum())
    if math.isnan(total):
        return Interval(estimate, math.nan, math.nan), math.nan
    if total == 0:
        return Interval(estimate, estimate, estimate), 1.0 if abs(estimate) <= TIE else 0.0
    from scipy import special  # here, as a run reads this module for its curve alone

    freedom = total**2 / float((shares**2 / degrees).sum())
    half = float(special.stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(total)
    p = 2 * float(special.stdtr(freedom, -abs(estimate) / math.sqrt(total)))
    return Interval(estimate, estimate - half, estimate + half), p


def _correlation(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, bool]:
    """Correlation within tasks, and whether it is above zero at 5 %, so that pairing gives
    something.
    """
    x = np.concatenate([ours - ours.mean() for ours, _ in pairs])
    y = np.concatenate([theirs - theirs.mean() for _, theirs in pairs])
    if min(np.ptp(x), np.ptp(y)) <= TIE:
        return math.nan, False
    r = float(np.clip((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()), -1, 1))
    freedom = x.size - len(pairs) - 1
    if freedom < 1:
        return r, False
    from scipy import special

    t = math.inf if r >= 1 - TIE else r * math.sqrt(freedom / max(1 - r * r, TIE))
    return r, bool(t > special.stdtrit(freedom, 0.95))


def bootstrap_columns(
    tasks: Sequence[np.ndarray], samples: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``stratified_bootstrap`` of ``mean_of_tasks`` for each column, all columns with the same
    resamples.

    Args:
        tasks: ``(n, columns)`` per task.
        samples: Resamples.

    Returns:
        Estimates, lower ends and upper ends, each ``(columns,)``; the ends are NaN where no task
        has two values.
    """
    estimates = np.mean([values.mean(axis=0) for values in tasks], axis=0)
    if all(len(values) == 1 for values in tasks):
        return estimates, np.full_like(estimates, np.nan), np.full_like(estimates, np.nan)
    drawn = resamples([len(values) for values in tasks], samples)
    means = np.zeros((samples, len(estimates)))
    for values, draws in zip(tasks, drawn, strict=True):
        counts = (draws[:, :, None] == np.arange(len(values))).sum(axis=1)
        means += counts @ values / (len(values) * len(tasks))
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return estimates, low, high


def _ends(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """``ours - theirs`` for each seed that both have, in the order of seeds."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def improvement_over_tasks(
    ours: Sequence[Values], theirs: Sequence[Values], samples: int = 2000
) -> Interval:
    """Mean over tasks of the chance that a run of ours beats one of theirs, ties counting half (the
    Mann-Whitney statistic over ``n * m`` pairs); the arms are resampled apart from each other.

    Args:
        ours: ``(n,)`` per task.
        theirs: ``(m,)`` per task, in the same order of tasks.
        samples: Resamples.
    """
    pairs = list(zip(_checked(ours), _checked(theirs), strict=True))
    estimate = float(np.mean([_wins(x, y) for x, y in pairs]))
    if all(x.size == 1 and y.size == 1 for x, y in pairs):
        return Interval(estimate, math.nan, math.nan)
    drawn = iter(resamples([values.size for pair in pairs for values in pair], samples))
    resampled = np.mean([_wins(x[next(drawn)], y[next(drawn)]) for x, y in pairs], axis=0)
    return Interval(estimate, *_ends(resampled))


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
        until: Where to stop, at most the last step; None is the last step. The curve is
            interpolated there.

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


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a success rate.

    Raises:
        ValueError: ``successes`` is not between 0 and ``trials``, or there are no trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))
