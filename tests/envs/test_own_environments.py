"""Environments of the user's own: any text game becomes a batch, and what is wrong is named."""

import json
import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lamorel_ext.config import EnvArgs, Plug
from lamorel_ext.envs import own_workers
from lamorel_ext.envs.own import OwnBatch, look_at, own_batch
from lamorel_ext.envs.own_workers import CopiesInWorkers
from lamorel_ext.errors import CheckpointError, ConfigError, EnvError, EnvWorkerError
from lamorel_ext.types import ObservationBatch, StepBatch

SEEDS = lambda copy, episode: 100 * copy + episode  # noqa: E731


class Count(gymnasium.Env[Any, Any]):
    """Counts up from what the seed says; three actions by number."""

    action_texts: tuple[str, ...] = ("stay", "one more", "stop")
    action_space: gymnasium.Space[Any] = gymnasium.spaces.Discrete(3)

    def __init__(self, gain: float = 1.0, shape: tuple[int, ...] = ()) -> None:
        self.gain, self.shape = gain, tuple(shape)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(10))
        return self.seen(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.number += action == 1
        return self.seen(), self.gain * (action == 2), bool(action == 2), False, self.info()

    def seen(self) -> Any:
        text = f"You are at {self.number}\n\nGo on"
        if not self.shape:
            return text
        return {"text": text, "mission": "count", "features": np.full(self.shape, self.number)}

    def info(self) -> dict[str, Any]:
        return {}


class Lists(Count):
    """Each state lists as many texts as its number says; ``step`` gets the text."""

    action_texts = ()
    action_space = gymnasium.spaces.Text(20)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert isinstance(action, str)
        self.number += 1
        return self.seen(), -1.0, action == "say 0", False, self.info() | {"success": True}

    def info(self) -> dict[str, Any]:
        return {"admissible": [f"say {i}" for i in range(1 + self.number % 4)]}


class Drifts(Count):
    starts = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        Drifts.starts += 1
        self.number = Drifts.starts
        return self.seen(), {}


class Keeps(Drifts):
    def get_state(self) -> dict[str, int]:
        return {"number": self.number}

    def set_state(self, state: dict[str, int]) -> tuple[Any, dict[str, Any]]:
        self.number = state["number"]
        return self.seen(), {}


class NotANumber(Count):
    def __init__(self) -> None:
        super().__init__(gain=float("nan"))


class Gives(Count):
    """Gives something else in one place of what ``step`` gives."""

    def __init__(self, place: int, value: Any) -> None:
        super().__init__()
        self.place, self.value = place, value

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        given: list[Any] = [*super().step(action)]
        given[self.place] = self.value
        return tuple(given)  # type: ignore[return-value]


class Grows(Count):
    def seen(self) -> Any:
        return {"text": "a", "features": np.zeros(getattr(self, "number", 1) + 1)}


class Many(Count):
    action_space = gymnasium.spaces.Discrete(4)


class Errands(Count):
    """Says its mission where there is a new one."""

    def seen(self) -> Any:
        news = {"mission": f"leave {self.number}"} if self.number % 2 == 0 else {}
        return {"text": f"You are at {self.number}"} | news


class Silent(Count):
    action_texts = ()


class Pictures(Count):
    def seen(self) -> Any:
        return np.zeros((3, 3))


class Batches:
    """A batch of one's own, of which each copy counts its steps."""

    def make_batch(self, num_envs: int, episode_seed: Any) -> "OwnSteps":
        return OwnSteps(num_envs)


class OwnSteps:
    action_texts = ("wait", "go")

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def reset(self) -> ObservationBatch:
        self.steps = 0
        return self.observe()

    def observe(self) -> ObservationBatch:
        return ObservationBatch(("",) * self.num_envs, ((f"step {self.steps}",),) * self.num_envs)

    def step(self, actions: np.ndarray) -> StepBatch:
        self.steps += 1
        seen, ends = self.observe(), np.zeros(self.num_envs, dtype=bool)
        return StepBatch(seen, seen, np.full(self.num_envs, 0.5), ends, ends)

    def close(self) -> None:
        pass


def own(cls: type, **values: Any) -> EnvArgs:
    keywords = values.pop("keywords", {})
    return EnvArgs(own=Plug(f"{__name__}.{cls.__name__}", json.dumps(keywords)), **values)


def test_lines_of_the_text_are_sentences_and_fixed_texts_are_offered() -> None:
    env = own_batch(own(Count), 2, SEEDS)
    seen = env.reset()
    assert seen.descriptions[0][1] == "Go on" and seen.missions == ("", "")
    assert seen.actions == (("stay", "one more", "stop"),) * 2
    assert not len(seen.images) and not len(seen.features)


def test_a_mission_stays_until_another_one_is_said_or_the_episode_ends() -> None:
    starts_at_8, starts_at_7 = 0, 4
    env = own_batch(own(Errands), 1, lambda copy, episode: (starts_at_8, starts_at_7)[episode])
    assert env.reset().missions == ("leave 8",)
    steps = [env.step(np.array([action])) for action in (1, 1, 1, 2)]
    said = [step.reached.missions[0] for step in steps]
    assert said == ["leave 8", "leave 10", "leave 10", "leave 10"]
    assert steps[-1].current.missions == ("",)


def test_episodes_follow_from_copy_and_number_alone() -> None:
    def starts(actions: list[int]) -> list[str]:
        env = own_batch(own(Count), 2, SEEDS)
        found = [env.reset().descriptions[1][0]]
        for action in actions:
            step = env.step(np.array([1, action]))
            if step.done[1]:
                found.append(step.current.descriptions[1][0])
        return found

    assert starts([2, 2, 2]) == starts([1, 2, 0, 2, 1, 1, 2])


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2, 3)])
def test_features_of_any_shape_are_flat_numbers(shape: tuple[int, ...]) -> None:
    args = own(Count, keywords={"shape": shape})
    seen = own_batch(args, 2, SEEDS).reset()
    assert seen.features.shape == (2, int(np.prod(shape))) and seen.features.dtype == np.float32
    assert seen.missions == ("count", "count")
    assert look_at(args, 0).feature_size == int(np.prod(shape))


