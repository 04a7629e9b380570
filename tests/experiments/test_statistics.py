"""Statistics over seeds, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.report.statistics import (
    Interval,
    area_under_curve,
    bootstrap_columns,
    contrast,
    holm,
    improvement_over_tasks,
    interquartile_mean,
    interquartile_mean_of_tasks,
    mean_interval,
    mean_of_tasks,
    paired_differences,
    ranks,
    stratified_bootstrap,
    wilson_interval,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


def test_the_interval_of_a_mean_is_students() -> None:
    # 1, 2, 6: mean 3, variance 7, standard error sqrt(7 / 3); t of two degrees of freedom at 97.5 %
    # is 4.302653.
    got = mean_interval([[1.0, 2.0, 6.0]])
    half = 4.302652730 * (7 / 3) ** 0.5
    assert (got.estimate, got.low, got.high) == pytest.approx((3, 3 - half, 3 + half), abs=1e-8)


def test_means_over_tasks_add_their_variances_with_satterthwaites_degrees_of_freedom() -> None:
    first, second = [0.0, 1.0, 3.0], [2.0, 2.5, 4.0, 0.5]
    parts = [np.var(task, ddof=1) / len(task) / 4 for task in (first, second)]
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    half = stats.t.ppf(0.975, degrees) * sum(parts) ** 0.5
    got = mean_interval([first, second])
    assert (got.estimate, got.low, got.high) == pytest.approx(
        (43 / 24, 43 / 24 - half, 43 / 24 + half), abs=1e-12
    )


def test_one_seed_on_a_task_gives_no_interval_and_no_seeds_are_refused() -> None:
    alone = mean_interval([[0.3]])
    assert alone.estimate == 0.3 and math.isnan(alone.low) and math.isnan(alone.high)
    assert math.isnan(mean_interval([[0.3, 0.4], [0.5]]).low) and math.isnan(
        contrast([([0.3], [0.2])]).p
    )
    with pytest.raises(ValueError, match="one value per seed"):
        mean_interval([[]])


UNRELATED = ([0.61, 0.55, 0.72, 0.58, 0.66], [0.50, 0.57, 0.49, 0.60, 0.44])
RELATED = ([0.61, 0.55, 0.72, 0.58, 0.66], [0.50, 0.45, 0.60, 0.49, 0.57])


def test_seeds_that_correlate_are_paired() -> None:
    ours, theirs = RELATED
    got, wanted = contrast([RELATED]), stats.ttest_rel(ours, theirs)
    ends = wanted.confidence_interval()
    assert got.paired and got.correlation == pytest.approx(
        float(np.corrcoef(ours, theirs)[0, 1]), abs=1e-12
    )
    assert (got.p, got.interval.low, got.interval.high) == pytest.approx(
        (wanted.pvalue, ends.low, ends.high), abs=1e-12
    )


def test_seeds_that_do_not_correlate_are_not_paired() -> None:
    ours, theirs = UNRELATED
    got, wanted = contrast([UNRELATED]), stats.ttest_ind(ours, theirs, equal_var=False)
    ends = wanted.confidence_interval()
    assert not got.paired and got.correlation < 0
    assert (got.p, got.interval.low, got.interval.high) == pytest.approx(
        (wanted.pvalue, ends.low, ends.high), abs=1e-12
    )


def test_an_arm_that_does_not_vary_has_no_correlation() -> None:
    got = contrast([([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])])
    assert math.isnan(got.correlation) and (got.interval.low, got.interval.high, got.p) == (
        0.25,
        0.25,
        0.0,
    )


def test_a_difference_that_is_the_same_on_the_episodes_of_every_seed_has_no_interval() -> None:
    # In steps of a tenth, as ten episodes are counted: 2 of the 8 ways to turn three signs, and 2
    # of the 20 to label six values, show as much.
    paired = contrast([([0.7, 0.9, 0.8], [0.6, 0.8, 0.7])], exact=False)
    apart = contrast([([0.7, 0.7, 0.7], [0.6, 0.6, 0.6])], exact=False)
    none = contrast([([0.7, 0.9, 0.8], [0.7, 0.9, 0.8])], exact=False)
    assert [(got.paired, got.p) for got in (paired, apart, none)] == [
        (True, 0.25),
        (False, 0.1),
        (True, 1.0),
    ]
    assert paired.interval.estimate == pytest.approx(0.1, abs=1e-12)
    assert all(math.isnan(got.interval.low + got.interval.high) for got in (paired, apart, none))
    two = contrast([([0.7, 0.9, 0.8], [0.6, 0.8, 0.7])] * 2, exact=False)
    assert two.p == 2 / 64
    varying = [([0.7, 0.9, 0.8], [0.6, 0.8, 0.6])]
    assert contrast(varying, exact=False) == contrast(varying)


def test_holms_correction_is_the_step_down_one() -> None:
    # Sorted .01, .02, .03: times 3, 2, 1 is .03, .04, .03; none may be below the one before it. NaN
    # counts for nothing.
    assert holm([0.02, math.nan, 0.01, 0.03]) == pytest.approx(
        [0.04, math.nan, 0.03, 0.04], nan_ok=True
    )
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_interquartile_mean_drops_the_outer_quarters() -> None:
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5
    # Six values: a quarter is 1.5 of them, rounded down: 2, 3, 4 and 6 stay.
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 4.0, 6.0, 60.0])) == 3.75
    assert interquartile_mean(np.array([7.0])) == 7.0
    np.testing.assert_allclose(
        interquartile_mean(np.array([[0.0, 1.0, 2.0, 9.0], [4.0, 4.0, 4.0, 4.0]])), [1.5, 4.0]
    )


def test_differences_are_paired_by_seed() -> None:
    assert paired_differences({2: 0.5, 0: 0.9, 7: 1.0}, {0: 0.4, 2: 0.75, 1: 0.1}) == {
        0: 0.5,
        2: -0.25,
    }


def improvement(ours: list[float], theirs: list[float]) -> float:
    return improvement_over_tasks([ours], [theirs], samples=1).estimate


def test_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # (1,0) win, (1,1) tie, (1,2) loss, (3, each) three wins: 4.5 of 6.
    assert improvement([1, 3], [0, 1, 2]) == 0.75
    with pytest.raises(ValueError, match="one value per seed"):
        improvement([], [1])


@given(numbers, numbers)
def test_the_two_directions_of_improvement_add_up_to_one(
    ours: list[float], theirs: list[float]
) -> None:
    assert improvement(ours, theirs) + improvement(theirs, ours) == pytest.approx(1)


def test_the_area_under_a_curve_is_its_mean_height() -> None:
    # 0 to 10 rises from 0 to 1 (area 5), 10 to 30 stays at 1 (area 20): 25 / 30.
    assert area_under_curve([0, 10, 30], [0.0, 1.0, 1.0]) == pytest.approx(25 / 30)
    # Until 5: a triangle of 5 x 0.5 / 2 = 1.25 over 5.
    assert area_under_curve([0, 10, 30], [0.0, 1.0, 1.0], until=5) == pytest.approx(0.25)
    assert area_under_curve([0, 10, 30], [0.0, 1.0, 1.0], until=10) == pytest.approx(0.5)
    assert area_under_curve([4], [0.3]) == 0.3


def test_a_curve_that_goes_back_or_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="increase"):
        area_under_curve([0, 0], [1.0, 1.0])
    with pytest.raises(ValueError, match="asked for 11"):
        area_under_curve([0, 10], [1.0, 1.0], until=11)


def test_wilsons_interval_of_known_rates() -> None:
    # z = 1.959964; for 8 of 10: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.99207 / 1.38415 =
    # 0.716744, half z / 1.38415 * sqrt(0.016 + z^2/400) = 1.416008 * 0.160006 = 0.226570.
    got = wilson_interval(8, 10)
    assert (got.estimate, got.low, got.high) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)
    assert wilson_interval(0, 20).low == 0 and wilson_interval(20, 20).high == 1
    # With no success the upper end is z^2 / (n + z^2).
    assert wilson_interval(0, 20).high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


# --- over several tasks ---------------------------------------------------------------------------

TASKS = [[0.0, 1.0, 3.0], [2.0, 2.5], [4.0, 0.5, 1.0, 1.5]]
OTHERS = [[1.0, 0.5], [2.0, 3.0, 0.0], [1.0]]


def slow_ends(values: list[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles, each between its two neighbours."""
    ordered, found = sorted(values), []
    for share in (0.025, 0.975):
        place = share * (len(ordered) - 1)
        below = int(place)
        found.append(
            ordered[below] * (1 - (place - below))
            + ordered[min(below + 1, len(ordered) - 1)] * (place - below)
        )
    return found[0], found[1]


