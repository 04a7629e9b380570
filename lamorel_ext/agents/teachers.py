"""Who gives guidance: the LLM, uniformly random guidance, the expert, or nobody."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lamorel_ext.agents.actors import expert_actions
from lamorel_ext.agents.guidance import (
    NO_HINT,
    OfferedActions,
    Teacher,
    Vocabulary,
    make_vocabulary,
)
from lamorel_ext.agents.llm_teachers import FreeTeacher, LlmTeacher
from lamorel_ext.config import Config
from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import BABYAI, Guidance, Scene
from lamorel_ext.randomness import Draws, sample_rows, uniform
from lamorel_ext.types import LlmClient, TaskSpec


class RandomTeacher:
    """Uniformly random guidance from a vocabulary."""

    def __init__(self, vocabulary: Vocabulary | OfferedActions) -> None:
        self.vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = vocabulary.options

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        candidates = self.vocabulary.of(scene)
        alike = np.where(uniform(candidates) > 0, 0.0, -np.inf)
        return self.vocabulary.choose(candidates, sample_rows(alike, draws.guidance))

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        return uniform(self.vocabulary.of(scene))


class OracleTeacher:
    """The expert's action as a hint."""

    def __init__(self, vocabulary: Vocabulary | OfferedActions) -> None:
        self.vocabulary = vocabulary
        self.guidance_codes = vocabulary.size
        self.options: Guidance | None = vocabulary.options

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """See ``Teacher``."""
        return self.vocabulary.choose(self.vocabulary.of(scene), expert_actions(scene))

    def distribution(self, scene: Scene) -> np.ndarray:
        """See ``Teacher``."""
        size = max(map(len, self.vocabulary.of(scene)))
        every: np.ndarray = np.eye(size)[expert_actions(scene)]
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


def make_teacher(config: Config, llm: LlmClient | None, task: TaskSpec = BABYAI) -> Teacher:
    """The teacher that the configuration names.

    Args:
        task: What the environment asks of an agent.

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
            rescore = config.feedback_trains and config.feedback.loss == "clipped"
            return FreeTeacher(llm, config.guidance.max_new_tokens, rescore)
        return LlmTeacher(llm, _vocabulary(kind, task))
    if kind == "free" or (teacher == "oracle" and kind != "action_hint"):
        raise ConfigError(
            f"guidance.vocabulary: {kind} cannot be said where arm.teacher is {teacher}"
        )
    vocabulary = _vocabulary(kind, task)
    return RandomTeacher(vocabulary) if teacher == "random" else OracleTeacher(vocabulary)


def _vocabulary(
    kind: Literal["action_hint", "subgoal"], task: TaskSpec
) -> Vocabulary | OfferedActions:
    return OfferedActions() if task.by_state else make_vocabulary(kind, task.action_texts)


def _silence(n: int) -> Guidance:
    return Guidance(np.zeros((n, 1), dtype=np.float32), np.full(n, NO_HINT, dtype=np.int64))
