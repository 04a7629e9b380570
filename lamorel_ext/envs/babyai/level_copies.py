"""Copies of any level, stepped one after the other by minigrid: what a batch runs in its own
process or in worker processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.envs.babyai.batch_checks import SavedEpisode
from lamorel_ext.envs.babyai.describe import Language, describe
from lamorel_ext.envs.babyai.expert import Expert
from lamorel_ext.envs.babyai.levels import make_level
from lamorel_ext.errors import CheckpointError


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
        """Start the episode of a seed."""
        observation, _ = self.level.reset(seed=seed)
        if self.level.carrying is not None:  # see BabyAITextEnv.reset
            observation = self.level.gen_obs()
        self.episode, self.actions, self.image = episode, [], observation["image"]
        self.expert = Expert(self.level, seed)

    def step(self, action: int) -> tuple[float, bool, bool]:
        """Take an action; gives reward, terminated and truncated."""
        observation, reward, terminated, truncated, _ = self.level.step(action)
        self.actions.append(action)
        self.image = observation["image"]
        return float(reward), bool(terminated), bool(truncated)

    def replay(self, saved: SavedEpisode, seed: int) -> None:
        """Take the saved actions; ask the expert where it was asked without a gap, so that it knows
        what it knew.

        Raises:
            CheckpointError: The actions end the episode.
        """
        self.start(saved.episode, seed)
        for t in range(len(saved.actions) + 1):
            if t in saved.consulted:
                self.expert.action(self.actions)
            if t < len(saved.actions) and any(self.step(saved.actions[t])[1:]):
                raise CheckpointError(
                    f"the saved actions end episode {saved.episode} too early; is it another level?"
                )


class LevelCopies:
    """``num_copies`` of a level.

    Args:
        level: Id of the level.
        num_copies: Copies.
        language: Language of the sentences.
        num_distractors: See ``levels.make_level``.
    """

    def __init__(
        self, level: str, num_copies: int, language: Language, num_distractors: int | None = None
    ) -> None:
        self.language: Language = language
        self._copies = [LevelCopy(level, num_distractors) for _ in range(num_copies)]

    def __getitem__(self, index: int) -> LevelCopy:
        return self._copies[index]

    def __len__(self) -> int:
        return len(self._copies)

    def step(self, actions: Sequence[int]) -> tuple[list[float], list[bool], list[bool]]:
        """Take one action in each copy; gives rewards, terminated and truncated."""
        results = [copy.step(action) for copy, action in zip(self._copies, actions, strict=True)]
        rewards, terminated, truncated = (list(column) for column in zip(*results, strict=True))
        return rewards, terminated, truncated

    def expert_actions(self) -> list[int]:
        """What the BabyAI bot would do; see ``expert.Expert`` for where it gives up."""
        return [copy.expert.action(copy.actions) for copy in self._copies]

    def expert_spans(self) -> list[int]:
        """First and last step of the bot in each copy, one after the other, see ``Expert.span``."""
        return [value for copy in self._copies for value in copy.expert.span(len(copy.actions))]

    def missions(self) -> list[str]:
        """Mission of each copy."""
        return [copy.level.mission for copy in self._copies]

    def descriptions(self) -> list[tuple[str, ...]]:
        """Sentences of each copy's state."""
        return [self.describe(copy) for copy in self._copies]

    def describe(self, copy: LevelCopy) -> tuple[str, ...]:
        """Sentences of one copy's state."""
        return describe(copy.image, language=self.language)

    def images(self) -> np.ndarray:
        """``(num_copies, 7, 7, 3)`` uint8."""
        return np.stack([copy.image for copy in self._copies])

    def directions(self) -> list[int]:
        """0 right, 1 down, 2 left, 3 up."""
        return [int(copy.level.agent_dir) for copy in self._copies]

    def close(self) -> None:
        """Close the levels. May be called twice."""
        for copy in self._copies:
            copy.level.close()
