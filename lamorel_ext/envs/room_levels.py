"""The single-room levels that the vector backend knows: what their missions ask for, and how their episodes are drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX
from minigrid.envs.babyai import (
    GoTo,
    GoToLocal,
    GoToObj,
    GoToRedBall,
    GoToRedBallGrey,
    GoToRedBlueBall,
    OneRoomS8,
    PickupDist,
    PutNextLocal,
)
from minigrid.envs.babyai.core.verifier import LOC_NAMES

from lamorel_ext.envs import block_levels
from lamorel_ext.envs.episodes import words_of_seeds
from lamorel_ext.envs.levels import make_level
from lamorel_ext.envs.original_levels import MAX_REJECTED, MAX_STUCK, LocalLevel, OriginalLevelGen
from lamorel_ext.envs.room_codes import FIRST, SECOND, Start, kind_and_color, look_of, wall_cells
from lamorel_ext.envs.room_draws import COLORS, Rejected, Scene, Stuck, Thing, Words, looks_of, said
from lamorel_ext.envs.scene_blocks import MAX_SIZE
from lamorel_ext.errors import LevelError

Task = Literal["goto", "pickup", "putnext", "pickup_goto", "pickup_pickup", "goto_both"]
"""What a mission asks for. ``pickup_goto`` and ``pickup_pickup`` are to be done in this order, ``goto_both`` in any."""

_KEY, _BALL, _BOX = range(3)
_RED, _BLUE, _GREY = (COLOR_TO_IDX[name] for name in ("red", "blue", "grey"))
_RED_BALL, _BLUE_BALL = look_of(_BALL, _RED), look_of(_BALL, _BLUE)
_DESCRIBED = (_BOX, _BALL, _KEY, None)
"""Kinds in the order in which missions draw them; None is a door, of which a single room has none."""
_MAX_DESCRIPTIONS = 101
_FIRST_WORDS = 128
"""Random words that most scenes do with."""
_BLOCK_WORDS = (192, 768)
"""The same where many seeds are drawn together: so many that few are left over, then for those."""
_WORTH_ARRAYS = 100
"""Seeds from which on drawing them together is faster."""
_MOST_THINGS = (MAX_SIZE - 2) ** 2


@dataclass(frozen=True)
class RoomLevel:
    """A level as the vector backend plays it.

    Attributes:
        size: Side of the room, walls included.
        task: What its missions ask for.
        scene: Draws a scene; gives the mission, and the things that its first and second description mean.
        strict: True where picking up the wrong thing ends the episode.
        name: Of the level, for messages.
    """

    size: int
    task: Task
    scene: Callable[[Scene], Mission]
    strict: bool = False
    name: str = "room"

    @property
    def max_steps(self) -> int:
        """The original's rule: room size squared x navigations."""
        return self.size**2 * (1 if self.task in ("goto", "pickup") else 2)

    def draw_many(self, seeds: Sequence[int]) -> list[Start]:
        """The first states of the episodes of many seeds: in arrays as far as these know the level, and where there are enough seeds."""
        law = self._law_in_arrays()
        drawn: dict[int, Start] = {}
        left = list(dict.fromkeys(seeds))
        for num_words in _BLOCK_WORDS:
            if law is not None and len(left) >= _WORTH_ARRAYS:
                block = block_levels.draw_block(law, self.size, _MOST_THINGS, words_of_seeds(left, num_words))
                drawn |= {seed: start for seed, start in zip(left, block, strict=True) if start is not None}
                left = [seed for seed in left if seed not in drawn]
        drawn |= {
            seed: self.draw(seed, words) for seed, words in zip(left, words_of_seeds(left, _FIRST_WORDS).tolist(), strict=True)
        }  # fmt: skip
        return [drawn[seed] for seed in seeds]

    def draw(self, seed: int, words: list[int]) -> Start:
        """The first state of the episode of a seed.

        Args:
            seed: Seed of the episode.
            words: The first words of its generator, an even number.

        Raises:
            LevelError: No valid scene turns up.
        """
        stream = Words(seed, words)
        rejected = stuck = 0
        while rejected < MAX_REJECTED and stuck < MAX_STUCK:
            scene = Scene(self.size, stream)
            try:
                mission = self.scene(scene)
            except Rejected:
                rejected, stuck = rejected + 1, 0
            except Stuck:
                stuck += 1
            else:
                return _start(scene, mission)
        raise LevelError(f"{rejected + stuck} scenes of {self.name} were invalid; are there too many objects for the room?")

    def _law_in_arrays(self) -> block_levels.Law | None:
        if self.size > MAX_SIZE or not isinstance(self.scene, partial) or self.scene.func not in _IN_ARRAYS:
            return None
        return partial(_IN_ARRAYS[self.scene.func], **self.scene.keywords)


