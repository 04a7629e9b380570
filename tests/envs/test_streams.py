"""Random words in arrays against numpy's own generators, and the seeds and first states drawn with
them.
"""

from __future__ import annotations

import numpy as np
import pytest

from lamorel_ext.envs.babyai.arrays.room_codes import mask_of, wall_cells
from lamorel_ext.envs.babyai.arrays.room_draws import Stuck, Words
from lamorel_ext.envs.babyai.arrays.streams import random_words, seed_states, words_of
from lamorel_ext.envs.babyai.enumeration import start_states
from lamorel_ext.envs.babyai.episodes import ComingEpisodes, TrainingSeeds

EDGES = [0, 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_seed_states_are_those_of_numpy(width: int) -> None:
    entropy = np.random.default_rng(width).integers(0, 2**32, (40, width), dtype=np.uint32)
    entropy[0], entropy[1] = 0, 2**32 - 1
    for row, state in zip(entropy, seed_states(entropy, 9), strict=True):
        assert np.array_equal(state, np.random.SeedSequence(row.tolist()).generate_state(9))


def test_random_words_are_those_of_numpy() -> None:
    seeds = np.array([*EDGES, *np.random.default_rng(0).integers(0, 10**9, 60)])
    for seed, words in zip(seeds.tolist(), random_words(seeds, 70), strict=True):
        assert np.array_equal(
            words, np.random.default_rng(seed).integers(0, 2**32, 70, dtype=np.uint32)
        )
        assert words.tolist() == words_of(seed, 0, 70)
    assert words_of(5, 10, 6) == words_of(5, 0, 16)[10:]


@pytest.mark.parametrize("run", [0, 7, 2**32, 2**70 + 3])
def test_seeds_of_many_episodes_are_those_of_single_ones(run: int) -> None:
    seeds = TrainingSeeds(run)
    envs, episodes = np.array([0, 1, 255, 2**32 - 1]), np.array([0, 70_000, 3, 1])
    assert seeds.many(envs, episodes).tolist() == [
        seeds(*pair) for pair in zip(envs.tolist(), episodes.tolist(), strict=True)
    ]


def test_bounded_draws_are_those_of_numpy() -> None:
    """A bound of 3 * 2**30 rejects a quarter of the words; words come in two kinds of integers with
    a float between them.
    """
    for seed in range(20):
        ours, numpys = Words(seed, words_of(seed, 0, 2)), np.random.default_rng(seed)
        for bound in [6, 3, 1, 8, 3 * 2**30, 3 * 2**30, 5, 3 * 2**30] * 12:
            assert ours.below(bound) == numpys.integers(0, bound)
            if bound == 5:
                ours.skip_float()
                numpys.uniform()


def test_free_cells_are_drawn_as_minigrid_draws_them() -> None:
    size = 7
    blocked = mask_of([*wall_cells(size), 8, 9, 10])
    ours, numpys = Words(3, words_of(3, 0, 4)), np.random.default_rng(3)
    for _ in range(50):
        cell = -1
        while cell < 0 or blocked >> cell & 1:
            x, y = (int(numpys.integers(0, size)) for _ in range(2))
            cell = y * size + x
        assert ours.free_cell(size, blocked) == cell
    with pytest.raises(Stuck):
        ours.free_cell(size, 2 ** (size * size) - 1)
    numpys.integers(0, size, 2 * 1001)
    assert ours.below(1000) == numpys.integers(0, 1000), (
        "minigrid has used the words when it gives up"
    )


def test_first_states_drawn_together_are_those_drawn_alone() -> None:
    seeds = list(range(20_000))
    together = start_states(seeds)
    draws = np.random.default_rng
    for seed in [*range(0, 20_000, 101), *np.flatnonzero(_needs_many_words(seeds)).tolist()]:
        draw = draws(seed).integers
        pose = (0, 0)
        while not all(1 <= part <= 6 for part in pose):
            pose = (int(draw(0, 8)), int(draw(0, 8)))
        direction, ball = int(draw(0, 4)), (0, 0)
        while (
            not all(1 <= part <= 6 for part in ball)
            or abs(ball[0] - pose[0]) + abs(ball[1] - pose[1]) < 2
        ):
            ball = (int(draw(0, 8)), int(draw(0, 8)))
        cell, ball_cell = (part[0] - 1 + 6 * (part[1] - 1) for part in (pose, ball))
        state = (4 * cell + direction) * 35 + ball_cell - (ball_cell > cell)
        assert [together[seed]] == [state] == start_states([seed])


def _needs_many_words(seeds: list[int]) -> np.ndarray:
    """Where the agent finds no cell among the first seven pairs: what follows may lie beyond the
    words drawn at first.
    """
    coordinates = random_words(np.array(seeds), 14) >> np.uint32(29)
    free = (coordinates >= 1) & (coordinates <= 6)
    many: np.ndarray = ~(free[:, ::2] & free[:, 1::2]).any(axis=1)
    assert many.sum() > 5
    return many


def test_coming_episodes_are_the_ones_asked_for_in_any_order() -> None:
    seeds = TrainingSeeds(4)
    coming = ComingEpisodes(3, seeds, lambda drawn: list(drawn))
    for envs, episodes in (
        ([0, 1, 2], [0, 0, 0]),
        ([1], [1]),
        ([0, 2], [1, 1]),
        ([1], [9]),
        ([1, 0], [10, 0]),
        ([2], [2]),
    ):
        assert coming.take(envs, episodes) == [
            seeds(*pair) for pair in zip(envs, episodes, strict=True)
        ]


def test_seeds_of_others_are_asked_for_only_when_an_episode_starts() -> None:
    asked = []

    def episode_seed(env: int, episode: int) -> int:
        asked.append((env, episode))
        return 10 * env + episode

    coming = ComingEpisodes(2, episode_seed, lambda drawn: list(drawn))
    assert coming.take([0, 1], [0, 0]) == [0, 10] and coming.take([1], [1]) == [11]
    assert asked == [(0, 0), (1, 0), (1, 1)]
