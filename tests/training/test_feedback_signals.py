"""f_t of every signal against values worked out by hand."""

import json

import numpy as np
import pytest

from lamorel_ext.config import FeedbackArgs
from lamorel_ext.errors import CheckpointError
from lamorel_ext.methods.feedback.signals import FeedbackSignals

# Two environments, four steps. Environment 0's episode ends after step 1, environment 1's never.
ERRORS = np.array([[0.5, -1.0], [0.2, -1.0], [-3.0, 0.0], [-1.0, -2.0]])
ADVANTAGES = np.array([[2.0, -1.0], [0.0, 3.0], [-2.0, 1.0], [1.0, -4.0]])
DONE = np.array([[False, False], [True, False], [False, False], [False, False]])
PROMPTS = [("a", "b"), ("a", "b"), ("b", "a"), ("a", "c")]

PREVIOUS = [
    [0, 0],
    [-1, 1],
    [0, 1],
    [1, -1],
]  # 0: an episode's first step; environment 1's tie at step 1 counts as +1
# a: .5 (first), .2 < .5, 0 < mean(.5, .2), -1 < mean(.5, .2, 0);  b: -1 (first), -1 = -1, -3 <
# mean(-1, -1);  c: first
STATE = [[0, 0], [-1, 0], [-1, -1], [-1, 0]]


def make(num_envs=2, **args):
    return FeedbackSignals(FeedbackArgs(**args), num_envs, np.random.default_rng(3))


def over(signals):
    return signals.rollout(ERRORS, ADVANTAGES, PROMPTS, DONE)


@pytest.mark.parametrize(
    "args, expected",
    [
        ({"signal": "previous"}, PREVIOUS),
        ({"signal": "previous", "ties": "zero"}, [[0, 0], [-1, 0], [0, 1], [1, -1]]),
        ({"signal": "td"}, [[1, -1], [1, -1], [-1, 0], [-1, -1]]),
        ({"signal": "gae"}, [[1, -1], [0, 1], [-1, 1], [1, -1]]),
        ({"signal": "state"}, STATE),
        ({"signal": "weighted"}, ADVANTAGES / 4.5**0.5),  # mean 0; squares sum to 36 over 8 samples
        ({"signal": "constant"}, np.ones((4, 2))),
        ({"signal": "none"}, np.zeros((4, 2))),
        ({"signal": "gae", "sign": "inverted"}, [[-1, 1], [0, -1], [1, -1], [-1, 1]]),
        ({"signal": "previous", "sign": "inverted"}, -np.array(PREVIOUS)),
        ({"signal": "weighted", "sign": "inverted"}, -ADVANTAGES / 4.5**0.5),
        ({"signal": "weighted", "sign": "positive"}, np.abs(ADVANTAGES) / 4.5**0.5),
        ({"signal": "previous", "sign": "positive"}, np.abs(PREVIOUS)),
    ],
)
def test_signal_has_the_values_worked_out_by_hand(args, expected):
    np.testing.assert_allclose(over(make(**args)), expected, rtol=1e-7)


@pytest.mark.parametrize("signal", ["previous", "td", "state", "constant"])
@pytest.mark.parametrize("sign", ["own", "random", "inverted", "positive"])
def test_step_by_step_is_the_same_as_the_whole_rollout(signal, sign):
    args = {"signal": signal, "sign": sign}
    whole, stepped = over(make(**args)), make(**args)
    assert stepped.online
    np.testing.assert_array_equal(
        [stepped.step(ERRORS[t], PROMPTS[t], DONE[t]) for t in range(4)], whole
    )


def test_previous_is_remembered_across_rollouts():
    signals = make(signal="previous")
    over(signals)  # ends at -1 and -2
    f = signals.rollout(
        np.array([[-1.5, -1.5]]), np.zeros((1, 2)), [("a", "a")], np.zeros((1, 2), dtype=bool)
    )
    assert f.tolist() == [[-1.0, 1.0]]


def test_memories_are_addressed_by_environment():
    signals = make(num_envs=3, signal="previous")
    no = np.zeros(3, dtype=bool)
    signals.step(np.array([1.0, 2.0, 3.0]), ("p",) * 3, no)
    f = signals.step(np.array([2.5, 1.5]), ("p",) * 2, no[:2], envs=np.array([2, 0]))
    assert f.tolist() == [-1.0, 1.0]


