"""What is seen in rooms, for many agents at once: where to look is tabulated per pose, and every
sentence is written beforehand.

In a single room nothing hides anything but its walls: all of its cells that a view covers are seen.
Where there are doors, light is followed row by row as minigrid does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from lamorel_ext.envs.babyai.arrays.room_codes import (
    CLOSED,
    EMPTY,
    FIRST_DOOR,
    LOOK,
    NUM_LOOKS,
    OPEN,
    UNSEEN,
    WALL,
    empty_room,
    maze_shape,
    view_codes,
)
from lamorel_ext.envs.babyai.describe import Language, describe
from lamorel_ext.envs.babyai.view import light

VIEW = 7
_CELLS = VIEW * VIEW
_OWN = 3 * VIEW + 6
"""The agent's own cell in a view that is read column by column, which is the order of the
sentences.
"""
_RAYS = (slice(_OWN - 6, _OWN), slice(_OWN - 21, _OWN, VIEW), slice(_OWN + VIEW, _OWN + 22, VIEW))
"""Cells of a view straight ahead, to the left and to the right."""
_LEADING = 1 + len(_RAYS)
_PER_CELL = LOOK + 1


@dataclass(frozen=True, eq=False)
class ViewTable:
    """The views of a room, or of a maze of rooms. Poses are ``4 * cell + direction``; poses inside
    walls hold nothing of use.

    Attributes:
        width: Cells of a row.
        has_doors: True where what is seen also depends on doors.
        cells: ``(poses, 49)`` int64, the cell of the room that each cell of a view shows; the
            number of cells where nothing is seen, one more where the view shows what the agent
            carries.
        walls: ``(poses, 3)`` uint8, distance of the wall ahead, to the left and to the right, plus
            2; 0 where it is too far to be seen. Only without doors.
        ahead: ``(poses,)`` int64, the cell ahead.
        moves: ``(7, poses)`` int64, the pose after each action where nothing is in the way.
    """

    width: int
    has_doors: bool
    cells: np.ndarray
    walls: np.ndarray
    ahead: np.ndarray
    moves: np.ndarray


@cache
def view_table(size: int, columns: int = 1, rows: int = 1) -> ViewTable:
    """Tables of ``columns`` times ``rows`` rooms with side ``size``, walls included.

    Do not write to them.
    """
    width, height = maze_shape(size, columns, rows)
    num_cells = width * height
    pose = np.arange(4 * num_cells)
    cell, direction = pose // 4, pose % 4
    dx, dy = np.array([1, 0, -1, 0])[direction], np.array([0, 1, 0, -1])[direction]
    ahead = np.clip(cell + dx + width * dy, 0, num_cells - 1)
    moves = np.repeat(pose[None], 7, axis=0)
    moves[0], moves[1], moves[2] = (
        4 * cell + (direction - 1) % 4,
        4 * cell + (direction + 1) % 4,
        4 * ahead + direction,
    )
    view_x, view_y = (part.reshape(-1) for part in np.indices((VIEW, VIEW)))
    right, forward = view_x - 3, 6 - view_y
    x = (cell % width)[:, None] + dx[:, None] * forward - dy[:, None] * right
    y = (cell // width)[:, None] + dy[:, None] * forward + dx[:, None] * right
    has_doors = columns * rows > 1
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    shown = np.where(inside, y * width + x, num_cells)
    shown[:, _OWN] = num_cells + 1
    empty = np.array([*empty_room(size, columns, rows), UNSEEN, EMPTY], dtype=np.uint8)
    walls = _wall_distances(empty[shown[:0] if has_doors else shown])
    for array in (shown, walls, ahead, moves):
        array.flags.writeable = False
    return ViewTable(width, has_doors, shown, walls, ahead, moves)


def look_around(
    cells: np.ndarray, bases: np.ndarray, poses: np.ndarray, table: ViewTable
) -> tuple[np.ndarray, np.ndarray]:
    """What agents see.

    Args:
        cells: As of ``views_of``.
        bases: As of ``views_of``.
        poses: ``(n,)`` int64.
        table: Of the room.

    Returns:
        Looks ``(n, 49)``, and ``(n, 3)`` uint8: distance of the wall ahead, to the left and to the
        right, plus 2; 0 where another thing is seen first, or nothing.
    """
    looks = views_of(cells, bases, poses, table)
    if not table.has_doors:
        things = np.stack([looks[:, ray].max(axis=1) > WALL for ray in _RAYS], axis=1)
        return looks, np.where(things, np.uint8(0), table.walls.take(poses, axis=0))
    looks *= _lit_cells(looks)
    return looks, _wall_distances(looks)


def _lit_cells(looks: np.ndarray) -> np.ndarray:
    """``(n, 49)`` uint8, 1 where minigrid lets the agent see: from the agent's row on, each row
    lights the one behind it.
    """
    opaque = _OPAQUE.take(looks)
    opaque[:, _OWN] = 0
    rows = np.packbits(opaque.reshape(-1, VIEW, VIEW), axis=1, bitorder="little")[:, 0]
    lit, table = np.full(len(looks), 1 << VIEW // 2, dtype=np.int64), _light_table()
    seen = np.zeros((len(looks), 1, VIEW), dtype=np.uint8)
    for y in range(VIEW - 1, -1, -1):
        seen[:, 0, y], lit = table[:, lit << VIEW | rows[:, y]]
    return np.unpackbits(seen, axis=1, count=VIEW, bitorder="little").reshape(-1, _CELLS)


def views_of(
    cells: np.ndarray, bases: np.ndarray, poses: np.ndarray, table: ViewTable
) -> np.ndarray:
    """Looks of what agents see.

    Args:
        cells: Codes of all rooms, flat; a room's cells are followed by one unseen cell and by what
            the agent carries.
        bases: ``(n,)`` int64, where each agent's room begins.
        poses: ``(n,)`` int64.
        table: Of the room's size.

    Returns:
        ``(n, 49)`` uint8, column by column.
    """
    seen: np.ndarray = cells.take(table.cells.take(poses, axis=0) + bases[:, None]) & LOOK
    return seen


def images_of(looks: np.ndarray) -> np.ndarray:
    """``(n, 7, 7, 3)`` uint8, minigrid's symbolic views."""
    return _CODES.take(looks, axis=0).reshape(-1, VIEW, VIEW, 3)


