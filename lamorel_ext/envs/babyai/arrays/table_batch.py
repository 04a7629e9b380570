"""GoToRedBallNoDists for many environments at once: a step is a look-up, with no loop over
environments but where episodes end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.envs.babyai.batch_checks import EpisodeSeed, checked_actions, read_state
from lamorel_ext.envs.babyai.describe import Language
from lamorel_ext.envs.babyai.enumeration import (
    MAX_STEPS,
    MISSION,
    NUM_ACTIONS,
    NUM_STATES,
    reward_at,
    start_states,
    state_table,
)
from lamorel_ext.envs.babyai.episodes import ComingEpisodes
from lamorel_ext.errors import CheckpointError, LevelError
from lamorel_ext.types import ObservationBatch, StepBatch

_REWARDS = np.array([0.0] + [reward_at(step) for step in range(1, MAX_STEPS + 1)])


class TableBatch:
    """``BatchedEnv`` over the tables of ``enumeration``; gives the same steps as the minigrid
    backend.

    Args:
        num_envs: Environments.
        language: Language of the sentences.
        episode_seed: Seed of each episode.
    """

    def __init__(self, num_envs: int, language: Language, episode_seed: EpisodeSeed) -> None:
        self.num_envs = num_envs
        self._starts = ComingEpisodes(num_envs, episode_seed, start_states)
        self.table = state_table()
        self._states = np.zeros(num_envs, dtype=np.int64)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._episodes = np.zeros(num_envs, dtype=np.int64)
        self._missions = (MISSION,) * num_envs
        self._sentences = np.empty(len(self.table.descriptions), dtype=object)
        for index, sentences in enumerate(self.table.sentences(language)):
            self._sentences[index] = sentences
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
        offered = np.minimum(
            checked_actions(actions, self.num_envs), NUM_ACTIONS - 1
        )  # 6 (done) does as little here as 5 (toggle)
        self._states = self.table.next_state[self._states, offered]
        self._steps += 1
        terminated = self.table.terminal[self._states]
        truncated = self._steps >= MAX_STEPS
        rewards = np.where(terminated, _REWARDS[self._steps], 0.0)
        reached = current = self._observe()
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            self._episodes[ended] += 1
            self._start(ended)
            current = reached.replaced(ended.tolist(), self._observe(ended))
        return StepBatch(reached, current, rewards, terminated, truncated)

    def expert_actions(self) -> np.ndarray:
        """``(num_envs,)`` int64: the first action of a shortest path."""
        self._check_running()
        return self.table.expert[self._states]

    def state(self) -> dict[str, list[int]]:
        """Episode numbers, steps taken in them, and states."""
        self._check_running()
        return {
            "episodes": self._episodes.tolist(),
            "steps": self._steps.tolist(),
            "states": self._states.tolist(),
        }

    def restore(self, state: dict[str, list[int]]) -> ObservationBatch:
        """Come back to a saved state.

        Raises:
            CheckpointError: The state is of another batch.
        """
        saved = [
            np.array(values, dtype=np.int64)
            for values in read_state(state, self.num_envs, "episodes", "steps", "states")
        ]
        episodes, steps, states = saved
        fits = all(values.shape == (self.num_envs,) and (values >= 0).all() for values in saved)
        if not fits or (steps >= MAX_STEPS).any() or (states >= NUM_STATES).any():
            raise CheckpointError(
                f"the saved state is not of {self.num_envs} environments of this level"
            )
        self._episodes, self._steps, self._states = episodes, steps, states
        self._running = True
        return self._observe()

    def close(self) -> None:
        """Nothing to free. May be called twice."""
        self._running = False

    def _start(self, indices: np.ndarray) -> None:
        """The numbers of the episodes are set before."""
        self._states[indices] = self._starts.take(
            indices.tolist(), self._episodes[indices].tolist()
        )
        self._steps[indices] = 0

    def _check_running(self) -> None:
        if not self._running:
            raise LevelError("reset the environments first")

    def _observe(self, rows: np.ndarray | slice = slice(None)) -> ObservationBatch:
        states = self._states[rows]
        views = self.table.views[states]
        return ObservationBatch(
            missions=self._missions[: len(states)],
            descriptions=tuple(self._sentences[self.table.texts[states]].tolist()),
            images=self.table.images[views],
            directions=self.table.directions[views],
        )
