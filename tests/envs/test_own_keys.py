"""Keys of ``env`` that share a name with an argument of a user's environment: what reaches it."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.runs.checks import check_configs
from lamorel_ext.config import EnvArgs, Plug, load_config
from lamorel_ext.envs.own import own_batch
from lamorel_ext.envs.own_keys import own_plug
from lamorel_ext.errors import ConfigError
from lamorel_ext.options import number

SEEDS = lambda copy, episode: 100 * copy + episode  # noqa: E731
KITCHEN = "my_kitchen.Kitchen"


class Told:
    """Says what it was made with."""

    def __init__(
        self,
        level: str = "easy",
        max_steps: int = 12,
        success_above: float = 0.5,
        action_texts: Any = ("left", "right"),
        history: int = 1,
        language: str = "en",
        own: int = 0,
    ) -> None:
        self.action_texts = tuple(action_texts)
        self.text = f"{level} {max_steps} {success_above:g} {history} {own}"

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        return self.text, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self.text, 1.0, False, False, {}

    def close(self) -> None:
        pass


def anything(**keywords: Any) -> Told:
    return Told(**keywords)


def needs(history: int, max_steps: int) -> Told:
    return Told(history=history, max_steps=max_steps)


def limited(max_steps: int) -> Told:
    return Told(max_steps=max_steps)


half = functools.partial(Told, history=2)


@dataclass(frozen=True)
class Options:
    max_steps: int = number(5, at_least=1)
    num_envs: int = number(1, at_least=1)


class Declares(Told):
    arguments_type = Options

    def __init__(self, options: Options) -> None:
        super().__init__(max_steps=options.max_steps)


class Bare:
    def make_batch(self, num_envs: int, episode_seed: Any) -> Any:
        raise NotImplementedError


class Maker(Bare):
    def __init__(self, max_steps: int | None = None) -> None:
        self.limit = max_steps


def args_of(target: str, keywords: dict[str, Any] | None = None, **values: Any) -> EnvArgs:
    return EnvArgs(own=Plug(f"{__name__}.{target}", json.dumps(keywords or {})), **values)


def shown(args: EnvArgs) -> str:
    return own_batch(args, 1, SEEDS).reset().descriptions[0][0]


def test_what_means_the_same_to_both_reaches_the_environment_where_it_is_set() -> None:
    assert shown(args_of("Told")) == "easy 12 0.5 1 0"
    args = args_of("Told", level="hard", max_steps=30, success_above=2.0, action_texts=("a", "b"))
    assert shown(args) == "hard 30 2 1 0"
    assert own_batch(args, 1, SEEDS).action_texts == ("a", "b")
    assert shown(args_of("Declares", max_steps=7)) == "easy 7 0.5 1 0"
    assert shown(args_of("limited", max_steps=7)) == "easy 7 0.5 1 0"
    assert shown(args_of("anything", {"own": 3}, max_steps=7)) == "easy 12 0.5 1 3"


@pytest.mark.parametrize("max_steps", [3, 12, 30])
def test_the_examples_episodes_are_as_long_as_the_key_says(
    monkeypatch: pytest.MonkeyPatch, max_steps: int
) -> None:
    folder = Path(__file__).resolve().parents[2] / "docs/own/environment"
    monkeypatch.syspath_prepend(str(folder))
    env = own_batch(EnvArgs(own=Plug(KITCHEN), max_steps=max_steps), 1, SEEDS)
    env.reset()
    lasted = 1
    while not env.step(np.array([0])).done[0]:
        lasted += 1
    assert lasted == max_steps


def test_textworlds_own_limit_is_the_key_too() -> None:
    target = Plug("lamorel_ext.envs.text_world.TextWorldQuest", '{"games": "games"}')
    called = own_plug(EnvArgs(own=target, max_steps=30))
    assert called.keywords == {"games": "games", "max_steps": 30}


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("Told", {"history": 4}, "env.history: .*never reaches the argument history of .*Told"),
        ("half", {"history": 4}, "env.history: "),
        ("needs", {"max_steps": 3}, "env.history: .*name a function"),
        ("Declares", {"num_envs": 4}, "env.num_envs: "),
        ("anything", {"level": "hard"}, "env.level: .*takes no argument level.*'hard'"),
        ("Maker", {"success_above": 1.0}, "env.success_above: must be 0.0 where .*its own batch"),
        ("Bare", {"max_steps": 3}, "env.max_steps: must be null where .*Bare"),
        ("Maker", {"num_workers": 2}, "env.num_workers: must be 0 where .*Maker"),
    ],
)
def test_a_key_that_would_never_reach_it_is_refused(
    name: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        own_batch(args_of(name, **values), 1, SEEDS)


def test_keys_that_are_not_set_are_no_hindrance() -> None:
    assert shown(args_of("half")) == "easy 12 0.5 2 0"
    assert shown(args_of("Told", num_envs=3, prompt="glam", name="mine")) == "easy 12 0.5 1 0"


def test_a_batch_of_ones_own_gets_the_limit_it_takes() -> None:
    assert own_plug(args_of("Maker", max_steps=4)).keywords == {"max_steps": 4}


def test_the_check_before_a_run_names_every_such_key() -> None:
    base = ["arm=student_alone", f"env._target_={__name__}.Told"]
    check_configs([load_config([*base, "env.level=hard", "env.max_steps=3"])])
    required = f"env._target_={__name__}.limited"
    check_configs([load_config(["arm=student_alone", required, "env.max_steps=3"])])
    with pytest.raises(ConfigError, match="env.history: is a key"):
        check_configs([load_config([*base, "env.history=5"])])
    with pytest.raises(ConfigError, match="env.language: must be en .*another name"):
        load_config([*base, "env.language=fr"])
