"""What missions are drawn in the rooms of ``scene_blocks``: the laws of ``room_levels``, in the
same order, for many seeds at once.

Each law draws the rooms ``rows`` and gives those whose scene is valid; for them it has set flags
and mission.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX
from minigrid.envs.babyai.core.verifier import LOC_NAMES

from lamorel_ext.envs.babyai.arrays.room_codes import (
    FIRST,
    KINDS,
    NUM_COLORS,
    SECOND,
    Start,
    kind_and_color,
    look_of,
)
from lamorel_ext.envs.babyai.arrays.room_draws import COLORS, said
from lamorel_ext.envs.babyai.arrays.scene_blocks import Scenes

Law = Callable[[Scenes, np.ndarray], np.ndarray]

_BALL = KINDS.index("ball")
_RED_BALL, _BLUE_BALL = look_of(_BALL, COLOR_TO_IDX["red"]), look_of(_BALL, COLOR_TO_IDX["blue"])
_WORTH_A_ROUND = 10
_ANY = -1
_MANY = 2
"""How many things a description means: one, or more."""
_VERBS = {
    "goto": "go to",
    "goto_both": "go to",
    "pickup": "pick up",
    "pickup_goto": "go to",
    "pickup_pickup": "pick up",
}
"""Verb of a mission's last description, by its task."""


def draw_block(law: Law, size: int, capacity: int, words: np.ndarray) -> list[Start | None]:
    """The first state of each seed, None where its words do not suffice, or where few others need
    as many scenes.

    Args:
        law: Of the level.
        size: Side of the room.
        capacity: Things that a room holds at most.
        words: ``(n, num_words)`` uint32, see ``streams.random_words``.
    """
    scenes = Scenes(size, words, capacity)
    drawn: list[Start | None] = [None] * len(words)
    pending = np.arange(len(words))
    while len(pending) >= _WORTH_A_ROUND:
        scenes.begin(pending)
        valid = law(scenes, pending)
        valid = valid[~scenes.lost(valid)]
        for row, start in zip(valid.tolist(), _starts(scenes, valid), strict=True):
            drawn[row] = start
        pending = np.setdiff1d(pending, valid, assume_unique=True)
        pending = pending[~scenes.lost(pending)]
    return drawn


def _starts(scenes: Scenes, rows: np.ndarray) -> Iterable[Start]:
    poses = (4 * scenes.agents[rows] + scenes.directions[rows]).tolist()
    cells = scenes.cells[rows, : scenes.count].tolist()
    codes = (scenes.looks[rows, : scenes.count] | scenes.flags[rows, : scenes.count]).tolist()
    for row, pose, where, what in zip(rows.tolist(), poses, cells, codes, strict=True):
        yield Start(pose, tuple(zip(where, what, strict=True)), scenes.missions[row])


def go_to_one(scenes: Scenes, rows: np.ndarray, count: int) -> np.ndarray:
    scenes.place_agents(rows)
    scenes.add_things(rows, count, unique=False)
    rows = rows[scenes.reachable(rows)]
    return _go_to(scenes, rows, scenes.below(rows, count))


def go_to_only(scenes: Scenes, rows: np.ndarray) -> np.ndarray:
    scenes.place_agents(rows)
    scenes.add_things(rows, 1, unique=True)
    return _go_to(scenes, rows, 0)


def go_to_red_ball(scenes: Scenes, rows: np.ndarray, count: int, grey: bool) -> np.ndarray:
    scenes.place_agents(rows)
    scenes.add_thing(rows, _RED_BALL)
    scenes.add_things(rows, count, unique=False)
    if grey:
        looks = scenes.looks[rows, 1 : scenes.count]
        scenes.looks[rows, 1 : scenes.count] = (
            looks - (looks - look_of(0, 0)) % NUM_COLORS + COLOR_TO_IDX["grey"]
        )
    return _go_to(scenes, rows[scenes.reachable(rows)], 0)


def go_to_red_or_blue(scenes: Scenes, rows: np.ndarray, count: int) -> np.ndarray:
    scenes.place_agents(rows)
    scenes.add_things(rows, count, unique=False)
    looks = scenes.looks[rows, :count]
    rows = rows[~((looks == _RED_BALL) | (looks == _BLUE_BALL)).any(axis=1)]
    scenes.add_thing(rows, np.array([_RED_BALL, _BLUE_BALL])[scenes.below(rows, 2)])
    return _go_to(scenes, rows[scenes.reachable(rows)], count)


