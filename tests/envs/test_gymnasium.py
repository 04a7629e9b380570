"""BabyAI-Text among Gymnasium's own tools: its checker, its vector environments, copies."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils.shared_memory import (
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from minigrid import wrappers
from minigrid.core.constants import COLOR_NAMES

from lamorel_ext.envs import BabyAITextEnv, level_ids
from lamorel_ext.envs.babyai.describe import OBJECT_NAMES, Language, describe
from lamorel_ext.envs.babyai.gym_env import LONGEST_TEXT
from lamorel_ext.envs.texts import SharedText

pytestmark = pytest.mark.filterwarnings("ignore:.*out of date")  # GoToObjS6 has a v1 beside it


def made(level: str) -> Any:
    return gymnasium.make(f"BabyAI-Text/{level.removeprefix('BabyAI-')}")


def made_async(level: str, num_envs: int, **options: Any) -> Any:
    name = f"BabyAI-Text/{level.removeprefix('BabyAI-')}"
    return gymnasium.make_vec(name, num_envs, "async", vector_kwargs=options)


def unpickled(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))  # noqa: S301  # what this process pickled


def play(env: gymnasium.Env, actions: list[int]) -> list[Any]:
    """What is seen; at the end of an episode, a new one without a seed."""
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            observation, info = env.reset()
        picture = observation["image"].tobytes()
        seen.append((picture, observation["text"], reward, terminated, truncated, info))
    return seen


@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_is_silent_on_every_level(capfd: pytest.CaptureFixture[str]) -> None:
    for level in level_ids():
        check_env(BabyAITextEnv(level), skip_render_check=True)
    assert capfd.readouterr() == ("", "")


def test_the_observation_holds_the_sentences_of_info() -> None:
    for level in level_ids():
        env = BabyAITextEnv(level, language="fr")
        observation, info = env.reset(seed=4)
        assert observation["text"].splitlines() == info["descriptions"]
        assert observation["mission"] == info["mission"]
        observation, *_, info = env.step(1)
        assert "\n".join(info["descriptions"]) == observation["text"]
        assert observation in env.observation_space


@pytest.mark.parametrize("language", ["en", "fr"])
def test_the_fullest_view_fits_the_space_of_texts(language: Language) -> None:
    space = cast(gymnasium.spaces.Dict, BabyAITextEnv().observation_space)["text"]
    longest = 0
    for thing in range(3, OBJECT_NAMES.index("agent")):
        for color in range(len(COLOR_NAMES)):
            for state in range(3):
                image = np.full((7, 7, 3), (thing, color, state), dtype=np.uint8)
                text = "\n".join(describe(image, language=language))
                assert text in space
                longest = max(longest, len(text))
    assert 2_500 < longest < LONGEST_TEXT  # walls only ever take the place of longer sentences


@pytest.mark.parametrize("remake", [copy.deepcopy, unpickled])
def test_a_running_environment_remade_goes_on_equally_on_every_level(remake: Any) -> None:
    actions = np.random.default_rng(1).integers(0, 6, size=30).tolist()
    for level in level_ids():
        env = made(level)
        env.reset(seed=7)
        play(env, actions[:8])
        twin = remake(env)
        levels = env.unwrapped.level, twin.unwrapped.level
        assert type(levels[0]) is type(levels[1]) and levels[0] is not levels[1]
        seen = play(env, actions)
        assert play(twin, actions) == seen, level


def test_a_copy_shares_nothing_with_the_environment_that_goes_on() -> None:
    env, fresh = BabyAITextEnv("BabyAI-BossLevel-v0"), BabyAITextEnv("BabyAI-BossLevel-v0")
    env.reset(seed=3)
    fresh.reset(seed=3)
    twin = copy.deepcopy(env)
    play(env, [2, 1, 2, 3, 2, 5] * 4)
    assert play(twin, [1, 2, 2, 0]) == play(fresh, [1, 2, 2, 0])


def test_a_copy_leaves_the_window_to_the_environment() -> None:
    env: Any = BabyAITextEnv()
    env.level.window = env.level.clock = memoryview(b"neither pickled nor copied")
    env.reset(seed=0)
    for twin in (copy.deepcopy(env), unpickled(env)):
        assert twin.level.window is None and twin.level.clock is None


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("level", ["GoToLocal-v0", "GoToFrench-v0", "BossLevel-v0"])
def test_a_vector_of_environments_is_made_with_gymnasiums_defaults(level: str, mode: str) -> None:
    seeds = [11, 12]
    singles = [gymnasium.make(f"BabyAI-Text/{level}") for _ in seeds]
    envs: Any = gymnasium.make_vec(f"BabyAI-Text/{level}", num_envs=2, vectorization_mode=mode)
    try:
        seen, _ = envs.reset(seed=seeds)
        alone = [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]
        for action in (2, 0, 2, 1):
            for name in ("text", "mission"):
                assert list(seen[name]) == [one[name] for one in alone]
            assert np.array_equal(seen["image"], np.stack([one["image"] for one in alone]))
            seen, rewards, *_, info = envs.step(np.full(2, action))
            steps = [env.step(action) for env in singles]
            alone = [step[0] for step in steps]
            assert rewards.tolist() == [step[1] for step in steps]
            assert list(info["descriptions"]) == [step[4]["descriptions"] for step in steps]
    finally:
        envs.close()


def test_async_environments_of_every_level_share_their_memory() -> None:
    for level in level_ids():
        envs = made_async(level, 1)
        try:
            seen, info = envs.reset(seed=[2])
            assert seen["text"][0].splitlines() == info["descriptions"][0], level
            assert seen["mission"][0] == info["mission"][0]
        finally:
            envs.close()


def test_workers_that_share_nothing_but_the_memory_fill_it_too() -> None:
    """They import everything anew; without copies, what was seen follows the steps."""
    envs = made_async("GoToFrench-v0", 2, context="spawn", copy=False)
    try:
        seen, info = envs.reset(seed=[1, 2])
        first = list(seen["text"])
        assert [text.splitlines() for text in first] == list(info["descriptions"])
        *_, info = envs.step(np.array([1, 1]))
        assert [text.splitlines() for text in seen["text"][:]] == list(info["descriptions"])
        assert list(seen["text"]) != first
    finally:
        envs.close()


def test_a_text_in_shared_memory_leaves_nothing_of_a_longer_one_before_it() -> None:
    space = SharedText(8, min_length=0, charset="abé")
    memory: Any = create_shared_memory(space, n=2)
    texts: Any = read_from_shared_memory(space, memory, n=2)
    write: Any = write_to_shared_memory
    assert list(texts) == ["", ""]
    for text in ("abéabéab", "é", ""):
        write(space, 1, text, memory)
        assert copy.deepcopy(texts) == ("", text)
    with pytest.raises(ValueError):
        write(space, 1, "abéabéaba", memory)


def minigrids_wrappers() -> list[type[gymnasium.Wrapper]]:
    """Those that need nothing but an environment."""
    found = [thing for _, thing in inspect.getmembers(wrappers, inspect.isclass)]
    return [
        kind
        for kind in found
        if issubclass(kind, gymnasium.Wrapper)
        and kind.__module__ == wrappers.__name__
        and len(inspect.signature(kind).parameters) == 1
    ]


@pytest.mark.parametrize("wrapper", minigrids_wrappers())
def test_every_wrapper_of_minigrid_can_be_put_around_it(wrapper: Any) -> None:
    env = wrapper(gymnasium.make("BabyAI-Text/GoToLocal-v0"))
    observation, _ = env.reset(seed=1)
    assert observation in env.observation_space
    assert env.step(2)[0] in env.observation_space
