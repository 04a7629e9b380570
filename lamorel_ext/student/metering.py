"""An LLM client that counts what it is asked: the cost that learning curves are drawn against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
    "llm_calls", "llm_prompts", "llm_tokens", "llm_updates", "llm_update_steps", "llm_update_samples",
)  # fmt: skip


class MeteredClient:
    """Passes everything on, and counts calls, prompts and tokens of scoring, generating and updating.

    Tokens are those that the servers say they have processed (``stats["tokens"]``, ``stats["scored_tokens"]`` of an update).

    Attributes:
        counts: ``llm_calls``, ``llm_prompts`` and ``llm_tokens`` so far; of the calls ``llm_updates`` were
            updates, with ``llm_update_steps`` optimiser steps on ``llm_update_samples`` samples, each
            counted as often as it was used.
    """

    def __init__(self, llm: LlmClient) -> None:
        self._llm = llm
        self._counting = True
        self.counts = dict.fromkeys(LLM_COUNTERS, 0.0)

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
        result = self._llm.update_batch(request)
        self.count(request.prompts, result.stats.get("scored_tokens", 0.0))
        if self._counting:
            self.counts["llm_updates"] += 1
            self.counts["llm_update_steps"] += result.stats.get("steps", 0.0)
            self.counts["llm_update_samples"] += result.stats.get("samples", 0.0)
        return result

    def reset(self, seed: int, weights: Weights = "pretrained", unused: tuple[str, ...] = ()) -> None:
        """See ``LlmClient``."""
        self._llm.reset(seed, weights, unused)

    def save(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._llm.save(folder)

    def load(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._llm.load(folder)

    def forget(self) -> None:
        """See ``LlmClient``."""
        self._llm.forget()

    def info(self) -> Mapping[str, Scalar]:
        """See ``LlmClient``."""
        return self._llm.info()

    def count(self, prompts: tuple[str, ...], tokens: float) -> None:
        """Count one call."""
        if self._counting:
            self.counts["llm_calls"] += 1
            self.counts["llm_prompts"] += len(prompts)
            self.counts["llm_tokens"] += tokens


class _MeteredScores:
    """Scores under way; taking them counts the call, on the thread of whoever takes them."""

    def __init__(self, meter: MeteredClient, pending: PendingScores, prompts: tuple[str, ...]) -> None:
        self._meter, self._pending, self._prompts = meter, pending, prompts

    def result(self) -> ScoreResult:
        """See ``PendingScores``."""
        result = self._pending.result()
        self._meter.count(self._prompts, result.stats.get("tokens", 0.0))
        return result
