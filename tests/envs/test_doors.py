"""Rooms with doors in arrays against minigrid: first states, steps, what is seen through doors,
recorded episodes of the original.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_batched import assert_same_observations, assert_same_steps, random_actions

from experiments.check_oracle import read_episodes
from lamorel_ext.envs.babyai.arrays.room_codes import (
    DOOR_CODE,
    EMPTY,
    FIRST,
    FIRST_THING,
    KEY_CODE,
    LOOK,
    SECOND,
    Start,
    door_look,
    look_of,
)
from lamorel_ext.envs.babyai.arrays.room_draws import Scene
from lamorel_ext.envs.babyai.arrays.room_levels import RoomLevel, Task, room_level
from lamorel_ext.envs.babyai.arrays.room_views import images_of, look_around, sentences_of
from lamorel_ext.envs.babyai.arrays.rooms import Rooms
from lamorel_ext.envs.babyai.arrays.streams import words_of
from lamorel_ext.envs.babyai.arrays.vector_batch import VectorBatch
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.envs.babyai.describe import describe
from lamorel_ext.envs.babyai.levels import level_ids, make_level
from lamorel_ext.envs.babyai.transcripts import RecordedLevel, rebuild
from lamorel_ext.types import BatchedEnv

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "oracle" / "babyai_text_train.jsonl.gz"


def has_doors(level: str) -> bool:
    rules = None if level == "BabyAI-GoToLocalS8N16-v0" else room_level(level)
    return rules is not None and rules.columns * rules.rows > 1


DOOR_LEVELS = [level for level in level_ids() if has_doors(level)]
OPEN, TOGGLE = "open", 5


def test_the_levels_with_doors_are_known() -> None:
    names = {level.removeprefix("BabyAI-").removesuffix("-v0") for level in DOOR_LEVELS}
    assert names == {
        "OpenDoor", "OpenDoorColor", "OpenDoorLoc", "OpenDoorDebug", "OpenRedDoor", "OpenTwoDoors",
        "OpenTwoDoorsDebug", "OpenRedBlueDoors", "OpenRedBlueDoorsDebug", "OpenDoorsOrderN2",
        "OpenDoorsOrderN4", "OpenDoorsOrderN2Debug", "OpenDoorsOrderN4Debug", "UnlockLocal",
        "UnlockLocalDist", "MixedTrainLocal", "MixedTestLocal",
    }  # fmt: skip
    for level in ("Open", "Unlock", "KeyInBox", "GoToDoor", "UnlockPickup", "OpenGoToMedium"):
        assert room_level(f"BabyAI-{level}-v0") is None


@pytest.mark.parametrize("level", DOOR_LEVELS)
def test_a_seed_gives_minigrids_first_state(level: str) -> None:
    rules, env = room_level(level), make_level(level)
    assert rules is not None
    width = rules.columns * (rules.size - 1) + 1
    for seed in range(16):
        env.reset(seed=seed)
        start = rules.draw(seed, words_of(seed, 0, 2 + 2 * (seed % 3)))
        agent = env.agent_pos[1] * width + env.agent_pos[0]
        assert (start.pose, start.mission) == (4 * agent + env.agent_dir, env.mission)
        assert {cell: code & LOOK for cell, code in start.things} == looks_in(env, width)
        assert env.max_steps == (start.limit or rules.max_steps)


@pytest.mark.parametrize("level", ["GoToLocal", "PutNextLocal", "MixedTrainLocal"])
def test_nothing_is_kept_of_a_scene_once_it_is_drawn(level: str) -> None:
    rules = room_level(f"BabyAI-{level}-v0")
    assert rules is not None
    rules.draw_many(range(8))
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Scene]


def looks_in(env: Any, width: int) -> dict[int, int]:
    """Cell and look of all things and doors, from minigrid's encoding; cells are counted in a map
    of the given width.
    """
    codes = env.grid.encode()
    things = {}
    for x, y in np.argwhere((codes[:, :, 0] == DOOR_CODE) | (codes[:, :, 0] >= KEY_CODE)).tolist():
        thing, color, state = codes[x, y].tolist()
        things[y * width + x] = (
            door_look(color, state) if thing == DOOR_CODE else look_of(thing - KEY_CODE, color)
        )
    return things


@pytest.mark.parametrize("level", DOOR_LEVELS)
def test_steps_are_minigrids(level: str) -> None:
    """The bot leads to doors and through them; random actions, more toggles than usual, do what
    comes to their mind there.
    """
    ours, minigrids = (
        make_batched_env(level, 6, "fr", seed=4, backend=backend)
        for backend in ("vector", "minigrid")
    )
    assert_same_observations(ours.reset(), minigrids.reset())
    generator = np.random.default_rng(3)
    ends = 0
    for t, actions in enumerate(random_actions(1, 100, 6)):
        if t % 50 < 25:
            actions = np.where(generator.random(6) < 0.7, minigrids.expert_actions(), actions)
        actions = np.where(generator.random(6) < 0.15, TOGGLE, actions)
        step = ours.step(actions)
        assert_same_steps(step, minigrids.step(actions))
        ends += int(step.done.sum())
    assert ends >= 2


def test_the_expert_is_minigrids_bot() -> None:
    ours, minigrids = (
        make_batched_env("BabyAI-MixedTestLocal-v0", 4, seed=2, backend=backend)
        for backend in ("vector", "minigrid")
    )
    assert isinstance(ours, VectorBatch)
    ours.reset()
    minigrids.reset()
    successes = 0
    for _ in range(50):
        advice = minigrids.expert_actions()
        assert np.array_equal(advice, ours.expert_actions())
        step = ours.step(advice)
        assert_same_steps(step, minigrids.step(advice))
        successes += int((step.rewards > 0).sum())
    assert successes >= 5
    assert ours.state() == minigrids.state()
    fresh: BatchedEnv = make_batched_env("BabyAI-MixedTestLocal-v0", 4, seed=2)
    assert_same_observations(fresh.restore(minigrids.state()), step.current)
    for actions in random_actions(5, 40, 4):
        assert_same_steps(fresh.step(actions), minigrids.step(actions))


def door(color: str) -> dict[str, Any]:
    return {"type": "door", "color": color, "loc": None}


def opening(color: str, strict: bool = False) -> dict[str, Any]:
    return {"kind": OPEN, "desc": door(color), "strict": strict}


@pytest.mark.parametrize(
    ("task", "strict", "instruction"),
    [
        ("open", (False, False), opening("red")),
        ("open", (True, False), opening("red", True)),
        (
            "open_open",
            (False, False),
            {"kind": "before", "a": opening("red"), "b": opening("blue"), "strict": False},
        ),
        (
            "open_open",
            (True, False),
            {"kind": "before", "a": opening("red", True), "b": opening("blue"), "strict": False},
        ),
        (
            "open_open",
            (False, True),
            {"kind": "after", "a": opening("blue", True), "b": opening("red"), "strict": False},
        ),
        (
            "open_open",
            (True, True),
            {
                "kind": "after",
                "a": opening("blue", True),
                "b": opening("red", True),
                "strict": False,
            },
        ),
    ],
)
def test_missions_are_verified_and_views_are_lit_as_by_minigrid(
    task: Task, strict: tuple[bool, bool], instruction: dict[str, Any]
) -> None:
    """Small rooms full of doors in all states, several of a colour, with keys and boxes about:
    walked, opened, closed, unlocked, looked through.
    """
    generator = np.random.default_rng(11)
    ends = through = 0
    for _ in range(40):
        record = small_rooms(generator, instruction)
        level, rooms = rebuild(record), rooms_of(record, task, strict)
        assert isinstance(level, RecordedLevel)
        level.start_episode()
        for action in generator.choice(
            7, size=80, p=[0.14, 0.14, 0.26, 0.07, 0.05, 0.32, 0.02]
        ).tolist():
            observation, reward, terminated, truncated, _ = level.step(action)
            assert [part.item() for part in rooms.step(np.array([action]))] == [
                reward,
                terminated,
                truncated,
            ]
            looks, walls = look_around(rooms.flat, rooms.bases, rooms.poses, rooms.table)
            assert np.array_equal(images_of(looks)[0], observation["image"])
            assert sentences_of(looks, walls, "en") == [describe(observation["image"])]
            through += int(rooms.poses[0] // 4 % rooms.width % 3 == 0)
            ends += terminated
            if terminated or truncated:
                break
    few = task == "open_open" and strict == (
        False,
        False,
    )  # two doors in the right order, by chance
    assert ends >= (1 if few else 3) and (through > 20 or strict[0])


def small_rooms(generator: np.random.Generator, instruction: dict[str, Any]) -> dict[str, Any]:
    """A record of 2 x 2 rooms of 2 x 2 cells, the instruction's doors among those between them."""
    grid = [[250 if x % 3 == 0 or y % 3 == 0 else 100 for x in range(7)] for y in range(7)]
    near, far = generator.integers(1, 3, size=2).tolist(), generator.integers(4, 6, size=2).tolist()
    gaps = [(3, near[0]), (3, far[0]), (near[1], 3), (far[1], 3)]
    colors = [0, 2, 0, 2] if generator.random() < 0.7 else [0, 2, 5, 5]
    for (x, y), color in zip(gaps, generator.permutation(colors).tolist(), strict=True):
        grid[y][x] = 400 + 10 * color + int(generator.choice(3, p=[0.4, 0.5, 0.1]))
    free = generator.permutation(
        [(x, y) for y in range(7) for x in range(7) if grid[y][x] == 100]
    ).tolist()
    agent, *cells = free
    for code, (x, y) in zip((500, 520, 550, 700, 610), cells, strict=False):
        grid[y][x] = code
    return {
        "level": "BabyAI-Made-v0", "width": 7, "height": 7, "grid": grid, "box_contents": [],
        "agent_pos": agent, "agent_dir": int(generator.integers(4)), "carrying": None,
        "mission": "made", "step_count": 0,
        "max_steps": 16 * 4 * (1 if instruction["kind"] == OPEN else 2), "see_through_walls": False,
        "rooms": {"size": 4, "rows": 2, "cols": 2}, "instr": instruction,
    }  # fmt: skip


