"""Recorded states turned back into environments that can be looked at and stepped.

A record is a mapping with the fields of the BabyAI-Text transcripts: the grid as codes ``100 *
object + 10 * colour + state``, the agent's pose, what it carries, the room lattice and the
instruction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.roomgrid import Room
from minigrid.core.world_object import Box, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace, RoomGridLevel
from minigrid.envs.babyai.core.verifier import (
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
from minigrid.minigrid_env import MiniGridEnv

from lamorel_ext.errors import LevelError

Record = Mapping[str, Any]

_GOAL_LEVELS = (
    "Empty",
    "DoorKey",
    "FourRooms",
    "DistShift",
    "Lava",
    "SimpleCrossing",
    "MultiRoom",
    "LockedRoom",
    "Playground",
)
_PICKUP_LEVELS = ("ObstructedMaze", "KeyCorridor", "UnlockPickup", "BlockedUnlockPickup")
"""Families of minigrid whose episodes end at the goal or in lava, or when what the mission names is
picked up.
"""


class RecordedLevel(RoomGridLevel):
    """A recorded state of a BabyAI level; its instruction refers to this state as the first of the
    episode.
    """

    def __init__(self, record: Record) -> None:
        rooms = record["rooms"]
        size = rooms["size"]
        super().__init__(
            room_size=size,
            num_rows=rooms["rows"],
            num_cols=rooms["cols"],
            max_steps=record["max_steps"],
        )
        self.room_grid = [
            [
                Room((column * (size - 1), row * (size - 1)), (size, size))
                for column in range(rooms["cols"])
            ]
            for row in range(rooms["rows"])
        ]
        self.instrs = make_instruction(record["instr"])
        _put_state(self, record)

    def start_episode(self) -> str:
        """Let the instruction find its objects, as at a reset; gives the mission in words."""
        spare = self._lay_down()
        self.instrs.reset_verifier(self)
        mission = str(self.instrs.surface(self))
        if spare is not None:
            self.grid.set(*spare, None)
        return mission

    def natural_max_steps(self) -> int:
        """The step limit by the original's rule: room size squared x rooms x navigations."""
        return int(
            self.num_navs_needed(self.instrs) * self.room_size**2 * self.num_rows * self.num_cols
        )

    def _lay_down(self) -> tuple[int, int] | None:
        """Levels that start with something in the hand had it in the grid when the instruction
        looked.
        """
        if self.carrying is None:
            return None
        free = [
            (x, y)
            for x in range(self.width)
            for y in range(self.height)
            if self.grid.get(x, y) is None and (x, y) != tuple(self.agent_pos)
        ]
        self.grid.set(*free[0], self.carrying)
        return free[0]


