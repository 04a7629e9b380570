"""The catalogue of levels: every BabyAI level that minigrid registers, and those that only the
original BabyAI-Text has.

Where an id exists in both, the original's law is followed: step limits always come from the size of
the maze, and descriptions with locations are drawn as there (``original_levels``).
"""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import gymnasium
import minigrid  # noqa: F401  registers its levels
from gymnasium.envs.registration import load_env_creator
from minigrid.envs.babyai import (
    GoTo,
    GoToLocal,
    GoToObj,
    GoToRedBall,
    GoToRedBallGrey,
    GoToRedBlueBall,
    MoveTwoAcross,
    OneRoomS8,
    OpenTwoDoors,
    PutNextLocal,
)
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel

from lamorel_ext.envs.babyai.original_levels import (
    MIXED_KINDS,
    TEST_DOORS,
    TEST_EXCLUDES,
    LocalLevel,
    OriginalLevelGen,
    PutNextAnywhere,
    draw_level,
)
from lamorel_ext.envs.babyai.view import symbolic_view
from lamorel_ext.errors import LevelError

_DISTRACTOR_ARGUMENTS = ("num_dists", "num_objs", "objs_per_room")
_MOST_OBJECTS = {"num_objs": 18, "objs_per_room": 9}
"""Of levels whose objects all look different, and of those with a known number beside each other:
minigrid would look for one more without end, or ends in an assertion.
"""


@dataclass(frozen=True)
class LevelSpec:
    """How a level is built.

    Attributes:
        level_id: Such as ``BabyAI-GoToLocal-v0``.
        build: Class of the level.
        options: Its arguments.
        language: The language that a level insists on (``GoToFrench``); None takes any.
        keeps_max_steps: True for the one level that the original does not know: minigrid's own step
            limit holds.
    """

    level_id: str
    build: Callable[..., RoomGridLevel]
    options: Mapping[str, Any] = field(default_factory=dict)
    language: Literal["fr"] | None = None
    keeps_max_steps: bool = False

    @property
    def distractor_argument(self) -> str | None:
        """Name of the argument that sets the number of distractors; None where the level takes no
        such number.
        """
        known = inspect.signature(self.build).parameters
        if self.build is OriginalLevelGen:
            return "num_dists"
        return next((name for name in _DISTRACTOR_ARGUMENTS if name in known), None)


def level_ids() -> tuple[str, ...]:
    """Ids of all levels, sorted."""
    return tuple(sorted(_catalogue()))