def test_each_state_lists_its_own_texts_and_step_gets_the_text() -> None:
    env = own_batch(own(Lists), 3, SEEDS)
    seen = env.reset()
    assert look_at(own(Lists), 0).by_state
    step = env.step(np.array([len(texts) - 1 for texts in seen.actions]))
    assert step.reached.actions != seen.actions
    assert len(step.reached.take(np.array([2])).actions) == 1


@pytest.mark.parametrize("above, expected", [(0.0, True), (0.5, True), (1.0, False)])
def test_success_is_a_return_above_a_threshold(above: float, expected: bool) -> None:
    env = own_batch(own(Count, success_above=above), 1, SEEDS)
    env.reset()
    assert env.step(np.array([2])).succeeded == [expected]


def test_success_is_what_the_environment_says_whatever_the_return() -> None:
    env = own_batch(own(Lists), 1, SEEDS)
    env.reset()
    step = env.step(np.array([0]))
    assert step.rewards[0] < 0 and step.succeeded is not None and step.succeeded[0]


def test_a_limit_cuts_an_episode_off_without_success() -> None:
    env = own_batch(own(Count, max_steps=2, success_above=-1.0), 1, SEEDS)
    env.reset()
    assert not env.step(np.array([0])).done[0]
    step = env.step(np.array([0]))
    assert step.truncated[0] and not step.terminated[0]


