"""Single rooms in arrays against minigrid: first states, steps, recorded states of the original,
saving, and the expert.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from test_batched import assert_same_observations, assert_same_steps, random_actions

from experiments.check_oracle import read_episodes
from lamorel_ext.envs.babyai.arrays.room_codes import (
    EMPTY,
    FIRST,
    KEY_CODE,
    LOOK,
    NUM_COLORS,
    SECOND,
    Start,
    look_of,
    view_codes,
)
from lamorel_ext.envs.babyai.arrays.room_expert import path_actions
from lamorel_ext.envs.babyai.arrays.room_levels import RoomLevel, Task, room_level
from lamorel_ext.envs.babyai.arrays.room_views import images_of, look_around, sentences_of
from lamorel_ext.envs.babyai.arrays.rooms import Rooms
from lamorel_ext.envs.babyai.arrays.streams import words_of
from lamorel_ext.envs.babyai.arrays.table_batch import TableBatch
from lamorel_ext.envs.babyai.arrays.vector_batch import VectorBatch
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.envs.babyai.describe import describe
from lamorel_ext.envs.babyai.levels import level_ids, make_level
from lamorel_ext.envs.babyai.minigrid_batch import MinigridBatch
from lamorel_ext.envs.babyai.transcripts import RecordedLevel, rebuild
from lamorel_ext.errors import CheckpointError, LevelError

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "oracle" / "babyai_text_train.jsonl.gz"
SLOW = "BabyAI-GoToLocalS8N16-v0"
"""Thousands of its scenes are rejected for each that is valid."""
ROOM_LEVELS = [
    level
    for level in level_ids()
    if level != SLOW and (rules := room_level(level)) and rules.columns * rules.rows == 1
]
STEPPED = [
    "GoToLocal", "GoToRedBall", "GoToLocalS5N2", "GoToLocal2", "PickupLoc", "PutNextLocalS5N3",
    "PickUpSeqGoToLocal", "PickUpSeqPickUpLocal",
]  # fmt: skip
STEPPED += ["PickupDistDebug", "GoToObjS4", "OneRoomS12"]


def test_the_rooms_of_the_paper_and_of_baby_ai_are_known() -> None:
    names = {level.removeprefix("BabyAI-").removesuffix("-v0") for level in ROOM_LEVELS}
    assert names >= {
        "GoToObj",
        "GoToRedBall",
        "GoToRedBallGrey",
        "GoToLocal",
        "GoToLocalS8N7",
        "PickupLocal",
        "PutNextLocal",
        "PickupLoc",
    }
    assert len(ROOM_LEVELS) == 42
    for level in ("GoToDoor", "PutNextS5N1", "PickupAbove", "GoToSeqS5R2"):
        assert room_level(f"BabyAI-{level}-v0") is None


@pytest.mark.parametrize("level", ROOM_LEVELS)
def test_a_seed_gives_minigrids_first_state(level: str) -> None:
    rules, env = room_level(level), make_level(level)
    assert rules is not None
    for seed in range(12):
        env.reset(seed=seed)
        start = rules.draw(seed, words_of(seed, 0, 2 + 2 * (seed % 3)))
        assert (start.pose, start.mission) == (
            4 * (env.agent_pos[1] * env.width + env.agent_pos[0]) + env.agent_dir,
            env.mission,
        )
        assert {cell: code & LOOK for cell, code in start.things} == looks_in(env)
        assert env.max_steps == rules.max_steps


def test_crowded_rooms_are_drawn_until_one_is_valid() -> None:
    rules, env = room_level(SLOW), make_level(SLOW)
    assert rules is not None
    env.reset(seed=1)
    start = rules.draw(1, words_of(1, 0, 64))
    assert ({cell: code & LOOK for cell, code in start.things}, start.mission) == (
        looks_in(env),
        env.mission,
    )
    full = room_level("BabyAI-GoToLocalS5N2-v0", num_distractors=16)
    assert full is not None
    with pytest.raises(LevelError, match="too many objects"):
        full.draw(0, words_of(0, 0, 64))


def looks_in(env: Any) -> dict[int, int]:
    """Cell and look of all things, from minigrid's encoding."""
    codes = env.grid.encode().transpose(1, 0, 2).reshape(-1, 3)
    return {
        cell: look_of(int(thing) - KEY_CODE, int(color))
        for cell, (thing, color, _) in enumerate(codes)
        if thing in range(KEY_CODE, 8)
    }


