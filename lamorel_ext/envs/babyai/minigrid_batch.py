"""Any level, in several copies in this process, one stepped after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed, checked_actions, read_episodes
from lamorel_ext.envs.babyai.describe import Language
from lamorel_ext.envs.babyai.level_copies import LevelCopies
from lamorel_ext.errors import CheckpointError, LevelError
from lamorel_ext.types import ObservationBatch, StepBatch


class MinigridBatch:
    """``BatchedEnv`` over minigrid, in this process.

    Args:
        level: Id of the level.
        num_envs: Copies.
        language: Language of the sentences.
        episode_seed: Seed of each episode.
        num_distractors: See ``levels.make_level``.
    """

    def __init__(
        self,
        level: str,
        num_envs: int,
        language: Language,
        episode_seed: EpisodeSeed,
        num_distractors: int | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.episode_seed = episode_seed
        self._copies = LevelCopies(level, num_envs, language, num_distractors)
        self._running = False

    def reset(self) -> ObservationBatch:
        """Start episode 0 everywhere."""
        for index in range(self.num_envs):
            self._start(index, 0)
        self._running = True
        return self._observe()

    def step(self, actions: Sequence[int] | np.ndarray) -> StepBatch:
        """Take ``actions`` ``(num_envs,)``; where an episode ends, the next one starts.

        Raises:
            LevelError: The actions do not fit, or there was no reset before.
        """
        self._check_running()
        results = self._copies.step(checked_actions(actions, self.num_envs).tolist())
        rewards, terminated, truncated = (np.array(column) for column in results)
        reached = current = self._observe()
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            for index in ended.tolist():
                self._start(index, self._copies[index].episode + 1)
            current = self._observe()
        return StepBatch(reached, current, rewards.astype(np.float64), terminated, truncated)

    def expert_actions(self) -> np.ndarray:
        """``(num_envs,)`` int64: what the BabyAI bot would do; see ``expert.Expert`` for where it
        gives up.
        """
        self._check_running()
        return np.array(self._copies.expert_actions(), dtype=np.int64)

    def state(self) -> dict[str, list[int]]:
        """Episode numbers, and the actions since each episode's start, one environment after the
        other.
        """
        self._check_running()
        copies = [self._copies[index] for index in range(self.num_envs)]
        return {
            "episodes": [copy.episode for copy in copies],
            "lengths": [len(copy.actions) for copy in copies],
            "actions": [action for copy in copies for action in copy.actions],
            "experts": self._copies.expert_spans(),
        }

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """Replay the saved episodes up to where they were.

        Raises:
            CheckpointError: The state is of another batch.
        """
        for index, saved in enumerate(read_episodes(state, self.num_envs)):
            try:
                self._copies[index].replay(saved, self.episode_seed(index, saved.episode))
            except CheckpointError as error:
                raise CheckpointError(f"environment {index}: {error}") from error
        self._running = True
        return self._observe()

    def close(self) -> None:
        """Free what is held. May be called twice."""
        self._copies.close()
        self._running = False

    def _start(self, index: int, episode: int) -> None:
        self._copies[index].start(episode, self.episode_seed(index, episode))

    def _check_running(self) -> None:
        if not self._running:
            raise LevelError("reset the environments first")

    def _observe(self) -> ObservationBatch:
        return ObservationBatch(
            missions=tuple(self._copies.missions()),
            descriptions=tuple(self._copies.descriptions()),
            images=self._copies.images(),
            directions=np.array(self._copies.directions(), dtype=np.int64),
        )
