"""What a client collects: scenes, guidance, decisions, turns and rollouts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from lamorel_ext.prompts import ACTION_NAMES, with_feedback
from lamorel_ext.randomness import Draws
from lamorel_ext.rl import td_errors
from lamorel_ext.types import ObservationBatch, StepBatch, TaskSpec

T = TypeVar("T")

BABYAI = TaskSpec("BabyAI-Text", ACTION_NAMES, symbolic=True, has_expert=True)
"""What every level of BabyAI-Text asks of an agent."""


@dataclass(frozen=True)
class Scene:
    """What ``n`` environments show.

    Attributes:
        observations: The symbolic views and sentences.
        prompts: The prompts of these states, without feedback sentences.
        experts: ``(n,)`` int64, the expert's actions, or None where nobody asks for them.
        signals: ``(n,)``, the f of the last guidance, which the prompts are to say in words; None
            says nothing.
    """

    observations: ObservationBatch
    prompts: tuple[str, ...]
    experts: np.ndarray | None = None
    signals: np.ndarray | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The prompts as the LLM reads them, with the feedback sentence where there is one."""
        if self.signals is None:
            return self.prompts
        return tuple(
            with_feedback(prompt, float(f))
            for prompt, f in zip(self.prompts, self.signals, strict=True)
        )

    @property
    def candidates(self) -> tuple[tuple[str, ...], ...]:
        """Texts of the actions that each state offers."""
        return self.observations.actions or (ACTION_NAMES,) * len(self)

    def saying(self, signals: np.ndarray | None) -> Scene:
        """The same scene, with ``signals`` to be said in the prompts."""
        return dataclasses.replace(self, signals=signals)

    def take(self, indices: np.ndarray) -> Scene:
        """The scene of some of the environments."""
        observations = self.observations.take(indices)
        experts = None if self.experts is None else self.experts[indices]
        signals = None if self.signals is None else self.signals[indices]
        return Scene(observations, tuple(self.prompts[i] for i in indices), experts, signals)

    def __len__(self) -> int:
        return len(self.prompts)


class AllStates(Scene):
    """All that a level can show, to evaluate exactly: what an LLM answers is kept as long as its
    weights stay.
    """


@dataclass(frozen=True)
class SceneStep:
    """What one step led to; ``reached`` and ``current`` as in ``StepBatch``."""

    reached: Scene
    current: Scene
    step: StepBatch


@dataclass(frozen=True)
class Said:
    """What an LLM said at one step, as the feedback edge needs it.

    Attributes:
        prompts: ``n`` prompts as the LLM read them.
        candidates: ``n`` tuples of texts it could have said; for free guidance the one it did say.
        chosen: ``(n,)`` int64, which of them it said.
        log_probs: ``(n,)`` float64, log p(x_t) in nats: normalised over the candidates, or summed
            over the tokens of free guidance.
        entropies: ``(n,)`` in nats; for free guidance the one-sample estimate ``-log p``.
        scores: ``(n, candidates)`` float64, the summed log-probability of each candidate's tokens
            in nats, not normalised; None for free guidance.
    """

    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    chosen: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Guidance:
    """Guidance x_t as the student hears it.

    Attributes:
        codes: ``(n, guidance_codes)`` float32.
        hints: ``(n,)`` int64, hinted actions or ``NO_HINT``.
        said: Where an LLM said it: what and how likely.
        drawn: ``(n, options)``, the probabilities by which it was drawn, where those are not the
            LLM's.
    """

    codes: np.ndarray
    hints: np.ndarray
    said: Said | None = None
    drawn: np.ndarray | None = None


def join_rows(tables: Sequence[np.ndarray], missing: float = -np.inf) -> np.ndarray:
    """Arrays one below the other. Tables ``(n, candidates)`` of states with fewer candidates are
    filled up with ``missing``, by default a log-probability of minus infinity.
    """
    if tables[0].ndim == 2 and len({table.shape[1] for table in tables}) > 1:
        width = max(table.shape[1] for table in tables)
        tables = [
            np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=missing)
            for table in tables
        ]
    joined: np.ndarray = np.concatenate(tables)
    return joined


PendingGuidance = Callable[[Draws], Guidance]
"""Guidance that was asked for: the call waits for the LLM's answer and draws from it."""


def join(batches: Sequence[T]) -> T:
    """Join batches of several groups of environments, in the order of the groups: dataclasses of
    arrays and tuples with one row per environment, field by field; what is None is None in all of
    them.

    Raises:
        ValueError: They are of different kinds, or of a kind without rows.
    """
    joined: T = batches[0] if len(batches) == 1 else _join(batches)
    return joined


