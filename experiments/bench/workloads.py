"""What is scored and learnt from: prompts of random rollouts, as they come or all distinct, and
candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.prompts import ACTION_NAMES, PromptHistory
from lamorel_ext.prompts.templates import Template
from lamorel_ext.types import BatchedEnv

Calls = list[tuple[str, ...]]
"""Prompts of consecutive scoring calls."""

COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")
SUBGOALS = tuple(
    [
        f"{verb} the {colour} {thing}"
        for verb in ("go to", "pick up")
        for thing in ("ball", "box", "key")
        for colour in COLOURS
    ]
    + [f"{verb} the {colour} door" for verb in ("go to", "open") for colour in COLOURS]
    + [
        f"go {steps} {unit} {way}"
        for steps, unit in ((1, "step"), (2, "steps"))
        for way in ("forward", "left", "right")
    ]
    + [
        f"turn {way} to the {thing}"
        for way in ("left", "right")
        for thing in ("ball", "box", "key")
    ]
)
"""Sixty short instructions that begin alike, as a teacher's candidates do."""


def walk(env: BatchedEnv, template: Template, history: int) -> Iterator[tuple[str, ...]]:
    """Prompts of a uniformly random policy, step after step, without end."""
    prompts = PromptHistory(template, history)
    draws = np.random.default_rng(0)
    yield prompts.reset(env.reset())
    while True:
        actions = draws.integers(len(ACTION_NAMES), size=env.num_envs)
        yield prompts.step(actions, env.step(actions)).current


def rollout_calls(env: BatchedEnv, num_steps: int) -> Calls:
    """The calls of one rollout, one per step, in the order in which training makes them."""
    return list(itertools.islice(walk(env, "lamorel", 1), num_steps))


def distinct_calls(
    env: BatchedEnv, num_calls: int, size: int, template: Template = "glam", history: int = 1
) -> Calls:
    """Calls of ``size`` prompts in which no prompt comes twice, in the order in which a random
    policy meets them.
    """
    met: dict[str, None] = {}
    # The first steps would show shorter histories than a rollout's.
    for prompts in itertools.islice(walk(env, template, history), history - 1, None):
        met.update(dict.fromkeys(prompts))
        if len(met) >= num_calls * size:
            break
    return cut(list(met)[: num_calls * size], size)


def cut(prompts: Sequence[str], size: int) -> Calls:
    """Calls of ``size`` prompts; the last may be smaller."""
    return [tuple(prompts[i : i + size]) for i in range(0, len(prompts), size)]


def spaced(calls: Calls, count: int) -> Calls:
    """``count`` calls evenly spaced over all: a fair sample where costs drift along a rollout."""
    places = np.linspace(0, len(calls) - 1, min(count, len(calls))).round().astype(int)
    return [calls[place] for place in places]


def ppo_data(n: int, seed: int) -> dict[str, Tensor]:
    """Transitions' data of the size and spread that PPO sees; the time of an update does not depend
    on the values.
    """
    draws = torch.Generator().manual_seed(seed)
    return {
        "actions": torch.randint(len(ACTION_NAMES), (n,), generator=draws),
        "old_log_probs": torch.full((n,), -float(np.log(len(ACTION_NAMES)))),
        "advantages": torch.randn(n, generator=draws),
        "returns": torch.rand(n, generator=draws),
        "values": torch.rand(n, generator=draws),
    }


def same_candidates(
    prompts: Sequence[str], candidates: Sequence[str] = ACTION_NAMES
) -> tuple[tuple[str, ...], ...]:
    """The same candidates for every prompt."""
    return (tuple(candidates),) * len(prompts)
