"""Shortest paths to what a mission tells the agent to go to, in many rooms at once."""

from __future__ import annotations

import numpy as np

from lamorel_ext.envs.babyai.arrays.room_codes import EMPTY
from lamorel_ext.envs.babyai.arrays.rooms import Rooms

_FAR = 30_000
_LEFT, _RIGHT, _FORWARD = range(3)


def knows_paths(rooms: Rooms) -> bool:
    """True where walking is all that the missions ask for."""
    return rooms.level.tasks in (("goto",), ("goto_both",))


def path_actions(rooms: Rooms, rows: np.ndarray) -> np.ndarray:
    """The action that begins a shortest path to the nearest goal that is left, from every pose.

    Args:
        rooms: The rooms.
        rows: ``(m,)``, those asked for.

    Returns:
        ``(m, poses)`` int8; of equals the lowest id, -1 where there is no path.
    """
    table = rooms.table
    left = rooms.goals[rows] & ~rooms.progress[rows, None]
    free = (rooms.cells[rows, : rooms.num_cells] == EMPTY)[:, table.ahead]
    distances = np.where(left[:, table.ahead] > 0, 0, _FAR)
    while True:
        after = np.stack(
            [distances[:, table.moves[action]] for action in (_LEFT, _RIGHT, _FORWARD)]
        )
        after[_FORWARD] = np.where(free, after[_FORWARD], distances)
        shorter = np.minimum(distances, after.min(axis=0) + 1)
        if np.array_equal(shorter, distances):
            break
        distances = shorter
    return np.where(distances < _FAR, after.argmin(axis=0), -1).astype(np.int8)
