"""An LLM client that counts what it is asked: the cost that learning curves are drawn against."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np

from lamorel_ext.agents.kept_answers import KeptAnswers, PartlyKnown
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

MOST_WAITS = 4096
PRETRAINED = "pretrained"
"""The weights of every run's start but those that draw fresh ones."""

Heard = list[tuple[ScoreRequest, ScoreResult]]
Tables = dict[tuple[Hashable, Hashable], tuple[np.ndarray, Heard]]
_TABLES: WeakKeyDictionary[LlmClient, Tables] = WeakKeyDictionary()


class Phases:
    """Where the time of a client goes, and what the servers said about their work.

    Args:
        clock: Seconds, for tests.

    Attributes:
        seconds: By phase; a phase within another one takes its seconds from that.
        told: Sums over all answers with scores of their ``stats``, and ``calls``.
        waits: Seconds of each wait for an answer, of the last ``MOST_WAITS`` at most.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._within = 0.0
        self.seconds: dict[str, float] = defaultdict(float)
        self.told: dict[str, float] = defaultdict(float)
        self.waits: deque[float] = deque(maxlen=MOST_WAITS)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done inside belongs to this phase."""
        begun, before, self._within = self._clock(), self._within, 0.0
        try:
            yield
        finally:
            took = self._clock() - begun
            self.seconds[name] += took - self._within
            self._within = before + took
            if name == "scoring":
                self.waits.append(took)

    def hear(self, stats: Mapping[str, float]) -> None:
        """Add what came with an answer."""
        self.told["calls"] += 1
        for name, value in stats.items():
            self.told[name] += value


class MeteredClient(PassingClient):
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
        kept: What is not asked again while the weights stay; None where everything is.
        phases: Waits for the servers, as ``scoring`` and ``updating``, evaluations included.
    """

    def __init__(self, llm: LlmClient) -> None:
        super().__init__(llm)
        self.phases = Phases()
        self._counting = True
        self.counts = dict.fromkeys(LLM_COUNTERS, 0.0)
        self.weights: Hashable = object()
        self.kept: KeptAnswers | None = None
        self._heard: Heard | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing meanwhile: evaluation is no cost of learning."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def submit_score(self, request: ScoreRequest) -> PendingScores:
        """See ``LlmClient``; counted when the scores are taken."""
        asked = self._look_up(request)
        pending = self._llm.submit_score(request if asked is None else asked.request)
        return _MeteredScores(self, pending, request.prompts, asked)

    def score_batch(self, request: ScoreRequest) -> ScoreResult:
        """See ``LlmClient``."""
        asked = self._look_up(request)
        if asked is not None and asked.complete and not self._counting:
            return self.fill(asked, None)
        with self.phases.phase("scoring"):
            result = self._llm.score_batch(request if asked is None else asked.request)
        self.phases.hear(result.stats)
        self.count(request.prompts, result.stats.get("tokens", 0.0))
        if self._heard is not None:
            self._heard.append((request, result))
        return result if asked is None else self.fill(asked, result)

    def generate_batch(self, request: GenerateRequest) -> GenerateResult:
        """See ``LlmClient``."""
        with self.phases.phase("scoring"):
            result = self._llm.generate_batch(request)
        self.phases.hear(result.stats)
        self.count(request.prompts, result.stats.get("tokens", 0.0))
        return result

    def update_batch(self, request: UpdateRequest) -> UpdateResult:
        """See ``LlmClient``."""
        self._change()
        with self.phases.phase("updating"):
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
        self._change()
        self._llm.reset(seed, weights, unused)
        if weights == PRETRAINED:
            self.weights = PRETRAINED

    def load(self, folder: str) -> None:
        """See ``LlmClient``."""
        self._change()
        self._llm.load(folder)

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
        question = (question, self._about)
        if (self.weights, question) not in known:
            self.forget()
            with self._hearing() as heard:
                answer = ask()
            answer.flags.writeable = False
            for stale in [key for key in known if key[0] not in (self.weights, PRETRAINED)]:
                del known[stale]
            known[self.weights, question] = answer, heard
        answer, heard = known[self.weights, question]
        if self.kept is not None:
            for request, result in heard:
                self.kept.keep(request, self._about, result)
        return answer

    def fill(self, asked: PartlyKnown, result: ScoreResult | None) -> ScoreResult:
        """Add what was known to what the servers say."""
        kept = KeptAnswers(0) if self.kept is None else self.kept
        return kept.fill(asked, result)

    def _look_up(self, request: ScoreRequest) -> PartlyKnown | None:
        """What is known of a request; None where nothing can be, or it is to be asked anew."""
        if self.kept is None or self._heard is not None or request.modules or not request.score:
            return None
        return self.kept.look_up(request, self._about)

    @property
    def _about(self) -> str:
        """Clients that reword what they are asked give another answer in each wording; one of the
        user's own may hang on more than the fields by which wordings are equal.
        """
        wordings = getattr(self._llm, "wordings", None)
        return repr(wordings and [(type(each), vars(each)) for each in wordings])

    @contextmanager
    def _hearing(self) -> Iterator[Heard]:
        """Ask everything meanwhile, and note it."""
        heard: Heard = []
        self._heard = heard
        try:
            yield heard
        finally:
            self._heard = None

    def _change(self) -> None:
        """The weights are about to change."""
        self.weights = object()
        if self.kept is not None:
            self.kept.clear()

    def count(self, prompts: tuple[str, ...], tokens: float) -> None:
        """Count one call."""
        if self._counting:
            self.counts["llm_calls"] += 1
            self.counts["llm_prompts"] += len(prompts)
            self.counts["llm_tokens"] += tokens


class _MeteredScores:
    """Scores under way; taking them counts the call, on the thread of whoever takes them."""

    def __init__(
        self,
        meter: MeteredClient,
        pending: PendingScores,
        prompts: tuple[str, ...],
        asked: PartlyKnown | None,
    ) -> None:
        self._meter, self._pending, self._prompts, self._asked = meter, pending, prompts, asked

    def result(self) -> ScoreResult:
        """See ``PendingScores``."""
        with self._meter.phases.phase("scoring"):
            result = self._pending.result()
        self._meter.phases.hear(result.stats)
        self._meter.count(self._prompts, result.stats.get("tokens", 0.0))
        return result if self._asked is None else self._meter.fill(self._asked, result)
