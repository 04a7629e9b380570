"""An LLM client that counts what it is asked: the cost that learning curves are drawn against."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np

from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    LlmClient,
    PendingScores,
    Scalar,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
    Weights,
)

LLM_COUNTERS = (
    "llm_calls",
    "llm_prompts",
    "llm_tokens",
    "llm_updates",
    "llm_update_steps",
    "llm_update_samples",
)

PRETRAINED = "pretrained"
"""The weights of every run's start but those that draw fresh ones."""

Tables = dict[tuple[Hashable, Hashable], np.ndarray]
_TABLES: WeakKeyDictionary[LlmClient, Tables] = WeakKeyDictionary()


class MeteredClient:
    """Passes everything on, and counts calls, prompts and tokens of scoring, generating and
    updating.

    Tokens are those that the servers say they have processed (``stats["tokens"]``,
    ``stats["scored_tokens"]`` of an update).

    Attributes:
        counts: ``llm_calls``, ``llm_prompts`` and ``llm_tokens`` so far; of the calls
            ``llm_updates`` were updates, with ``llm_update_steps`` optimiser steps on
            ``llm_update_samples`` samples, each counted as often as it was used.
        weights: Tells the model's weights apart: equal as long as nothing changed them, and again
            after each reset to the pretrained ones.
    """

    def __init__(self, llm: LlmClient) -> None:
        self._llm = llm
        self._counting = True
        self.counts = dict.fromkeys(LLM_COUNTERS, 0.0)
        self.weights: Hashable = object()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing meanwhile: evaluation is no cost of learning."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    @property
    def remote(self) -> bool:
        """See ``LlmClient``."""
        return self._llm.remote

    def submit_score(self, request: ScoreRequest) -> PendingScores:
        """See ``LlmClient``; counted when the scores are taken."""
        return _MeteredScores(self, self._llm.submit_score(request), request.prompts)

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """See ``LlmClient``."""
        result = self._llm.score_batch(request)
        self.count(request.prompts, result.stats.get("tokens", 0.0))
        return result

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """See ``LlmClient``."""
        result = self._llm.generate_batch(request)
        self.count(request.prompts, result.stats.get("tokens", 0.0))
        return result

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """See ``LlmClient``."""
        self.weights = object()
        result = self._llm.update_batch(request)
        self.count(request.prompts, result.stats.get("scored_tokens", 0.0))
        if self._counting:
            self.counts["llm_updates"] += 1
            self.counts["llm_update_steps"] += result.stats.get("steps", 0.0)
            self.counts["llm_update_samples"] += result.stats.get("samples", 0.0)
        return result

    def reset(
        self, seed: int, weights: Weights = "pretrained", unused: tuple[str, ...] = ()
    ) -> None:
        """See ``LlmClient``."""
        self.weights = object()
        self._llm.reset(seed, weights, unused)
        if weights == PRETRAINED:
            self.weights = PRETRAINED

    def save(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._llm.save(folder)

    def load(self, folder: str) -> None:
        """See ``LlmClient``."""
        self.weights = object()
        self._llm.load(folder)

    def forget(self) -> None:
        """See ``LlmClient``."""
        self._llm.forget()

    def info(self) -> Mapping[str, Scalar]:
        """See ``LlmClient``."""
        return self._llm.info()

    def table(self, question: Hashable, ask: Callable[[], np.ndarray]) -> np.ndarray:
        """Ask for a table once per question and weights, over all runs that share the servers.

        The servers forget before it is asked: it is rounded alike whatever was asked before, and
        therefore in a resumed run too.

        Args:
            question: What is asked. One question is remembered for the present weights, and those
                for the pretrained weights.
            ask: Asks the servers.
        """
        known = _TABLES.setdefault(self._llm, {})
        # A client that rewords what it is asked gives another answer in each wording.
        question = (question, repr(getattr(self._llm, "wording", None)))
        if (self.weights, question) not in known:
            self.forget()
            answer = ask()
            answer.flags.writeable = False
            for stale in [key for key in known if key[0] not in (self.weights, PRETRAINED)]:
                del known[stale]
            known[self.weights, question] = answer
        return known[self.weights, question]

    def count(self, prompts: tuple[str, ...], tokens: float) -> None:
        """Count one call."""
        if self._counting:
            self.counts["llm_calls"] += 1
            self.counts["llm_prompts"] += len(prompts)
            self.counts["llm_tokens"] += tokens


class _MeteredScores:
    """Scores under way; taking them counts the call, on the thread of whoever takes them."""

    def __init__(
        self, meter: MeteredClient, pending: PendingScores, prompts: tuple[str, ...]
    ) -> None:
        self._meter, self._pending, self._prompts = meter, pending, prompts

    def result(self) -> ScoreResult:
        """See ``PendingScores``."""
        result = self._pending.result()
        self._meter.count(self._prompts, result.stats.get("tokens", 0.0))
        return result
