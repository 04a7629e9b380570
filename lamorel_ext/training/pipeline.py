"""Two halves of the environments in turns: while the LLM servers score the prompts of one half, the
other half acts and is stepped.

The turns follow a fixed order and never the clock, and the halves draw their random numbers in the
order of the environments. So the same log-probabilities give the same actions as
``training.collecting.collect`` does. A server that reads half as many prompts at a time rounds its
last bits differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamorel_ext.config import LamorelArgs
from lamorel_ext.envs.babyai.minigrid_batch import MinigridBatch
from lamorel_ext.experience import Actor, AskingActor, Rollout, Scene, StepListener, Turn, join
from lamorel_ext.processes.cores import usable_cores
from lamorel_ext.randomness import Draws
from lamorel_ext.rpc.topology import world_size
from lamorel_ext.training.collecting import collect, make_rollout
from lamorel_ext.training.deciding import checked
from lamorel_ext.training.saved_envs import as_halves
from lamorel_ext.training.scenes import PromptedEnv
from lamorel_ext.types import BatchedEnv

WORTH_HALVING = 32
"""Environments from which on it pays, where minigrid steps them."""


class HalvedEnv:
    """Environments in two halves that are stepped apart; in all else like a ``PromptedEnv`` of all
    of them.

    Args:
        halves: Environments ``0`` to ``k - 1`` and ``k`` to ``num_envs - 1``; closed with this
            object.
    """

    def __init__(self, halves: Sequence[PromptedEnv]) -> None:
        self.halves = tuple(halves)

    @property
    def num_envs(self) -> int:
        """Environments of both halves."""
        return sum(half.num_envs for half in self.halves)

    def reset(self) -> Scene:
        """Start episode 0 everywhere."""
        return join([half.reset() for half in self.halves])

    def divide(self, scene: Scene) -> list[Scene]:
        """The scenes of the halves."""
        ends = np.cumsum([half.num_envs for half in self.halves])[:-1]
        return [scene.take(rows) for rows in np.split(np.arange(self.num_envs), ends)]

    def state(self) -> dict[str, Any]:
        """Where environments and histories stand, as JSON can hold it."""
        return {"halves": [half.state() for half in self.halves]}

    def restore(self, state: dict[str, Any]) -> Scene:
        """Come back to a saved state, also to that of a ``PromptedEnv``; gives the scene there.

        Raises:
            CheckpointError: ``state`` is not what ``state()`` gives, or cannot be divided.
        """
        saved = as_halves(state, [half.num_envs for half in self.halves])
        return join([half.restore(own) for half, own in zip(self.halves, saved, strict=True)])

    def close(self) -> None:
        """Free what is held. May be called twice."""
        for half in self.halves:
            half.close()


def can_be_halved(actor: Actor, listener: StepListener, num_envs: int) -> bool:
    """True where an LLM is asked for scores at every step, and nothing needs all environments to be
    at the same step.
    """
    return num_envs >= 2 and isinstance(actor, AskingActor) and actor.asks and not listener.online


def worth_halving(env: BatchedEnv, args: LamorelArgs) -> bool:
    """True where stepping takes so long that hiding it outweighs the cost of two smaller calls: see
    the benchmark ``pipeline``.

    Args:
        env: Of all copies.
        args: Says how many processes share a machine. They need more cores than they are: without
            one to spare the halves wait for each other.
    """
    processes = world_size(args.distributed_setup_args) // args.accelerate_args.num_machines
    pays = isinstance(env, MinigridBatch) and env.num_envs >= WORTH_HALVING
    return pays and processes < usable_cores()


def collect_rollout(
    env: PromptedEnv | HalvedEnv,
    actor: Actor,
    listener: StepListener,
    scene: Scene,
    num_steps: int,
    draws: Draws,
) -> tuple[Rollout, Scene]:
    """As ``training.collecting.collect``, in halves where the environments are.

    Args:
        listener: Hears of a step when both halves have taken it. Not ``online`` then: the LLM has
            been asked about the next step.
    """
    if not isinstance(env, HalvedEnv):
        return collect(env, actor, listener, scene, num_steps, draws)
    if not isinstance(actor, AskingActor):
        raise ValueError(
            f"{type(actor).__name__} cannot ask now and decide later: its environments cannot be"
            " halved"
        )
    if listener.online:
        raise ValueError(
            "a listener that changes the LLM or its prompts at every step needs every environment"
            " at the same step"
        )
    scenes = env.divide(scene)
    pending = [actor.ask(own) for own in scenes]
    turns = []
    for left in reversed(range(num_steps)):
        parts = []
        for i, half in enumerate(env.halves):
            decision = checked(actor, scenes[i], pending[i](draws))
            stepped = half.step(decision.actions)
            told = scenes[i]
            parts.append(Turn(told.prompts, decision, stepped, candidates=told.candidates))
            scenes[i] = stepped.current
            if left:
                pending[i] = actor.ask(scenes[i])
        turns.append(join(parts))
        listener.after_step(turns[-1], actor.discount)
    return make_rollout(turns, actor), join(scenes)
