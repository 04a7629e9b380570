"""Who gives guidance: the LLM, uniformly random guidance, the expert, or nobody."""

from __future__ import annotations

import numpy as np

from lamorel_ext.agents.guidance import (
    NO_HINT,
    Teacher,
    Vocabulary,
    choose_guidance,
    every_guidance,
    make_vocabulary,
)
from lamorel_ext.agents.llm_teachers import FreeTeacher, LlmTeacher
from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Guidance, Scene
from lamorel_ext.randomness import Draws, sample_rows
from lamorel_ext.types import LlmClient


class RandomTeacher:
    """Uniformly random guidance from a fixed vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = every_guidance(vocabulary)

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        return choose_guidance(
            self._vocabulary,
            sample_rows(np.zeros((len(scene), self.guidance_codes)), draws.guidance),
        )

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return np.full((len(scene), self.guidance_codes), 1.0 / self.guidance_codes)


class OracleTeacher:
    """The expert's action as a hint."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = every_guidance(vocabulary)

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        return choose_guidance(self._vocabulary, _experts(scene))

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
            return FreeTeacher(
                llm, config.guidance.max_new_tokens, rescore=config.feedback.loss == "clipped"
            )
        return LlmTeacher(llm, make_vocabulary(kind))
    if kind == "free" or (teacher == "oracle" and kind != "action_hint"):
        raise ConfigError(
            f"guidance.vocabulary: {kind} cannot be said where arm.teacher is {teacher}"
        )
    return (
        RandomTeacher(make_vocabulary(kind))
        if teacher == "random"
        else OracleTeacher(make_vocabulary(kind))
    )


def _silence(n: int) -> Guidance:
    return Guidance(np.zeros((n, 1), dtype=np.float32), np.full(n, NO_HINT, dtype=np.int64))


def _experts(scene: Scene) -> np.ndarray:
    if scene.experts is None:
        raise ValueError("this scene has no expert actions: PromptedEnv needs with_experts=True")
    return scene.experts
