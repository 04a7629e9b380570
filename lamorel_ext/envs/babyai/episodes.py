"""Which seed an episode has, and the first states of coming episodes, drawn for many episodes at a
time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lamorel_ext.envs.babyai.arrays.streams import random_words, seed_states, words_of
from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed

SEED_BOUND = 1_000_000_000
"""Seeds from here on are held out for evaluation."""
BLOCK = 1024
"""Episodes drawn at a time."""
_WORD = 2**32
_WORTH_IT = 24
"""Seeds from which on arrays are faster than numpy's generators one by one."""

Start = TypeVar("Start")


@dataclass(frozen=True)
class TrainingSeeds:
    """Episode seeds below ``SEED_BOUND``, spread by a hash of run, environment and episode.

    Attributes:
        run: Seed of the run.
        first: What is added to the numbers of the environments, where a batch holds only a later
            part of the run's.
    """

    run: int
    first: int = 0

    def __call__(self, env: int, episode: int) -> int:
        return int(
            np.random.SeedSequence((self.run, env + self.first, episode)).generate_state(
                1, np.uint64
            )[0]
            % SEED_BOUND
        )

    def many(self, envs: np.ndarray, episodes: np.ndarray) -> np.ndarray:
        """``(n,)`` int64: the same for ``n`` pairs of numbers below 2**32."""
        run = [
            self.run >> shift & _WORD - 1 for shift in range(0, max(self.run.bit_length(), 1), 32)
        ]
        entropy = np.empty((len(envs), len(run) + 2), dtype=np.uint32)
        entropy[:, :-2], entropy[:, -2], entropy[:, -1] = run, envs + self.first, episodes
        low, high = seed_states(entropy, 2).astype(np.uint64).T
        seeds: np.ndarray = ((low | high << np.uint64(32)) % np.uint64(SEED_BOUND)).astype(np.int64)
        return seeds


def words_of_seeds(seeds: Sequence[int], num_words: int) -> np.ndarray:
    """``(n, num_words)`` uint32: the first words of each seed's generator, see
    ``streams.random_words``.
    """
    if len(seeds) >= _WORTH_IT and 0 <= min(seeds) and max(seeds) < _WORD:
        return random_words(np.array(seeds), num_words)
    return np.array([words_of(seed, 0, num_words) for seed in seeds], dtype=np.uint32).reshape(
        len(seeds), num_words
    )


class ComingEpisodes(Generic[Start]):
    """The first states of the episodes of several environments.

    Where the seeds are ``TrainingSeeds``, those of the next episodes of all environments are drawn
    together, before they are needed. Other seeds are asked for only when their episode starts.

    Args:
        num_envs: Environments.
        episode_seed: Seed of each episode.
        draw: Gives the first states of the episodes of given seeds.
    """

    def __init__(
        self, num_envs: int, episode_seed: EpisodeSeed, draw: Callable[[list[int]], list[Start]]
    ) -> None:
        self.episode_seed = episode_seed
        self._draw = draw
        self._ahead = max(2, BLOCK // num_envs) if isinstance(episode_seed, TrainingSeeds) else 1
        self._queues: list[deque[Start]] = [deque() for _ in range(num_envs)]
        self._next = [0] * num_envs

    def take(self, envs: Sequence[int], episodes: Sequence[int]) -> list[Start]:
        """First states of ``episodes[i]`` of ``envs[i]``; no environment twice."""
        empty = False
        for env, episode in zip(envs, episodes, strict=True):
            if episode != self._next[env]:
                self._queues[env].clear()
                self._next[env] = episode
            empty = empty or not self._queues[env]
        if empty:
            self._fill(envs)
        for env in envs:
            self._next[env] += 1
        return [self._queues[env].popleft() for env in envs]

    def _fill(self, envs: Sequence[int]) -> None:
        """Draw what is wanted and, where that has no effects, what comes after it everywhere."""
        seeds: list[int]
        if isinstance(self.episode_seed, TrainingSeeds):
            missing = [
                env
                for env, queue in enumerate(self._queues)
                for _ in range(len(queue), self._ahead)
            ]
            episodes = [
                self._next[env] + place
                for env, queue in enumerate(self._queues)
                for place in range(len(queue), self._ahead)
            ]
            seeds = self.episode_seed.many(np.array(missing), np.array(episodes)).tolist()
        else:
            missing = [env for env in envs if not self._queues[env]]
            seeds = [self.episode_seed(env, self._next[env]) for env in missing]
        for env, start in zip(missing, self._draw(seeds), strict=True):
            self._queues[env].append(start)
