"""Level generators of the original BabyAI-Text that minigrid lacks or draws differently.

Source of the laws: the public repository flowersteam/Grounding_LLMs_with_online_RL, commit
31847fb8. A seed gives the original's level, because the random draws happen in its order; that
order is what looks odd below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.roomgrid import RoomGrid
from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling, RoomGridLevel
from minigrid.envs.babyai.core.verifier import (
    LOC_NAMES,
    OBJ_TYPES,
    AfterInstr,
    AndInstr,
    BeforeInstr,
    GoToInstr,
    Instr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)

from lamorel_ext.errors import LevelError

Drawn = TypeVar("Drawn")

MIXED_KINDS = ("goto", "pickup", "open", "putnext", "pickup_goto")
"""Kinds of task of the Mixed levels, in the order in which a seed's draw counts them."""
TRAIN_EXCLUDES = ("yellow box", "red key", "red door", "green ball", "grey door")
"""Phrases that no mission of the training distribution contains."""
TEST_EXCLUDES = tuple(
    phrase
    for phrase in (
        f"{color} {kind}" for color in COLOR_NAMES for kind in ("box", "key", "ball", "door")
    )
    if phrase not in TRAIN_EXCLUDES
)
"""Phrases that no mission of the test distribution contains: all the others."""
TRAIN_DOORS = ("yellow", "green", "blue", "purple")
TEST_DOORS = ("red", "grey")


MAX_REJECTED = 100_000
"""Invalid scenes in one draw after which a level is given up.

With 18 objects in 36 cells about one scene in 3,000 is valid.
"""
MAX_STUCK = 300
"""The same for scenes in which something could not be placed at all: they come in a row where
nothing ever fits.
"""


class OriginalLevelGen(LevelGen):
    """minigrid's grammar of missions with the original's draws.

    Args:
        force_colors: Every object is named with its colour.
        doors_open: All doors are open at the start.
        options: Arguments of minigrid's ``LevelGen``. ``instr_kinds`` may also be
            ``("then_or_after",)``, a sequence of two actions, or ``("both",)``, one of the first
            and one of the second of ``action_kinds``.
    """

    def __init__(
        self, force_colors: bool = False, doors_open: bool = False, **options: Any
    ) -> None:
        self.force_colors = force_colors
        self.doors_open = doors_open
        super().__init__(**options)

    def reset(self, **options: Any) -> Any:
        self._last_locked: Any = None
        return super().reset(**options)

    def add_locked_room(self) -> None:
        super().add_locked_room()
        self._last_locked = self.locked_room

    def gen_mission(self) -> None:
        super().gen_mission()
        if self.doors_open:
            self.open_all_doors()

    def rand_obj(
        self,
        types: Sequence[str] = OBJ_TYPES,
        colors: Sequence[str] = COLOR_NAMES,
        max_tries: int = 100,
    ) -> ObjDesc:
        """Like minigrid's, but a level with locations always draws one."""
        for _ in range(max_tries + 1):
            color = self._rand_elem(list(colors) if self.force_colors else [None, *colors])
            kind = self._rand_elem(types)
            location = self._rand_elem(LOC_NAMES) if self.locations else None
            description = ObjDesc(kind, color, location)
            objects, _ = description.find_matching_objs(self)
            if objects and (self.implicit_unlock or self._something_beside_locked_room()):
                return description
        raise RecursionError("no object fits a description")

    def rand_instr(
        self, action_kinds: Sequence[str], instr_kinds: Sequence[str], depth: int = 0
    ) -> Instr:
        if tuple(instr_kinds) == ("both",):
            return AndInstr(
                self.rand_instr(action_kinds[:1], ("action",), depth + 1),
                self.rand_instr(action_kinds[1:2], ("action",), depth + 1),
            )
        if tuple(instr_kinds) == ("then_or_after",):
            first, second = (
                self.rand_instr(action_kinds, ("action",), depth + 1) for _ in range(2)
            )
            return self._rand_elem([BeforeInstr, AfterInstr])(first, second)
        instr: Instr = super().rand_instr(action_kinds, instr_kinds, depth)
        return instr

    def _something_beside_locked_room(self) -> bool:
        """The original looks into the first neighbour of the locked room, whatever the description
        says; of the last one drawn, which may be that of a scene that was rejected.
        """
        if self._last_locked is None:
            return True
        neighbor = next(room for room in self._last_locked.neighbors if room is not None)
        return len(neighbor.objs) > 0


