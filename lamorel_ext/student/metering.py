"""An LLM client that counts what it is asked: the cost that learning curves are drawn against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lamorel_ext.types import GenerateRequest, GenerateResult, LlmClient, Scalar, ScoreRequest, ScoreResult, UpdateRequest, UpdateResult


class MeteredClient:
    """Passes everything on, and counts calls, prompts and tokens of scoring, generating and updating.

    Tokens are those that the servers say they have processed (``stats["tokens"]``, ``stats["scored_tokens"]`` of an update).

    Attributes:
        counts: ``llm_calls``, ``llm_prompts`` and ``llm_tokens`` so far.
    """

    def __init__(self, llm: LlmClient) -> None:
        self._llm = llm
        self._counting = True
        self.counts = {"llm_calls": 0.0, "llm_prompts": 0.0, "llm_tokens": 0.0}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing meanwhile: evaluation is no cost of learning."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """See ``LlmClient``."""
        result = self._llm.score_batch(request)
        self._count(request.prompts, result.stats.get("tokens", 0.0))
        return result

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """See ``LlmClient``."""
        result = self._llm.generate_batch(request)
        self._count(request.prompts, result.stats.get("tokens", 0.0))
        return result

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """See ``LlmClient``."""
        result = self._llm.update_batch(request)
        self._count(request.prompts, result.stats.get("scored_tokens", 0.0))
        return result

    def reset(self, seed: int) -> None:
        """See ``LlmClient``."""
        self._llm.reset(seed)

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

    def _count(self, prompts: tuple[str, ...], tokens: float) -> None:
        if self._counting:
            self.counts["llm_calls"] += 1
            self.counts["llm_prompts"] += len(prompts)
            self.counts["llm_tokens"] += tokens