def sentences_of(looks: np.ndarray, walls: np.ndarray, language: Language) -> list[tuple[str, ...]]:
    """Sentences of each view, as ``describe`` gives them.

    Args:
        looks: ``(n, 49)``, as ``look_around`` gives them.
        walls: ``(n, 3)``, likewise.
        language: Language of the sentences.
    """
    said = np.empty((len(looks), _LEADING + _CELLS), dtype=np.uint8)
    said[:, 0] = looks[:, _OWN]
    said[:, 1:_LEADING] = walls
    said[:, _LEADING:] = looks
    said[:, _LEADING + _OWN] = 0
    spoken = np.flatnonzero(said > WALL)
    keys = said.reshape(-1).take(spoken) + _PER_CELL * (spoken % said.shape[1])
    texts = tuple(_all_sentences(language).take(keys).tolist())
    ends = np.searchsorted(spoken, np.arange(1, len(said) + 1) * said.shape[1]).tolist()
    return [texts[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


_CODES = view_codes()


def _opaque_looks() -> np.ndarray:
    """``(64,)`` uint8, 1 for walls and doors that are not open; what lies beyond the map counts as
    wall.
    """
    opaque = np.zeros(LOOK + 1, dtype=np.uint8)
    opaque[[UNSEEN, WALL]] = 1
    opaque[FIRST_DOOR:NUM_LOOKS] = [state >= CLOSED for state in range(OPEN, OPEN + 3)] * (
        (NUM_LOOKS - FIRST_DOOR) // 3
    )
    return opaque


_OPAQUE = _opaque_looks()


@cache
def _light_table() -> np.ndarray:
    """``(2, 2**14)`` int64: of each row's light and opaque cells, what is seen in it and what it
    lights behind it, all as bits.
    """
    pairs = [light(lit, opaque, VIEW) for lit in range(1 << VIEW) for opaque in range(1 << VIEW)]
    return np.array(
        [
            [sum(1 << column for column in columns) for columns, _ in pairs],
            [behind for _, behind in pairs],
        ]
    )


@cache
def _all_sentences(language: Language) -> np.ndarray:
    """Every sentence, at place ``64 * column + look``: what is carried, three walls (by distance
    plus 2), then things cell by cell.
    """
    texts = np.empty((_LEADING + _CELLS) * _PER_CELL, dtype=object)
    for look in range(WALL + 1, NUM_LOOKS):
        if look < FIRST_DOOR:
            texts[look] = _only_sentence(_OWN, look, language)
        for cell in range(_CELLS):
            if cell != _OWN:
                texts[(_LEADING + cell) * _PER_CELL + look] = _only_sentence(cell, look, language)
    for place, ray in enumerate(_RAYS):
        for distance, cell in enumerate(_outwards(ray), start=1):
            texts[(1 + place) * _PER_CELL + WALL + distance] = _only_sentence(cell, WALL, language)
    return texts


def _only_sentence(cell: int, look: int, language: Language) -> str:
    """What is said where only one cell is seen."""
    looks = np.zeros((1, _CELLS), dtype=np.uint8)
    looks[0, cell] = look
    (sentence,) = describe(images_of(looks)[0], language=language)
    return sentence


def _outwards(ray: slice) -> list[int]:
    """Cells of a ray, the nearest first."""
    return sorted(range(_CELLS)[ray], key=lambda cell: abs(cell - _OWN))


def _wall_distances(looks: np.ndarray) -> np.ndarray:
    """``(n, 3)`` uint8: the second of what ``look_around`` gives."""
    walls = np.zeros((len(looks), len(_RAYS)), dtype=np.uint8)
    for place, ray in enumerate(_RAYS):
        outwards = looks[:, _outwards(ray)]
        first = (outwards > EMPTY).argmax(axis=1)
        walls[:, place] = np.where(
            outwards[np.arange(len(looks)), first] == WALL, first + 1 + WALL, 0
        )
    return walls