def put_next(scenes: Scenes, rows: np.ndarray, count: int) -> np.ndarray:
    scenes.place_agents(rows)
    scenes.add_things(rows, count, unique=True)
    rows = rows[scenes.reachable(rows)]
    moved = scenes.below(rows, count)
    fixed = scenes.below(rows, count - 1)
    fixed += fixed >= moved
    apart = ~scenes.adjacent(scenes.cells[rows, moved], scenes.cells[rows, fixed])
    rows, moved, fixed = rows[apart], moved[apart], fixed[apart]
    scenes.flags[rows, moved] |= FIRST
    scenes.flags[rows, fixed] |= SECOND
    one = np.ones(len(rows), dtype=np.int64)  # each look is there once
    _say(scenes, rows, _put_words, scenes.looks[rows, moved], one, scenes.looks[rows, fixed], one)
    return rows


def from_grammar(
    scenes: Scenes, rows: np.ndarray, task: str, count: int, colored: bool, located: bool
) -> np.ndarray:
    scenes.skip_float(rows)
    scenes.add_things(rows, count, unique=False)
    scenes.place_agents(rows)
    rows = rows[scenes.reachable(rows)]
    parts = [*_described(scenes, rows, FIRST, task != "pickup", colored, located)]
    words: Callable[..., str] = partial(_to_words, _VERBS[task])
    if task == "goto_both":
        words = _go_to_both_words
        parts += _described(scenes, rows, SECOND, True, colored, located)
    _say(scenes, rows, words, *parts)
    return rows


def to_one(
    scenes: Scenes, rows: np.ndarray, task: str, count: int, excluded: tuple[str, ...]
) -> np.ndarray:
    scenes.place_agents(rows)
    scenes.add_things(rows, count, unique=False)
    reachable = scenes.reachable(rows)
    _go_to(scenes, rows, scenes.below(rows, count), _VERBS[task])
    kept: np.ndarray = rows[reachable & _allowed(scenes, rows, excluded)]
    return kept


def put_next_to(
    scenes: Scenes, rows: np.ndarray, count: int, excluded: tuple[str, ...]
) -> np.ndarray:
    reachable, first, means_first, second, means_second = _two_targets(scenes, rows, count)
    _say(scenes, rows, _put_words, first, _number(means_first), second, _number(means_second))
    apart = (first != second) & ~scenes.any_adjacent(rows, means_first, means_second)
    kept: np.ndarray = rows[reachable & apart & _allowed(scenes, rows, excluded)]
    return kept


def pick_up_and(
    scenes: Scenes,
    rows: np.ndarray,
    task: str,
    orders: tuple[bool, ...],
    count: int,
    excluded: tuple[str, ...],
) -> np.ndarray:
    reachable, first, means_first, second, means_second = _two_targets(scenes, rows, count)
    ordered = np.array(orders)[scenes.below(rows, len(orders))]
    parts = (first, _number(means_first), second, _number(means_second), ordered)
    _say(scenes, rows, partial(_pick_up_and_words, _VERBS[task]), *parts)
    kept: np.ndarray = rows[reachable & _allowed(scenes, rows, excluded)]
    return kept