def slow_iqm(values: list[float]) -> float:
    cut = len(values) // 4
    return sum(sorted(values)[cut : len(values) - cut]) / (len(values) - 2 * cut)


def test_the_stratified_bootstrap_is_the_documented_one_written_out() -> None:
    generator = np.random.default_rng(0)
    draws = [generator.integers(len(task), size=(400, len(task))) for task in TASKS]
    means, middles = [], []
    for i in range(400):
        resample = [
            [task[place] for place in drawn[i]] for task, drawn in zip(TASKS, draws, strict=True)
        ]
        means.append(sum(sum(task) / len(task) for task in resample) / 3)
        middles.append(slow_iqm([value for task in resample for value in task]))
    got = stratified_bootstrap(TASKS, mean_of_tasks, samples=400)
    assert (got.estimate, got.low, got.high) == pytest.approx(
        ((4 / 3 + 2.25 + 1.75) / 3, *slow_ends(means)), abs=1e-12
    )
    got = stratified_bootstrap(TASKS, interquartile_mean_of_tasks, samples=400)
    # Nine values, two cut on each side: 0.5 and 0 and 3 and 4 go, (1 + 1 + 1.5 + 2 + 2.5) / 5 is
    # left.
    assert (got.estimate, got.low, got.high) == pytest.approx((1.6, *slow_ends(middles)), abs=1e-12)


