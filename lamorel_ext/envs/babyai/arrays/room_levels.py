"""The levels that the vector backend knows: what their missions ask for, and how their episodes are
drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

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

from lamorel_ext.envs.babyai.arrays import block_levels
from lamorel_ext.envs.babyai.arrays.door_levels import door_law, pick_up_and, put_next_to, to_one
from lamorel_ext.envs.babyai.arrays.room_codes import (
    FIRST,
    SECOND,
    Start,
    kind_and_color,
    look_of,
    wall_cells,
)
from lamorel_ext.envs.babyai.arrays.room_draws import (
    COLORS,
    Mission,
    Rejected,
    Scene,
    Stuck,
    Thing,
    Words,
    described,
    looks_of,
    said,
)
from lamorel_ext.envs.babyai.arrays.scene_blocks import MAX_SIZE
from lamorel_ext.envs.babyai.episodes import words_of_seeds
from lamorel_ext.envs.babyai.levels import make_level
from lamorel_ext.envs.babyai.original_levels import OriginalLevelGen, first_valid

Task = Literal[
    "goto", "pickup", "putnext", "pickup_goto", "pickup_pickup", "goto_both", "open", "open_open"
]
"""What a mission asks for. ``goto_both`` is to be done in any order, the other pairs in theirs."""

_KEY, _BALL, _BOX = range(3)
_RED, _BLUE, _GREY = (COLOR_TO_IDX[name] for name in ("red", "blue", "grey"))
_RED_BALL, _BLUE_BALL = look_of(_BALL, _RED), look_of(_BALL, _BLUE)
_DESCRIBED = (_BOX, _BALL, _KEY, None)
"""Kinds in the order in which missions draw them; None is a door, of which a single room has none.
"""
_MAX_DESCRIPTIONS = 101
_FIRST_WORDS = 128
"""Random words that most scenes do with."""
_BLOCK_WORDS = (192, 768, 3072, 12288)
"""The same where many seeds are drawn together: so many that few are left over, then for those."""
_MOST_WORDS = 2**22
"""Random words that are held at a time."""
_WORTH_ARRAYS, _WORTH_MORE_WORDS = 100, 24
"""Seeds from which on drawing them together is faster, and the same for seeds that need many
scenes.
"""
_MOST_THINGS = (MAX_SIZE - 2) ** 2


@dataclass(frozen=True)
class RoomLevel:
    """A level as the vector backend plays it.

    Attributes:
        size: Side of a room, walls included.
        tasks: What its missions ask for.
        laws: Draw a scene and its mission; which of them does is the first draw of another
            generator with the episode's seed.
        strict: Whether the wrong deed ends the episode: picking up the wrong thing, or toggling
            another door. Of the first and second part.
        columns: Rooms side by side.
        rows: Rooms below each other.
        name: Of the level, for messages.
    """

    size: int
    tasks: tuple[Task, ...]
    laws: tuple[Callable[[Scene], Mission], ...]
    strict: tuple[bool, bool] = (False, False)
    columns: int = 1
    rows: int = 1
    name: str = "room"

    @property
    def max_steps(self) -> int:
        """No mission is given more."""
        return max(self._limit(task, self.columns * self.rows) for task in self.tasks)

    def _limit(self, task: Task, rooms: int) -> int:
        """The original's rule: room size squared x rooms x navigations."""
        return self.size**2 * rooms * (1 if task in ("goto", "pickup", "open") else 2)

    def draw_many(self, seeds: Sequence[int]) -> list[Start]:
        """The first states of the episodes of many seeds: in arrays as far as these know the level,
        and where there are enough seeds.
        """
        drawn: dict[int, Start] = {}
        left = list(dict.fromkeys(seeds))
        for num_words in _BLOCK_WORDS:
            fewest = _WORTH_ARRAYS if num_words == _BLOCK_WORDS[0] else _WORTH_MORE_WORDS
            for place, chosen in self._by_law(left).items():
                worth_it = fewest <= len(chosen) <= _MOST_WORDS // num_words
                if worth_it and (law := self._law_in_arrays(place)) is not None:
                    block = block_levels.draw_block(
                        law, self.size, _MOST_THINGS, words_of_seeds(chosen, num_words)
                    )
                    drawn |= {
                        seed: self._placed(start, place)
                        for seed, start in zip(chosen, block, strict=True)
                        if start is not None
                    }
            left = [seed for seed in left if seed not in drawn]
        drawn |= {
            seed: self.draw(seed, words)
            for seed, words in zip(left, words_of_seeds(left, _FIRST_WORDS).tolist(), strict=True)
        }
        return [drawn[seed] for seed in seeds]

    def draw(self, seed: int, words: list[int]) -> Start:
        """The first state of the episode of a seed.

        Args:
            seed: Seed of the episode.
            words: The first words of its generator, an even number.

        Raises:
            LevelError: No valid scene turns up.
        """
        law = self.laws[self._law_of(seed, words)]
        stream = Words(seed, words)

        def draw() -> Start:
            scene = Scene(self.size, stream)
            return self._start(scene, law(scene))

        return first_valid(draw, self.name)

    def _law_of(self, seed: int, words: list[int]) -> int:
        return Words(seed, words).below(len(self.laws))

    def _by_law(self, seeds: list[int]) -> dict[int, list[int]]:
        if len(self.laws) == 1:
            return {0: seeds}
        chosen: dict[int, list[int]] = {place: [] for place in range(len(self.laws))}
        for seed, words in zip(seeds, words_of_seeds(seeds, 2).tolist(), strict=True):
            chosen[self._law_of(seed, words)].append(seed)
        return chosen

    def _law_in_arrays(self, place: int = 0) -> block_levels.Law | None:
        law = self.laws[place]
        if self.size > MAX_SIZE or not isinstance(law, partial) or law.func not in _IN_ARRAYS:
            return None
        if law.keywords.get("count", 0) >= _MOST_THINGS:  # no scene will be valid
            return None
        return partial(_IN_ARRAYS[law.func], **law.keywords)

    def _start(self, scene: Scene, mission: Mission) -> Start:
        codes = dict(scene.things)
        for flag, things in ((FIRST, mission.first), (SECOND, mission.second)):
            for cell, _ in things:
                codes[cell] |= flag
        task = self.tasks[0] if mission.task is None else cast(Task, mission.task)
        rooms = self.columns * self.rows if mission.rooms is None else mission.rooms
        limit = self._limit(task, rooms)
        start = Start(4 * scene.agent + scene.direction, tuple(codes.items()), mission.words)
        return self._in_maze(start, mission.room)._replace(
            task=self.tasks.index(task), limit=0 if limit == self.max_steps else limit
        )

    def _placed(self, start: Start, place: int) -> Start:
        """What was drawn in arrays by one of several laws, in the room on the left."""
        if len(self.laws) == 1:
            return start
        law = cast(partial[Mission], self.laws[place])
        task: Task = law.keywords.get("task", "putnext")
        return self._in_maze(start, (0, 0))._replace(
            task=self.tasks.index(task), limit=self._limit(task, 1)
        )

    def _in_maze(self, start: Start, room: tuple[int, int]) -> Start:
        """From cells of a room to cells of the maze."""
        if self.columns * self.rows == 1:
            return start
        width, (column, row) = self.columns * (self.size - 1) + 1, room

        def moved(cell: int) -> int:
            y, x = divmod(cell, self.size)
            return (row * (self.size - 1) + y) * width + column * (self.size - 1) + x

        things = tuple((moved(cell), code) for cell, code in start.things)
        return start._replace(pose=4 * moved(start.pose // 4) + start.pose % 4, things=things)


def room_level(level_id: str, num_distractors: int | None = None) -> RoomLevel | None:
    """Look a level up; None where its missions lead through several rooms, or where it has other
    rules.

    Known are the levels in a single room, and those in which things and doors are in one room only:
    OpenDoor and its like, OpenRedDoor, OpenTwoDoors, OpenDoorsOrder, UnlockLocal, and the Mixed
    levels.

    Raises:
        LevelError: As ``levels.make_level``.
    """
    level: Any = make_level(level_id, num_distractors)
    kind = type(level).__mro__[1]
    if level.fixed_max_steps:
        return None
    known = door_law(level, kind)
    if (level.num_rows, level.num_cols) == (1, 1) and (found := _known(level, kind)) is not None:
        known = (found[0],), (found[1],), (getattr(level, "debug", False), False)
    if known is None:
        return None
    tasks, laws, strict = known
    columns = 2 if "open" in getattr(level, "kinds", ()) else level.num_cols
    return RoomLevel(
        level.room_size,
        cast(tuple[Task, ...], tasks),
        laws,
        strict,
        columns,
        level.num_rows,
        level_id,
    )


def _known(level: Any, kind: type) -> tuple[Task, Callable[[Scene], Mission]] | None:
    """Task and scene of a level, by its class."""
    if kind is OriginalLevelGen:
        return _generated(level)
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
        (("action",), ("goto",)): "goto",
        (("action",), ("pickup",)): "pickup",
        (("and",), ("goto",)): "goto_both",
    }
    task = tasks.get((tuple(level.instr_kinds), tuple(level.action_kinds)))
    if task is None or level.locked_room_prob > 0 or level.unblocking:
        return None
    return task, partial(
        _from_grammar,
        task=task,
        count=level.num_dists,
        colored=level.force_colors,
        located=level.locations,
    )


def _go_to(scene: Scene, target: Thing) -> Mission:
    meant, words = described(scene, target)
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
        scene.things[1:] = [
            (cell, look_of(kind_and_color(look)[0], _GREY)) for cell, look in scene.things[1:]
        ]
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
    return Mission(
        f"put {described(scene, moved)[1]} next to {described(scene, fixed)[1]}", [moved], [fixed]
    )


def _pickup_ball(scene: Scene) -> Mission:
    scene.add_thing(look_of(_BALL, COLORS[scene.words.below(6)]))
    scene.place_agent()
    return Mission(f"pick up {said(_BALL, None, 1)}", scene.things)


def _pickup_any(scene: Scene) -> Mission:
    """Named by kind, colour or both.

    minigrid counts the walls among the grey objects, which shows in the article.
    """
    scene.add_things(5, unique=True)
    scene.place_agent()
    kind, color = kind_and_color(scene.chosen(scene.things)[1])
    named = scene.words.below(3)
    asked = None if named == 1 else kind, None if named == 0 else color
    meant = scene.matching(looks_of(*asked))
    walls = len(wall_cells(scene.size)) if asked == (None, _GREY) else 0
    return Mission(f"pick up {said(*asked, len(meant) + walls)}", meant)


def _from_grammar(scene: Scene, task: Task, count: int, colored: bool, located: bool) -> Mission:
    """Here things are placed before the agent is.

    A level without a locked room still draws whether it has one.
    """
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


def _described(
    scene: Scene, kinds: tuple[int | None, ...], colored: bool, located: bool
) -> tuple[list[Thing], str]:
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


_IN_ARRAYS: dict[Callable[..., Mission], Callable[..., np.ndarray]] = {
    _go_to_one: block_levels.go_to_one,
    _go_to_only: block_levels.go_to_only,
    _go_to_red_ball: block_levels.go_to_red_ball,
    _go_to_red_or_blue: block_levels.go_to_red_or_blue,
    _put_next: block_levels.put_next,
    _from_grammar: block_levels.from_grammar,
    pick_up_and: block_levels.pick_up_and,
    to_one: block_levels.to_one,
    put_next_to: block_levels.put_next_to,
}
"""The same laws in arrays; what is missing draws few words."""
