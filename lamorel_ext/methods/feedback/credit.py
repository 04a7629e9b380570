"""Whom the feedback of a step is given to: the guidance that was said, or every guidance by what it
did to the action (docs/method.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lamorel_ext.agents.making import Agent
from lamorel_ext.agents.student import StudentAgent
from lamorel_ext.config import CREDITS_OF_CANDIDATES, Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Decision, Said
from lamorel_ext.randomness import log_softmax, sample_rows


@dataclass(frozen=True)
class Lesson:
    """What an update is to teach about one step of ``n`` environments.

    Attributes:
        said: What the LLM said, or might have said, and how likely.
        f: ``(n,)``, the feedback.
        likelihoods: ``(n, candidates)``, log P(a | x, s) in nats of the student's action after each
            candidate x, where the update shares the credit out itself.
        old_log_probs: ``(n,)``, log-probability of what the update makes likelier or less likely.
        credit: ``(n,)``, or one number for all: how much of f counts, and to which side.
    """

    said: Said
    f: np.ndarray
    likelihoods: np.ndarray | None
    old_log_probs: np.ndarray
    credit: np.ndarray | float = 1.0

    @property
    def signals(self) -> np.ndarray:
        """``(n,)``, f, credited."""
        return np.where(self.credit != 0, self.f * self.credit, 0.0)


Credit = Callable[[Decision, Said, np.ndarray], list[Lesson]]
"""The lessons of a step from what was decided, what was said and f ``(n,)``; the first is about
what was said.
"""


def credit_chosen(decision: Decision, said: Said, f: np.ndarray) -> list[Lesson]:
    """All of it to what was said."""
    return [Lesson(said, f, None, said.log_probs)]


def credit_followed(decision: Decision, said: Said, f: np.ndarray) -> list[Lesson]:
    """The same, where the action is the one that the guidance asks for; a guidance that asks for
    none gets nothing.
    """
    if decision.heard is None:
        raise ValueError("nobody heard this")
    return [Lesson(said, f, None, said.log_probs, decision.heard.hints == decision.actions)]


def make_credit(config: Config, agent: Agent, rng: np.random.Generator) -> Credit:
    """The rule that ``feedback.credit`` names.

    Args:
        config: The run.
        agent: Its student, as it acts now, says how likely an action was after each guidance.
        rng: Draws rivals; other rules draw nothing.

    Raises:
        ConfigError: The rule needs candidates, or a student, and there are none.
    """
    kind = config.feedback.credit
    if kind == "chosen" or config.feedback.signal == "none":
        return credit_chosen
    if not isinstance(agent, StudentAgent):
        raise ConfigError(
            f"feedback.credit: {kind} needs a student, but arm.agent is {config.arm.agent}"
        )
    if kind == "followed":
        return credit_followed
    if not agent.lists_guidance:
        raise ConfigError(
            f"feedback.credit: {kind} needs a list of candidates; it can be chosen or followed"
        )
    student = agent

    def credit_ratio(decision: Decision, said: Said, f: np.ndarray) -> list[Lesson]:
        """Weighted by log P(a | x, s) - log sum_x' M(x' | s) P(a | x', s): negative where x spoke
        against a.
        """
        likelihoods = student.action_likelihoods(decision)
        told = likelihoods[np.arange(len(f)), said.chosen] - pair_log_probs(said, likelihoods)
        return [Lesson(said, f, None, said.log_probs, told)]

    def credit_posterior(decision: Decision, said: Said, f: np.ndarray) -> list[Lesson]:
        """To every candidate its share, which the server works out."""
        likelihoods = student.action_likelihoods(decision)
        return [Lesson(said, f, likelihoods, pair_log_probs(said, likelihoods))]

    def credit_rival(decision: Decision, said: Said, f: np.ndarray) -> list[Lesson]:
        """f to the one of two guidances for the same state after which the action is likelier, -f
        to the other.
        """
        likelihoods = student.action_likelihoods(decision)
        log_probs, rows = _log_probs(said), np.arange(len(f))
        rivals = sample_rows(log_probs, rng)
        better = np.sign(likelihoods[rows, said.chosen] - likelihoods[rows, rivals])
        other = dataclasses.replace(said, chosen=rivals, log_probs=log_probs[rows, rivals])
        return [
            Lesson(said, f, None, said.log_probs, better),
            Lesson(other, f, None, other.log_probs, -better),
        ]

    return {"ratio": credit_ratio, "posterior": credit_posterior, "rival": credit_rival}[kind]


def pair_log_probs(said: Said, likelihoods: np.ndarray) -> np.ndarray:
    """``(n,)``: log sum_x M(x | s) P(a | x, s) in nats."""
    joint = _log_probs(said) + likelihoods
    highest = joint.max(axis=1)
    total: np.ndarray = highest + np.log(np.sum(np.exp(joint - highest[:, None]), axis=1))
    return total


def _log_probs(said: Said) -> np.ndarray:
    """``(n, candidates)``: log M(x | s) in nats."""
    if said.scores is None:
        raise ValueError(
            f"a credit among {', '.join(CREDITS_OF_CANDIDATES)} needs the candidates' scores"
        )
    return log_softmax(said.scores)
