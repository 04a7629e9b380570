"""The symbolic 7 x 7 x 3 view of minigrid, computed several times faster than minigrid does.

minigrid copies, rotates and masks a grid of objects for every look; here the 49 cells are read
where they are, and what a row of the view lets through to the row behind it is looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from minigrid.minigrid_env import MiniGridEnv

_EMPTY, _CODE_BEYOND = bytes((1, 0, 0)), bytes((2, 5, 0))
"""Codes of an empty cell, and of the cells beyond the grid, which count as grey walls."""
_BEYOND: Any = object()
_FORWARD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up


def symbolic_view(env: MiniGridEnv) -> np.ndarray:
    """What ``env.gen_obs()["image"]`` gives: ``(n, n, 3)`` uint8, index ``[x, y, channel]``, with
    ``n`` = 7, the side of the agent's view.

    The agent is at the middle of the last row and looks towards ``y = 0``. Walls and doors that are
    not open hide what is behind them; unseen cells are zero. The agent's own cell shows what it
    carries.
    """
    size = env.agent_view_size
    image = bytearray(3 * size * size)
    lit = 1 << size // 2
    for y in range(size - 1, -1, -1):
        cells, opaque = _row(env, size - 1 - y, size // 2)
        columns, lit = light(lit, opaque, size) if not env.see_through_walls else (range(size), lit)
        for column in columns:
            cell, start = cells[column], 3 * (column * size + y)
            image[start : start + 3] = (
                _EMPTY
                if cell is None
                else _CODE_BEYOND
                if cell is _BEYOND
                else bytes(cell.encode())
            )
        if not lit:
            break
    own = 3 * (size // 2 * size + size - 1)
    image[own : own + 3] = _EMPTY if env.carrying is None else bytes(env.carrying.encode())
    return np.frombuffer(image, dtype=np.uint8).reshape(size, size, 3)


def _row(env: MiniGridEnv, ahead: int, half: int) -> tuple[list[Any], int]:
    """Cells of one row of the view from left to right, and those that block the view, as bits."""
    width, height, grid = env.grid.width, env.grid.height, env.grid.grid
    dx, dy = _FORWARD[env.agent_dir]
    x, y = (
        int(env.agent_pos[0]) + ahead * dx + half * dy,
        int(env.agent_pos[1]) + ahead * dy - half * dx,
    )
    cells: list[Any] = []
    opaque = 0
    for column in range(2 * half + 1):
        cell = grid[y * width + x] if 0 <= x < width and 0 <= y < height else _BEYOND
        cells.append(cell)
        if cell is not None and (cell is _BEYOND or not cell.see_behind()):
            opaque |= 1 << column
        x, y = x - dy, y + dx
    return cells, opaque


@cache
def light(lit: int, opaque: int, size: int) -> tuple[Sequence[int], int]:
    """minigrid's visibility within one row.

    Args:
        lit: Cells that the row before lights, as bits.
        opaque: Cells that block.
        size: Cells of the row.

    Returns:
        The columns of this row that are seen, and those of the next row that it lights, as bits:
        light spreads from transparent seen cells to their neighbours in this row, and to the cells
        in the next row that are straight or diagonally ahead.
    """
    behind = 0
    for columns, side in ((range(size - 1), 1), (range(size - 1, 0, -1), -1)):
        for column in columns:
            if lit >> column & 1 and not opaque >> column & 1:
                lit |= 1 << column + side
                behind |= 1 << column | 1 << column + side
    return tuple(column for column in range(size) if lit >> column & 1), behind
