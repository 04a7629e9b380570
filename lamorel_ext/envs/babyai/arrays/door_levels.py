"""Single rooms with doors, drawn as minigrid draws them: the levels about opening doors, and the
Mixed levels.

All that these levels ever place lies in one room; the rooms behind its doors are empty, so that a
``Scene`` of that one room is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from minigrid.core.constants import COLOR_TO_IDX
from minigrid.envs.babyai import OpenDoor, OpenDoorsOrder, OpenRedDoor, OpenTwoDoors, UnlockLocal
from minigrid.envs.babyai.core.verifier import LOC_NAMES

from lamorel_ext.envs.babyai.arrays.room_codes import (
    CLOSED,
    FIRST_DOOR,
    KINDS,
    LOCKED,
    NUM_COLORS,
    door_look,
    look_of,
)
from lamorel_ext.envs.babyai.arrays.room_draws import (
    COLORS,
    Mission,
    Rejected,
    Scene,
    Thing,
    Words,
    described,
    placed_in_words,
)
from lamorel_ext.envs.babyai.original_levels import MAX_REJECTED, LocalLevel
from lamorel_ext.errors import LevelError

Law = Callable[[Scene], Mission]

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_MIDDLE = (1, 1)
_KEY = KINDS.index("key")
_COLOR_WORDS = {code: name for name, code in COLOR_TO_IDX.items()}
_NOWHERE = 0
"""A corner: an agent there is beside no free cell."""


def door_law(
    level: Any, kind: type
) -> tuple[tuple[str, ...], tuple[Law, ...], tuple[bool, bool]] | None:
    """Tasks, laws and strictness of a level's first and second part; None where the level is none
    of these.
    """
    if kind is UnlockLocal:
        return (
            ("open",),
            (partial(_unlock, distractors=3 if level.distractors else 0),),
            (False, False),
        )
    if kind is OpenDoor:
        return (
            ("open",),
            (partial(_open_one_of_four, select_by=level.select_by),),
            (level.debug, False),
        )
    if kind is OpenRedDoor:
        return ("open",), (_open_red,), (False, False)
    if kind is OpenTwoDoors:
        return (
            ("open_open",),
            (partial(_open_two, colors=(level.first_color, level.second_color)),),
            (level.strict, False),
        )
    if kind is OpenDoorsOrder:
        return (
            ("open", "open_open"),
            (partial(_open_in_order, count=level.num_doors),),
            (level.debug, level.debug),
        )
    if kind is LocalLevel:
        tasks = tuple(dict.fromkeys(_TASKS.get(name, name) for name in level.kinds))
        return tasks, tuple(_local_law(level, name) for name in level.kinds), (False, False)
    return None


def _door_places(
    words: Words, size: int, columns: int, rows: int
) -> dict[tuple[int, int, int], int]:
    """Where doors would be, by column and row of a room and side: minigrid draws that for all of
    them before anything else.
    """
    places = {}
    for row in range(rows):
        for column in range(columns):
            if column < columns - 1:
                places[column, row, _RIGHT] = places[column + 1, row, _LEFT] = 1 + words.below(
                    size - 2
                )
            if row < rows - 1:
                places[column, row, _DOWN] = places[column, row + 1, _UP] = 1 + words.below(
                    size - 2
                )
    return places


def _subset(words: Words, values: tuple[int, ...], count: int) -> list[int]:
    rest = list(values)
    return [rest.pop(words.below(len(rest))) for _ in range(count)]


def _door(thing: Thing, count: int = 1) -> str:
    return f"{'the' if count == 1 else 'a'} {_COLOR_WORDS[(thing[1] - FIRST_DOOR) // 3]} door"


def _unlock(scene: Scene, distractors: int) -> Mission:
    below = scene.words.below
    places = _door_places(scene.words, scene.size, 3, 3)
    side, color = below(4), COLORS[below(NUM_COLORS)]
    door = scene.add_door(side, places[(*_MIDDLE, side)], door_look(color, LOCKED))
    scene.add_thing(look_of(_KEY, color))
    scene.add_things(distractors, unique=True)
    scene.place_agent()
    scene.things.append(door)
    return Mission("open the door", [door], room=_MIDDLE)


def _open_red(scene: Scene) -> Mission:
    places = _door_places(scene.words, scene.size, 2, 1)
    door = scene.add_door(_RIGHT, places[0, 0, _RIGHT], door_look(COLOR_TO_IDX["red"], CLOSED))
    scene.place_agent()
    scene.things.append(door)
    return Mission("open the red door", [door])


def _open_one_of_four(scene: Scene, select_by: str | None) -> Mission:
    """Doors with a location are those on that side of where the agent starts."""
    below = scene.words.below
    places = _door_places(scene.words, scene.size, 3, 3)
    colors = _subset(scene.words, COLORS, 4)
    doors = [
        scene.add_door(side, places[(*_MIDDLE, side)], door_look(color, CLOSED))
        for side, color in enumerate(colors)
    ]
    if (select_by or ("color", "loc")[below(2)]) == "color":
        scene.place_agent()
        meant, words = doors[:1], _door(doors[0])
    else:
        location = LOC_NAMES[below(len(LOC_NAMES))]
        scene.place_agent()
        meant = [door for door in doors if scene.is_at(door[0], location)]
        words = f"{'the' if len(meant) == 1 else 'a'} door {placed_in_words(location)}"
    scene.things += doors
    return Mission(f"open {words}", meant, room=_MIDDLE)


def _open_two(scene: Scene, colors: tuple[str | None, str | None]) -> Mission:
    """Opposite each other, the first one on the left of the map."""
    places = _door_places(scene.words, scene.size, 3, 3)
    drawn = _subset(scene.words, COLORS, 2)
    chosen = [
        other if name is None else COLOR_TO_IDX[name]
        for name, other in zip(colors, drawn, strict=True)
    ]
    doors = [
        scene.add_door(side, places[(*_MIDDLE, side)], door_look(color, CLOSED))
        for side, color in zip((_LEFT, _RIGHT), chosen, strict=True)
    ]
    scene.place_agent()
    scene.things += doors
    return Mission(
        f"open {_door(doors[0])}, then open {_door(doors[1])}", doors[:1], doors[1:], room=_MIDDLE
    )


def _open_in_order(scene: Scene, count: int) -> Mission:
    below = scene.words.below
    places = _door_places(scene.words, scene.size, 3, 3)
    colors = _subset(scene.words, COLORS, count)
    doors: dict[int, Thing] = {}
    for color in colors:
        side = below(4)
        while side in doors:
            side = below(4)
        doors[side] = scene.add_door(side, places[(*_MIDDLE, side)], door_look(color, CLOSED))
    scene.place_agent()
    scene.things += doors.values()
    rest = list(doors.values())
    one, other = (rest.pop(below(len(rest))) for _ in range(2))
    said_one, said_other = f"open {_door(one)}", f"open {_door(other)}"
    mode = below(3)
    if mode == 0:
        return Mission(said_one, [one], task="open", room=_MIDDLE)
    if mode == 1:
        return Mission(
            f"{said_one}, then {said_other}", [one], [other], task="open_open", room=_MIDDLE
        )
    return Mission(
        f"{said_one} after you {said_other}", [other], [one], task="open_open", room=_MIDDLE
    )


# --- one kind of task in one room, or behind the locked door of a second one: the original's Mixed

_TASKS = {"pickup_then_goto": "pickup_goto", "goto_after_pickup": "pickup_goto"}


def _local_law(level: LocalLevel, name: str) -> Law:
    excluded = level.excluded
    if name == "open":
        colors = tuple(COLOR_TO_IDX[color] for color in level.door_colors)
        return partial(
            _unlock_from_within,
            colors=colors,
            named=level.door_color_named,
            count=level.num_dists,
            excluded=excluded,
        )
    if name in ("goto", "pickup"):
        return partial(to_one, task=name, count=level.num_dists + 1, excluded=excluded)
    if name == "putnext":
        return partial(put_next_to, count=level.num_dists + 2, excluded=excluded)
    orders = {"pickup_then_goto": (True,), "goto_after_pickup": (False,)}.get(name, (True, False))
    return partial(
        pick_up_and,
        task=_TASKS.get(name, name),
        orders=orders,
        count=level.num_dists + 2,
        excluded=excluded,
    )


def _reject_unless(valid: bool, words: str, excluded: tuple[str, ...]) -> None:
    if not valid or any(phrase in words for phrase in excluded):
        raise Rejected


def to_one(scene: Scene, task: str, count: int, excluded: tuple[str, ...]) -> Mission:
    scene.place_agent()
    scene.add_things(count, unique=False)
    meant, what = described(scene, scene.chosen(scene.things))
    words = f"{'go to' if task == 'goto' else 'pick up'} {what}"
    _reject_unless(scene.reachable(), words, excluded)
    return Mission(words, meant, task=task, rooms=1)


def _two_targets(scene: Scene, count: int) -> tuple[list[Thing], str, list[Thing], str]:
    scene.place_agent()
    scene.add_things(count, unique=False)
    first, second = scene.chosen(scene.things), scene.chosen(scene.things)
    meant, what = described(scene, first)
    while len(meant) < 2 and second[1] == first[1]:
        second = scene.chosen(scene.things)
    return meant, what, *described(scene, second)


def put_next_to(scene: Scene, count: int, excluded: tuple[str, ...]) -> Mission:
    """Things that are both to be moved and to stay, or lie side by side already, are minigrid's own
    reasons to reject.
    """
    meant, what, meant_second, what_second = _two_targets(scene, count)
    words = f"put {what} next to {what_second}"
    apart = meant != meant_second and not any(
        scene.adjacent(one[0], other[0]) for one in meant for other in meant_second
    )
    _reject_unless(apart and scene.reachable(), words, excluded)
    return Mission(words, meant, meant_second, task="putnext", rooms=1)


def pick_up_and(
    scene: Scene, task: str, orders: tuple[bool, ...], count: int, excluded: tuple[str, ...]
) -> Mission:
    """Pick one thing up, then go to or pick up another.

    Everything is drawn before a scene is rejected.
    """
    meant, what, meant_second, what_second = _two_targets(scene, count)
    pick, then = (
        f"pick up {what}",
        f"{'go to' if task == 'pickup_goto' else 'pick up'} {what_second}",
    )
    words = (
        f"{pick}, then {then}"
        if orders[scene.words.below(len(orders))]
        else f"{then} after you {pick}"
    )
    _reject_unless(scene.reachable(), words, excluded)
    return Mission(words, meant, meant_second, task=task, rooms=1)


def _unlock_from_within(
    scene: Scene, colors: tuple[int, ...], named: bool, count: int, excluded: tuple[str, ...]
) -> Mission:
    """Two rooms side by side; the key, everything else and the agent are in the one that is not
    locked.

    An empty maze, whose door's place is drawn too, comes before the first scene; a scene that is
    rejected is followed by the next at once.
    """
    _door_places(scene.words, scene.size, 2, 1)
    for _ in range(MAX_REJECTED):
        scene.clear()
        door, column = _locked_room(scene, colors, count)
        reachable = scene.reachable()
        words = f"open {_door(door)}" if named or scene.words.below(2) else "open the door"
        if reachable and not any(phrase in words for phrase in excluded):
            scene.things.append(door)
            return Mission(words, [door], task="open", room=(column, 0))
    raise LevelError(
        f"{MAX_REJECTED} scenes in a row were invalid; are there too many objects for the room?"
    )


def _locked_room(scene: Scene, colors: tuple[int, ...], count: int) -> tuple[Thing, int]:
    """Draws the scene; gives the door, and the column of the room that is not locked."""
    below = scene.words.below
    along = _door_places(scene.words, scene.size, 2, 1)[0, 0, _RIGHT]
    color = colors[below(len(colors))]
    locked, side = below(2), below(4)
    while side != (_RIGHT, _LEFT)[locked]:
        locked, side = below(2), below(4)
    column = below(2)
    while column == locked:
        column = below(2)
    door = scene.add_door((_RIGHT, _LEFT)[column], along, door_look(color, LOCKED))
    if (
        column == 0
    ):  # until it is placed, the agent counts as standing in the middle of the other room
        scene.agent = _NOWHERE
    scene.add_thing(look_of(_KEY, color))
    scene.add_things(count, unique=False)
    while below(2) == locked:
        behind = Scene(scene.size, scene.words)
        behind.add_door((_RIGHT, _LEFT)[locked], along, door_look(color, LOCKED))
        behind.place_agent()
    scene.place_agent()
    return door, column