def level_spec(level_id: str) -> LevelSpec:
    """Look a level up.

    Raises:
        LevelError: There is no such level; the message names the closest ones.
    """
    spec = _catalogue().get(level_id)
    if spec is not None:
        return spec
    if level_id in UNAVAILABLE:
        raise LevelError(f"{level_id}: {UNAVAILABLE[level_id]}")
    close = difflib.get_close_matches(level_id, level_ids(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "ids look like BabyAI-GoToLocal-v0"
    raise LevelError(f"no level {level_id!r}; {hint}")


def make_level(
    level_id: str, num_distractors: int | None = None, max_steps: int | None = None
) -> RoomGridLevel:
    """Build a level, still to be reset.

    Args:
        level_id: One of ``level_ids()``.
        num_distractors: The family's own number: objects besides the target in ``GoToRedBall`` and
            the Mixed levels, all objects in ``GoToLocal`` and the like (0 counts as 1 there, the
            target itself). None takes the level's own.
        max_steps: Fixed step limit. None follows the original: room size squared x rooms x
            navigations that the mission needs.

    Raises:
        LevelError: The level is unknown or does not take a number of distractors, or a number is
            not whole or too small.
    """
    spec = level_spec(level_id)
    options = dict(spec.options)
    if num_distractors is not None:
        name = spec.distractor_argument
        if name is None:
            raise LevelError(
                f"{level_id} does not take a number of distractors; BabyAI-GoToRedBall-v0 and"
                " BabyAI-GoToLocal-v0 do"
            )
        num_distractors = _whole(num_distractors, 0, f"{level_id}: the number of distractors")
        most = _MOST_OBJECTS.get(name, num_distractors)
        if num_distractors > most:
            raise LevelError(f"{level_id}: at most {most} objects, got {num_distractors}")
        options[name] = max(num_distractors, _fewest_objects(spec))
    level = _refined(spec.build)(**options)
    if max_steps is not None:
        level.max_steps = _whole(max_steps, 1, f"{level_id}: max_steps")
        level.fixed_max_steps = True
    elif not spec.keeps_max_steps:
        level.fixed_max_steps = False
    return level


def _whole(number: Any, least: int, what: str) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        whole = least - 1
    if whole < least:
        raise LevelError(f"{what} must be a whole number from {least} on, got {number!r}")
    return whole


def _fewest_objects(spec: LevelSpec) -> int:
    """Objects without which a mission cannot be said, where the level's number includes the
    targets.
    """
    if spec.build in (LocalLevel, GoToRedBall, GoToRedBallGrey, GoToRedBlueBall):
        return 0
    return 2 if spec.build in (PutNextLocal, PutNextAnywhere, MoveTwoAcross) else 1


@cache
def _refined(build: type[RoomGridLevel]) -> type[RoomGridLevel]:
    """The same class, drawing its levels without a word on standard output, and looking at them
    faster.
    """

    def _gen_grid(self: RoomGridLevel, width: int, height: int) -> None:
        draw_level(self, width, height)

    def gen_obs(self: RoomGridLevel) -> dict[str, Any]:
        return {"image": symbolic_view(self), "direction": self.agent_dir, "mission": self.mission}

    def __reduce__(self: RoomGridLevel) -> tuple[Any, ...]:
        # the class has no name to be found by; a window is opened again by whoever wants one
        return _blank, (build,), {**self.__dict__, "window": None, "clock": None}

    methods = {"_gen_grid": _gen_grid, "gen_obs": gen_obs, "__reduce__": __reduce__}
    return type(build.__name__, (build,), {**methods, "__module__": __name__})


def _blank(build: Any) -> RoomGridLevel:
    """A level of the refined class, for a copy's state to be put into."""
    return object.__new__(_refined(build))


_BOT_SCENES = (
    "TestGoToBlocked",
    "TestPutNextToBlocked",
    "TestPutNextToCloseToDoor1",
    "TestPutNextToCloseToDoor2",
    "TestPutNextToIdentical",
    "TestUnblockingLoop",
    "TestPutNextCloseToDoor",
    "TestLotsOfBlockers",
)
UNAVAILABLE = {
    "BabyAI-MixedTrainLocalFrench-v0": (
        "the original cannot construct it; take BabyAI-MixedTrainLocal-v0 with language fr"
    ),
    **{
        f"BabyAI-{name}-v0": (
            "a fixed scene of the original's regression tests for its bot, not built here"
        )
        for name in _BOT_SCENES
    },
}
"""Ids of the original that are not offered, and why."""

_ONE_ROOM = {"num_rows": 1, "num_cols": 1}
_MEDIUM = {"num_rows": 1, "num_cols": 2}
_LARGE = {"num_rows": 2, "num_cols": 2}
_NAMED = {"locations": False, "unblocking": False, "force_colors": True}
_ACTION = {"instr_kinds": ("action",)}
_SYNTH = {**_ACTION, "locations": False, "implicit_unlock": False}


def _named(
    size: Mapping[str, int], *action_kinds: str, num_dists: int = 8, **options: Any
) -> dict[str, Any]:
    """Missions that name every object with its colour, without unblocking."""
    return {
        **size,
        **_ACTION,
        **_NAMED,
        "action_kinds": action_kinds,
        "num_dists": num_dists,
        "implicit_unlock": False,
        **options,
    }


_GENERATED: dict[str, dict[str, Any]] = {
    # drawn differently by minigrid
    "PickupLoc": {
        **_ONE_ROOM,
        **_ACTION,
        "action_kinds": ("pickup",),
        "num_dists": 8,
        "locked_room_prob": 0,
        "unblocking": False,
    },
    "Synth": _SYNTH,
    "SynthS5R2": {**_SYNTH, **_LARGE, "room_size": 5, "num_dists": 7},
    "SynthLoc": {**_ACTION, "implicit_unlock": False},
    "SynthSeq": {"implicit_unlock": False},
    "MiniBossLevel": {**_LARGE, "room_size": 5, "num_dists": 7, "locked_room_prob": 0.25},
    "BossLevel": {},
    "BossLevelNoUnlock": {"locked_room_prob": 0, "implicit_unlock": False},
    # only in the original
    "SynthMedium": {**_SYNTH, **_MEDIUM, "num_dists": 8},
    "GoToLocal2": {
        **_ONE_ROOM,
        **_NAMED,
        "instr_kinds": ("and",),
        "action_kinds": ("goto",),
        "num_dists": 8,
        "locked_room_prob": 0,
    },
    "PickupLocal": _named(_ONE_ROOM, "pickup", locked_room_prob=0),
    "PickupMedium": _named(_MEDIUM, "pickup"),
    "PickupLarge": _named(_LARGE, "pickup"),
    "PickupOpenMedium": _named(_MEDIUM, "pickup", "open"),
    "PickupOpenLarge": _named(_LARGE, "pickup", "open"),
    "PickupOpenPutNextMedium": _named(_MEDIUM, "putnext", "pickup", "open"),
    "PickupOpenPutNextLarge": _named(_LARGE, "putnext", "pickup", "open"),
    "GoToMedium": _named(_MEDIUM, "goto", locked_room_prob=0),
    "GoToMediumOpen": _named(_MEDIUM, "goto", locked_room_prob=0, doors_open=True),
    "GoToLarge": _named(_LARGE, "goto", locked_room_prob=0),
    "GoToLargeOpen": _named(_LARGE, "goto", locked_room_prob=0, doors_open=True),
    "PutNextMedium": _named(_MEDIUM, "putnext", locked_room_prob=0),
    "PutNextLarge": _named(_LARGE, "putnext", locked_room_prob=0),
    "UnlockMedium": _named(_MEDIUM, "open", locked_room_prob=1, implicit_unlock=True),
    "OpenGoToMedium": _named(_MEDIUM, "goto", "open", num_dists=5, locked_room_prob=0),
    "OpenGoToLarge": _named(_LARGE, "goto", "open", num_dists=5, locked_room_prob=0),
    "OpenAndPickupMedium": _named(
        _MEDIUM, "open", "pickup", num_dists=5, locked_room_prob=0, instr_kinds=("both",)
    ),
    "OpenAndPickupLarge": _named(
        _LARGE, "open", "pickup", num_dists=5, locked_room_prob=0, instr_kinds=("both",)
    ),
    "SynthThenSynthMedium": _named(
        _MEDIUM, "open", "pickup", "putnext", locked_room_prob=0, instr_kinds=("then_or_after",)
    ),
    "SynthThenSynthLarge": _named(
        _LARGE, "open", "pickup", "putnext", locked_room_prob=0, instr_kinds=("then_or_after",)
    ),
}

_OTHERS: dict[str, tuple[Callable[..., RoomGridLevel], dict[str, Any]]] = {
    "MixedTrainLocal": (LocalLevel, {"kinds": MIXED_KINDS}),
    "MixedTestLocal": (
        LocalLevel,
        {
            "kinds": MIXED_KINDS,
            "excluded": TEST_EXCLUDES,
            "door_colors": TEST_DOORS,
            "door_color_named": True,
        },
    ),
    "PickUpSeqGoToLocal": (LocalLevel, {"kinds": ("pickup_goto",)}),
    "PickUpThenGoToLocal": (LocalLevel, {"kinds": ("pickup_then_goto",)}),
    "GoToAfterPickUpLocal": (LocalLevel, {"kinds": ("goto_after_pickup",)}),
    "PickUpSeqPickUpLocal": (LocalLevel, {"kinds": ("pickup_pickup",)}),
    "GoToLocalS8N16": (GoToLocal, {"room_size": 8, "num_dists": 16}),
    "GoToFrench": (GoTo, {**_ONE_ROOM, "num_dists": 8, "doors_open": True}),
    "GoToObjS6": (GoToObj, {"room_size": 6}),
    "PutNext": (PutNextAnywhere, {}),
    "OpenTwoDoorsDebug": (OpenTwoDoors, {"strict": True}),
    **{f"1RoomS{size}": (OneRoomS8, {"room_size": size}) for size in (8, 12, 16, 20)},
}


@cache
def _catalogue() -> dict[str, LevelSpec]:
    specs = [
        _registered_spec(env_spec)
        for level_id, env_spec in gymnasium.registry.items()
        if level_id.startswith("BabyAI-")
    ]
    specs += [
        LevelSpec(f"BabyAI-{name}-v0", OriginalLevelGen, options)
        for name, options in _GENERATED.items()
    ]
    specs += [
        LevelSpec(f"BabyAI-{name}-v0", *parts, language="fr" if name == "GoToFrench" else None)
        for name, parts in _OTHERS.items()
    ]
    return {spec.level_id: spec for spec in specs}


def _registered_spec(env_spec: Any) -> LevelSpec:
    build: Any = (
        env_spec.entry_point
        if callable(env_spec.entry_point)
        else load_env_creator(env_spec.entry_point)
    )
    return LevelSpec(
        env_spec.id, build, env_spec.kwargs, keeps_max_steps=env_spec.id == "BabyAI-KeyCorridor-v0"
    )
