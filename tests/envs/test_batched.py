"""Batched environments: episodes of their own, reached against current, saving, the expert, and the
same steps from both backends.
"""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest

from lamorel_ext.envs import BabyAITextEnv
from lamorel_ext.envs.babyai.batched import SEED_BOUND, make_batched_env, training_seeds
from lamorel_ext.envs.babyai.minigrid_batch import MinigridBatch
from lamorel_ext.errors import CheckpointError, LevelError
from lamorel_ext.types import BatchedEnv, ObservationBatch, StepBatch

LEVEL = "BabyAI-GoToRedBallNoDists-v0"
Backend = Literal["minigrid", "vector", "table"]
BACKENDS: tuple[Backend, ...] = ("minigrid", "vector", "table")


def assert_same_observations(one: ObservationBatch, other: ObservationBatch) -> None:
    assert one.missions == other.missions
    assert one.descriptions == other.descriptions
    for ours, theirs in ((one.images, other.images), (one.directions, other.directions)):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def assert_same_steps(one: StepBatch, other: StepBatch) -> None:
    assert_same_observations(one.reached, other.reached)
    assert_same_observations(one.current, other.current)
    for name in ("rewards", "terminated", "truncated"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name


def random_actions(seed: int, steps: int, num_envs: int) -> np.ndarray:
    """Mostly walking, so that episodes end both ways; all seven actions occur."""
    return np.random.default_rng(seed).choice(
        7, size=(steps, num_envs), p=[0.2, 0.2, 0.4, 0.05, 0.05, 0.05, 0.05]
    )


@pytest.mark.parametrize("language", ["en", "fr"])
def test_all_backends_give_identical_steps(language: Literal["en", "fr"]) -> None:
    one, *others = (
        make_batched_env(LEVEL, 5, language, seed=3, backend=backend) for backend in BACKENDS
    )
    first = one.reset()
    for other in others:
        assert_same_observations(first, other.reset())
    ends = np.zeros(2, dtype=np.int64)
    for actions in random_actions(0, 250, 5):
        step = one.step(actions)
        for other in others:
            assert_same_steps(step, other.step(actions))
        ends += [step.terminated.sum(), step.truncated.sum()]
    assert ends.min() >= 3, "the test has to see both kinds of end"


@pytest.mark.parametrize("level", [LEVEL, "BabyAI-MixedTrainLocal-v0"])
def test_batch_steps_as_single_environments_do(level: str) -> None:
    seeds = training_seeds(1)
    batch = MinigridBatch(level, 3, "en", seeds)
    singles = [BabyAITextEnv(level) for _ in range(3)]
    episodes = [0, 0, 0]
    observations = batch.reset()
    for index, env in enumerate(singles):
        assert env.reset(seed=seeds(index, 0))[1]["descriptions"] == list(
            observations.descriptions[index]
        )
    for actions in random_actions(1, 150, 3):
        step = batch.step(actions)
        for index, env in enumerate(singles):
            observation, reward, terminated, truncated, info = env.step(int(actions[index]))
            assert np.array_equal(step.reached.images[index], observation["image"])
            assert step.reached.descriptions[index] == tuple(info["descriptions"])
            assert step.reached.directions[index] == observation["direction"]
            assert (step.rewards[index], step.terminated[index], step.truncated[index]) == (
                reward,
                terminated,
                truncated,
            )
            if terminated or truncated:
                episodes[index] += 1
                observation, info = env.reset(seed=seeds(index, episodes[index]))
            assert np.array_equal(step.current.images[index], observation["image"])
            assert step.current.descriptions[index] == tuple(info["descriptions"])
            assert step.current.missions[index] == info["mission"]
    assert sum(episodes) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_reached_and_current_differ_only_where_an_episode_ended(backend: Backend) -> None:
    env = make_batched_env(LEVEL, 4, seed=0, backend=backend)
    env.reset()
    seen = 0
    for actions in random_actions(2, 150, 4):
        step = env.step(actions)
        for index in range(4):
            same = np.array_equal(step.reached.images[index], step.current.images[index])
            if not step.done[index]:
                assert same
            elif step.terminated[index]:
                assert step.reached.images[index, 3, 5, 0] == 6, (
                    "a success ends in front of the ball"
                )
                assert not np.array_equal(
                    step.current.images[index, 3, 5], step.reached.images[index, 3, 5]
                )
                seen += 1
    assert seen > 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_episodes_do_not_depend_on_earlier_actions(backend: Backend) -> None:
    firsts = []
    for seed in (0, 1):
        env = make_batched_env(LEVEL, 2, seed=7, backend=backend)
        env.reset()
        started: dict[tuple[int, int], bytes] = {}
        episodes = [0, 0]
        for actions in random_actions(seed, 400, 2):
            step = env.step(actions)
            for index in np.flatnonzero(step.done):
                episodes[index] += 1
                started[int(index), episodes[index]] = step.current.images[index].tobytes()
        firsts.append(started)
    common = firsts[0].keys() & firsts[1].keys()
    assert len(common) >= 6
    assert all(firsts[0][key] == firsts[1][key] for key in common)
    assert len({firsts[0][key] for key in common}) > 1


@pytest.mark.parametrize(
    ("level", "backend"),
    [
        *((LEVEL, backend) for backend in BACKENDS),
        ("BabyAI-MixedTrainLocal-v0", "minigrid"),
        ("BabyAI-GoToSeqS5R2-v0", "minigrid"),
        ("BabyAI-PickUpSeqGoToLocal-v0", "vector"),
        ("BabyAI-PutNextLocal-v0", "vector"),
    ],
)
def test_restored_environments_go_on_as_the_saved_ones(level: str, backend: Backend) -> None:
    """The expert's advice is followed, and its memory has to come back too."""
    env, fresh = (make_batched_env(level, 3, seed=5, backend=backend) for _ in range(2))
    env.reset()
    step = None
    for t in range(31):
        step = env.step(env.expert_actions() if t % 7 else np.array([2, 0, 2]))
    assert step is not None
    state = json.loads(json.dumps(env.state()))
    assert_same_observations(fresh.restore(state), step.current)
    for t in range(40):
        advice = env.expert_actions()
        assert np.array_equal(advice, fresh.expert_actions()), t
        assert_same_steps(env.step(advice), fresh.step(advice))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_of_another_batch_is_refused(backend: Backend) -> None:
    env = make_batched_env(LEVEL, 2, backend=backend)
    env.reset()
    three = make_batched_env(LEVEL, 3, backend=backend)
    three.reset()
    other = make_batched_env(LEVEL, 2, backend="minigrid" if backend == "table" else "table")
    other.reset()
    for state in (
        three.state(),
        other.state(),
        {},
        {**env.state(), "episodes": ["0", "0"]},
        {**env.state(), "episodes": [-1, 0]},
    ):
        with pytest.raises(CheckpointError):
            env.restore(state)  # type: ignore[arg-type]


def test_saved_actions_that_end_an_episode_are_refused() -> None:
    env = make_batched_env(LEVEL, 1, backend="minigrid")
    env.reset()
    with pytest.raises(CheckpointError, match="too early"):
        env.restore({"episodes": [0], "lengths": [64], "actions": [6] * 64, "experts": [-1, -1]})
    with pytest.raises(LevelError, match="reset"):
        env.state()  # some copies may have been replayed


@pytest.mark.parametrize(
    ("level", "share"),
    [
        (LEVEL, 1.0),
        ("BabyAI-GoToLocal-v0", 1.0),
        ("BabyAI-MixedTestLocal-v0", 0.9),
        ("BabyAI-UnlockLocal-v0", 1.0),
    ],
)
def test_the_bot_solves_levels(level: str, share: float) -> None:
    env = make_batched_env(level, 4, seed=2, backend="minigrid")
    assert successes_of_expert(env, episodes=20) >= share * 20


def test_the_expert_of_the_tables_is_as_fast_as_any() -> None:
    env = make_batched_env(LEVEL, 8, seed=2, backend="table")
    env.reset()
    lengths = []
    start = np.zeros(8, dtype=np.int64)
    for t in range(1, 200):
        step = env.step(env.expert_actions())
        lengths += (t - start)[step.terminated].tolist()
        start[step.done] = t
    assert max(lengths) <= 11 and len(lengths) > 100


def test_the_expert_answers_where_the_bot_gives_up() -> None:
    envs = [make_batched_env("BabyAI-KeyInBox-v0", 2, seed=0) for _ in range(2)]
    for env in envs:
        env.reset()
    answers = []
    for _ in range(40):
        one, other = (env.expert_actions() for env in envs)
        assert np.array_equal(one, other)
        assert np.array_equal(one, envs[0].expert_actions()), "asking twice changes nothing"
        for env in envs:
            env.step(one)
        answers += one.tolist()
    assert set(answers) == set(range(6))


def test_the_expert_copes_with_lost_and_forgotten_objects() -> None:
    env = make_batched_env("BabyAI-PickupLocal-v0", 4, seed=1)
    env.reset()
    for t, actions in enumerate(random_actions(5, 150, 4)):
        advice = env.expert_actions() if t % 3 else actions
        assert advice.min() >= 0 and advice.max() <= 6
        env.step(actions)


def successes_of_expert(env: BatchedEnv, episodes: int) -> int:
    env.reset()
    successes = ended = 0
    while ended < episodes:
        step = env.step(env.expert_actions())
        for index in np.flatnonzero(step.done):
            if ended < episodes:
                ended += 1
                successes += int(step.rewards[index] > 0)
    return successes


def test_training_seeds_stay_below_the_held_out_ones_and_differ() -> None:
    seeds = training_seeds(0)
    drawn = {seeds(env, episode) for env in range(40) for episode in range(40)}
    assert len(drawn) >= 1598 and 0 <= min(drawn) and max(drawn) < SEED_BOUND
    assert seeds(1, 2) == training_seeds(0)(1, 2) != training_seeds(1)(1, 2)
    assert seeds(1, 2) != seeds(2, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_episode_seeds_can_be_chosen(backend: Backend) -> None:
    env = make_batched_env(
        LEVEL,
        2,
        episode_seed=lambda env, episode: 1_000_000_000 + env + 2 * episode,
        backend=backend,
    )
    observations = env.reset()
    for index in range(2):
        assert observations.descriptions[index] == tuple(
            BabyAITextEnv(LEVEL).reset(seed=1_000_000_000 + index)[1]["descriptions"]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_calls_are_refused(backend: Backend) -> None:
    env = make_batched_env(LEVEL, 2, backend=backend)
    for call in (lambda: env.step(np.array([0, 0])), env.expert_actions, env.state):
        with pytest.raises(LevelError, match="reset"):
            call()
    env.reset()
    for actions in ([0], [0, 7], [0, -1], [0.0, 1.0]):
        with pytest.raises(LevelError, match="actions"):
            env.step(np.array(actions))
    env.close()
    env.close()
    with pytest.raises(LevelError, match="reset"):
        env.step(np.array([0, 0]))


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(LevelError, match="at least 1"):
        make_batched_env(LEVEL, 0)
    with pytest.raises(LevelError, match="table backend"):
        make_batched_env("BabyAI-GoToLocal-v0", 1, backend="table")
    with pytest.raises(LevelError, match="did you mean"):
        make_batched_env("BabyAI-GoToLocal", 1)
    with pytest.raises(LevelError, match="backend must be one of"):
        make_batched_env(LEVEL, 1, backend="gpu")  # type: ignore[arg-type]
