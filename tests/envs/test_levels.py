"""Levels and the Gymnasium environment: seeds, step limits, rewards, silence, errors."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minigrid.core.world_object import Door

from lamorel_ext.envs import BabyAITextEnv, level_ids, make_level
from lamorel_ext.envs.babyai.original_levels import (
    MIXED_KINDS,
    TEST_EXCLUDES,
    TRAIN_EXCLUDES,
    LocalLevel,
)
from lamorel_ext.errors import LevelError

FORWARD, DONE = 2, 6


def play(env: BabyAITextEnv, seed: int | None, actions: list[int]) -> list[tuple[object, ...]]:
    observation, info = env.reset(seed=seed)
    steps: list[tuple[object, ...]] = [
        (observation["image"].tobytes(), info["mission"], tuple(info["descriptions"]))
    ]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        steps.append(
            (
                observation["image"].tobytes(),
                reward,
                terminated,
                truncated,
                tuple(info["descriptions"]),
            )
        )
        if terminated or truncated:
            break
    return steps


def mixed(name: str) -> LocalLevel:
    level = make_level(f"BabyAI-Mixed{name}Local-v0")
    assert isinstance(level, LocalLevel)
    return level


def test_every_level_draws_in_silence_and_says_its_mission(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for level_id in level_ids():
        level = make_level(level_id)
        level.reset(seed=3)
        assert level.mission.startswith(("go to ", "pick up ", "open ", "put ")), level_id
        assert level.max_steps > 0, level_id
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "level", ["BabyAI-GoToRedBall-v0", "BabyAI-MixedTrainLocal-v0", "BabyAI-BossLevel-v0"]
)
def test_equal_seeds_give_equal_episodes_whatever_came_before(level: str) -> None:
    actions = [int(a) for a in np.random.default_rng(0).integers(0, 6, size=20)]
    one, other = BabyAITextEnv(level), BabyAITextEnv(level)
    play(other, 99, actions[:5])
    for seed in (0, 1, 2, 3):
        assert play(one, seed, actions) == play(other, seed, actions)
    assert play(one, None, actions) == play(other, None, actions)
    assert play(one, 0, actions) != play(other, 1, actions)


def test_mixed_levels_draw_their_kind_from_the_seed_alone() -> None:
    level = mixed("Train")
    kinds = []
    for seed in range(40):
        level.reset(seed=seed)
        expected = MIXED_KINDS[
            int(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).integers(0, 5))
        ]
        assert level.kind == expected
        verb = {"goto": "go to", "pickup": "pick up", "open": "open", "putnext": "put"}.get(
            expected
        )
        if verb is None:
            assert (
                level.mission.startswith("pick up")
                and ", then go to" in level.mission
                or " after you pick up" in level.mission
            )
        else:
            assert level.mission.startswith(verb)
        assert (level.width, level.height) == ((15, 8) if expected == "open" else (8, 8))
        kinds.append(expected)
    assert set(kinds) == set(MIXED_KINDS)


def test_mixed_levels_without_seeds_go_on_changing_their_kind() -> None:
    level = mixed("Test")
    level.reset(seed=0)
    kinds = set()
    for _ in range(25):
        level.reset()
        kinds.add(level.kind)
    assert len(kinds) >= 4


def test_mixed_missions_leave_out_the_excluded_phrases() -> None:
    assert len(TEST_EXCLUDES) == 19 and not set(TEST_EXCLUDES) & set(TRAIN_EXCLUDES)
    for name, excluded in (("Train", TRAIN_EXCLUDES), ("Test", TEST_EXCLUDES)):
        level = mixed(name)
        for seed in range(30):
            level.reset(seed=seed)
            assert not any(phrase in level.mission for phrase in excluded)
            if level.kind == "open":
                (door,) = [cell for cell in level.grid.grid if isinstance(cell, Door)]
                assert door.is_locked and door.color in (
                    ("red", "grey") if name == "Test" else ("yellow", "green", "blue", "purple")
                )


@pytest.mark.parametrize(
    ("level", "max_steps"),
    [("GoToRedBallNoDists", 64), ("PutNextLocal", 128), ("UnlockLocal", 576),
     ("UnlockToUnlock", 108), ("BlockedUnlockPickup", 72), ("KeyCorridorS3R1", 27),
     ("PickupAbove", 324), ("OpenTwoDoors", 648), ("MoveTwoAcrossS8N9", 512),
     ("PutNextS7N4Carrying", 196), ("FindObjS7", 441), ("PickUpSeqGoToLocal", 128),
     ("SynthS5R2", 100), ("KeyCorridor", 1080), ("1RoomS12", 144)],
)  # fmt: skip
def test_step_limits_are_the_originals(level: str, max_steps: int) -> None:
    built = make_level(f"BabyAI-{level}-v0")
    built.reset(seed=1)
    if level == "SynthS5R2":  # 1 navigation, or 2 to put one thing next to another
        max_steps *= 2 if built.mission.startswith("put") else 1
    assert built.max_steps == max_steps


def test_a_success_is_rewarded_by_its_step_and_terminates() -> None:
    env = BabyAITextEnv()
    rewards = []
    for seed in range(200):
        env.reset(seed=seed)
        for step in range(1, 4):
            _, reward, terminated, truncated, _ = env.step(FORWARD)
            if terminated:
                assert reward == pytest.approx(1 - 0.9 * step / 64, abs=1e-12) and not truncated
                rewards.append(reward)
                break
            assert reward == 0
    assert len(rewards) > 5


def test_the_step_limit_truncates_and_success_on_the_last_step_does_both() -> None:
    env = BabyAITextEnv(max_steps=3)
    env.reset(seed=0)
    assert [env.step(DONE)[2:4] for _ in range(3)] == [
        (False, False),
        (False, False),
        (False, True),
    ]
    one_step = BabyAITextEnv(max_steps=1)
    ends = []
    for seed in range(200):
        one_step.reset(seed=seed)
        _, reward, terminated, truncated, _ = one_step.step(FORWARD)
        assert truncated
        ends.append(terminated)
        assert reward == (pytest.approx(0.1, abs=1e-12) if terminated else 0)
    assert any(ends) and not all(ends)


def test_steps_in_the_wrong_order_and_unknown_actions_are_refused() -> None:
    env = BabyAITextEnv(max_steps=1)
    with pytest.raises(LevelError, match="before reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(LevelError, match="got 7"):
        env.step(7)
    for action in (2.5, "2", None, np.array([2])):
        with pytest.raises(LevelError, match="actions are 0 to 6, got"):
            env.step(action)  # type: ignore[arg-type]
    env.step(DONE)
    with pytest.raises(LevelError, match="after the end"):
        env.step(0)


@pytest.mark.parametrize("limit", [0, -1, 2.5, "10"])
def test_a_step_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(LevelError, match="max_steps must be a whole number from 1 on"):
        BabyAITextEnv(max_steps=limit)


def test_an_unknown_level_is_answered_with_close_names() -> None:
    with pytest.raises(LevelError, match="BabyAI-GoToRedBallNoDists-v0"):
        BabyAITextEnv("BabyAI-GoToRedBallNoDist-v0")
    with pytest.raises(LevelError, match="language fr"):
        make_level("BabyAI-MixedTrainLocalFrench-v0")


@pytest.mark.parametrize(
    ("level", "asked", "things"),
    [
        ("GoToRedBall", 0, 1),
        ("GoToRedBall", 16, 17),
        ("GoToLocal", 0, 1),
        ("GoToLocal", 4, 4),
        ("PutNextLocal", 0, 2),
        ("PickupLocal", 8, 8),
    ],
)
def test_number_of_distractors(level: str, asked: int, things: int) -> None:
    built = make_level(f"BabyAI-{level}-v0", num_distractors=asked)
    built.reset(seed=5)
    assert sum(cell is not None and cell.type != "wall" for cell in built.grid.grid) == things


def test_distractors_where_there_are_none_or_too_many_are_refused() -> None:
    with pytest.raises(LevelError, match="does not take"):
        make_level("BabyAI-GoToRedBallNoDists-v0", num_distractors=4)
    for number in (-1, 3.5, "3"):
        with pytest.raises(LevelError, match="distractors must be a whole number from 0 on"):
            make_level("BabyAI-GoToLocal-v0", num_distractors=number)  # type: ignore[arg-type]
    with pytest.raises(LevelError, match="too many objects"):
        make_level("BabyAI-GoToLocalS5N2-v0", num_distractors=16).reset(seed=0)


@pytest.mark.parametrize(
    "level, most", [("PutNextLocal", 18), ("PutNextS5N2", 9), ("MoveTwoAcrossS5N2", 9)]
)
def test_more_objects_than_can_be_told_apart_are_refused(level: str, most: int) -> None:
    with pytest.raises(LevelError, match=f"at most {most} objects, got {most + 1}"):
        make_level(f"BabyAI-{level}-v0", num_distractors=most + 1)
    make_level(f"BabyAI-{level}-v0", num_distractors=most)


@pytest.mark.parametrize(
    "level, seed, mission",
    [
        ("SynthS5R2", 32, "open a door"),
        (
            "SynthLoc",
            11,
            "put the yellow key on your right next to the door on your left",
        ),
    ],
)
def test_a_locked_room_of_a_rejected_scene_counts_in_the_next_scenes(
    level: str, seed: int, mission: str
) -> None:
    """As in the original, which never forgets it: these are its missions."""
    built = make_level(f"BabyAI-{level}-v0")
    for _ in range(2):
        built.reset(seed=seed)
        assert built.mission == mission


def test_what_is_carried_at_the_start_is_seen() -> None:
    observation, info = BabyAITextEnv("BabyAI-PutNextS5N2Carrying-v0").reset(seed=0)
    assert info["descriptions"][0].startswith("You carry a ")
    assert observation["image"][3, 6, 0] in (5, 6, 7)


def test_sentences_speak_the_language_asked_for_and_french_levels_insist_on_theirs() -> None:
    assert (
        BabyAITextEnv("BabyAI-GoToFrench-v0")
        .reset(seed=1)[1]["descriptions"][0]
        .startswith("Tu vois")
    )
    assert BabyAITextEnv("BabyAI-GoToFrench-v0", language="en").language == "fr"
    _, info = BabyAITextEnv("BabyAI-GoToLocal-v0", language="fr").reset(seed=1)
    assert info["descriptions"][0].startswith("Tu vois") and info["mission"].startswith("go to")
    with pytest.raises(LevelError, match="en or fr"):
        BabyAITextEnv(language="de")  # type: ignore[arg-type]


def test_gymnasium_makes_registered_levels_and_finds_no_fault() -> None:
    env = gymnasium.make(
        "lamorel_ext.envs:BabyAI-Text/GoToLocal-v0", language="fr", num_distractors=4
    )
    assert (
        isinstance(env.unwrapped, BabyAITextEnv) and env.unwrapped.level_id == "BabyAI-GoToLocal-v0"
    )
    check_env(env.unwrapped, skip_render_check=True)
