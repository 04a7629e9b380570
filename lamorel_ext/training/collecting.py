"""Collecting experience: what an agent decided, what came of it, and the advantages that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lamorel_ext.errors import UpdateError
from lamorel_ext.experience import Actor, Discount, Rollout, Scene, StepListener, Turn, join
from lamorel_ext.randomness import Draws
from lamorel_ext.rl import gae, td_errors
from lamorel_ext.training import deciding
from lamorel_ext.training.scenes import PromptedEnv


def collect(
    env: PromptedEnv,
    actor: Actor,
    listener: StepListener,
    scene: Scene,
    num_steps: int,
    draws: Draws,
) -> tuple[Rollout, Scene]:
    """Act for ``num_steps`` steps from ``scene`` on.

    Returns:
        The rollout, and the scene in which the next one begins.
    """
    turns = []
    for _ in range(num_steps):
        decision = deciding.decide(actor, scene, draws)
        stepped = env.step(decision.actions)
        next_values = deciding.values(actor, stepped.reached) if listener.online else None
        turn = Turn(scene.prompts, decision, stepped, next_values, scene.candidates)
        turns.append(turn)
        scene = stepped.current.saying(listener.after_step(turn, actor.discount))
    return make_rollout(turns, actor), scene


def make_rollout(turns: Sequence[Turn], actor: Actor) -> Rollout:
    """Stack the steps and compute advantages."""
    discount = actor.discount
    rewards = np.stack([turn.step.rewards for turn in turns])
    terminated = np.stack([turn.step.terminated for turn in turns])
    done = np.stack([turn.step.done for turn in turns])
    values = np.stack([turn.decision.values for turn in turns])
    errors = td_errors(
        rewards * discount.reward_scale,
        values,
        _next_values(turns, actor, values),
        terminated,
        discount.gamma,
    )
    advantages = gae(errors, done, discount.gamma, discount.lam)
    return Rollout(tuple(turns), rewards, terminated, done, values, errors, advantages, rewards)


def with_rewards(rollout: Rollout, rewards: np.ndarray, discount: Discount) -> Rollout:
    """What the agent learns from where a method gives other rewards; ``rewards`` of the rollout
    itself stay the environment's.

    Args:
        rewards: ``(num_steps, num_envs)``, unscaled.

    Raises:
        UpdateError: They have another shape, or are not finite.
    """
    try:
        rewards = np.asarray(rewards, dtype=np.float64)  # a user's method may give nested lists
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises the last one
        raise UpdateError(f"rewards of a method: expected finite numbers: {error}") from error
    if rewards.shape != rollout.rewards.shape or not np.isfinite(rewards).all():
        raise UpdateError(
            f"rewards of a method: expected finite numbers of shape {rollout.rewards.shape}, got"
            f" shape {rewards.shape} with {int((~np.isfinite(rewards)).sum())} that are not finite"
        )
    errors = rollout.errors + (rewards - rollout.rewards) * discount.reward_scale
    advantages = gae(errors, rollout.done, discount.gamma, discount.lam)
    return dataclasses.replace(
        rollout, errors=errors, advantages=advantages, learnt_rewards=rewards
    )


def _next_values(turns: Sequence[Turn], actor: Actor, values: np.ndarray) -> np.ndarray:
    """V of the states reached.

    Where the episode goes on it is the next step's own value. Only cut-off episodes and the
    rollout's last states are evaluated, in one call; where the task ended the episode the value is
    not needed and left at 0.
    """
    known = [turn.next_values for turn in turns if turn.next_values is not None]
    if len(known) == len(turns):
        return np.stack(known)
    next_values = np.concatenate([values[1:], np.zeros_like(values[:1])])
    steps = [turn.step for turn in turns]
    cut = np.stack([np.logical_and(one.truncated, np.logical_not(one.terminated)) for one in steps])
    cut[-1] = np.logical_not(steps[-1].terminated)
    places = [
        (turn.stepped.reached, np.flatnonzero(row))
        for turn, row in zip(turns, cut, strict=True)
        if row.any()
    ]
    if places:
        cut_off = join([reached.take(envs) for reached, envs in places])
        next_values[cut] = deciding.values(actor, cut_off)
    return next_values