@dataclass(frozen=True)
class Mission:
    """A mission in words, and the things that it means."""

    words: str
    first: Collection[Thing]
    second: Collection[Thing] = ()


def room_level(level_id: str, num_distractors: int | None = None) -> RoomLevel | None:
    """Look a level up; None where it is no single room, or one with other rules.

    Raises:
        LevelError: As ``levels.make_level``.
    """
    level: Any = make_level(level_id, num_distractors)
    if (level.num_rows, level.num_cols) != (1, 1) or level.fixed_max_steps:
        return None
    found = _known(level, type(level).__mro__[1])
    return found and RoomLevel(level.room_size, found[0], found[1], getattr(level, "debug", False), level_id)


def _known(level: Any, kind: type) -> tuple[Task, Callable[[Scene], Mission]] | None:
    """Task and scene of a level, by its class."""
    if kind is OriginalLevelGen:
        return _generated(level)
    if kind is LocalLevel:
        return _local(level)
    if kind is PickupDist:
        return "pickup", _pickup_any
    if kind is OneRoomS8:
        return "pickup", _pickup_ball
    if kind is PutNextLocal:
        return "putnext", partial(_put_next, count=level.num_objs)
    if kind is GoToRedBlueBall:
        return "goto", partial(_go_to_red_or_blue, count=level.num_dists)
    if kind in (GoToLocal, GoTo):
        return "goto", partial(_go_to_one, count=level.num_dists)
    if kind is GoToObj:
        return "goto", partial(_go_to_only)
    if issubclass(kind, (GoToRedBall, GoToRedBallGrey)):
        return "goto", partial(_go_to_red_ball, count=level.num_dists, grey=kind is GoToRedBallGrey)
    return None


def _generated(level: OriginalLevelGen) -> tuple[Task, Callable[[Scene], Mission]] | None:
    """Levels of the grammar of missions, as far as there are any with one room."""
    tasks: dict[tuple[Any, Any], Task] = {
        (("action",), ("goto",)): "goto", (("action",), ("pickup",)): "pickup", (("and",), ("goto",)): "goto_both",
    }  # fmt: skip
    task = tasks.get((tuple(level.instr_kinds), tuple(level.action_kinds)))
    if task is None or level.locked_room_prob > 0 or level.unblocking:
        return None
    return task, partial(_from_grammar, task=task, count=level.num_dists, colored=level.force_colors, located=level.locations)


def _local(level: LocalLevel) -> tuple[Task, Callable[[Scene], Mission]] | None:
    """One kind of task alone: of the Mixed levels' kinds, one has two rooms."""
    tasks: dict[tuple[str, ...], tuple[Task, tuple[bool, ...]]] = {
        ("pickup_goto",): ("pickup_goto", (True, False)), ("pickup_then_goto",): ("pickup_goto", (True,)),
        ("goto_after_pickup",): ("pickup_goto", (False,)), ("pickup_pickup",): ("pickup_pickup", (True, False)),
    }  # fmt: skip
    if level.kinds not in tasks:
        return None
    task, orders = tasks[level.kinds]
    return task, partial(_pick_up_and, task=task, orders=orders, count=level.num_dists + 2, excluded=level.excluded)


def _start(scene: Scene, mission: Mission) -> Start:
    codes = dict(scene.things)
    for flag, things in ((FIRST, mission.first), (SECOND, mission.second)):
        for cell, _ in things:
            codes[cell] |= flag
    return Start(4 * scene.agent + scene.direction, tuple(codes.items()), mission.words)


def _named(scene: Scene, thing: Thing) -> tuple[list[Thing], str]:
    """Everything that looks like a thing, and its description."""
    _, look = thing
    kind, color = kind_and_color(look)
    meant = scene.matching(looks_of(kind, color))
    return meant, said(kind, color, len(meant))


def _go_to(scene: Scene, target: Thing) -> Mission:
    meant, words = _named(scene, target)
    return Mission(f"go to {words}", meant)


def _must_be_reachable(scene: Scene) -> None:
    if not scene.reachable():
        raise Rejected


def _go_to_one(scene: Scene, count: int) -> Mission:
    scene.place_agent()
    scene.add_things(count, unique=False)
    _must_be_reachable(scene)
    return _go_to(scene, scene.chosen(scene.things))


def _go_to_only(scene: Scene) -> Mission:
    scene.place_agent()
    scene.add_things(1, unique=True)
    return _go_to(scene, scene.things[0])


def _go_to_red_ball(scene: Scene, count: int, grey: bool) -> Mission:
    scene.place_agent()
    scene.add_thing(_RED_BALL)
    scene.add_things(count, unique=False)
    if grey:
        scene.things[1:] = [(cell, look_of(kind_and_color(look)[0], _GREY)) for cell, look in scene.things[1:]]
    _must_be_reachable(scene)
    return _go_to(scene, scene.things[0])