def _two_targets(
    scenes: Scenes, rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where everything can be reached, and both looks with the things that have them, which are
    flagged.
    """
    scenes.place_agents(rows)
    scenes.add_things(rows, count, unique=False)
    reachable = scenes.reachable(rows)
    looks = scenes.looks[rows, :count]
    first = looks[np.arange(len(rows)), scenes.below(rows, count)]
    second = looks[np.arange(len(rows)), scenes.below(rows, count)]
    means_first = looks == first[:, None]
    again = np.flatnonzero((means_first.sum(axis=1) < _MANY) & (second == first))
    while len(again):
        second[again] = looks[again, scenes.below(rows[again], count)]
        again = again[(second[again] == first[again]) & ~scenes.lost(rows[again])]
    means_second = looks == second[:, None]
    scenes.flags[rows, :count] |= FIRST * means_first | SECOND * means_second
    return reachable, first, means_first, second, means_second


def _allowed(scenes: Scenes, rows: np.ndarray, excluded: tuple[str, ...]) -> np.ndarray:
    """True where the mission says none of these phrases."""
    return np.array(
        [not _says(scenes.missions[row], excluded) for row in rows.tolist()], dtype=bool
    )


@lru_cache(maxsize=50_000)
def _says(mission: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in mission for phrase in phrases)


def _go_to(
    scenes: Scenes, rows: np.ndarray, target: np.ndarray | int, verb: str = "go to"
) -> np.ndarray:
    """To whatever looks like the target."""
    looks = scenes.looks[rows, : scenes.count]
    wanted = scenes.looks[rows, target]
    meant = looks == wanted[:, None]
    scenes.flags[rows, : scenes.count] |= FIRST * meant
    color, kind = (wanted - look_of(0, 0)) % NUM_COLORS, (wanted - look_of(0, 0)) // NUM_COLORS
    anywhere = np.full(len(rows), _ANY)
    _say(scenes, rows, partial(_to_words, verb), kind, color, anywhere, _number(meant))
    return rows


def _described(
    scenes: Scenes, rows: np.ndarray, flag: int, may_be_door: bool, colored: bool, located: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Descriptions that mean something; gives kinds, colours, locations and numbers. What they mean
    is flagged.
    """
    looks = scenes.looks[rows, : scenes.count] - look_of(0, 0)
    ahead, right = scenes.seen(rows)
    at = np.stack(
        [right < 0, right > 0, ahead > 0, ahead < 0]
    )  # LOC_NAMES: left, right, front, behind
    colors = np.array(COLORS if colored else (_ANY, *COLORS))
    kinds = np.array([2, 1, 0, _NO_KIND] if may_be_door else [2, 1, 0])
    chosen = np.full((3, len(rows)), _ANY)
    meant = np.zeros(looks.shape, dtype=bool)
    left = np.arange(len(rows))
    while len(left):
        some = rows[left]
        color, kind = colors[scenes.below(some, len(colors))], kinds[scenes.below(some, len(kinds))]
        location = scenes.below(some, len(LOC_NAMES)) if located else np.full(len(some), _ANY)
        chosen[:, left] = kind, color, location
        fits = (looks[left] // NUM_COLORS == kind[:, None]) & (
            (color == _ANY)[:, None] | (looks[left] % NUM_COLORS == color[:, None])
        )
        meant[left] = fits & at[location, left] if located else fits
        left = left[~meant[left].any(axis=1) & ~scenes.lost(some)]
    scenes.flags[rows, : scenes.count] |= flag * meant
    kind, color, location = chosen
    return kind, color, location, _number(meant)


_NO_KIND = 99
"""A door: no thing is one."""


def _number(meant: np.ndarray) -> np.ndarray:
    number: np.ndarray = np.minimum(meant.sum(axis=1), _MANY)
    return number


def _say(scenes: Scenes, rows: np.ndarray, words: Callable[..., str], *parts: np.ndarray) -> None:
    """Put missions into words, from the same parts of each."""
    lists: Sequence[list[int]] = [part.tolist() for part in parts]
    for row, *values in zip(rows.tolist(), *lists, strict=True):
        scenes.missions[row] = words(*values)


@cache
def _to_words(verb: str, kind: int, color: int, location: int, number: int) -> str:
    if kind == _NO_KIND:
        return ""  # only where the words did not suffice
    place = None if location == _ANY else LOC_NAMES[location]
    return f"{verb} {said(kind, None if color == _ANY else color, number, place)}"


@cache
def _go_to_both_words(*parts: int) -> str:
    return f"{_to_words('go to', *parts[:4])} and {_to_words('go to', *parts[4:])}"


@cache
def _put_words(first: int, first_number: int, second: int, second_number: int) -> str:
    return f"put {_named(first, first_number)} next to {_named(second, second_number)}"


@cache
def _pick_up_and_words(
    verb: str, first: int, first_number: int, second: int, second_number: int, ordered: bool
) -> str:
    pick_up = f"pick up {_named(first, first_number)}"
    then = f"{verb} {_named(second, second_number)}"
    return f"{pick_up}, then {then}" if ordered else f"{then} after you {pick_up}"


def _named(look: int, number: int) -> str:
    return said(*kind_and_color(look), number)
