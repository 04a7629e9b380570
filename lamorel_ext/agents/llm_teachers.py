"""The LLM as teacher: choosing from a vocabulary, or writing guidance of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamorel_ext.agents.features import TEXT_SIZE, hashed_words
from lamorel_ext.agents.guidance import OfferedActions, Vocabulary, hinted_action
from lamorel_ext.agents.metering import MeteredClient
from lamorel_ext.experience import AllStates, Guidance, PendingGuidance, Said, Scene
from lamorel_ext.randomness import Draws, entropies, log_softmax, sample_rows
from lamorel_ext.types import GenerateRequest, LlmClient, Scalar, ScoreRequest, ScoreResult


def summed_scores(result: ScoreResult) -> np.ndarray:
    """``(n, candidates)`` float64, of each candidate's tokens, not normalised."""
    scores: np.ndarray = result.padded().detach().double().numpy()
    return scores


def candidate_table(
    llm: LlmClient, prompts: tuple[str, ...], candidates: tuple[tuple[str, ...], ...]
) -> np.ndarray:
    """Log-probabilities of candidates, normalised per prompt; each distinct question travels once.

    Returns:
        ``(n, candidates)`` float64 in nats.
    """
    pairs = list(zip(prompts, candidates, strict=True))
    asked = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
    request = ScoreRequest(tuple(prompt for prompt, _ in asked), tuple(own for _, own in asked))
    table = log_softmax(summed_scores(llm.score_batch(request)))
    return table[[asked[pair] for pair in pairs]]


def told_shares(texts: Sequence[str], log_probs: np.ndarray, most: int = 6) -> str:
    """The likeliest texts with their probabilities, for a note.

    Args:
        log_probs: ``(at least as many,)`` in nats, normalised.
    """
    order = np.argsort(-log_probs[: len(texts)], kind="stable")[:most]
    return ", ".join(f"{texts[place]} {np.exp(log_probs[place]):.1%}" for place in order)


def sample_texts(
    llm: LlmClient, prompts: tuple[str, ...], max_new_tokens: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """Sample a text after each prompt from the model's own distribution, unshaped, so that the
    tokens' log-probabilities are those of the sampling.

    Returns:
        The texts without blanks around them, and their log-probabilities, ``(n,)`` in nats.
    """
    options: dict[str, Scalar] = {
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    result = llm.generate_batch(GenerateRequest(prompts, options))
    parts = np.split(
        result.token_log_probs.detach().double().numpy(), np.cumsum(result.lengths)[:-1]
    )
    return [sequences[0].strip() for sequences in result.texts], np.array(
        [part.sum() for part in parts]
    )


def rescored(
    llm: LlmClient, prompts: Sequence[str], texts: Sequence[str], generated: np.ndarray
) -> np.ndarray:
    """Log-probabilities ``(n,)`` of written texts as an update scores them, in nats: ``generated``
    counts the token that ended a text too. An empty text cannot be scored, keeps what it has, and
    is never sent to an update.
    """
    log_probs = generated.copy()
    if written := [i for i, text in enumerate(texts) if text]:
        request = ScoreRequest(
            tuple(prompts[i] for i in written), tuple((texts[i],) for i in written)
        )
        log_probs[written] = llm.score_batch(request).log_probs.detach().double().numpy()
    return log_probs


def distribution_over(
    llm: LlmClient, scene: Scene, candidates: tuple[tuple[str, ...], ...]
) -> np.ndarray:
    """``candidate_table`` as probabilities; asked once per weights if the scene is all states."""

    def ask() -> np.ndarray:
        chances: np.ndarray = np.exp(candidate_table(llm, scene.shown, candidates))
        return chances

    if isinstance(scene, AllStates) and isinstance(llm, MeteredClient):
        return llm.table((scene.shown, candidates), ask)
    return ask()


class LlmTeacher:
    """The LLM chooses from a vocabulary: it is sampled from the softmax of its summed
    log-probabilities.
    """

    def __init__(self, llm: LlmClient, vocabulary: Vocabulary | OfferedActions) -> None:
        self._llm = llm
        self.vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = vocabulary.options

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        candidates = self.vocabulary.of(scene)
        return self._choose(
            scene, candidates, self._llm.score_batch(ScoreRequest(scene.shown, candidates)), draws
        )

    def ask(self, scene: Scene) -> PendingGuidance:
        """See ``AskingTeacher``."""
        candidates = self.vocabulary.of(scene)
        pending = self._llm.submit_score(ScoreRequest(scene.shown, candidates))
        return lambda draws: self._choose(scene, candidates, pending.result(), draws)

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return distribution_over(self._llm, scene, self.vocabulary.of(scene))

    def _choose(
        self,
        scene: Scene,
        candidates: tuple[tuple[str, ...], ...],
        result: ScoreResult,
        draws: Draws,
    ) -> Guidance:
        scores = summed_scores(result)
        log_probs = log_softmax(scores)
        chosen = sample_rows(log_probs, draws.guidance)
        said = Said(
            scene.shown,
            candidates,
            chosen,
            log_probs[np.arange(len(chosen)), chosen],
            entropies(log_probs),
            scores,
        )
        return self.vocabulary.choose(candidates, chosen, said)


class FreeTeacher:
    """The LLM writes its guidance; the student hears its words, and the action that it names first
    as a hint.

    Args:
        max_new_tokens: Length at most.
        rescore: True takes log p from scoring the finished text, as an update does, rather than
            from the generation: needed where an update compares the two.
    """

    def __init__(self, llm: LlmClient, max_new_tokens: int, rescore: bool) -> None:
        self._llm = llm
        self._max_new_tokens = max_new_tokens
        self._rescore = rescore
        self.guidance_codes = TEXT_SIZE
        self.options: Guidance | None = None

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        seed = int(draws.guidance.integers(2**31))
        texts, log_probs = sample_texts(self._llm, scene.shown, self._max_new_tokens, seed)
        candidates = tuple((text,) for text in texts)
        if self._rescore:
            log_probs = rescored(self._llm, scene.shown, texts, log_probs)
        codes = np.stack([hashed_words(text, TEXT_SIZE) for text in texts])
        pairs = zip(texts, scene.candidates, strict=True)
        hints = np.array([hinted_action(text, known) for text, known in pairs], dtype=np.int64)
        return Guidance(
            codes,
            hints,
            Said(
                scene.shown, candidates, np.zeros(len(texts), dtype=np.int64), log_probs, -log_probs
            ),
        )

    def distribution(self, scene: Scene) -> np.ndarray:
        """There is no list of texts."""
        raise ValueError("free guidance cannot be enumerated")
