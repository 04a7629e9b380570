"""An LLM client that passes everything on, for those that do something more on the way."""

from __future__ import annotations

from collections.abc import Mapping

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


class PassingClient:
    """See ``LlmClient`` for all of it; a subclass overrides what it has to do with.

    Args:
        llm: Whom everything is passed on to.
    """

    def __init__(self, llm: LlmClient) -> None:
        self._llm = llm

    @property
    def remote(self) -> bool:
        """See ``LlmClient``."""
        return self._llm.remote

    def submit_score(self, request: ScoreRequest) -> PendingScores:
        """See ``LlmClient``."""
        return self._llm.submit_score(request)

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """See ``LlmClient``."""
        return self._llm.score_batch(request)

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """See ``LlmClient``."""
        return self._llm.generate_batch(request)

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """See ``LlmClient``."""
        return self._llm.update_batch(request)

    def reset(
        self, seed: int, weights: Weights = "pretrained", unused: tuple[str, ...] = ()
    ) -> None:
        """See ``LlmClient``."""
        self._llm.reset(seed, weights, unused)

    def save(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._llm.save(folder)

    def load(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._llm.load(folder)

    def forget(self, reference: bool = True) -> None:
        """See ``LlmClient``."""
        self._llm.forget(reference)

    def info(self) -> Mapping[str, Scalar]:
        """See ``LlmClient``."""
        return self._llm.info()