def _go_to_red_or_blue(scene: Scene, count: int) -> Mission:
    scene.place_agent()
    scene.add_things(count, unique=False)
    if any(look in (_RED_BALL, _BLUE_BALL) for _, look in scene.things):
        raise Rejected
    scene.add_thing((_RED_BALL, _BLUE_BALL)[scene.words.below(2)])
    _must_be_reachable(scene)
    return _go_to(scene, scene.things[-1])


def _put_next(scene: Scene, count: int) -> Mission:
    scene.place_agent()
    scene.add_things(count, unique=True)
    _must_be_reachable(scene)
    rest = list(scene.things)
    moved = rest.pop(scene.words.below(len(rest)))
    fixed = scene.chosen(rest)
    if scene.adjacent(moved[0], fixed[0]):
        raise Rejected
    return Mission(f"put {_named(scene, moved)[1]} next to {_named(scene, fixed)[1]}", [moved], [fixed])


def _pickup_ball(scene: Scene) -> Mission:
    scene.add_thing(look_of(_BALL, COLORS[scene.words.below(6)]))
    scene.place_agent()
    return Mission(f"pick up {said(_BALL, None, 1)}", scene.things)


def _pickup_any(scene: Scene) -> Mission:
    """Named by kind, colour or both. minigrid counts the walls among the grey objects, which shows in the article."""
    scene.add_things(5, unique=True)
    scene.place_agent()
    kind, color = kind_and_color(scene.chosen(scene.things)[1])
    named = scene.words.below(3)
    asked = None if named == 1 else kind, None if named == 0 else color
    meant = scene.matching(looks_of(*asked))
    walls = len(wall_cells(scene.size)) if asked == (None, _GREY) else 0
    return Mission(f"pick up {said(*asked, len(meant) + walls)}", meant)


def _from_grammar(scene: Scene, task: Task, count: int, colored: bool, located: bool) -> Mission:
    """Here things are placed before the agent is. A level without a locked room still draws whether it has one."""
    scene.words.skip_float()
    scene.add_things(count, unique=False)
    scene.place_agent()
    _must_be_reachable(scene)
    kinds = _DESCRIBED[:3] if task == "pickup" else _DESCRIBED
    first, said_first = _described(scene, kinds, colored, located)
    if task != "goto_both":
        return Mission(f"{'pick up' if task == 'pickup' else 'go to'} {said_first}", first)
    second, said_second = _described(scene, kinds, colored, located)
    return Mission(f"go to {said_first} and go to {said_second}", first, second)


def _described(scene: Scene, kinds: tuple[int | None, ...], colored: bool, located: bool) -> tuple[list[Thing], str]:
    """A random description that means something."""
    below = scene.words.below
    colors: tuple[int | None, ...] = COLORS if colored else (None, *COLORS)
    for _ in range(_MAX_DESCRIPTIONS):
        color, kind = colors[below(len(colors))], kinds[below(len(kinds))]
        location = LOC_NAMES[below(len(LOC_NAMES))] if located else None
        meant = scene.matching(looks_of(kind, color), location) if kind is not None else []
        if meant:
            return meant, said(kind, color, len(meant), location)
    raise Stuck


def _pick_up_and(scene: Scene, task: Task, orders: tuple[bool, ...], count: int, excluded: tuple[str, ...]) -> Mission:
    """Pick one thing up, then go to or pick up another. Everything is drawn before a scene is rejected."""
    scene.place_agent()
    scene.add_things(count, unique=False)
    reachable = scene.reachable()
    first, second = scene.chosen(scene.things), scene.chosen(scene.things)
    meant_first, said_first = _named(scene, first)
    while len(meant_first) < 2 and second[1] == first[1]:
        second = scene.chosen(scene.things)
    meant_second, said_second = _named(scene, second)
    pick, then = f"pick up {said_first}", f"{'go to' if task == 'pickup_goto' else 'pick up'} {said_second}"
    words = f"{pick}, then {then}" if orders[scene.words.below(len(orders))] else f"{then} after you {pick}"
    if not reachable or any(phrase in words for phrase in excluded):
        raise Rejected
    return Mission(words, meant_first, meant_second)


_IN_ARRAYS: dict[Callable[..., Mission], Callable[..., np.ndarray]] = {
    _go_to_one: block_levels.go_to_one, _go_to_only: block_levels.go_to_only, _go_to_red_ball: block_levels.go_to_red_ball,
    _go_to_red_or_blue: block_levels.go_to_red_or_blue, _put_next: block_levels.put_next, _from_grammar: block_levels.from_grammar,
    _pick_up_and: block_levels.pick_up_and,
}  # fmt: skip
"""The same laws in arrays; what is missing draws few words."""
