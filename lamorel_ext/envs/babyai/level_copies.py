"""Copies of any level, stepped by minigrid: what a batch runs in its own process or in worker
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


class Share:
    """The copies of one worker, or of a whole batch; stepped one after the other. Numbers of copies
    count within the share.

    Args:
        level: Id of the level.
        num_copies: Copies.
        language: Language of the sentences.
        num_distractors: See ``levels.make_level``.
        first_copy: Number of the first one in its batch, for messages.
    """

    def __init__(
        self,
        level: str,
        num_copies: int,
        language: Language,
        num_distractors: int | None = None,
        first_copy: int = 0,
    ) -> None:
        self._language, self._first_copy = language, first_copy
        self._copies = [LevelCopy(level, num_distractors) for _ in range(num_copies)]

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command. JSON can hold both: images are hexadecimal digits.

        Commands are ``step`` (``actions``, one per copy), ``start`` (``copies``, ``episodes`` and
        ``seeds``; shows these copies alone), ``replay`` (``episodes``, ``seeds``, ``actions`` and
        ``consulted``, one per copy), ``expert`` and ``spans``.
        """
        handle = getattr(self, f"_{command.pop('do')}")
        answer: dict[str, Any] = handle(**command)
        return answer

    def _step(self, actions: list[int]) -> dict[str, Any]:
        results = [copy.step(action) for copy, action in zip(self._copies, actions, strict=True)]
        rewards, terminated, truncated = zip(*results, strict=True)
        told = {"rewards": rewards, "terminated": terminated, "truncated": truncated}
        return told | self._show(range(len(self._copies)))

    def _start(self, copies: list[int], episodes: list[int], seeds: list[int]) -> dict[str, Any]:
        for copy, episode, seed in zip(copies, episodes, seeds, strict=True):
            self._copies[copy].start(episode, seed)
        return self._show(copies)

    def _replay(
        self,
        episodes: list[int],
        seeds: list[int],
        actions: list[list[int]],
        consulted: list[list[int]],
    ) -> dict[str, Any]:
        for copy, (episode, seed, taken, span) in enumerate(
            zip(episodes, seeds, actions, consulted, strict=True)
        ):
            try:
                self._copies[copy].replay(SavedEpisode(episode, taken, range(*span)), seed)
            except CheckpointError as error:
                raise CheckpointError(f"environment {self._first_copy + copy}: {error}") from error
        return self._show(range(len(self._copies)))

    def _expert(self) -> dict[str, Any]:
        return {"actions": [one.expert.action(one.actions) for one in self._copies]}

    def _spans(self) -> dict[str, Any]:
        spans = [one.expert.span(len(one.actions)) for one in self._copies]
        return {"spans": [step for span in spans for step in span]}

    def _show(self, copies: Sequence[int]) -> dict[str, Any]:
        shown = [self._copies[copy] for copy in copies]
        return {
            "missions": [copy.level.mission for copy in shown],
            "descriptions": [describe(copy.image, language=self._language) for copy in shown],
            "directions": [int(copy.level.agent_dir) for copy in shown],
            "images": np.stack([copy.image for copy in shown]).tobytes().hex(),
        }