def _join(batches: Sequence[Any]) -> Any:
    first = batches[0]
    if len({type(batch) for batch in batches}) == 1:
        if first is None:
            return None
        if isinstance(first, np.ndarray):
            return join_rows(batches)
        if isinstance(first, tuple):
            return tuple(itertools.chain.from_iterable(batches))
        if dataclasses.is_dataclass(first) and not isinstance(first, type):
            names = [field.name for field in dataclasses.fields(first)]
            return dataclasses.replace(
                first,
                **{name: _join([getattr(batch, name) for batch in batches]) for name in names},
            )
    raise ValueError(f"cannot join {', '.join(type(batch).__name__ for batch in batches)}")


@dataclass(frozen=True)
class Discount:
    """How rewards become advantages: discount, decay of the mixture, and the factor that rewards
    are multiplied by before.
    """

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
        said: What the LLM said, where there is one: the guidance, or the action itself where the
            LLM is the policy.
        features: ``(n, feature_size)`` float32, what a student saw.
        heard: The guidance that a student heard.
        offered: Texts of the actions that a student chose from, where each state has its own.
    """

    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    said: Said | None = None
    features: np.ndarray | None = None
    heard: Guidance | None = None
    offered: tuple[tuple[str, ...], ...] = ()


PendingDecision = Callable[[Draws], Decision]
"""A decision under way: the call waits for the LLM's answer and draws from it."""


class Actor(Protocol):
    """What can act in an environment.

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
        """Probability of each action in each state, ``(n, actions)`` float64, averaged over the
        guidance that may be given there; asked only of an ``enumerable`` actor.
        """


@runtime_checkable
class AskingActor(Actor, Protocol):
    """An actor that can send off its question to the LLM now and decide later.

    Attributes:
        asks: True where it has a question: one request for scores in each state.
    """

    asks: bool

    def ask(self, scene: Scene) -> PendingDecision:
        """Send off what the LLM must score; ``ask(scene)(draws)`` is ``decide(scene, draws)``."""


@dataclass(frozen=True)
class Turn:
    """One step of a rollout.

    Attributes:
        prompts: Prompts of the states acted in, without feedback sentences.
        next_values: ``(num_envs,)``, V of the states reached, where it was needed at once.
        candidates: Texts of the actions that were offered in them.
    """

    prompts: tuple[str, ...]
    decision: Decision
    stepped: SceneStep
    next_values: np.ndarray | None = None
    candidates: tuple[tuple[str, ...], ...] = ()

    @property
    def step(self) -> StepBatch:
        """Rewards and ends."""
        return self.stepped.step

    def errors(self, discount: Discount) -> np.ndarray:
        """TD errors ``(num_envs,)``; needs ``next_values``."""
        if self.next_values is None:
            raise ValueError("this step's next values were not asked for")
        scaled = self.step.rewards * discount.reward_scale
        return td_errors(
            scaled, self.decision.values, self.next_values, self.step.terminated, discount.gamma
        )


@dataclass(frozen=True)
class Rollout:
    """A rollout; arrays are ``(num_steps, num_envs)``.

    Attributes:
        turns: The steps.
        rewards: Unscaled, the environment's.
        terminated: True where the task itself ended the episode.
        done: True where the episode ended for either reason.
        values: V of the states acted in, in units of scaled rewards like the two below.
        errors: TD errors.
        advantages: Generalised advantages, not normalised.
        learnt_rewards: Unscaled, what the agent learns from: a method may give others.
    """

    turns: tuple[Turn, ...]
    rewards: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    advantages: np.ndarray
    learnt_rewards: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """What the critic should have said: advantages plus values."""
        returns: np.ndarray = self.advantages + self.values
        return returns


@dataclass(frozen=True)
class Note:
    """What was done with the LLM besides the guidance, shown with a recorded rollout.

    Attributes:
        asked: The question.
        answered: What the LLM, or a control in its place, said.
        changed: What followed from it.
        step: Of the rollout, in the first environment; None where it is about the whole rollout.
    """

    asked: str
    answered: str
    changed: str
    step: int | None = None


@runtime_checkable
class NoteTaker(Protocol):
    """A method or agent that takes notes.

    Attributes:
        notes: Of the present rollout; the run empties them before each.
    """

    notes: list[Note]


class StepListener(Protocol):
    """Hears of every step while a rollout is collected."""

    online: bool
    """True where it needs the values of the states reached at once."""

    def after_step(self, turn: Turn, discount: Discount) -> np.ndarray | None:
        """Hear of a step; gives the signals that the next prompts are to say, if any."""
