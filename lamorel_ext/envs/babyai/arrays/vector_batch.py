"""Levels in one room, and in one room with doors, for many environments at once: a step is a
handful of operations on arrays over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from lamorel_ext.envs.babyai.arrays.room_expert import knows_paths, path_actions
from lamorel_ext.envs.babyai.arrays.room_levels import RoomLevel, room_level
from lamorel_ext.envs.babyai.arrays.room_views import images_of, look_around, sentences_of
from lamorel_ext.envs.babyai.arrays.rooms import Rooms
from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed, checked_actions, read_episodes
from lamorel_ext.envs.babyai.describe import Language
from lamorel_ext.envs.babyai.episodes import ComingEpisodes
from lamorel_ext.envs.babyai.level_copies import LevelCopy
from lamorel_ext.errors import CheckpointError, LevelError
from lamorel_ext.types import ObservationBatch, StepBatch

_DONE = 6


class VectorBatch:
    """``BatchedEnv`` over arrays; gives the same steps as the minigrid backend, and saves the same
    states.

    Args:
        level: Id of a level for which ``choose_backend`` allows this backend.
        num_envs: Environments.
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
        rules = cast(RoomLevel, room_level(level, num_distractors))
        self.num_envs = num_envs
        self.level = rules
        self.episode_seed = episode_seed
        self.rooms = Rooms(rules, num_envs)
        self._level_args = level, num_distractors
        self._starts = ComingEpisodes(num_envs, episode_seed, rules.draw_many)
        self._language: Language = language
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._taken = np.zeros((num_envs, rules.max_steps), dtype=np.uint8)
        self._paths = (
            np.zeros((num_envs, len(self.rooms.table.ahead)), dtype=np.int8)
            if knows_paths(self.rooms)
            else None
        )
        self._copies: list[LevelCopy | None] = [None] * num_envs
        self._running = False

    def reset(self) -> ObservationBatch:
        """Start episode 0 everywhere."""
        self._episodes[:] = 0
        self._start(np.arange(self.num_envs))
        self._running = True
        return self._observe()

    def step(self, actions: Sequence[int] | np.ndarray) -> StepBatch:
        """Take ``actions`` ``(num_envs,)``; where an episode ends, the next one starts.

        Raises:
            LevelError: The actions do not fit, or there was no reset before.
        """
        self._check_running()
        checked = checked_actions(actions, self.num_envs)
        self._taken[np.arange(self.num_envs), self.rooms.steps] = checked
        rewards, terminated, truncated = self.rooms.step(checked)
        ended = np.flatnonzero(terminated | truncated)
        reached, current = self._observe_both(ended)
        return StepBatch(reached, current, rewards, terminated, truncated)

    def expert_actions(self) -> np.ndarray:
        """``(num_envs,)`` int64: the first action of a shortest path where walking is enough, else
        what the BabyAI bot would do.
        """
        self._check_running()
        advice = np.full(self.num_envs, -1, dtype=np.int64)
        if self._paths is not None:
            stale = np.flatnonzero(self.rooms.stale)
            self._paths[stale] = path_actions(self.rooms, stale)
            self.rooms.stale[stale] = False
            advice[:] = self._paths[np.arange(self.num_envs), self.rooms.poses]
        for row in np.flatnonzero(advice < 0).tolist():
            advice[row] = self._ask_bot(row)
        return advice

    def state(self) -> dict[str, list[int]]:
        """Episode numbers, and the actions since each episode's start, one environment after the
        other.
        """
        self._check_running()
        lengths: list[int] = self.rooms.steps.tolist()
        return {
            "episodes": self._episodes.tolist(),
            "lengths": lengths,
            "actions": [
                action
                for row, length in enumerate(lengths)
                for action in self._taken[row, :length].tolist()
            ],
            "experts": [
                value for row, length in enumerate(lengths) for value in self._bot_span(row, length)
            ],
        }

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """Replay the saved episodes up to where they were.

        Raises:
            CheckpointError: The state is of another batch.
        """
        saved = read_episodes(state, self.num_envs)
        lengths = np.array([len(episode.actions) for episode in saved])
        self._episodes[:] = [episode.episode for episode in saved]
        self._start(np.arange(self.num_envs))
        if (lengths >= self.rooms.limits).any():
            raise CheckpointError(
                "the saved actions end an episode too early; is it another level?"
            )
        self._replay(
            lengths,
            np.array([action for episode in saved for action in episode.actions], dtype=np.int64),
        )
        for row, episode in enumerate(saved):
            self._bring_bot_back(row, episode.consulted)
        self._running = True
        return self._observe()

    def close(self) -> None:
        """Free what is held. May be called twice."""
        self._copies = [None] * self.num_envs
        self._running = False

    def _start(self, rows: np.ndarray) -> None:
        """The numbers of the episodes are set before."""
        self.rooms.start(rows, self._starts.take(rows.tolist(), self._episodes[rows].tolist()))

    def _replay(self, lengths: np.ndarray, actions: np.ndarray) -> None:
        """All episodes at once; shorter ones wait with ``done``, which changes nothing."""
        inside = np.arange(self.level.max_steps) < lengths[:, None]
        self._taken[inside] = actions
        for t in range(int(lengths.max(initial=0))):
            _, terminated, _ = self.rooms.step(
                np.where(inside[:, t], self._taken[:, t], _DONE).astype(np.int64)
            )
            if (terminated & inside[:, t]).any():
                raise CheckpointError(
                    "the saved actions end an episode too early; is it another level?"
                )
        self.rooms.steps[:] = lengths

    def _ask_bot(self, row: int) -> int:
        copy = self._copy(row)
        return copy.expert.action(copy.actions)

    def _copy(self, row: int) -> LevelCopy:
        """minigrid's level in the state of one environment."""
        copy, episode = self._copies[row], int(self._episodes[row])
        taken: list[int] = self._taken[row, : self.rooms.steps[row]].tolist()
        if copy is None or copy.episode != episode or copy.actions != taken[: len(copy.actions)]:
            copy = self._copies[row] = copy or LevelCopy(*self._level_args)
            copy.start(episode, self.episode_seed(row, episode))
        for action in taken[len(copy.actions) :]:
            copy.step(action)
        return copy

    def _bot_span(self, row: int, length: int) -> tuple[int, int]:
        copy = self._copies[row]
        return (
            (-1, -1)
            if copy is None or copy.episode != self._episodes[row]
            else copy.expert.span(length)
        )

    def _bring_bot_back(self, row: int, asked: range) -> None:
        """Ask the bot where it was asked without a gap, so that it knows what it knew."""
        self._copies[row] = None
        steps = int(self.rooms.steps[row])
        for t in asked:
            self.rooms.steps[row] = t
            self._ask_bot(row)
        self.rooms.steps[row] = steps

    def _check_running(self) -> None:
        if not self._running:
            raise LevelError("reset the environments first")

    def _look(self, rows: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """What is seen in some rooms, and how far their walls are."""
        rooms = self.rooms
        return look_around(rooms.flat, rooms.bases[rows], rooms.poses[rows], rooms.table)

    def _observe(self) -> ObservationBatch:
        looks, walls = self._look(slice(None))
        return ObservationBatch(
            tuple(self.rooms.missions),
            tuple(sentences_of(looks, walls, self._language)),
            images_of(looks),
            self.rooms.poses & 3,
        )

    def _observe_both(self, ended: np.ndarray) -> tuple[ObservationBatch, ObservationBatch]:
        """Observe, start the next episode where one has ended, and observe again; the work on both
        is done together.
        """
        if not len(ended):
            return (observed := self._observe()), observed
        missions, directions = tuple(self.rooms.missions), self.rooms.poses & 3
        looks, walls = self._look(slice(None))
        self._episodes[ended] += 1
        self._start(ended)
        new_looks, new_walls = self._look(ended)
        texts = sentences_of(
            np.concatenate([looks, new_looks]), np.concatenate([walls, new_walls]), self._language
        )
        images = images_of(looks)
        reached = ObservationBatch(missions, tuple(texts[: self.num_envs]), images, directions)
        images = images.copy()
        images[ended] = images_of(new_looks)
        for row, sentences in zip(ended.tolist(), texts[self.num_envs :], strict=True):
            texts[row] = sentences
        return reached, ObservationBatch(
            tuple(self.rooms.missions), tuple(texts[: self.num_envs]), images, self.rooms.poses & 3
        )
