"""What the backends of the batched environment check: actions, and saved states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamorel_ext.envs.babyai.gym_env import NUM_ACTIONS
from lamorel_ext.errors import CheckpointError, LevelError

EpisodeSeed = Callable[[int, int], int]
"""Seed of an episode, from the environment's number and the episode's number in it."""


@dataclass(frozen=True)
class SavedEpisode:
    """An episode that was running when its batch was saved.

    Attributes:
        episode: Its number.
        actions: Taken since its start.
        consulted: Steps at which the expert was asked without a gap up to now; empty where it
            starts anew anyway.
    """

    episode: int
    actions: list[int]
    consulted: range


def checked_actions(actions: Sequence[int] | np.ndarray, num_envs: int) -> np.ndarray:
    """``(num_envs,)`` int64.

    Raises:
        LevelError: There is not one action id from 0 to 6 per environment.
    """
    array = np.asarray(actions)
    if array.shape != (num_envs,) or array.dtype.kind not in "iu":
        raise LevelError(
            f"expected {num_envs} integer actions, got {array.dtype} of shape {array.shape}"
        )
    if array.size and not (0 <= array.min() and array.max() < NUM_ACTIONS):
        raise LevelError(f"actions are 0 to {NUM_ACTIONS - 1}, got {array.tolist()}")
    return array.astype(np.int64)


def read_state(state: Any, num_envs: int, *names: str) -> tuple[list[int], ...]:
    """The named lists of a saved state.

    Raises:
        CheckpointError: One is missing, or holds something else than integers that are not negative
            (-1 means none).
    """
    for name in names:
        values = state.get(name) if isinstance(state, dict) else None
        if not isinstance(values, list) or not all(
            isinstance(value, int) and value >= -1 for value in values
        ):
            raise CheckpointError(
                f"the saved state of {num_envs} environments lacks a list of numbers named {name};"
                " was it another backend?"
            )
    return tuple(state[name] for name in names)


def read_episodes(state: Any, num_envs: int) -> list[SavedEpisode]:
    """The running episodes of a state that is saved as episode numbers and actions.

    Raises:
        CheckpointError: It is not the state of ``num_envs`` environments.
    """
    episodes, lengths, actions, experts = read_state(
        state, num_envs, "episodes", "lengths", "actions", "experts"
    )
    complete = (
        len(episodes) == len(lengths) == num_envs
        and len(experts) == 2 * num_envs
        and sum(lengths) == len(actions)
    )
    if (
        not complete
        or min(episodes + lengths + actions) < 0
        or max(actions, default=0) >= NUM_ACTIONS
    ):
        raise CheckpointError(f"the saved state is not of {num_envs} environments of this level")
    taken = iter(actions)
    return [
        SavedEpisode(
            episode,
            [next(taken) for _ in range(length)],
            range(first, last + 1) if first >= 0 else range(0),
        )
        for episode, length, first, last in zip(
            episodes, lengths, experts[::2], experts[1::2], strict=True
        )
    ]
