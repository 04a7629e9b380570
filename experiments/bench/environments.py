"""Environment steps with text and reward: batched environments against one minigrid environment
with the same text.
"""

from __future__ import annotations

import statistics

import numpy as np

from experiments.bench.harness import Contender, Detail, Row, make_row, ratios, rounded, take_turns
from experiments.bench.peers.minigrid_text import VERSION, MinigridText
from experiments.bench.subjects import LOCAL_LEVEL, PAPER_LEVEL, Subjects
from lamorel_ext.envs.babyai.batched import make_batched_env
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.types import BatchedEnv

DISTRACTOR_LEVELS = (
    LOCAL_LEVEL,
    "BabyAI-GoToRedBall-v0",
    "BabyAI-PickupLoc-v0",
    "BabyAI-PutNextLocal-v0",
)
"""Single rooms with distractors: going to, picking up, putting."""


def env_paper(subjects: Subjects) -> list[Row]:
    """GoToRedBallNoDists, random policy, episodes resetting themselves."""
    few = subjects.setting.num_envs // 2
    return [
        _compare("env_paper", (PAPER_LEVEL,), 300.0, subjects, subjects.setting.large_batch),
        _compare("env_paper_16", (PAPER_LEVEL,), None, subjects, few),
    ]


def env_text(subjects: Subjects) -> list[Row]:
    """Single-room levels with distractors; judged by the slowest of them."""
    few = subjects.setting.num_envs // 2
    return [
        _compare("env_text", DISTRACTOR_LEVELS, 50.0, subjects, subjects.setting.large_batch),
        _compare("env_text_16", DISTRACTOR_LEVELS, 50.0, subjects, few),
    ]


def _compare(
    name: str, levels: tuple[str, ...], bar: float | None, subjects: Subjects, num_envs: int
) -> Row:
    measured = {level: _race(level, subjects, num_envs) for level in levels}
    slowest = min(
        (ratios(seconds["minigrid"], seconds["ours"]) for seconds in measured.values()),
        key=statistics.median,
    )
    detail: dict[str, Detail] = {"num_envs": num_envs, "minigrid": VERSION}
    for level, seconds in measured.items():
        detail[f"{level}_ratio"] = rounded(
            statistics.median(ratios(seconds["minigrid"], seconds["ours"]))
        )
        detail |= {
            f"{level}_{who}_steps_per_s": rounded(1.0 / statistics.median(turns))
            for who, turns in seconds.items()
        }
    return make_row(name, slowest, bar, "x", detail=detail)


def _race(level: str, subjects: Subjects, num_envs: int) -> dict[str, list[float]]:
    """Seconds per environment step, resets included."""
    setting, minigrid = subjects.setting, MinigridText(level)
    draws = np.random.default_rng(0)
    batches = draws.integers(len(ACTION_NAMES), size=(setting.env_steps, num_envs))
    actions = [
        int(action) for action in draws.integers(len(ACTION_NAMES), size=setting.minigrid_steps)
    ]
    fresh = _FreshBatches(level, num_envs)
    return take_turns(
        {
            "minigrid": Contender(
                lambda: _step_minigrid(minigrid, actions), scale=1 / setting.minigrid_steps
            ),
            "ours": Contender(
                lambda: _step_batch(fresh.env, batches), prepare=fresh.renew, scale=1 / batches.size
            ),
        },
        setting.repetitions,
    )


class _FreshBatches:
    """A new batch of environments each time, with episodes that nobody has met: nothing is drawn
    before the clock runs.
    """

    def __init__(self, level: str, num_envs: int) -> None:
        self._level, self._num_envs, self._seed = level, num_envs, 0
        self.renew()

    def renew(self) -> None:
        self._seed += 1
        self.env = make_batched_env(self._level, self._num_envs, seed=self._seed)


def _step_minigrid(env: MinigridText, actions: list[int]) -> None:
    env.reset()
    for action in actions:
        *_, done = env.step(action)
        if done:
            env.reset()


def _step_batch(env: BatchedEnv, batches: np.ndarray) -> None:
    env.reset()
    for actions in batches:
        env.step(actions)
