"""Statistics over seeds, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.statistics import (
    Interval,
    area_under_curve,
    bootstrap,
    curve_on,
    interquartile_mean,
    paired_differences,
    probability_of_improvement,
    steps_to,
    wilson_interval,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


def test_the_bootstrap_of_two_seeds_follows_the_four_possible_resamples() -> None:
    # Means of resamples of {0, 1}: 0 with probability 1/4, 1/2 with 1/2, 1 with 1/4. So 95 % reaches from 0 to 1, and the middle 40 % is 1/2 alone.
    assert bootstrap([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    assert bootstrap([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5)


def test_the_bootstrap_agrees_with_all_resamples_of_four_seeds() -> None:
    values = [0.0, 1.0, 3.0, 7.0]
    means = sorted(sum(draw) / 4 for draw in itertools.product(values, repeat=4))
    low, high = np.quantile(means, [0.025, 0.975])
    got = bootstrap(values, samples=200_000)
    assert got.estimate == 2.75
    assert got.low == pytest.approx(low, abs=0.26) and got.high == pytest.approx(high, abs=0.26)  # neighbouring means are 1/4 apart


def test_the_bootstrap_is_the_same_each_time_and_one_seed_has_no_interval() -> None:
    assert bootstrap([0.1, 0.4, 0.2]) == bootstrap([0.1, 0.4, 0.2])
    alone = bootstrap([0.3])
    assert alone.estimate == 0.3 and math.isnan(alone.low) and math.isnan(alone.high) and not alone.excludes_zero


@given(numbers)
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    got = bootstrap(values, samples=50)
    if len(values) > 1:
        assert min(values) - 1e-9 <= got.low <= got.high <= max(values) + 1e-9


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="one value per seed"):
        bootstrap([])


def test_an_interval_excludes_zero_only_when_it_lies_on_one_side() -> None:
    assert Interval(1, 0.5, 2).excludes_zero and Interval(-1, -2, -0.5).excludes_zero
    assert not Interval(1, -0.1, 2).excludes_zero and not Interval(1, 0.0, 2).excludes_zero


def test_the_interquartile_mean_drops_the_outer_quarters() -> None:
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5
    # Six values: a quarter is 1.5 of them, so 3 and 4 count whole and 2 and 5 half: (1 + 3 + 4 + 2.5) / 3.
    assert interquartile_mean(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 60.0])) == pytest.approx(3.5)
    assert interquartile_mean(np.array([7.0])) == 7.0
    np.testing.assert_allclose(interquartile_mean(np.array([[0.0, 1.0, 2.0, 9.0], [4.0, 4.0, 4.0, 4.0]])), [1.5, 4.0])


def test_differences_are_paired_by_seed() -> None:
    assert paired_differences({2: 0.5, 0: 0.9, 7: 1.0}, {0: 0.4, 2: 0.75, 1: 0.1}) == {0: 0.5, 2: -0.25}


def test_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # (1,0) win, (1,1) tie, (1,2) loss, (3, each) three wins: 4.5 of 6.
    assert probability_of_improvement([1, 3], [0, 1, 2]) == 0.75
    with pytest.raises(ValueError):
        probability_of_improvement([], [1])


@given(numbers, numbers)
def test_the_two_directions_of_improvement_add_up_to_one(ours: list[float], theirs: list[float]) -> None:
    assert probability_of_improvement(ours, theirs) + probability_of_improvement(theirs, ours) == pytest.approx(1)


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


def test_steps_to_a_threshold_is_the_first_evaluation_at_or_above_it() -> None:
    assert steps_to([0, 512, 1024, 1536], [0.1, 0.8, 0.7, 0.9], 0.8) == 512
    assert steps_to([0, 512], [0.1, 0.79], 0.8) is None


def test_a_curve_has_no_value_outside_its_range() -> None:
    np.testing.assert_array_equal(curve_on([0, 5, 10, 20], [5, 10], [1.0, 2.0]), [np.nan, 1.0, 2.0, np.nan])


def test_wilsons_interval_of_known_rates() -> None:
    # z = 1.959964; for 8 of 10: centre (0.8 + z^2/20) / (1 + z^2/10) = 0.99207 / 1.38415 = 0.716744,
    # half z / 1.38415 * sqrt(0.016 + z^2/400) = 1.416008 * 0.160006 = 0.226570.
    got = wilson_interval(8, 10)
    assert (got.estimate, got.low, got.high) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)
    assert wilson_interval(0, 20).low == 0 and wilson_interval(20, 20).high == 1
    # With no success the upper end is z^2 / (n + z^2).
    assert wilson_interval(0, 20).high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