def rooms_of(
    record: dict[str, Any], task: Task, strict: tuple[bool, bool] = (False, False)
) -> Rooms:
    """Rooms in a recorded state; the mission refers to this state."""
    shape, width = record["rooms"], record["width"]
    rooms = Rooms(RoomLevel(shape["size"], (task,), (), strict, shape["cols"], shape["rows"]), 1)
    flags = door_flags(record)
    things = tuple(
        (y * width + x, look_of_code(value) | flags.get((x, y), 0))
        for y, row in enumerate(record["grid"])
        for x, value in enumerate(row)
        if value >= 400
    )
    held = record["carrying"]
    hand = EMPTY if held is None else look_of_code(int(np.dot(held["code"], [100, 10, 1])))
    x, y = record["agent_pos"]
    start = Start(
        4 * (y * width + x) + record["agent_dir"],
        things,
        record["mission"],
        hand,
        limit=record["max_steps"],
    )
    rooms.start(np.array([0]), [start])
    rooms.steps[:] = record["step_count"]
    return rooms


def look_of_code(code: int) -> int:
    thing, color, state = code // 100, code // 10 % 10, code % 10
    return door_look(color, state) if thing == DOOR_CODE else look_of(thing - KEY_CODE, color)


def door_flags(record: dict[str, Any]) -> dict[tuple[int, int], int]:
    """Places of the doors that the instruction means, as minigrid finds them."""
    instruction = record["instr"]
    if instruction["kind"] != OPEN and any(
        instruction.get(part, {}).get("kind") != OPEN for part in "ab"
    ):
        return {}
    level = rebuild(record)
    assert isinstance(level, RecordedLevel)
    level.start_episode()
    instrs: Any = level.instrs
    parts = [instrs] if instruction["kind"] == OPEN else [instrs.instr_a, instrs.instr_b]
    parts = parts[::-1] if instruction["kind"] == "after" else parts
    flags: dict[tuple[int, int], int] = {}
    for flag, part in zip((FIRST, SECOND), parts, strict=False):
        for place in part.desc.obj_poss:
            flags[place] = flags.get(place, 0) | flag
    return flags


