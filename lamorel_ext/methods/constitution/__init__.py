"""Principles teach the LLM: it judges pairs of its own guidances by written sentences, and its
verdicts train it as preferences do (Bai et al. 2022, Constitutional AI, arXiv 2212.08073).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lamorel_ext.agents.llm_teachers import candidate_table
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Rollout
from lamorel_ext.methods.base import MethodSetting
from lamorel_ext.methods.pairs import Pair, PairMethod
from lamorel_ext.methods.pairs.options import PairLoss
from lamorel_ext.options import number
from lamorel_ext.prompts import state_of
from lamorel_ext.randomness import log_softmax, sample_rows

PRINCIPLES = (
    "Good advice brings the robot closer to its goal.",
    "Good advice turns the robot towards the goal when it is not ahead.",
    "Good advice does not pick up, drop or toggle anything without need.",
)
ANSWERS = ("A", "B")


@dataclass(frozen=True)
class ConstitutionOptions(PairLoss):
    """Options of ``Constitution``, besides those of learning from pairs.

    Attributes:
        principles: Sentences that are put before each question.
        with_principles: False leaves them out, as a control.
        max_pairs: Prompts of a rollout about which the LLM is asked, at most.
        top_p: Only the likeliest guidances that together have this probability are judged, as in
            RL4LMs' NLPO (Ramamurthy et al. 2023, arXiv 2210.01241), so that guidances which the
            LLM hardly ever gives teach it nothing; 1 judges all.
    """

    principles: tuple[str, ...] = PRINCIPLES
    with_principles: bool = True
    max_pairs: int = number(64, at_least=1)
    top_p: float = number(1.0, above=0, at_most=1)


class Constitution(PairMethod):
    """See the module. For each of a rollout's prompts, what was said is judged against a rival that
    the LLM might have said; each pair is put in both orders, so that a liking for a letter cancels.
    """

    name = "constitution"
    arguments_type: ClassVar[type | None] = ConstitutionOptions
    controls = {"with_principles": (False,)}

    def __init__(self, setting: MethodSetting, options: ConstitutionOptions) -> None:
        super().__init__(setting, options)
        if not setting.llm_speaks:
            raise ConfigError("method: constitution needs an LLM that gives guidance in words")
        if setting.config.guidance.vocabulary == "free":
            raise ConfigError(
                "guidance.vocabulary: constitution draws a rival from a list; free text has none"
            )
        self._principles = options.principles if options.with_principles else ()
        self._max_pairs, self._top_p = options.max_pairs, options.top_p

    def pairs(self, rollout: Rollout) -> list[Pair]:
        """See ``PairMethod``."""
        proposed = self._proposed(rollout)
        if not proposed:
            return []
        questions = [
            judge_question(self._principles, pair.prompt, first, second)
            for pair in proposed
            for first, second in ((pair.better, pair.worse), (pair.worse, pair.better))
        ]
        table = candidate_table(self.setting.llm, tuple(questions), (ANSWERS,) * len(questions))
        return verdicts(proposed, table[:, 0] - table[:, 1])

    def question(self, pair: Pair) -> str:
        """See ``PairMethod``."""
        return judge_question(self._principles, pair.prompt, pair.better, pair.worse)

    def _proposed(self, rollout: Rollout) -> list[Pair]:
        """What was said, and a rival, for distinct prompts; no verdict yet."""
        found: dict[str, Pair] = {}
        for turn in rollout.turns:
            said = turn.decision.said
            if said is None or said.scores is None:
                continue
            log_probs = masked(log_softmax(said.scores), self._top_p)
            rivals = sample_rows(log_probs, self.setting.rng)
            for env, prompt in enumerate(said.prompts):
                own, rival = (said.candidates[env][i] for i in (said.chosen[env], rivals[env]))
                allowed = own != rival and log_probs[env, said.chosen[env]] > -np.inf
                if allowed and prompt not in found and len(found) < self._max_pairs:
                    found[prompt] = Pair(prompt, own, rival)
        return list(found.values())


def masked(log_probs: np.ndarray, top_p: float) -> np.ndarray:
    """Minus infinity in place of all but the likeliest texts that together have ``top_p``.

    Args:
        log_probs: ``(n, candidates)`` in nats, normalised.
    """
    if top_p == 1.0:
        return log_probs
    order = np.argsort(-log_probs, axis=1, kind="stable")
    ranked = np.take_along_axis(np.exp(log_probs), order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    kept = np.empty(log_probs.shape, dtype=bool)
    np.put_along_axis(kept, order, before < top_p, axis=1)
    return log_softmax(np.where(kept, log_probs, -np.inf))


def verdicts(proposed: Sequence[Pair], odds: np.ndarray) -> list[Pair]:
    """The pairs with the better text first; where both orders cancel there is none.

    Args:
        odds: ``(2 * pairs,)``, log P(A) - log P(B) in nats, of each pair with its first text as A,
            and with its second.
    """
    ahead = odds[0::2] - odds[1::2]
    found = []
    for pair, lead in zip(proposed, ahead, strict=True):
        if lead > 0:
            found.append(pair)
        elif lead < 0:
            found.append(Pair(pair.prompt, pair.worse, pair.better))
    return found


def judge_question(principles: Sequence[str], prompt: str, first: str, second: str) -> str:
    """What the LLM is asked about two guidances for a prompt."""
    before = "".join(f"{sentence}\n" for sentence in principles)
    return f"{before}{state_of(prompt)}Advice A: {first}\nAdvice B: {second}\nBetter advice:"
