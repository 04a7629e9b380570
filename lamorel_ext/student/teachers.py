"""Who gives guidance: the LLM, uniformly random guidance, the expert, or nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.student.features import TEXT_SIZE, hashed_words
from lamorel_ext.student.guidance import NO_HINT, Vocabulary, hinted_action, make_vocabulary
from lamorel_ext.student.randomness import Draws, entropies, log_softmax, sample_rows
from lamorel_ext.student.scenes import Scene
from lamorel_ext.types import GenerateRequest, LlmClient, Scalar, ScoreRequest


@dataclass(frozen=True)
class Said:
    """What an LLM said at one step, as the feedback edge needs it.

    Attributes:
        prompts: ``n`` prompts as the LLM read them.
        candidates: ``n`` tuples of texts it could have said; for free guidance the one it did say.
        chosen: ``(n,)`` int64, which of them it said.
        log_probs: ``(n,)`` float64, log p(x_t) in nats: normalised over the candidates, or summed over the tokens of free guidance.
        entropies: ``(n,)`` in nats; for free guidance the one-sample estimate ``-log p``.
    """

    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    chosen: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray


@dataclass(frozen=True)
class Guidance:
    """Guidance x_t as the student hears it.

    Attributes:
        codes: ``(n, guidance_codes)`` float32.
        hints: ``(n,)`` int64, hinted actions or ``NO_HINT``.
        said: Where an LLM said it: what and how likely.
    """

    codes: np.ndarray
    hints: np.ndarray
    said: Said | None = None


class Teacher(Protocol):
    """The plug point of a source of guidance.

    Attributes:
        guidance_codes: Size of the codes it gives.
        options: Everything it can say in any state, one row each, or None where that cannot be listed.
    """

    guidance_codes: int
    options: Guidance | None

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """Draw one guidance per environment."""

    def distribution(self, scene: Scene) -> np.ndarray:
        """M(x | s), ``(n, options)`` float64; only where ``options`` are listed."""


def score_candidates(
    llm: LlmClient, prompts: tuple[str, ...], candidates: tuple[tuple[str, ...], ...], modules: tuple[str, ...] = ()
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Log-probabilities of candidates, normalised per prompt, and what the module functions gave.

    Returns:
        ``(n, candidates)`` float64 in nats, and one float64 array per module.
    """
    result = llm.score_batch(ScoreRequest(prompts, candidates, modules))
    values = {name: values.detach().double().numpy() for name, values in result.modules.items()}
    return log_softmax(result.padded().detach().double().numpy()), values


