"""Environment steps with text and reward: batched environments against one minigrid environment with the same text."""

from __future__ import annotations

import statistics

import numpy as np

from experiments.benchmarks.harness import Contender, Detail, Row, make_row, missing_row, ratios, rounded, take_turns
from experiments.benchmarks.minigrid_text import VERSION, MinigridText
from experiments.benchmarks.subjects import LOCAL_LEVEL, PAPER_LEVEL, Subjects
from lamorel_ext.envs.batched import make_batched_env
from lamorel_ext.envs.minigrid_batch import MinigridBatch
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.types import BatchedEnv

DISTRACTOR_LEVELS = (LOCAL_LEVEL, "BabyAI-GoToRedBall-v0", "BabyAI-PickupLoc-v0", "BabyAI-PutNextLocal-v0")
"""Single rooms with distractors: going to, picking up, putting."""


def env_paper(subjects: Subjects) -> list[Row]:
    """GoToRedBallNoDists, random policy, episodes resetting themselves."""
    return [_compare("env_paper", (PAPER_LEVEL,), 300.0, subjects)]


def env_text(subjects: Subjects) -> list[Row]:
    """Single-room levels with distractors; judged by the slowest of them."""
    return [_compare("env_text", DISTRACTOR_LEVELS, 50.0, subjects)]


def _compare(name: str, levels: tuple[str, ...], bar: float, subjects: Subjects) -> Row:
    setting = subjects.setting
    envs = {level: make_batched_env(level, setting.large_batch, seed=0) for level in levels}
    stepwise = [level for level, env in envs.items() if isinstance(env, MinigridBatch)]
    if stepwise:
        return missing_row(name, bar, "x", f"no vectorised environment for {', '.join(stepwise)}: the batch steps minigrid itself there")
    measured = {level: _race(level, env, subjects) for level, env in envs.items()}
    detail: dict[str, Detail] = {"num_envs": setting.large_batch, "minigrid": VERSION}
    for level, seconds in measured.items():
        detail |= {f"{level}_{who}_steps_per_s": rounded(1.0 / statistics.median(turns)) for who, turns in seconds.items()}
    slowest = min((ratios(seconds["minigrid"], seconds["ours"]) for seconds in measured.values()), key=statistics.median)
    return make_row(name, slowest, bar, "x", detail=detail)


def _race(level: str, env: BatchedEnv, subjects: Subjects) -> dict[str, list[float]]:
    """Seconds per environment step."""
    setting, minigrid = subjects.setting, MinigridText(level)
    draws = np.random.default_rng(0)
    batches = draws.integers(len(ACTION_NAMES), size=(setting.env_steps, setting.large_batch))
    actions = [int(action) for action in draws.integers(len(ACTION_NAMES), size=setting.minigrid_steps)]
    return take_turns(
        {
            "minigrid": Contender(
                lambda: _step_minigrid(minigrid, actions), lambda: minigrid.reset(seed=0), scale=1 / setting.minigrid_steps
            ),
            "ours": Contender(lambda: _step_batch(env, batches), prepare=env.reset, scale=1 / batches.size),
        },
        setting.repetitions,
    )


def _step_minigrid(env: MinigridText, actions: list[int]) -> None:
    for action in actions:
        *_, done = env.step(action)
        if done:
            env.reset()


def _step_batch(env: BatchedEnv, batches: np.ndarray) -> None:
    for actions in batches:
        env.step(actions)
