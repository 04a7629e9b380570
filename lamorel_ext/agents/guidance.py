"""What a teacher may say and how a student hears it: vocabularies, hints, and the plug point of
teachers.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from lamorel_ext.agents.features import TEXT_SIZE, word_signs
from lamorel_ext.experience import Guidance, PendingGuidance, Said, Scene
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.randomness import Draws

NUM_ACTIONS = len(ACTION_NAMES)
NO_HINT = -1
"""The hint of a text that asks for no particular action."""

_OBJECT = re.compile(
    r"\b(?:the|a|an) (?:(?:red|green|blue|purple|yellow|grey) )?(?:ball|box|key|door|object)"
    r"(?: in front of you| behind you| on your left| on your right)?"
)

SUBGOALS = (
    "turn until you see {first}",
    "turn left until you see {first}",
    "turn right until you see {first}",
    "turn left towards {first}",
    "turn right towards {first}",
    "turn around",
    "go forward until you reach {first}",
    "go forward until you see a wall",
    "go forward and look around",
    "pick up {first}",
    "drop what you carry next to {second}",
    "toggle {first}",
)
"""Subgoal sentences; ``first`` and ``second`` are the objects that the mission names."""


@dataclass(frozen=True)
class Vocabulary:
    """A fixed set of guidances, the same number in every state.

    Attributes:
        kind: ``action_hint`` or ``subgoal``.
        hints: ``(size,)`` int64, the action that each guidance asks for, or ``NO_HINT``.
        action_texts: Texts of the actions.
    """

    kind: Literal["action_hint", "subgoal"]
    hints: np.ndarray
    action_texts: tuple[str, ...] = ACTION_NAMES

    @property
    def size(self) -> int:
        """Size of the code of a guidance: their number."""
        return len(self.hints)

    @property
    def options(self) -> Guidance | None:
        """All of them, one row each."""
        return self.choose((), np.arange(self.size))

    def of(self, scene: Scene) -> tuple[tuple[str, ...], ...]:
        """The texts to choose from in each state."""
        return tuple(self.candidates(mission) for mission in scene.observations.missions)

    def choose(
        self,
        candidates: tuple[tuple[str, ...], ...],
        chosen: np.ndarray,
        said: Said | None = None,
    ) -> Guidance:
        """The guidance at the places ``chosen``, ``(n,)``, of what there was to choose from."""
        codes = np.eye(self.size, dtype=np.float32)[chosen]
        return Guidance(codes, self.hints[chosen], said)

    def candidates(self, mission: str) -> tuple[str, ...]:
        """The texts to choose from, a function of the mission alone."""
        return self.action_texts if self.kind == "action_hint" else subgoals(mission)


@dataclass(frozen=True)
class OfferedActions:
    """The texts of the actions that each state lists: there are others in every state, so that
    their words are their codes.
    """

    size: int = TEXT_SIZE
    options: Guidance | None = None

    def of(self, scene: Scene) -> tuple[tuple[str, ...], ...]:
        """See ``Vocabulary``."""
        return scene.candidates

    def choose(
        self,
        candidates: tuple[tuple[str, ...], ...],
        chosen: np.ndarray,
        said: Said | None = None,
    ) -> Guidance:
        """See ``Vocabulary``."""
        pairs = zip(candidates, chosen.tolist(), strict=True)
        codes = np.stack([word_signs(texts[place]) for texts, place in pairs])
        return Guidance(codes, chosen.astype(np.int64), said)


def make_vocabulary(
    kind: Literal["action_hint", "subgoal"], action_texts: tuple[str, ...] = ACTION_NAMES
) -> Vocabulary:
    """The vocabulary of that name."""
    texts = action_texts if kind == "action_hint" else SUBGOALS
    hints = [
        place if kind == "action_hint" else hinted_action(text, action_texts)
        for place, text in enumerate(texts)
    ]
    return Vocabulary(kind, np.array(hints, dtype=np.int64), action_texts)


@functools.lru_cache(maxsize=4096)
def subgoals(mission: str) -> tuple[str, ...]:
    """The subgoal sentences of a mission, such as ``turn until you see the red ball``.

    A mission that names no object has ``the goal`` in its place; one that names a single object has
    it in both places.
    """
    objects = _OBJECT.findall(mission) or ["the goal"]
    return tuple(sentence.format(first=objects[0], second=objects[-1]) for sentence in SUBGOALS)


@functools.lru_cache(maxsize=65536)
def hinted_action(text: str, action_texts: tuple[str, ...] = ACTION_NAMES) -> int:
    """The action whose name comes first in a text, or ``NO_HINT``; of several that begin there the
    longest.

    ``turn left until you see the red ball`` hints at turning left; ``turn around`` names no action.
    """
    names, pattern = _names(action_texts)
    found = pattern.search(text.lower())
    return names.index(found.group()) if found else NO_HINT


@functools.lru_cache(maxsize=4096)
def _names(action_texts: tuple[str, ...]) -> tuple[list[str], re.Pattern[str]]:
    names = [text.lower() for text in action_texts]
    longest_first = sorted(names, key=len, reverse=True)
    return names, re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


class Teacher(Protocol):
    """The plug point of a source of guidance.

    Attributes:
        guidance_codes: Size of the codes it gives.
        options: Everything it can say in any state, one row each, or None where that cannot be
            listed.
    """

    guidance_codes: int
    options: Guidance | None

    def guide(self, scene: Scene, draws: Draws) -> Guidance:
        """Draw one guidance per environment."""

    def distribution(self, scene: Scene) -> np.ndarray:
        """M(x | s), ``(n, options)`` float64; only where ``options`` are listed."""


@runtime_checkable
class AskingTeacher(Teacher, Protocol):
    """A teacher that can be asked now and heard later."""

    def ask(self, scene: Scene) -> PendingGuidance:
        """Send off what the LLM must score."""
