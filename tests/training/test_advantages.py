"""TD errors and generalised advantages against numbers worked out by hand."""

import numpy as np
import pytest

from lamorel_ext.rl import gae, normalise, td_errors

# One environment, four steps, gamma = 0.5: step 1 is cut off by the step limit (the state reached
# there is worth 8), step 3 is a success.
REWARDS = np.array([[1.0], [0.0], [0.0], [2.0]])
VALUES = np.array([[2.0], [4.0], [1.0], [3.0]])
NEXT = np.array([[4.0], [8.0], [3.0], [100.0]])
TERMINATED = np.array([[False], [False], [False], [True]])
TRUNCATED = np.array([[False], [True], [False], [False]])


def test_td_errors_bootstrap_from_the_state_reached_on_truncation_and_not_on_termination():
    errors = td_errors(REWARDS, VALUES, NEXT, TERMINATED, gamma=0.5)
    # 1 + .5*4 - 2;  0 + .5*8 - 4;  0 + .5*3 - 1;  2 + 0 - 3
    np.testing.assert_array_equal(errors, [[1.0], [0.0], [0.5], [-1.0]])


def test_gae_sums_decayed_errors_within_an_episode_only():
    errors = np.array([[1.0], [2.0], [0.5], [-1.0]])
    advantages = gae(errors, TERMINATED | TRUNCATED, gamma=0.5, lam=0.8)
    # decay .4; the episode ends after step 1: 1 + .4*2, 2; then .5 + .4*(-1), -1
    np.testing.assert_allclose(advantages, [[1.8], [2.0], [0.1], [-1.0]], rtol=1e-15)


def test_gae_keeps_environments_apart():
    errors = np.array([[1.0, 10.0], [2.0, 20.0]])
    advantages = gae(errors, np.array([[False, True], [False, False]]), gamma=1.0, lam=0.5)
    np.testing.assert_array_equal(advantages, [[2.0, 10.0], [2.0, 20.0]])


def test_gae_with_lam_one_is_the_discounted_return_minus_the_value():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))
    last = rng.normal(size=(1, 3))
    no = np.zeros((7, 3), dtype=bool)
    errors = td_errors(rewards, values, np.concatenate([values[1:], last]), no, gamma=0.9)
    expected = [
        sum(0.9 ** (k - t) * rewards[k] for k in range(t, 7)) + 0.9 ** (7 - t) * last[0] - values[t]
        for t in range(7)
    ]
    np.testing.assert_allclose(
        gae(errors, no, gamma=0.9, lam=1.0), expected, rtol=1e-12, atol=1e-12
    )


def test_gae_does_not_change_its_input():
    errors = np.ones((3, 1))
    gae(errors, np.zeros((3, 1), dtype=bool), 1.0, 1.0)
    assert errors.tolist() == [[1.0], [1.0], [1.0]]


@pytest.mark.parametrize(
    "values, expected", [([[1.0, 3.0]], [[-1.0, 1.0]]), ([[2.0], [2.0]], [[0.0], [0.0]])]
)
def test_normalise_gives_mean_zero_and_deviation_one_and_zeros_for_a_constant(values, expected):
    np.testing.assert_allclose(normalise(np.array(values)), expected, atol=1e-7)
