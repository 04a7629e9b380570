"""Collecting experience: what an agent decided, what came of it, and the advantages that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from lamorel_ext.student.advantages import gae, td_errors
from lamorel_ext.student.guidance import Guidance, Said
from lamorel_ext.student.joining import join
from lamorel_ext.student.randomness import Draws
from lamorel_ext.student.scenes import PromptedEnv, Scene, SceneStep
from lamorel_ext.types import StepBatch


@dataclass(frozen=True)
class Discount:
    """How rewards become advantages: discount, decay of the mixture, and the factor that rewards are multiplied by before."""

    gamma: float
    lam: float
    reward_scale: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What an actor decided in ``n`` environments.

    Attributes:
        actions: ``(n,)`` int64, ids of actions.
        log_probs: ``(n,)`` float64, log-probabilities of the actions.
        values: ``(n,)`` float64, V of the states.
        said: What the LLM said, where there is one: the guidance, or the action itself where the LLM is the policy.
        features: ``(n, FEATURE_SIZE)`` float32, what a student saw.
        heard: The guidance that a student heard.
    """

    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    said: Said | None = None
    features: np.ndarray | None = None
    heard: Guidance | None = None


Deciding = Callable[[Draws], Decision]
"""A decision under way: the call waits for the LLM's answer and draws from it."""


class Actor(Protocol):
    """Whoever can be put into an environment.

    Attributes:
        discount: Of the advantages that its critic is trained on.
        reads_prompts: True where what it does depends on the prompts.
        enumerable: True where ``action_probs`` can be given.
    """

    discount: Discount
    reads_prompts: bool
    enumerable: bool

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """Choose an action in each environment."""

    def values(self, scene: Scene) -> np.ndarray:
        """V of each state, ``(n,)`` float64."""

    def action_probs(self, scene: Scene) -> np.ndarray:
        """Probability of each action in each state, ``(n, actions)`` float64, whatever guidance may be given there."""


@runtime_checkable
class AskingActor(Actor, Protocol):
    """An actor that can send off its question to the LLM now and decide later.

    Attributes:
        asks: True where it has a question: one request for scores in each state.
    """

    asks: bool

    def ask(self, scene: Scene) -> Deciding:
        """Send off what the LLM must score; ``ask(scene)(draws)`` is ``decide(scene, draws)``."""


@dataclass(frozen=True)
class Turn:
    """One step of a rollout.

    Attributes:
        prompts: Prompts of the states acted in, without feedback sentences.
        next_values: ``(num_envs,)``, V of the states reached, where it was needed at once.
    """

    prompts: tuple[str, ...]
    decision: Decision
    stepped: SceneStep
    next_values: np.ndarray | None = None

    @property
    def step(self) -> StepBatch:
        """Rewards and ends."""
        return self.stepped.step

    def errors(self, discount: Discount) -> np.ndarray:
        """TD errors ``(num_envs,)``; needs ``next_values``."""
        if self.next_values is None:
            raise ValueError("this step's next values were not asked for")
        scaled = self.step.rewards * discount.reward_scale
        return td_errors(scaled, self.decision.values, self.next_values, self.step.terminated, discount.gamma)


@dataclass(frozen=True)
class Rollout:
    """A rollout; arrays are ``(num_steps, num_envs)``.

    Attributes:
        turns: The steps.
        rewards: Unscaled.
        terminated: True where the task itself ended the episode.
        done: True where the episode ended for either reason.
        values: V of the states acted in, in units of scaled rewards like the two below.
        errors: TD errors.
        advantages: Generalised advantages, not normalised.
    """

    turns: tuple[Turn, ...]
    rewards: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    advantages: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """What the critic should have said: advantages plus values."""
        returns: np.ndarray = self.advantages + self.values
        return returns


class StepListener(Protocol):
    """Who is told of every step while a rollout is collected."""

    online: bool
    """True where it needs the values of the states reached at once."""

    def after_step(self, turn: Turn, discount: Discount) -> np.ndarray | None:
        """Hear of a step; gives the signals that the next prompts are to say, if any."""


def collect(env: PromptedEnv, actor: Actor, listener: StepListener, scene: Scene, num_steps: int, draws: Draws) -> tuple[Rollout, Scene]:
    """Act for ``num_steps`` steps from ``scene`` on.

    Returns:
        The rollout, and the scene in which the next one begins.
    """
    turns = []
    for _ in range(num_steps):
        decision = actor.decide(scene, draws)
        stepped = env.step(decision.actions)
        next_values = actor.values(stepped.reached) if listener.online else None
        turn = Turn(scene.prompts, decision, stepped, next_values)
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
    errors = td_errors(rewards * discount.reward_scale, values, _next_values(turns, actor, values), terminated, discount.gamma)
    advantages = gae(errors, done, discount.gamma, discount.lam)
    return Rollout(tuple(turns), rewards, terminated, done, values, errors, advantages)


def _next_values(turns: Sequence[Turn], actor: Actor, values: np.ndarray) -> np.ndarray:
    """V of the states reached.

    Where the episode goes on it is the next step's own value. Only cut-off episodes and the rollout's last states are evaluated, in one
    call; where the task ended the episode the value is not needed and left at 0.
    """
    known = [turn.next_values for turn in turns if turn.next_values is not None]
    if len(known) == len(turns):
        return np.stack(known)
    next_values = np.concatenate([values[1:], np.zeros_like(values[:1])])
    cut = np.stack([np.logical_and(turn.step.truncated, np.logical_not(turn.step.terminated)) for turn in turns])
    cut[-1] = np.logical_not(turns[-1].step.terminated)
    places = [(turn.stepped.reached, np.flatnonzero(row)) for turn, row in zip(turns, cut, strict=True) if row.any()]
    if places:
        next_values[cut] = actor.values(join([reached.take(envs) for reached, envs in places]))
    return next_values
