"""What a teacher may say: the guidance vocabularies, and which action a text asks for."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lamorel_ext.prompts import ACTION_NAMES

NUM_ACTIONS = len(ACTION_NAMES)
NO_HINT = NUM_ACTIONS
"""The hint of a text that asks for no particular action."""

_OBJECT = re.compile(
    r"\b(?:the|a|an) (?:(?:red|green|blue|purple|yellow|grey) )?(?:ball|box|key|door|object)"
    r"(?: in front of you| behind you| on your left| on your right)?"
)
_ACTION = re.compile("|".join(rf"\b{name}\b" for name in ACTION_NAMES))

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
    """

    kind: Literal["action_hint", "subgoal"]
    hints: np.ndarray

    @property
    def size(self) -> int:
        """Number of guidances."""
        return len(self.hints)

    def candidates(self, mission: str) -> tuple[str, ...]:
        """The texts to choose from, a function of the mission alone."""
        return ACTION_NAMES if self.kind == "action_hint" else subgoals(mission)


def make_vocabulary(kind: Literal["action_hint", "subgoal"]) -> Vocabulary:
    """The vocabulary of that name."""
    texts = ACTION_NAMES if kind == "action_hint" else SUBGOALS
    return Vocabulary(kind, np.array([hinted_action(text) for text in texts], dtype=np.int64))


@functools.lru_cache(maxsize=4096)
def subgoals(mission: str) -> tuple[str, ...]:
    """The subgoal sentences of a mission, such as ``turn until you see the red ball``.

    A mission that names no object has ``the goal`` in its place; one that names a single object has it in both places.
    """
    objects = _OBJECT.findall(mission) or ["the goal"]
    return tuple(sentence.format(first=objects[0], second=objects[-1]) for sentence in SUBGOALS)


@functools.lru_cache(maxsize=65536)
def hinted_action(text: str) -> int:
    """The action whose name comes first in a text, or ``NO_HINT``.

    ``turn left until you see the red ball`` hints at turning left; ``turn around`` names no action.
    """
    found = _ACTION.search(text.lower())
    return ACTION_NAMES.index(found.group()) if found else NO_HINT
