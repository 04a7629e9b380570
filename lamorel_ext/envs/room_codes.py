"""One byte per cell of a single room: what lies there, and whether the mission speaks of it.

The lower five bits are the look: 0 unseen, 1 empty, 2 wall, then key, ball and box in six colours each. Two flags above them say that
the thing belongs to the mission's first or second description. What a description means is settled when an episode starts, by identity;
a thing carries its flags wherever it is taken, so that no other identity is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

UNSEEN, EMPTY, WALL = 0, 1, 2
FIRST, SECOND = 32, 64
LOOK = 31
KINDS = ("key", "ball", "box")
"""In the order of minigrid's codes, which begin at 5."""
KEY_CODE = 5
NUM_COLORS = 6
NUM_LOOKS = 3 + len(KINDS) * NUM_COLORS
FIRST_BOX = 3 + KINDS.index("box") * NUM_COLORS


class Start(NamedTuple):
    """A state in which an episode starts.

    Attributes:
        pose: ``4 * cell + direction``; cells are counted row by row, walls included.
        things: Cell and code of everything that lies in the room.
        mission: In words.
        hand: Code of what is carried, or ``EMPTY``.
    """

    pose: int
    things: tuple[tuple[int, int], ...]
    mission: str
    hand: int = EMPTY


def look_of(kind: int, color: int) -> int:
    """Look of a thing.

    Args:
        kind: Index into ``KINDS``.
        color: minigrid's code of the colour.
    """
    return 3 + kind * NUM_COLORS + color


def kind_and_color(look: int) -> tuple[int, int]:
    """What ``look_of`` was given."""
    return divmod(look - 3, NUM_COLORS)


def wall_cells(size: int) -> tuple[int, ...]:
    """Cells of the walls around a room, walls included in ``size``."""
    return tuple(cell for cell in range(size * size) if cell % size in (0, size - 1) or cell // size in (0, size - 1))


def empty_room(size: int) -> np.ndarray:
    """``(size * size,)`` uint8."""
    room = np.full(size * size, EMPTY, dtype=np.uint8)
    room[list(wall_cells(size))] = WALL
    return room


def mask_of(cells: Iterable[int]) -> int:
    """Cells as bits of one number."""
    return sum(1 << cell for cell in cells)


def view_codes() -> np.ndarray:
    """``(32, 3)`` uint8: minigrid's object, colour and state of each look."""
    codes = np.zeros((LOOK + 1, 3), dtype=np.uint8)
    codes[EMPTY], codes[WALL] = (1, 0, 0), (2, 5, 0)
    for kind in range(len(KINDS)):
        for color in range(NUM_COLORS):
            codes[look_of(kind, color)] = (KEY_CODE + kind, color, 0)
    return codes
