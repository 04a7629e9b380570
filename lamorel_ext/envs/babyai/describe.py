"""BabyAI-Text's sentences: from the egocentric 7 x 7 x 3 view to English or French, and nothing
else.

The rules are those of the environment of Carta et al. 2023 (GLAM), its oddities included: the
article never changes before a vowel, and the French sentence about what is carried keeps the
English words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

Language = Literal["en", "fr"]

OBJECT_NAMES = tuple(OBJECT_TO_IDX)
"""Names of the codes in channel 0 of a view."""
COLOR_NAMES = tuple(COLOR_TO_IDX)
"""Names of the codes in channel 1."""
STATE_NAMES = tuple(STATE_TO_IDX)
"""Names of the codes in channel 2, for doors."""

UNSEEN, EMPTY, WALL, DOOR = 0, 1, 2, 4
_NOT_THINGS = (UNSEEN, EMPTY, WALL)
_CARRIABLE = range(OBJECT_NAMES.index("key"), OBJECT_NAMES.index("box") + 1)


@dataclass(frozen=True)
class _Wording:
    """How one language says each of the four sentences; the arguments are codes and signed
    distances in cells.
    """

    carried: Callable[[int, int], str]
    wall: Callable[[int, str], str]
    thing: Callable[[int, int, str], str]
    door: Callable[[int, int, str], str]
    side: Callable[[int, str], str]
    both: str


def describe(image: np.ndarray, language: Language = "en") -> tuple[str, ...]:
    """Say what an agent carries, which minigrid shows in its own cell, and sees.

    Args:
        image: ``(7, 7, 3)`` integers, index ``[x, y, channel]``, the agent at ``(3, 6)`` looking
            towards ``y = 0``; any odd square works.
        language: Language of the sentences.

    Returns:
        First what is carried, then the walls straight ahead, left and right, then every other thing
        seen, column by column from the left and from far to near. Without final punctuation; may be
        empty.

    Raises:
        ValueError: ``language`` is unknown, or the image has a wrong shape or a code that no view
            contains.
    """
    if (
        image.ndim != 3
        or image.shape[0] != image.shape[1]
        or image.shape[2] != 3
        or image.shape[0] % 2 == 0
    ):
        raise ValueError(f"expected an image of shape (n, n, 3) with odd n, got {image.shape}")
    if language not in _WORDINGS:
        raise ValueError(f"language must be one of {', '.join(_WORDINGS)}, got {language!r}")
    view = np.ascontiguousarray(image, dtype=np.uint8)
    return _describe(view.tobytes(), view.shape[0], language)


@lru_cache(maxsize=50_000)
def _describe(view: bytes, size: int, language: str) -> tuple[str, ...]:
    """``view`` as bytes: the same views come again and again, and a look-up costs a tenth of the
    work.
    """
    wording = _WORDINGS[language]
    cells = _cells(view, size)
    agent_x, agent_y = size // 2, size - 1
    thing, color, _ = cells[agent_x][agent_y]
    sentences = [wording.carried(thing, color)] if thing in _CARRIABLE else []
    sentences += _wall_sentences(cells, wording)
    for x, column in enumerate(cells):
        for y, (thing, color, state) in enumerate(column):
            if thing in _NOT_THINGS or (x, y) == (agent_x, agent_y):
                continue
            where = _where(x - agent_x, agent_y - y, wording)
            sentences.append(
                wording.door(color, state, where)
                if thing == DOOR
                else wording.thing(thing, color, where)
            )
    return tuple(sentences)


def _cells(view: bytes, size: int) -> list[list[tuple[int, int, int]]]:
    flat = [(view[i], view[i + 1], view[i + 2]) for i in range(0, len(view), 3)]
    for thing, color, state in flat:
        if (
            thing >= OBJECT_NAMES.index("agent")
            or color >= len(COLOR_NAMES)
            or state >= len(STATE_NAMES)
        ):
            raise ValueError(f"no view contains the cell ({thing}, {color}, {state})")
    return [flat[x * size : (x + 1) * size] for x in range(size)]


def _wall_sentences(cells: list[list[tuple[int, int, int]]], wording: _Wording) -> list[str]:
    """At most one sentence per direction: the first cell that is neither empty nor unseen has to be
    a wall.
    """
    size = len(cells)
    x, y = size // 2, size - 1
    rays = {
        "forward": [cells[x][y - n] for n in range(1, size)],
        "left": [cells[x - n][y] for n in range(1, x + 1)],
        "right": [cells[x + n][y] for n in range(1, x + 1)],
    }
    sentences = []
    for side, ray in rays.items():
        first = next(
            ((n, cell[0]) for n, cell in enumerate(ray, start=1) if cell[0] not in (EMPTY, UNSEEN)),
            None,
        )
        if first is not None and first[1] == WALL:
            sentences.append(wording.wall(first[0], side))
    return sentences


def _where(dx: int, dy: int, wording: _Wording) -> str:
    """Sideways part first; a part that is zero is left out."""
    parts = []
    if dx:
        parts.append(wording.side(abs(dx), "left" if dx < 0 else "right"))
    if dy:
        parts.append(wording.side(dy, "forward"))
    return wording.both.join(parts)


def _steps(count: int, side: str) -> str:
    return f"{count} {'step' if count == 1 else 'steps'} {side}"


_FRENCH_OBJECTS = {
    "floor": "sol",
    "door": "porte",
    "key": "clef",
    "ball": "balle",
    "box": "boîte",
    "goal": "but",
    "lava": "lave",
}
_FRENCH_COLORS = ("rouge", "verte", "bleue", "violette", "jaune", "grise")
_FRENCH_STATES = ("ouverte", "fermée", "fermée à clef")
_FRENCH_SIDES = {"forward": "devant", "left": "à gauche", "right": "à droite"}

_WORDINGS = {
    "en": _Wording(
        carried=lambda thing, color: f"You carry a {COLOR_NAMES[color]} {OBJECT_NAMES[thing]}",
        wall=lambda count, side: f"You see a wall {_steps(count, side)}",
        thing=lambda thing, color, where: (
            f"You see a {COLOR_NAMES[color]} {OBJECT_NAMES[thing]} {where}"
        ),
        door=lambda color, state, where: (
            f"You see a {STATE_NAMES[state]} {COLOR_NAMES[color]} door {where}"
        ),
        side=_steps,
        both=" and ",
    ),
    "fr": _Wording(
        carried=lambda thing, color: f"Tu portes une {OBJECT_NAMES[thing]} {COLOR_NAMES[color]}",
        wall=lambda count, side: f"Tu vois un mur à {count} pas {_FRENCH_SIDES[side]}",
        thing=lambda thing, color, where: (
            f"Tu vois une {_FRENCH_OBJECTS[OBJECT_NAMES[thing]]} {_FRENCH_COLORS[color]} {where}"
        ),
        door=lambda color, state, where: (
            f"Tu vois une porte {_FRENCH_COLORS[color]} {_FRENCH_STATES[state]} {where}"
        ),
        side=lambda count, side: f"{count} pas {_FRENCH_SIDES[side]}",
        both=" et ",
    ),
}
