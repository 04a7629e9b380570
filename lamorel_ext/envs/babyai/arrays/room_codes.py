"""One byte per cell of a room: what lies there, and whether the mission speaks of it.

The lower six bits are the look: 0 unseen, 1 empty, 2 wall, then key, ball and box in six colours
each, then doors in six colours, each open, closed or locked. Two flags above them say that the
thing belongs to the mission's first or second description. What a description means is settled when
an episode starts, by identity; a thing carries its flags wherever it is taken, so that no other
identity is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

UNSEEN, EMPTY, WALL = 0, 1, 2
FLAG_BITS = 6
FIRST, SECOND = 1 << FLAG_BITS, 2 << FLAG_BITS
LOOK = (1 << FLAG_BITS) - 1
KINDS = ("key", "ball", "box")
"""In the order of minigrid's codes, which begin at 5."""
KEY_CODE = 5
NUM_COLORS = 6
FIRST_THING = 3
FIRST_BOX = FIRST_THING + KINDS.index("box") * NUM_COLORS
FIRST_DOOR = FIRST_THING + len(KINDS) * NUM_COLORS
"""Looks from here on are doors; those below it and from ``FIRST_THING`` on can be carried."""
DOOR_CODE = 4
OPEN, CLOSED, LOCKED = range(3)
NUM_LOOKS = FIRST_DOOR + 3 * NUM_COLORS


class Start(NamedTuple):
    """A state in which an episode starts.

    Attributes:
        pose: ``4 * cell + direction``; cells are counted row by row, walls included.
        things: Cell and code of everything that lies in the room.
        mission: In words.
        hand: Code of what is carried, or ``EMPTY``.
        task: Place of what the mission asks for among the level's tasks.
        limit: Steps allowed; 0 means the level's most.
    """

    pose: int
    things: tuple[tuple[int, int], ...]
    mission: str
    hand: int = EMPTY
    task: int = 0
    limit: int = 0


def look_of(kind: int, color: int) -> int:
    """Look of a thing.

    Args:
        kind: Index into ``KINDS``.
        color: minigrid's code of the colour.
    """
    return FIRST_THING + kind * NUM_COLORS + color


def door_look(color: int, state: int) -> int:
    """Look of a door in one of the states ``OPEN``, ``CLOSED`` and ``LOCKED``."""
    return FIRST_DOOR + 3 * color + state


def kind_and_color(look: int) -> tuple[int, int]:
    """What ``look_of`` was given."""
    return divmod(look - FIRST_THING, NUM_COLORS)


def wall_cells(size: int, columns: int = 1, rows: int = 1) -> tuple[int, ...]:
    """Cells of the walls around rooms of side ``size``, walls included; neighbouring rooms share a
    wall.
    """
    width, height = maze_shape(size, columns, rows)
    return tuple(
        cell
        for cell in range(width * height)
        if cell % width % (size - 1) == 0 or cell // width % (size - 1) == 0
    )


def maze_shape(size: int, columns: int, rows: int) -> tuple[int, int]:
    """Width and height of ``columns`` times ``rows`` rooms."""
    return columns * (size - 1) + 1, rows * (size - 1) + 1


def empty_room(size: int, columns: int = 1, rows: int = 1) -> np.ndarray:
    """``(width * height,)`` uint8."""
    width, height = maze_shape(size, columns, rows)
    room = np.full(width * height, EMPTY, dtype=np.uint8)
    room[list(wall_cells(size, columns, rows))] = WALL
    return room


def mask_of(cells: Iterable[int]) -> int:
    """Cells as bits of one number."""
    return sum(1 << cell for cell in cells)


def view_codes() -> np.ndarray:
    """``(64, 3)`` uint8: minigrid's object, colour and state of each look."""
    codes = np.zeros((LOOK + 1, 3), dtype=np.uint8)
    codes[EMPTY], codes[WALL] = (1, 0, 0), (2, 5, 0)
    for kind in range(len(KINDS)):
        for color in range(NUM_COLORS):
            codes[look_of(kind, color)] = (KEY_CODE + kind, color, 0)
    for color in range(NUM_COLORS):
        for state in (OPEN, CLOSED, LOCKED):
            codes[door_look(color, state)] = (DOOR_CODE, color, state)
    return codes