class RecordedGrid(MiniGridEnv):
    """A recorded state without an instruction: minigrid's own rules, and success on picking up what
    the mission names where it does.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(
            mission_space=BabyAIMissionSpace(),
            width=record["width"],
            height=record["height"],
            max_steps=record["max_steps"],
            see_through_walls=record["see_through_walls"],
        )
        wanted = re.fullmatch(r"pick up (?:the|a) (?:(\w+) )?(\w+)", record["mission"])
        self.wanted = (
            (wanted[1], wanted[2]) if wanted and _of_family(record, _PICKUP_LEVELS) else None
        )
        _put_state(self, record)

    def _gen_grid(self, width: int, height: int) -> None:
        raise LevelError("a recorded state has no next episode: it cannot be reset")

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.wanted is not None and action == self.actions.pickup and self.carrying is not None:
            color, kind = self.wanted
            if self.carrying.type == kind and color in (None, self.carrying.color):
                terminated, reward = True, self._reward()
        return observation, reward, terminated, truncated, info


def rebuild(record: Record) -> RecordedLevel | RecordedGrid:
    """Build an environment in the recorded state.

    Raises:
        KeyError: The record lacks a field.
    """
    return RecordedGrid(record) if record["instr"] is None else RecordedLevel(record)


def moves_otherwise(record: Record) -> bool:
    """True where the state does not follow from the actions by the common rules: obstacles that
    move, actions with another meaning.
    """
    return _of_family(record, ("Dynamic", "Memory"))


def rules_known(record: Record) -> bool:
    """True where a rebuilt state's steps end and reward by the level's rules: with an instruction,
    else in some of minigrid's families.
    """
    of_minigrid = str(record["level"]).startswith("MiniGrid-")
    return (
        record["instr"] is not None
        or not of_minigrid
        or _of_family(record, _GOAL_LEVELS + _PICKUP_LEVELS)
    )


def make_instruction(instruction: Record) -> Instr:
    """Build minigrid's form of a recorded instruction."""
    kind, strict = instruction["kind"], instruction["strict"]
    instr: Instr
    if kind in ("before", "after", "and"):
        sequence: Any = {"before": BeforeInstr, "after": AfterInstr, "and": AndInstr}[kind]
        instr = sequence(
            make_instruction(instruction["a"]), make_instruction(instruction["b"]), strict=strict
        )
        return instr
    if kind == "putnext":
        return PutNextInstr(
            _description(instruction["move"]), _description(instruction["fixed"]), strict=strict
        )
    if kind == "goto":
        return GoToInstr(_description(instruction["desc"]))
    simple: Any = {"open": OpenInstr, "pickup": PickupInstr}[kind]
    instr = simple(_description(instruction["desc"]), strict=strict)
    return instr


def grid_codes(grid: Grid) -> list[list[int]]:
    """``height`` rows of ``width`` codes, as transcripts have them."""
    codes: np.ndarray = grid.encode().astype(np.int64) @ np.array([100, 10, 1])
    return [[int(code) for code in row] for row in codes.T]


def thing_record(thing: Any) -> dict[str, Any] | None:
    """An object and what it contains, as transcripts have them."""
    if thing is None:
        return None
    return {
        "code": [int(code) for code in thing.encode()],
        "contains": thing_record(thing.contains),
    }


def box_contents(grid: Grid) -> list[list[Any]]:
    """``[x, y, thing]`` for every box that holds something."""
    filled: list[tuple[int, Any]] = [
        (index, box)
        for index, box in enumerate(grid.grid)
        if isinstance(box, Box) and box.contains is not None
    ]
    return [
        [index % grid.width, index // grid.width, thing_record(box.contains)]
        for index, box in filled
    ]


def _of_family(record: Record, families: tuple[str, ...]) -> bool:
    return str(record["level"]).startswith(tuple(f"MiniGrid-{family}" for family in families))


def _put_state(env: MiniGridEnv, record: Record) -> None:
    env.grid = Grid(record["width"], record["height"])
    for y, row in enumerate(record["grid"]):
        for x, code in enumerate(row):
            if (thing := WorldObj.decode(code // 100, code // 10 % 10, code % 10)) is not None:
                env.put_obj(thing, x, y)
    for x, y, content in record["box_contents"]:
        box: Any = env.grid.get(x, y)
        if box is None:
            raise ValueError(f"box_contents names the empty cell ({x}, {y})")
        box.contains = _thing_of(content)
    env.agent_pos = tuple(record["agent_pos"])
    env.agent_dir = record["agent_dir"]
    env.carrying = _thing_of(record["carrying"])
    if env.carrying is not None:
        env.carrying.cur_pos = (-1, -1)  # what minigrid writes when something is picked up
    env.mission = record["mission"]
    env.step_count = record["step_count"]


def _thing_of(record: Record | None) -> Any:
    if record is None:
        return None
    # Any: minigrid annotates what an object contains as None alone
    thing: Any = WorldObj.decode(*record["code"])
    if thing is not None:
        thing.contains = _thing_of(record["contains"])
    return thing


def _description(record: Record) -> ObjDesc:
    return ObjDesc(record["type"], record["color"], record["loc"])