@pytest.mark.parametrize("cls, keywords", [(Count, {}), (Count, {"shape": [2]}), (Lists, {})])
def test_a_saved_state_comes_back_through_json(cls: type, keywords: dict[str, Any]) -> None:
    args = own(cls, keywords=keywords)
    env, rng = own_batch(args, 3, SEEDS), np.random.default_rng(0)
    seen = env.reset()
    for _ in range(9):
        seen = env.step(np.array([rng.integers(len(texts)) for texts in seen.actions])).current
    other = own_batch(args, 3, SEEDS)
    again = other.restore(json.loads(json.dumps(env.state())))
    assert (again.descriptions, again.actions) == (seen.descriptions, seen.actions)
    actions = np.array([len(texts) - 1 for texts in seen.actions])
    one, two = env.step(actions), other.step(actions)
    assert one.current.descriptions == two.current.descriptions
    assert np.array_equal(one.rewards, two.rewards)


def test_what_is_not_deterministic_needs_its_own_state() -> None:
    for cls in (Drifts, Keeps):
        env = own_batch(own(cls), 1, SEEDS)
        env.reset()
        seen, state = env.step(np.array([1])).current, env.state()
        other = own_batch(own(cls), 1, SEEDS)
        if cls is Drifts:
            with pytest.raises(CheckpointError, match="copy 0.*get_state"):
                other.restore(state)
        else:
            assert other.restore(state).descriptions == seen.descriptions


@pytest.mark.parametrize("part", ["text", "mission"])
def test_half_a_character_is_named_before_a_tokenizer_or_a_file_meets_it(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"text": "a", "mission": "b", part: "x\udce9"}
    monkeypatch.setattr(Many, "reset", lambda self, **keywords: (seen, {}))
    with pytest.raises(EnvError, match=rf"copy 0.*the observation's {part}: .*UTF-8"):
        own_batch(own(Many), 1, SEEDS).reset()


@pytest.mark.parametrize(
    "cls, words",
    [
        (NotANumber, "copy 0.*reward: expected a finite number, got nan"),
        (Grows, "features: expected .* numbers"),
        (Many, "action_texts: expected 4 texts"),
        (Silent, "expected action_texts, or a list of texts in info"),
        (Pictures, "expected a text, or a dictionary with text"),
    ],
)
def test_what_is_wrong_is_named(cls: type, words: str) -> None:
    env = own_batch(own(cls), 2, SEEDS)
    with pytest.raises(EnvError, match=words):
        env.reset()
        env.step(np.array([0, 2]))


@pytest.mark.parametrize(
    "place, value, words",
    [
        (0, {"text": "a", "features": [10**400]}, "features: expected finite numbers, got"),
        (1, 10**400, "the reward: expected a finite number, got 1000"),
        (2, [True, False], r"terminated: expected one truth value, got \[True, False\]"),
        (3, [True, False], "truncated: expected one truth value"),
        (4, {"won": [True, False]}, r"info\['won'\]: expected one truth value"),
        (2, "False", "terminated: expected one truth value, got 'False'"),
        (4, {"success": "no"}, r"info\['success'\]: expected one truth value, got 'no'"),
        (4, {"success": 0.3}, r"info\['success'\]: expected one truth value, got 0.3"),
        (4, {"won": [float("nan")]}, r"info\['won'\]: expected one truth value, got \[nan\]"),
        (2, 0.5, "terminated: expected one truth value, got 0.5"),
    ],
)
def test_what_is_no_number_and_no_truth_value_is_named(place: int, value: Any, words: str) -> None:
    env = own_batch(own(Gives, keywords={"place": place, "value": value}), 1, SEEDS)
    env.reset()
    with pytest.raises(EnvError, match=f"copy 0.*step 1: .*{words}"):
        env.step(np.array([2]))


@pytest.mark.parametrize(
    "value, truth", [(None, False), (1.0, True), (0.0, False), (1, True), (2, True)]
)
def test_whole_numbers_and_nothing_at_all_are_truth_values(value: Any, truth: bool) -> None:
    env = own_batch(own(Gives, keywords={"place": 3, "value": value}), 1, SEEDS)
    env.reset()
    assert env.step(np.array([0])).truncated == [truth]


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_in_a_list_is_one(value: bool) -> None:
    env = own_batch(own(Gives, keywords={"place": 3, "value": [value]}), 1, SEEDS)
    env.reset()
    assert env.step(np.array([0])).truncated == [value]