def candidate_table(llm: LlmClient, prompts: tuple[str, ...], candidates: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """As ``score_candidates``, for many states that read alike: each distinct text travels once.

    Returns:
        ``(n, candidates)`` float64 in nats.
    """
    asked = {pair: row for row, pair in enumerate(dict.fromkeys(zip(prompts, candidates, strict=True)))}
    table, _ = score_candidates(llm, tuple(prompt for prompt, _ in asked), tuple(texts for _, texts in asked))
    return table[[asked[pair] for pair in zip(prompts, candidates, strict=True)]]


class LlmTeacher:
    """The LLM chooses from a fixed vocabulary: it is sampled from the softmax of its summed log-probabilities."""

    def __init__(self, llm: LlmClient, vocabulary: Vocabulary) -> None:
        self._llm = llm
        self._vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = _every(vocabulary)

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        candidates = self._candidates(scene)
        log_probs, _ = score_candidates(self._llm, scene.shown, candidates)
        chosen = sample_rows(log_probs, draws.guidance)
        said = Said(scene.shown, candidates, chosen, log_probs[np.arange(len(chosen)), chosen], entropies(log_probs))
        return _choose(self._vocabulary, chosen, said)

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return np.exp(candidate_table(self._llm, scene.shown, self._candidates(scene)))

    def _candidates(self, scene: Scene) -> tuple[tuple[str, ...], ...]:
        return tuple(self._vocabulary.candidates(mission) for mission in scene.observations.missions)


class FreeTeacher:
    """The LLM writes its guidance; the student hears its words, and the action that it names first as a hint.

    Args:
        max_new_tokens: Length at most.
        rescore: True takes log p from scoring the finished text, as an update does, rather than from the generation: needed where an
            update compares the two.
    """

    def __init__(self, llm: LlmClient, max_new_tokens: int, rescore: bool) -> None:
        self._llm = llm
        self._max_new_tokens = max_new_tokens
        self._rescore = rescore
        self.guidance_codes = TEXT_SIZE
        self.options: Guidance | None = None

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        texts, log_probs = self._write(scene.shown, int(draws.guidance.integers(2**31)))
        candidates = tuple((text,) for text in texts)
        if self._rescore:
            log_probs = self._log_probs_of(scene.shown, candidates, log_probs)
        codes = np.stack([hashed_words(text, TEXT_SIZE) for text in texts])
        hints = np.array([hinted_action(text) for text in texts], dtype=np.int64)
        return Guidance(codes, hints, Said(scene.shown, candidates, np.zeros(len(texts), dtype=np.int64), log_probs, -log_probs))

    def distribution(self, scene: Scene) -> np.ndarray:
        """There is no list of texts."""
        raise ValueError("free guidance cannot be enumerated")

    def _write(self, prompts: tuple[str, ...], seed: int) -> tuple[list[str], np.ndarray]:
        """Sample from the model's own distribution, unshaped, so that the tokens' log-probabilities are those of the sampling."""
        options: dict[str, Scalar] = {
            "do_sample": True,
            "top_k": 0,
            "top_p": 1.0,
            "temperature": 1.0,
            "max_new_tokens": self._max_new_tokens,
            "seed": seed,
        }
        result = self._llm.generate_batch(GenerateRequest(prompts, options))
        parts = np.split(result.token_log_probs.detach().double().numpy(), np.cumsum(result.lengths)[:-1])
        return [sequences[0].strip() for sequences in result.texts], np.array([part.sum() for part in parts])

    def _log_probs_of(self, prompts: tuple[str, ...], candidates: tuple[tuple[str, ...], ...], generated: np.ndarray) -> np.ndarray:
        log_probs = generated.copy()
        written = [i for i, (text,) in enumerate(candidates) if text]  # an empty text cannot be scored, and is never sent to an update
        if written:
            request = ScoreRequest(tuple(prompts[i] for i in written), tuple(candidates[i] for i in written))
            log_probs[written] = self._llm.score_batch(request).log_probs.detach().double().numpy()
        return log_probs


class RandomTeacher:
    """Uniformly random guidance from a fixed vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = _every(vocabulary)

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        return _choose(self._vocabulary, sample_rows(np.zeros((len(scene), self.guidance_codes)), draws.guidance))

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return np.full((len(scene), self.guidance_codes), 1.0 / self.guidance_codes)


class OracleTeacher:
    """The expert's action as a hint."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = _every(vocabulary)

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        return _choose(self._vocabulary, _experts(scene))

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        every: np.ndarray = np.eye(self.guidance_codes)[_experts(scene)]
        return every


class NoTeacher:
    """Silence."""

    def __init__(self) -> None:
        self.guidance_codes = 1
        self.options: Guidance | None = _silence(1)

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        return _silence(len(scene))

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return np.ones((len(scene), 1))


def make_teacher(config: Config, llm: LlmClient | None) -> Teacher:
    """The teacher that the configuration names.

    Raises:
        ConfigError: It needs an LLM and there is none, or it cannot speak the vocabulary.
    """
    kind, teacher = config.guidance.vocabulary, config.arm.teacher
    if teacher == "none":
        return NoTeacher()
    if teacher == "llm":
        if llm is None:
            raise ConfigError("arm.teacher: llm needs an LLM server")
        if kind == "free":
            return FreeTeacher(llm, config.guidance.max_new_tokens, rescore=config.feedback.loss == "clipped")
        return LlmTeacher(llm, make_vocabulary(kind))
    if kind == "free" or (teacher == "oracle" and kind != "action_hint"):
        raise ConfigError(f"guidance.vocabulary: {kind} cannot be said where arm.teacher is {teacher}")
    return RandomTeacher(make_vocabulary(kind)) if teacher == "random" else OracleTeacher(make_vocabulary(kind))


def _every(vocabulary: Vocabulary) -> Guidance:
    return _choose(vocabulary, np.arange(vocabulary.size))


def _choose(vocabulary: Vocabulary, chosen: np.ndarray, said: Said | None = None) -> Guidance:
    return Guidance(np.eye(vocabulary.size, dtype=np.float32)[chosen], vocabulary.hints[chosen], said)


def _silence(n: int) -> Guidance:
    return Guidance(np.zeros((n, 1), dtype=np.float32), np.full(n, NO_HINT, dtype=np.int64))


def _experts(scene: Scene) -> np.ndarray:
    if scene.experts is None:
        raise ValueError("this scene has no expert actions: PromptedEnv needs with_experts=True")
    return scene.experts