def test_random_signs_are_fair_and_reproducible():
    errors = np.zeros((500, 2))
    args = errors, errors, [("a", "b")] * 500, errors > 0
    f = make(signal="constant", sign="random").rollout(*args)
    assert set(np.unique(f)) == {-1.0, 1.0}
    assert abs(f.mean()) < 4 / 1000**0.5  # four standard errors of 1,000 fair signs
    np.testing.assert_array_equal(f, make(signal="constant", sign="random").rollout(*args))


def test_shuffled_permutes_the_signs_of_the_batch():
    rng = np.random.default_rng(0)
    advantages = rng.normal(size=(50, 2)) + 0.3
    args = advantages, advantages, [("a", "b")] * 50, advantages > 9
    plain, shuffled = (
        make(signal="gae").rollout(*args),
        make(signal="gae", sign="shuffled").rollout(*args),
    )
    assert sorted(plain.ravel()) == sorted(shuffled.ravel())
    assert not np.array_equal(plain, shuffled)


@pytest.mark.parametrize(
    "args", [{"signal": "gae"}, {"signal": "weighted"}, {"signal": "gae", "sign": "inverted"}]
)
def test_signals_of_a_whole_rollout_are_not_online(args):
    assert not make(**args).online


@pytest.mark.parametrize(
    ("warmup", "cold"),
    [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 0, 0]), (5, [2, 1, 0]), (99, [2, 2, 2])],
)
def test_a_warm_up_ends_with_the_step_that_brings_its_number_of_environment_steps(warmup, cold):
    signals = make(signal="td", warmup_steps=warmup)  # two environments
    assert [signals.warm_up(2) for _ in range(3)] == cold


def test_a_copy_made_during_the_warm_up_stays_silent_and_one_made_after_it_does_not():
    signals = make(signal="constant", warmup_steps=4)
    no = np.array([False])
    for expected in (0.0, 0.0, 1.0):
        fork = signals.fork(1, np.random.default_rng(0))
        assert [fork.step(np.array([5.0]), ("b",), no).tolist() for _ in range(9)] == [
            [expected]
        ] * 9
        signals.warm_up(1)


def test_a_warm_up_goes_on_where_it_was_saved():
    signals, other = make(warmup_steps=10), make(warmup_steps=10)
    signals.warm_up(3)
    other.restore(json.loads(json.dumps(signals.state())))
    assert other.warm_up(9) == 2


def test_a_saved_memory_goes_on_where_it_was():
    for name in ("previous", "state"):
        signals, other = make(signal=name), make(signal=name)
        over(signals)
        other.restore(json.loads(json.dumps(signals.state())))
        np.testing.assert_array_equal(over(signals), over(other))
        assert not np.array_equal(over(make(signal=name)), over(other))


def test_a_foreign_memory_is_refused():
    with pytest.raises(CheckpointError, match="3 environments, expected 2"):
        make().restore(make(num_envs=3).state())
    with pytest.raises(CheckpointError, match="feedback memory"):
        make().restore({"previous": [0.0, 0.0]})


def test_a_fork_takes_the_means_along_and_leaves_the_original_alone():
    signals = make(signal="state")
    over(signals)
    before = signals.state()
    fork = signals.fork(1, np.random.default_rng(0))
    assert fork.step(np.array([5.0]), ("b",), np.array([False])).tolist() == [1.0]
    assert signals.state() == before


@pytest.mark.parametrize("signal", ["weighted", "previous", "gae"])
def test_random_and_shuffled_signs_keep_the_magnitudes(signal):
    own = over(make(signal=signal))
    np.testing.assert_array_equal(np.abs(over(make(signal=signal, sign="random"))), np.abs(own))
    assert sorted(over(make(signal=signal, sign="shuffled")).ravel()) == sorted(own.ravel())


def test_online_the_signs_of_a_step_are_permuted_among_its_environments():
    rng = np.random.default_rng(0)
    signals, errors = make(num_envs=8, signal="td", sign="shuffled"), rng.normal(size=(20, 8))
    f = np.array([signals.step(row, ("p",) * 8, row > 9) for row in errors])
    np.testing.assert_array_equal(np.sort(f), np.sort(np.sign(errors)))
    assert not np.array_equal(f, np.sign(errors))