@pytest.mark.parametrize("level", STEPPED)
def test_steps_are_minigrids(level: str) -> None:
    """Half of the actions come from the bot, so missions get done; the others use everything."""
    language: Literal["en", "fr"] = "fr" if level == "GoToRedBall" else "en"
    ours = make_batched_env(f"BabyAI-{level}-v0", 8, language, seed=3, backend="vector")
    minigrids = make_batched_env(f"BabyAI-{level}-v0", 8, language, seed=3, backend="minigrid")
    assert_same_observations(ours.reset(), minigrids.reset())
    successes = 0
    guided = np.random.default_rng(9).random((120, 8)) < 0.5
    for t, actions in enumerate(random_actions(0, 120, 8)):
        taken = np.where(guided[t], minigrids.expert_actions(), actions) if t % 40 < 30 else actions
        step = ours.step(taken)
        assert_same_steps(step, minigrids.step(taken))
        successes += int((step.rewards > 0).sum())
    assert successes >= 3


@pytest.mark.parametrize(
    ("level", "distractors"), [("GoToRedBall", 0), ("GoToLocal", 3), ("PickUpThenGoToLocal", 1)]
)
def test_numbers_of_distractors_are_minigrids(level: str, distractors: int) -> None:
    ours, minigrids = (
        make_batched_env(
            f"BabyAI-{level}-v0", 4, seed=1, backend=backend, num_distractors=distractors
        )
        for backend in ("vector", "minigrid")
    )
    assert_same_observations(ours.reset(), minigrids.reset())
    for actions in random_actions(1, 80, 4):
        assert_same_steps(ours.step(actions), minigrids.step(actions))


HANDS = [3, 4, 5, 0, 1, 2]
"""Pick up, drop, toggle, turn, walk."""


@pytest.mark.parametrize(
    ("task", "instruction"),
    [
        ("goto", {"kind": "goto", "desc": "red ball"}),
        ("putnext", {"kind": "putnext", "move": "red ball", "fixed": "blue box"}),
        ("putnext", {"kind": "putnext", "move": "red ball", "fixed": "red ball"}),
        (
            "pickup_goto",
            {
                "kind": "before",
                "a": {"kind": "pickup", "desc": "red ball"},
                "b": {"kind": "goto", "desc": "blue box"},
            },
        ),
        (
            "pickup_goto",
            {
                "kind": "after",
                "a": {"kind": "goto", "desc": "red ball"},
                "b": {"kind": "pickup", "desc": "red ball"},
            },
        ),
        (
            "pickup_pickup",
            {
                "kind": "before",
                "a": {"kind": "pickup", "desc": "red ball"},
                "b": {"kind": "pickup", "desc": "red ball"},
            },
        ),
        (
            "goto_both",
            {
                "kind": "and",
                "a": {"kind": "goto", "desc": "red ball"},
                "b": {"kind": "goto", "desc": "blue box"},
            },
        ),
    ],
)
def test_missions_are_verified_as_minigrid_does_where_things_are_moved_and_lost(
    task: Task, instruction: dict[str, Any]
) -> None:
    """A crowded little room and hands that never rest: goals are carried off, dropped elsewhere,
    toggled away.
    """
    generator = np.random.default_rng(7)
    ends = 0
    for _ in range(80):
        record = crowded_room(generator, described(instruction))
        level, rooms = rebuild(record), rooms_of(record, task)
        assert isinstance(level, RecordedLevel)
        level.start_episode()
        for action in generator.choice(HANDS, size=60).tolist():
            observation, reward, terminated, truncated, _ = level.step(action)
            ours = [part.item() for part in rooms.step(np.array([action]))]
            assert ours == [reward, terminated, truncated]
            assert np.array_equal(seen(rooms), observation["image"])
            ends += terminated
            if terminated or truncated:
                break
    assert ends >= 3


