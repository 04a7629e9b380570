"""Any level, in several copies in this process, one stepped after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.envs.babyai_text import NUM_ACTIONS
from lamorel_ext.envs.batch_checks import EpisodeSeed, checked_actions, read_state
from lamorel_ext.envs.describe import Language, describe
from lamorel_ext.envs.expert import Expert
from lamorel_ext.envs.levels import make_level
from lamorel_ext.errors import CheckpointError, LevelError
from lamorel_ext.types import ObservationBatch, StepBatch


class LevelCopy:
    """One copy of the level and the running episode.

    Attributes:
        episode: Number of the running episode.
        actions: Actions since its start.
        image: View of the current state.
    """

    def __init__(self, level: str, num_distractors: int | None) -> None:
        self.level = make_level(level, num_distractors)
        self.episode = 0
        self.actions: list[int] = []
        self.image = np.zeros((7, 7, 3), dtype=np.uint8)
        self.expert = Expert(self.level, 0)

    def start(self, episode: int, seed: int) -> None:
        observation, _ = self.level.reset(seed=seed)
        if self.level.carrying is not None:  # see BabyAITextEnv.reset
            observation = self.level.gen_obs()
        self.episode, self.actions, self.image = episode, [], observation["image"]
        self.expert = Expert(self.level, seed)

    def step(self, action: int) -> tuple[float, bool, bool]:
        observation, reward, terminated, truncated, _ = self.level.step(action)
        self.actions.append(action)
        self.image = observation["image"]
        return float(reward), bool(terminated), bool(truncated)


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
        self, level: str, num_envs: int, language: Language, episode_seed: EpisodeSeed, num_distractors: int | None = None
    ) -> None:
        self.num_envs = num_envs
        self.language: Language = language
        self.episode_seed = episode_seed
        self._copies = [LevelCopy(level, num_distractors) for _ in range(num_envs)]
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
        results = [copy.step(action) for copy, action in zip(self._copies, checked_actions(actions, self.num_envs).tolist(), strict=True)]
        rewards, terminated, truncated = (np.array(column) for column in zip(*results, strict=True))
        reached = current = self._observe()
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            for index in ended.tolist():
                self._start(index, self._copies[index].episode + 1)
            current = self._observe()
        return StepBatch(reached, current, rewards.astype(np.float64), terminated, truncated)

    def expert_actions(self) -> np.ndarray:
        """``(num_envs,)`` int64: what the BabyAI bot would do; see ``expert.Expert`` for where it gives up."""
        self._check_running()
        return np.array([copy.expert.action(copy.actions) for copy in self._copies], dtype=np.int64)

    def state(self) -> dict[str, list[int]]:
        """Episode numbers, and the actions since each episode's start, one environment after the other."""
        self._check_running()
        return {
            "episodes": [copy.episode for copy in self._copies],
            "lengths": [len(copy.actions) for copy in self._copies],
            "actions": [action for copy in self._copies for action in copy.actions],
            "experts": [value for copy in self._copies for value in copy.expert.span(len(copy.actions))],
        }

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """Replay the saved episodes up to where they were.

        Raises:
            CheckpointError: The state is of another batch.
        """
        episodes, lengths, actions, experts = read_state(state, self.num_envs, "episodes", "lengths", "actions", "experts")
        complete = len(episodes) == len(lengths) == self.num_envs and len(experts) == 2 * self.num_envs and sum(lengths) == len(actions)
        if not complete or min(episodes + lengths + actions) < 0 or max(actions, default=0) >= NUM_ACTIONS:
            raise CheckpointError(f"the saved state is not of {self.num_envs} environments of this level")
        taken = iter(actions)
        for index, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
            first, last = experts[2 * index : 2 * index + 2]
            self._replay(index, episode, [next(taken) for _ in range(length)], range(first, last + 1))
        self._running = True
        return self._observe()

    def close(self) -> None:
        """Free what is held. May be called twice."""
        for copy in self._copies:
            copy.level.close()
        self._running = False

    def _start(self, index: int, episode: int) -> None:
        self._copies[index].start(episode, self.episode_seed(index, episode))

    def _replay(self, index: int, episode: int, actions: list[int], consulted: range) -> None:
        """Take the saved actions; ask the expert where it was asked without a gap, so that it knows what it knew."""
        self._start(index, episode)
        copy = self._copies[index]
        for t in range(len(actions) + 1):
            if t in consulted:
                copy.expert.action(copy.actions)
            if t < len(actions) and any(copy.step(actions[t])[1:]):
                raise CheckpointError(f"environment {index}: the saved actions end episode {episode} too early; is it another level?")

    def _check_running(self) -> None:
        if not self._running:
            raise LevelError("reset the environments first")

    def _observe(self) -> ObservationBatch:
        return ObservationBatch(
            missions=tuple(copy.level.mission for copy in self._copies),
            descriptions=tuple(describe(copy.image, language=self.language) for copy in self._copies),
            images=np.stack([copy.image for copy in self._copies]),
            directions=np.array([copy.level.agent_dir for copy in self._copies], dtype=np.int64),
        )
