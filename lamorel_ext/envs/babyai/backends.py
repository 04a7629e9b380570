"""Which backend steps a level. Free of torch, so that a launcher can ask."""

from __future__ import annotations

from typing import Literal, get_args

from lamorel_ext.envs.babyai import enumeration
from lamorel_ext.envs.babyai.arrays.room_levels import room_level
from lamorel_ext.errors import LevelError

Backend = Literal["auto", "minigrid", "vector", "table", "processes"]


def choose_backend(
    level: str, backend: Backend = "auto", num_distractors: int | None = None, num_workers: int = 0
) -> Backend:
    """The backend that ``make_batched_env`` takes for the same arguments; never ``auto``. Builds
    nothing.

    Raises:
        LevelError: The level is unknown or takes no number of distractors, the backend is unknown
            or does not know the level, or ``processes`` has no workers.
    """
    if backend not in get_args(Backend):
        raise LevelError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if num_workers < 0 or backend == "processes" and num_workers == 0:
        raise LevelError(
            f"num_workers must be at least {int(backend == 'processes')}, got {num_workers}"
        )
    in_one_room = room_level(level, num_distractors) is not None
    tabular = level == enumeration.LEVEL and num_distractors is None
    if backend == "table" and not tabular:
        raise LevelError(
            f"the table backend knows {enumeration.LEVEL} alone, got {level}"
            + (" with distractors" if num_distractors is not None else "")
        )
    if backend == "vector" and not in_one_room:
        raise LevelError(
            "the vector backend knows levels that lie in one room, with doors or without, not"
            f" {level}"
        )
    if backend != "auto":
        return backend
    if tabular or in_one_room:
        return "table" if tabular else "vector"
    return "processes" if num_workers else "minigrid"
