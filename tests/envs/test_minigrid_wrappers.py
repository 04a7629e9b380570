"""Minigrid's wrappers around BabyAI-Text."""

import copy

import gymnasium
import numpy as np
import pytest
from minigrid import wrappers

import lamorel_ext.envs  # noqa: F401


def wrapped(wrapper: type[gymnasium.Wrapper], level: str) -> gymnasium.Env:
    return wrapper(gymnasium.make(f"BabyAI-Text/{level}"))


@pytest.mark.parametrize("level", ["GoToLocal-v0", "OpenDoor-v0"])
@pytest.mark.parametrize(
    "wrapper",
    [wrappers.FullyObsWrapper, wrappers.RGBImgPartialObsWrapper, wrappers.RGBImgObsWrapper],
)
def test_the_picture_of_a_wrapper_is_the_one_it_makes_of_the_level_itself(
    wrapper: type[gymnasium.Wrapper], level: str
) -> None:
    ours, theirs = wrapped(wrapper, level), wrapper(gymnasium.make(f"BabyAI-{level}"))
    assert ours.observation_space["image"] == theirs.observation_space["image"]
    np.testing.assert_array_equal(ours.reset(seed=3)[0]["image"], theirs.reset(seed=3)[0]["image"])
    for action in (0, 2, 2, 1):
        np.testing.assert_array_equal(
            ours.step(action)[0]["image"], theirs.step(action)[0]["image"]
        )


def test_what_neither_the_environment_nor_its_level_has_is_refused() -> None:
    env = gymnasium.make("BabyAI-Text/GoToLocal-v0").unwrapped
    with pytest.raises(AttributeError, match="no_such_thing"):
        env.no_such_thing  # noqa: B018


def test_what_is_set_of_the_level_is_set_as_in_minigrid() -> None:
    ours, theirs = (
        gymnasium.make(name) for name in ("BabyAI-Text/GoToObj-v0", "BabyAI-GoToObj-v0")
    )
    for env in (ours, theirs, ours):  # ours twice: an episode of before leaves nothing
        env.reset(seed=0)
        for name, value in {"agent_pos": (1, 1), "agent_dir": 3, "max_steps": 5}.items():
            setattr(env.unwrapped, name, value)
    seen, _, _, _, info = ours.step(1)
    np.testing.assert_array_equal(seen["image"], theirs.step(1)[0]["image"])
    assert "You see a wall 1 step left" in info["descriptions"]
    assert [ours.step(6)[3] for _ in range(4)] == [False, False, False, True]


def test_a_copy_of_a_running_environment_goes_on_equally() -> None:
    env = gymnasium.make("BabyAI-Text/GoToLocal-v0")
    env.reset(seed=5)
    twin = copy.deepcopy(env)
    for action in (2, 0, 2, 1):
        np.testing.assert_array_equal(env.step(action)[0]["image"], twin.step(action)[0]["image"])