def test_seeds_are_resampled_within_their_task_alone() -> None:
    # Two tasks without any spread: whatever is drawn, the mean is that of the two heights.
    assert stratified_bootstrap([[0.0, 0.0], [1.0, 1.0, 1.0]], mean_of_tasks) == Interval(
        0.5, 0.5, 0.5
    )
    assert math.isnan(stratified_bootstrap([[0.0], [1.0]], mean_of_tasks).low)
    with pytest.raises(ValueError, match="one value per seed"):
        stratified_bootstrap([[1.0], []], mean_of_tasks)


def test_columns_are_resampled_together_as_each_would_be_alone() -> None:
    columns = [np.array([[0.0, 5.0], [1.0, 3.0], [3.0, 9.0]]), np.array([[2.0, 2.0], [2.5, 1.0]])]
    estimates, low, high = bootstrap_columns(columns, samples=300)
    for column in (0, 1):
        alone = stratified_bootstrap(
            [task[:, column] for task in columns], mean_of_tasks, samples=300
        )
        assert (estimates[column], low[column], high[column]) == pytest.approx(
            (alone.estimate, alone.low, alone.high), abs=1e-12
        )


def test_improvement_over_tasks_resamples_both_arms_as_documented() -> None:
    generator, shares = np.random.default_rng(0), np.zeros(300)
    for ours, theirs in zip(TASKS, OTHERS, strict=True):
        first, second = (
            generator.integers(len(arm), size=(300, len(arm))) for arm in (ours, theirs)
        )
        for i in range(300):
            pairs = [(ours[a], theirs[b]) for a in first[i] for b in second[i]]
            shares[i] += sum((x > y) + 0.5 * (x == y) for x, y in pairs) / len(pairs) / 3
    got = improvement_over_tasks(TASKS, OTHERS, samples=300)
    # Won of 6: (0: 0, 1: 1.5, 3: 2) = 3.5; of 6: (2: 1.5, 2.5: 2) = 3.5; of 4: 4, .5, 1 and 1.5
    # against 1: 2.5.
    assert (got.estimate, got.low, got.high) == pytest.approx(
        ((3.5 / 6 + 3.5 / 6 + 2.5 / 4) / 3, *slow_ends(shares.tolist())), abs=1e-12
    )