def recorded_doors() -> Iterator[tuple[Task | None, list[dict[str, Any]]]]:
    """Recorded episodes in several rooms with doors, keys, balls and boxes; the task is None where
    the mission is about more than doors.
    """
    for episode in read_episodes(RECORDED):
        first = episode[0]
        if (
            first["rooms"] is None
            or first["rooms"]["rows"] * first["rooms"]["cols"] < 2
            or first["box_contents"]
            or first["carrying"]
        ):
            continue
        kinds = first["instr"]["kind"], *(first["instr"].get(part, {}).get("kind") for part in "ab")
        tasks: dict[tuple[str | None, ...], Task] = {
            (OPEN, None, None): "open",
            ("before", OPEN, OPEN): "open_open",
            ("after", OPEN, OPEN): "open_open",
        }
        yield tasks.get(kinds), episode


def strictness(instruction: dict[str, Any]) -> tuple[bool, bool]:
    if instruction["kind"] == OPEN:
        return instruction["strict"], False
    parts = [instruction[part]["strict"] for part in "ab"]
    return (parts[1], parts[0]) if instruction["kind"] == "after" else (parts[0], parts[1])


@pytest.mark.skipif(
    not RECORDED.exists(), reason="the recorded transcripts are not beside this repository"
)
def test_recorded_mazes_of_the_original_look_and_move_the_same() -> None:
    """Also mazes whose missions these arrays do not know: what is seen, and what every action does,
    holds there too.
    """
    states = judged = 0
    for task, episode in recorded_doors():
        replay = rooms_of(
            episode[0], task or "open", strictness(episode[0]["instr"]) if task else (False, False)
        )
        for record in episode:
            looks, walls = look_around(replay.flat, replay.bases, replay.poses, replay.table)
            assert images_of(looks).reshape(-1).tolist() == record["image"]
            assert sentences_of(looks, walls, "en") == [tuple(record["descriptions"])]
            assert sentences_of(looks, walls, "fr") == [tuple(record["descriptions_fr"])]
            x, y = record["agent_pos"]
            assert int(replay.poses[0]) == 4 * (y * record["width"] + x) + record["agent_dir"]
            expected = {
                y * record["width"] + x: look_of_code(code)
                for y, row in enumerate(record["grid"])
                for x, code in enumerate(row)
                if code >= 400
            }
            cells = replay.cells[0, : replay.num_cells] & LOOK
            assert {
                cell: int(cells[cell]) for cell in np.flatnonzero(cells >= FIRST_THING).tolist()
            } == expected
            states += 1
            if record["after"] is not None:
                reward, terminated, truncated = (
                    part.item() for part in replay.step(np.array([record["action_id"]]))
                )
                if task is not None:
                    assert (reward, terminated or truncated) == (
                        pytest.approx(record["after"]["reward"], abs=1e-12),
                        record["after"]["done"],
                    )
                    judged += 1
    assert states > 800 and judged > 400
