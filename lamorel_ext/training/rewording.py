"""An LLM client that says everything in other words: environments, prompts and agents do not
notice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from lamorel_ext.prompts import PLAIN, Wording
from lamorel_ext.rpc.passing import PassingClient
from lamorel_ext.types import (
    GenerateRequest,
    GenerateResult,
    LlmClient,
    PendingScores,
    ScoreRequest,
    ScoreResult,
    UpdateRequest,
    UpdateResult,
)

Texts = tuple[str, ...]
AboutCandidates = TypeVar("AboutCandidates", ScoreRequest, UpdateRequest)


class RewordedClient(PassingClient):
    """Rewords prompts and candidates on their way to the LLM. What the LLM writes itself comes back
    as it wrote it.

    Args:
        llm: Whom the texts are for.

    Attributes:
        wording: In force; ``PLAIN`` at first.
        told: True once it was told what to use, ``PLAIN`` included.
        changed: True where a text was changed since ``speaking`` was entered last.
    """

    def __init__(self, llm: LlmClient) -> None:
        super().__init__(llm)
        self.wording = PLAIN
        self.told = self.changed = False

    @property
    def wordings(self) -> tuple[Wording, ...]:
        """In force on the way to the LLM: this client's, and those of the ones behind it."""
        return (self.wording, *getattr(self._llm, "wordings", ()))

    def reword(self, wording: Wording) -> None:
        """Use ``wording`` from now on."""
        self.wording, self.told = wording, True

    @contextmanager
    def speaking(self, wording: Wording) -> Iterator[None]:
        """Use ``wording`` meanwhile."""
        before, self.wording, self.changed = self.wording, wording, False
        try:
            yield
        finally:
            self.wording = before

    def submit_score(self, request: ScoreRequest) -> PendingScores:
        """See ``LlmClient``."""
        return self._llm.submit_score(self._reworded(request))

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """See ``LlmClient``."""
        return self._llm.score_batch(self._reworded(request))

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """See ``LlmClient``."""
        return self._llm.generate_batch(
            dataclasses.replace(request, prompts=self._prompts(request.prompts))
        )

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """See ``LlmClient``."""
        return self._llm.update_batch(self._reworded(request))

    def _reworded(self, request: AboutCandidates) -> AboutCandidates:
        if not self.wording:
            return request
        return dataclasses.replace(
            request,
            prompts=self._prompts(request.prompts),
            candidates=self._candidates(request.candidates),
        )

    def _prompts(self, prompts: Texts) -> Texts:
        return self._noted(prompts, tuple(self.wording.prompt(prompt) for prompt in prompts))

    def _candidates(self, candidates: tuple[Texts, ...]) -> tuple[Texts, ...]:
        """Each distinct tuple once: most prompts of a batch have the same candidates."""
        said = {
            texts: self._noted(texts, tuple(self.wording.candidate(text) for text in texts))
            for texts in dict.fromkeys(candidates)
        }
        return tuple(said[texts] for texts in candidates)

    def _noted(self, texts: Texts, reworded: Texts) -> Texts:
        self.changed = self.changed or reworded != texts
        return reworded