def described(instruction: dict[str, Any]) -> dict[str, Any]:
    """The short forms above written out as recorded instructions."""
    full: dict[str, Any] = {"strict": False}
    for name, value in instruction.items():
        if name in ("desc", "move", "fixed"):
            color, kind = value.split()
            full[name] = {"type": kind, "color": color, "loc": None}
        else:
            full[name] = described(value) if isinstance(value, dict) else value
    return full


def crowded_room(generator: np.random.Generator, instruction: dict[str, Any]) -> dict[str, Any]:
    """A record of a room of 4 x 4 cells with six things, two of each kind that the instructions
    know.
    """
    cells = generator.permutation([(x, y) for x in range(1, 5) for y in range(1, 5)]).tolist()
    grid = [[250 if x in (0, 5) or y in (0, 5) else 100 for x in range(6)] for y in range(6)]
    for code, (x, y) in zip((600, 600, 720, 720, 540, 700), cells, strict=False):
        grid[y][x] = code
    return {
        "level": "BabyAI-Made-v0", "width": 6, "height": 6, "grid": grid, "box_contents": [],
        "agent_pos": cells[-1], "agent_dir": int(generator.integers(4)), "carrying": None,
        "mission": "made", "step_count": 0,
        "max_steps": 72 if instruction["kind"] != "goto" else 36, "see_through_walls": False,
        "rooms": {"size": 6, "rows": 1, "cols": 1}, "instr": instruction,
    }  # fmt: skip