class LocalLevel(RoomGridLevel):
    """One task in one room, or behind the locked door of a second one; the missions leave out given
    phrases.

    The kind of task is drawn once per episode from the episode's seed: the first draw of a
    generator of its own with that seed. (The original draws it once per environment object,
    unseeded.) An episode without a seed takes its seed from the episode before.

    Args:
        kinds: What the task may be: of ``MIXED_KINDS``, or ``pickup_then_goto``,
            ``goto_after_pickup``, ``pickup_pickup``.
        excluded: Phrases that a mission must not contain.
        door_colors: Colours of the locked door.
        door_color_named: True where the mission always names the door's colour; otherwise it does
            so in half of the missions.
        num_dists: Objects besides those of the mission.
    """

    def __init__(
        self,
        kinds: Sequence[str] = MIXED_KINDS,
        excluded: Sequence[str] = TRAIN_EXCLUDES,
        door_colors: Sequence[str] = TRAIN_DOORS,
        door_color_named: bool = False,
        num_dists: int = 8,
        **options: Any,
    ) -> None:
        self.kinds = tuple(kinds)
        self.excluded = tuple(excluded)
        self.door_colors = tuple(door_colors)
        self.door_color_named = door_color_named
        self.num_dists = num_dists
        self.kind = self.kinds[0]
        super().__init__(num_rows=1, num_cols=1, **options)

    def reset(self, **options: Any) -> Any:
        seed = options.pop("seed", None)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.kind = kind_of_seed(self.kinds, episode_seed)
        self.num_cols = 2 if self.kind == "open" else 1
        self.width, self.height = self.num_cols * (self.room_size - 1) + 1, self.room_size
        return super().reset(seed=episode_seed, **options)

    def gen_mission(self) -> None:
        """Draw scenes until everything can be reached and no excluded phrase is said."""
        for _ in range(MAX_REJECTED):
            RoomGrid._gen_grid(self, self.width, self.height)
            objects = self._locked_door_scene() if self.kind == "open" else self._room_scene()
            reachable = self.check_objs_reachable(raise_exc=False)
            self.instrs = self._instruction(objects)
            if reachable and not any(
                phrase in self.instrs.surface(self) for phrase in self.excluded
            ):
                return
        raise LevelError(
            f"{MAX_REJECTED} scenes in a row were invalid; are there too many objects for the room?"
        )

    def _room_scene(self) -> list[WorldObj]:
        self.place_agent()
        targets = 1 if self.kind in ("goto", "pickup") else 2
        return self.add_distractors(num_distractors=self.num_dists + targets, all_unique=False)

    def _locked_door_scene(self) -> list[WorldObj]:
        """Door, its key and the distractors in the other room, and the agent there too; gives the
        door alone.
        """
        color = self._rand_elem(self.door_colors)
        while True:
            column, row, side = (
                self._rand_int(0, self.num_cols),
                self._rand_int(0, self.num_rows),
                self._rand_int(0, 4),
            )
            locked_room = self.get_room(column, row)
            if locked_room.neighbors[side] is not None:
                break
        door, _ = self.add_door(column, row, side, color=color, locked=True)
        while True:
            column, row = self._rand_int(0, self.num_cols), self._rand_int(0, self.num_rows)
            if self.get_room(column, row) is not locked_room:
                break
        self.add_object(column, row, "key", color)
        self.add_distractors(column, row, num_distractors=self.num_dists, all_unique=False)
        while True:
            self.place_agent()
            if self.room_from_pos(*self.agent_pos) is not locked_room:
                return [door]

    def _instruction(self, objects: list[WorldObj]) -> Instr:
        if self.kind == "open":
            (door,) = objects
            return OpenInstr(
                ObjDesc(
                    "door",
                    door.color if self.door_color_named else self._rand_elem([None, door.color]),
                )
            )
        if self.kind == "goto":
            return GoToInstr(_describe(self._rand_elem(objects)))
        if self.kind == "pickup":
            return PickupInstr(_describe(self._rand_elem(objects)))
        first, second = self._two_targets(objects)
        if self.kind == "putnext":
            return PutNextInstr(first, second)
        pick = PickupInstr(first)
        then = PickupInstr(second) if self.kind == "pickup_pickup" else GoToInstr(second)
        orders = {"pickup_then_goto": [True], "goto_after_pickup": [False]}.get(
            self.kind, [True, False]
        )
        return BeforeInstr(pick, then) if self._rand_elem(orders) else AfterInstr(then, pick)

    def _two_targets(self, objects: list[WorldObj]) -> tuple[ObjDesc, ObjDesc]:
        """Two descriptions, the same one only where two objects match it."""
        first, second = self._rand_elem(objects), self._rand_elem(objects)
        twins = [thing for thing in objects if _looks(thing) == _looks(first)]
        while len(twins) < 2 and _looks(second) == _looks(first):
            second = self._rand_elem(objects)
        return _describe(first), _describe(second)