def test_scores_that_differ_by_rounding_are_ties() -> None:
    third = 0.1 + 0.2  # 0.30000000000000004
    assert improvement([third], [0.3]) == 0.5
    np.testing.assert_array_equal(ranks([0.3, 0.9, third, 0.1]), [2.5, 1.0, 2.5, 4.0])


# --- rliable --------------------------------------------------------------------------------------

X = np.array([[k * 7 % 10 / 10, k * 3 % 11 / 11] for k in range(10)])
Y = np.array([[k * 3 % 10 / 12 + 0.1, k * 5 % 11 / 12] for k in range(10)])
"""Scores of two arms, ten runs on two tasks, as rliable takes them: runs by tasks."""


def test_the_numbers_are_those_of_rliable() -> None:
    """rliable 1.2.0 (Agarwal et al.

    2021) printed these for X and Y; its intervals, of 20,000 resamples and more, with other random
    numbers.
    """
    x, y = list(X.T), list(Y.T)
    assert float(interquartile_mean_of_tasks(x)) == pytest.approx(0.42727272727272725, abs=1e-12)
    assert float(interquartile_mean_of_tasks(y)) == pytest.approx(0.4416666666666667, abs=1e-12)
    assert float(mean_of_tasks(x)) == pytest.approx(0.4386363636363636, abs=1e-12)
    better = improvement_over_tasks(x, y, samples=20_000)
    assert better.estimate == pytest.approx(0.5025, abs=1e-12)
    # The ends of a bootstrap interval vary by about 0.004 from one set of random numbers to
    # another.
    assert (better.low, better.high) == pytest.approx((0.32, 0.685), abs=0.012)
    iqm, mean = (
        stratified_bootstrap(x, interquartile_mean_of_tasks, 20_000),
        stratified_bootstrap(x, mean_of_tasks, 20_000),
    )
    assert (iqm.low, iqm.high) == pytest.approx((0.26272727, 0.60181818), abs=0.012)  # as above
    assert (mean.low, mean.high) == pytest.approx((0.31318182, 0.565), abs=0.012)  # as above
    above = [(task[:, None] > np.array([0.25, 0.5, 0.75])).astype(float) for task in x]
    shares, low, high = bootstrap_columns(above, 20_000)
    np.testing.assert_allclose(shares, [0.7, 0.4, 0.2])
    np.testing.assert_allclose(
        [low, high], [[0.5, 0.2, 0.05], [0.9, 0.6, 0.4]], atol=1e-9
    )  # shares of 20 runs: steps of 0.05


def test_rliable_itself_agrees_where_it_is_installed() -> None:
    pytest.importorskip("rliable", reason="the extra rliable is not installed")
    from rliable import library, metrics

    x, y = list(X.T), list(Y.T)
    assert float(interquartile_mean_of_tasks(x)) == pytest.approx(
        metrics.aggregate_iqm(X), abs=1e-12
    )
    assert improvement_over_tasks(x, y).estimate == pytest.approx(
        metrics.probability_of_improvement(X, Y), abs=1e-12
    )
    np.random.seed(0)  # rliable draws from numpy's global generator
    _, ends = library.get_interval_estimates(
        {"x": X}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=5000
    )
    got = stratified_bootstrap(x, interquartile_mean_of_tasks, 20_000)
    assert (got.low, got.high) == pytest.approx(
        tuple(ends["x"][:, 0]), abs=0.015
    )  # two sets of random numbers