def test_what_is_no_environment_is_named() -> None:
    with pytest.raises(EnvError, match="without reset"):
        own_batch(EnvArgs(own=Plug("pathlib.Path")), 1, SEEDS)


def test_a_batch_of_ones_own_is_taken_as_it_is() -> None:
    env = own_batch(own(Batches), 3, SEEDS)
    assert env.reset().actions == (("wait", "go"),) * 3
    assert env.step(np.zeros(3)).current.descriptions[2] == ("step 1",)
    assert look_at(own(Batches), 0).action_texts == ("wait", "go")


def test_the_examples_are_environments_as_gymnasium_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(__file__).resolve().parents[2] / "docs/own/environment"
    monkeypatch.syspath_prepend(str(folder))
    corridor = look_at(EnvArgs(own=Plug("my_game.Corridor")), 0)
    assert len(corridor.action_texts) == 3 and corridor.has_expert
    assert look_at(EnvArgs(own=Plug("my_kitchen.Kitchen")), 0).by_state


class Raises(Count):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise ValueError("the lamp is broken")


class Exits(Count):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os._exit(7)


class Sleeps(Count):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(600)
        raise AssertionError


@pytest.mark.ranks
@pytest.mark.parametrize("cls, keywords", [(Count, {"shape": [2]}), (Lists, {})])
def test_worker_processes_give_the_steps_of_this_process(
    cls: type, keywords: dict[str, Any]
) -> None:
    here = own_batch(own(cls, keywords=keywords), 3, SEEDS)
    there = own_batch(own(cls, keywords=keywords, num_workers=2), 3, SEEDS)
    rng, seen, other = np.random.default_rng(0), here.reset(), there.reset()
    for turn in range(12):
        assert np.array_equal(seen.features, other.features)
        assert (seen.missions, seen.descriptions) == (other.missions, other.descriptions)
        assert seen.actions == other.actions
        actions = np.array([rng.integers(len(texts)) for texts in seen.actions])
        one, two = here.step(actions), there.step(actions)
        assert one.reached.descriptions == two.reached.descriptions
        for name in ("rewards", "terminated", "truncated", "succeeded"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
        seen, other = one.current, two.current
        if turn == 8:
            assert here.state() == there.state()
            other = there.restore(json.loads(json.dumps(here.state())))
    there.close()
    there.close()


@pytest.mark.ranks
@pytest.mark.parametrize(
    "cls, kind, words",
    [
        (Raises, EnvError, r"copy 1, episode 0, step 0: step: ValueError: the lamp is broken"),
        (NotANumber, EnvError, "copy 0.*reward: expected a finite number, got nan"),
        (Exits, EnvWorkerError, "environment worker 0 ended with exit status 7"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_raised_here(
    cls: type, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_workers, "_FAREWELL_S", 60.0)  # how it ended is known late when busy
    env = OwnBatch(own(cls, num_workers=1), 1, SEEDS, first_copy=int(cls is Raises))
    assert isinstance(env._copies, CopiesInWorkers)
    pids = env._copies.pids
    with pytest.raises(kind, match=words) as caught:
        env.reset()
        env.step(np.array([2]))
    if cls is not Exits:
        assert "--- traceback of environment worker 0 ---" in str(caught.value)
        assert "test_own_environments.py" in str(caught.value) or cls is NotANumber
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.ranks
def test_a_worker_that_falls_silent_is_given_up() -> None:
    env = OwnBatch(own(Sleeps, num_workers=1), 1, SEEDS)
    env.reset()
    assert isinstance(env._copies, CopiesInWorkers)
    env._copies._patience_s = 0.5
    with pytest.raises(EnvWorkerError, match="worker 0 gave no answer for 0.5 s"):
        env.step(np.array([2]))


def test_a_batch_of_ones_own_has_no_workers_of_ours() -> None:
    with pytest.raises(ConfigError, match="env.num_workers: must be 0 where .*Batches"):
        own_batch(own(Batches, num_workers=2), 3, SEEDS)