def kind_of_seed(kinds: Sequence[str], seed: int) -> str:
    """The kind of task that a ``LocalLevel`` with these kinds draws for the episode of a seed."""
    return kinds[int(np.random.default_rng(seed).integers(0, len(kinds)))]


class PutNextAnywhere(RoomGridLevel):
    """Put one object next to another in a maze of 3 x 3 rooms."""

    def __init__(self, num_dists: int = 18, **options: Any) -> None:
        self.num_dists = num_dists
        super().__init__(**options)

    def gen_mission(self) -> None:
        self.place_agent()
        self.connect_all()
        objects = self.add_distractors(num_distractors=self.num_dists, all_unique=False)
        self.check_objs_reachable()
        self.instrs = PutNextInstr(*(_describe(thing) for thing in self._rand_subset(objects, 2)))


def draw_level(level: Any, width: int, height: int) -> None:
    """Draw scenes and missions until one is valid, without minigrid's remarks on standard output.

    Raises:
        LevelError: See ``first_valid``.
    """

    def draw() -> None:
        RoomGrid._gen_grid(level, width, height)
        level.gen_mission()
        level.validate_instrs(level.instrs)

    first_valid(draw, type(level).__name__)
    level.surface = level.mission = level.instrs.surface(level)


def first_valid(draw: Callable[[], Drawn], name: str) -> Drawn:
    """Draw scenes of the level called ``name`` until one is valid.

    Args:
        draw: Raises ``RejectSampling`` where a scene is not valid, ``RecursionError`` where
            something could not be placed, as minigrid does.

    Raises:
        LevelError: No valid scene turns up, for one because the objects do not fit into the room.
    """
    rejected = stuck = 0
    while rejected < MAX_REJECTED and stuck < MAX_STUCK:
        try:
            return draw()
        except RejectSampling:
            rejected, stuck = rejected + 1, 0
        except RecursionError:
            stuck += 1
    raise LevelError(
        f"{rejected + stuck} scenes of {name} were invalid; are there too many objects for the"
        " room?"
    )


def _looks(thing: WorldObj) -> tuple[str, str]:
    return thing.type, thing.color


def _describe(thing: WorldObj) -> ObjDesc:
    return ObjDesc(thing.type, thing.color)
