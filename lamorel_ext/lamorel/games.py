"""What GLAM's scripts need of ``gym``, ``babyai`` and ``babyai_text``, on this package's
BabyAI-Text.

Only what these scripts call: environments with the methods of the original BabyAI-Text
(``seed``, ``reset`` that gives observation and information, ``step`` that gives four values), a
vector of them, and a few helpers.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np

from lamorel_ext.envs import BabyAITextEnv, level_ids
from lamorel_ext.errors import LevelError


class TextEnv:
    """A level, stepped as the original BabyAI-Text is.

    Args:
        level: Its id, such as ``BabyAI-GoToRedBall-v0``.
    """

    metadata: dict[str, Any] = {}

    def __init__(self, level: str) -> None:
        self._env = BabyAITextEnv(level)
        self._seed: int | None = None
        self.spec = SimpleNamespace(id=level)
        self.observation_space, self.action_space = (
            self._env.observation_space,
            self._env.action_space,
        )

    @property
    def unwrapped(self) -> TextEnv:
        """Itself."""
        return self

    @property
    def level(self) -> Any:
        """minigrid's level."""
        return self._env.level

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Begin the episodes of a seed at the next reset."""
        self._seed = None if seed is None else int(seed)
        return [seed]

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; observation and information, which has ``descriptions``."""
        seed, self._seed = kwargs.get("seed", self._seed), None
        observation, info = self._env.reset(seed=seed)
        return dict(observation), dict(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """Take an action; observation, reward, whether the episode is over, information."""
        observation, reward, terminated, truncated, info = self._env.step(int(action))
        return dict(observation), reward, terminated or truncated, dict(info)

    def render(self, *args: Any, **kwargs: Any) -> Any:
        """As minigrid renders."""
        return self._env.render()

    def close(self) -> None:
        """Free what is held."""
        self._env.close()


class ParallelEnv:
    """Environments stepped one after the other; each starts anew at the end of an episode."""

    def __init__(self, envs: Sequence[TextEnv]) -> None:
        if not envs:
            raise ValueError("no environment was given")
        self.envs = list(envs)
        self.num_envs = len(self.envs)
        self.spec, self.action_space = self.envs[0].spec, self.envs[0].action_space

    def __len__(self) -> int:
        return self.num_envs

    def reset(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Start an episode everywhere: observations and informations."""
        pairs = [env.reset() for env in self.envs]
        return [observation for observation, _ in pairs], [info for _, info in pairs]

    def step(
        self, actions: Any
    ) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray, tuple[dict[str, Any], ...]]:
        """Take one action everywhere."""
        observations, rewards, dones, infos = [], [], [], []
        for env, action in zip(self.envs, np.asarray(actions).reshape(-1), strict=True):
            observation, reward, done, info = env.step(action)
            if done:
                observation, info = env.reset()
            observations.append(observation)
            rewards.append(reward)
            dones.append(done)
            infos.append(info)
        return observations, np.array(rewards), np.array(dones), tuple(infos)


class DictList(dict[str, Any]):
    """Columns of equal length by name: names are attributes too, an index picks rows of all
    columns.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, column: Any) -> None:
        dict.__setitem__(self, name, column)

    def __len__(self) -> int:
        return len(next(iter(self.values()))) if self.keys() else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return dict.__getitem__(self, index)
        return DictList({name: column[index] for name, column in self.items()})

    def __setitem__(self, index: Any, rows: Any) -> None:
        if isinstance(index, str):
            dict.__setitem__(self, index, rows)
            return
        for name, row in rows.items():
            dict.__getitem__(self, name)[index] = row


class Bot:
    """The BabyAI bot.

    Args:
        env: One environment, at the start of an episode.
    """

    def __init__(self, env: TextEnv) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self._bot = BabyAIBot(env.level)

    def replan(self, action_taken: Any = None) -> int:
        """The next action."""
        return int(self._bot.replan(action_taken))


class ExtraInfoCollector:
    """BabyAI's auxiliary losses, which are not here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "BabyAI's auxiliary losses (aux_info) are not part of lamorel_ext"
        )


def make(level: str, **kwargs: Any) -> Any:
    """An environment by name: BabyAI-Text's, or else one of gymnasium's.

    Raises:
        LevelError: A BabyAI name that is no level.
    """
    if level in level_ids():
        return TextEnv(level)
    if level.startswith("BabyAI"):
        raise LevelError(
            f"{level} is no level; there are {len(level_ids())}, see lamorel_ext.envs.level_ids()"
        )
    return gymnasium.make(level, **kwargs)


def synthesize(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, least and greatest; not a number where there are none."""
    array = np.asarray(values if len(values) else [np.nan], dtype=np.float64)
    return {name: float(getattr(array, name)()) for name in ("mean", "std", "min", "max")}


def seed(number: int) -> None:
    """Set all random states."""
    import random

    import torch

    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def copy_tree(src: str, dst: str, **kwargs: Any) -> list[str]:
    """Copy a folder into another that may exist."""
    shutil.copytree(src, dst, dirs_exist_ok=True)
    return []


_CONTENTS: dict[str, dict[str, Any]] = {
    "gym": {
        "make": make,
        "Env": gymnasium.Env,
        "Wrapper": gymnasium.Wrapper,
        "spaces": gymnasium.spaces,
    },
    "babyai": {},
    "babyai_text": {},
    "babyai.utils": {"synthesize": synthesize, "seed": seed},
    "babyai.bot": {"Bot": Bot},
    "babyai.rl": {"DictList": DictList},
    "babyai.rl.utils": {"DictList": DictList},
    "babyai.rl.utils.supervised_losses": {"ExtraInfoCollector": ExtraInfoCollector},
    "babyai.paral_env_simple": {"ParallelEnv": ParallelEnv},
    "distutils": {},
    "distutils.dir_util": {"copy_tree": copy_tree},
}


def fill(module: ModuleType) -> None:
    """Put its contents into a module made for one of these names."""
    for name, value in _CONTENTS[module.__name__].items():
        setattr(module, name, value)
    if module.__name__ == "distutils":  # scripts use it without importing it
        importlib.import_module("distutils.dir_util")