def rooms_of(record: dict[str, Any], task: Task) -> Rooms:
    """A room in a recorded state; its mission refers to this state."""
    size = record["rooms"]["size"]
    rooms = Rooms(RoomLevel(size, (task,), ()), 1)
    flagged = targets(record["instr"], task)
    x, y = record["agent_pos"]

    def code(recorded: int) -> int:
        return look_of(recorded // 100 - KEY_CODE, recorded // 10 % 10) | flagged.get(recorded, 0)

    things = tuple(
        (row * size + column, code(value))
        for row, values in enumerate(record["grid"])
        for column, value in enumerate(values)
        if value >= 500
    )
    held = record["carrying"]
    hand = EMPTY if held is None else code(100 * held["code"][0] + 10 * held["code"][1])
    rooms.start(
        np.array([0]),
        [Start(4 * (y * size + x) + record["agent_dir"], things, record["mission"], hand)],
    )
    rooms.steps[:] = record["step_count"]
    return rooms


def targets(instruction: dict[str, Any], task: Task) -> dict[int, int]:
    """Flags of every recorded code that the instruction names (by kind and colour alone)."""
    kind = instruction["kind"]
    if kind in ("before", "after", "and"):
        parts = [instruction["a"]["desc"], instruction["b"]["desc"]]
        parts = parts[::-1] if kind == "after" else parts
    else:
        parts = (
            [instruction["move"], instruction["fixed"]]
            if kind == "putnext"
            else [instruction["desc"]]
        )
    flags: dict[int, int] = {}
    for flag, part in zip((FIRST, SECOND), parts, strict=False):
        for look in range(3 * NUM_COLORS):
            thing, color = (
                ("key", "ball", "box")[look // NUM_COLORS],
                ("red", "green", "blue", "purple", "yellow", "grey")[look % NUM_COLORS],
            )
            if part["type"] in (None, thing) and part["color"] in (None, color):
                code = 100 * (KEY_CODE + look // NUM_COLORS) + 10 * (look % NUM_COLORS)
                flags[code] = flags.get(code, 0) | flag
    return flags


def seen(rooms: Rooms) -> np.ndarray:
    image: np.ndarray = images_of(
        look_around(rooms.flat, rooms.bases, rooms.poses, rooms.table)[0]
    )[0]
    return image


def recorded_rooms() -> Iterator[tuple[Task | None, list[dict[str, Any]]]]:
    """Recorded episodes in one room with keys, balls and boxes alone; the task is None where these
    arrays do not know the mission.
    """
    for episode in read_episodes(RECORDED):
        first = episode[0]
        if first["rooms"] is None or (first["rooms"]["rows"], first["rooms"]["cols"]) != (1, 1):
            continue
        codes = {code // 100 for record in episode for row in record["grid"] for code in row}
        if codes <= {1, 2, 5, 6, 7} and not first["box_contents"]:
            yield task_of(first["instr"]), episode


def task_of(instruction: dict[str, Any]) -> Task | None:
    kind = instruction["kind"]
    if kind in ("before", "after"):
        names = [instruction[part]["kind"] for part in ("ab" if kind == "before" else "ba")]
        both: dict[tuple[str, ...], Task] = {
            ("pickup", "goto"): "pickup_goto",
            ("pickup", "pickup"): "pickup_pickup",
        }
        return both.get(tuple(names))
    located = any(instruction.get(name, {}).get("loc") for name in ("desc", "move", "fixed"))
    return None if located or kind not in ("goto", "pickup", "putnext") else kind


@pytest.mark.skipif(
    not RECORDED.exists(), reason="the recorded transcripts are not beside this repository"
)
def test_recorded_rooms_of_the_original_look_and_move_the_same() -> None:
    states = replayed = 0
    for task, episode in recorded_rooms():
        replay = rooms_of(episode[0], task or "goto")
        for record in episode:
            rooms = rooms_of(record, task or "goto")
            looks, walls = look_around(rooms.flat, rooms.bases, rooms.poses, rooms.table)
            assert images_of(looks).reshape(-1).tolist() == record["image"]
            assert sentences_of(looks, walls, "en") == [tuple(record["descriptions"])]
            assert sentences_of(looks, walls, "fr") == [tuple(record["descriptions_fr"])]
            assert (
                np.array_equal(replay.cells & LOOK, rooms.cells & LOOK)
                and replay.poses == rooms.poses
            )
            states += 1
            if record["after"] is not None:
                reward, terminated, truncated = (
                    part.item() for part in replay.step(np.array([record["action_id"]]))
                )
                if task is not None:
                    assert replay.level.max_steps == record["max_steps"]
                    assert (reward, terminated or truncated) == (
                        pytest.approx(record["after"]["reward"], abs=1e-12),
                        record["after"]["done"],
                    )
                    replayed += 1
    assert states > 1500 and replayed > 1000


def test_sentences_are_those_of_describe_for_any_things_in_view() -> None:
    rooms = Rooms(room_level("BabyAI-GoToLocal-v0"), 200)  # type: ignore[arg-type]
    generator = np.random.default_rng(4)
    inner = [y * 8 + x for y in range(1, 7) for x in range(1, 7)]
    looks = np.arange(3, 21)
    starts = []
    for _ in range(200):
        agent, *cells = generator.permutation(inner)[: generator.integers(1, 30)].tolist()
        things = tuple((cell, int(generator.choice(looks))) for cell in cells)
        starts.append(
            Start(
                4 * agent + int(generator.integers(4)),
                things,
                "",
                int(generator.choice([EMPTY, *looks])),
            )
        )
    rooms.start(np.arange(200), starts)
    seen, walls = look_around(rooms.flat, rooms.bases, rooms.poses, rooms.table)
    for language in ("en", "fr"):
        said = sentences_of(seen, walls, language)
        assert said == [describe(image, language=language) for image in images_of(seen)]
    assert len(np.unique(view_codes()[:21], axis=0)) == 21


@pytest.mark.parametrize("level", ["GoToLocal", "PutNextLocal"])
def test_states_are_saved_as_minigrid_saves_them(level: str) -> None:
    name = f"BabyAI-{level}-v0"
    ours, minigrids, fresh = (
        make_batched_env(name, 3, seed=5, backend=backend)
        for backend in ("vector", "minigrid", "vector")
    )
    ours.reset()
    minigrids.reset()
    for actions in random_actions(3, 90, 3):
        step = ours.step(actions)
        minigrids.step(actions)
    state = json.loads(json.dumps(minigrids.state()))
    assert state == ours.state()
    assert_same_observations(fresh.restore(state), step.current)
    for actions in random_actions(4, 70, 3):
        assert_same_steps(fresh.step(actions), minigrids.step(actions))


def test_states_that_do_not_fit_are_refused() -> None:
    env = make_batched_env("BabyAI-GoToLocal-v0", 1, backend="vector")
    with pytest.raises(CheckpointError, match="too early"):
        env.restore({"episodes": [0], "lengths": [64], "actions": [6] * 64, "experts": [-1, -1]})
    env.reset()
    way = []
    while not env.step(advice := env.expert_actions()).terminated[0]:
        way += advice.tolist()
    with pytest.raises(CheckpointError, match="too early"):
        env.restore(
            {
                "episodes": [0],
                "lengths": [len(way) + 2],
                "actions": [*way, int(advice[0]), 6],
                "experts": [-1, -1],
            }
        )
    with pytest.raises(CheckpointError):
        env.restore({"episodes": [0], "lengths": [1], "actions": [7], "experts": [-1, -1]})


@pytest.mark.parametrize("level", ["GoToLocal", "GoToLocal2"])
def test_shortest_paths_are_no_longer_than_the_bots(level: str) -> None:
    ours, bots = (
        make_batched_env(f"BabyAI-{level}-v0", 12, seed=2, backend=backend)
        for backend in ("vector", "minigrid")
    )
    lengths = []
    for env in (ours, bots):
        env.reset()
        length = np.zeros(12, dtype=np.int64)
        for t in range(1, 64):
            done = env.step(env.expert_actions()).terminated
            length[(length == 0) & done] = t
        lengths.append(length)
    assert (lengths[0] > 0).all()
    assert level != "GoToLocal" or (lengths[0] <= lengths[1]).all()
    assert lengths[0].sum() <= lengths[1].sum()


def test_shortest_paths_are_those_of_a_search_by_hand() -> None:
    r"""A 3 x 3 room, the agent in the upper left corner looking right, a wall of things in the
    middle, the goal below it.

    ``> . .``
    ``x x .``
    ``. g .``

    Two steps, right, two steps, right: the goal is ahead from the lower right corner; the way back
    leads over the lower left corner only where a thing is taken away.
    """
    rooms = Rooms(RoomLevel(5, ("goto",), ()), 2)
    goal, key = (17, look_of(1, 0) | FIRST), look_of(0, 0)
    rooms.start(
        np.array([0, 1]),
        [Start(4 * 6, ((11, key), (12, key), goal), ""), Start(4 * 6, ((12, key), goal), "")],
    )
    ways: list[list[int]] = [[], []]
    for _ in range(6):
        advice = path_actions(rooms, np.arange(2))[np.arange(2), rooms.poses]
        for way, action in zip(ways, advice.tolist(), strict=True):
            way.append(action)
        _, terminated, _ = rooms.step(advice.astype(np.int64))
    assert ways[0] == [2, 2, 1, 2, 2, 1] and terminated[0]
    assert ways[1][:4] == [1, 2, 2, 0], "left again at the bottom faces the goal"
    walled = Rooms(rooms.level, 1)
    walled.start(np.array([0]), [Start(4 * 6, ((7, key), (11, key), goal), "")])
    assert path_actions(walled, np.array([0]))[0, 4 * 6] == -1


def test_the_bot_helps_where_walking_is_not_enough() -> None:
    """The same bot as in the minigrid backend, with the same memory."""
    ours, minigrids = (
        make_batched_env("BabyAI-PutNextLocal-v0", 3, seed=2, backend=backend)
        for backend in ("vector", "minigrid")
    )
    ours.reset()
    minigrids.reset()
    successes = 0
    for t, actions in enumerate(random_actions(6, 90, 3)):
        advice = minigrids.expert_actions() if t % 11 else actions
        if t % 11:
            assert np.array_equal(advice, ours.expert_actions())
        successes += int((ours.step(advice).rewards > 0).sum())
        minigrids.step(advice)
    assert successes >= 3


def test_the_fastest_backend_is_taken() -> None:
    for level, kind in (
        ("GoToRedBallNoDists", TableBatch),
        ("GoToLocal", VectorBatch),
        ("OpenDoor", VectorBatch),
        ("GoToDoor", MinigridBatch),
    ):
        assert type(make_batched_env(f"BabyAI-{level}-v0", 1)) is kind
    assert isinstance(
        make_batched_env("BabyAI-GoToRedBallNoDists-v0", 1, backend="vector"), VectorBatch
    )
    with pytest.raises(LevelError, match="vector backend"):
        make_batched_env("BabyAI-GoToDoor-v0", 1, backend="vector")
