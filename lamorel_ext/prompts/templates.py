"""Prompt templates: pure functions from missions and sentences to the strings that an LLM reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Template = Literal["lamorel", "glam"]

ACTION_NAMES = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
"""The texts of the six actions that are offered; the index is the environment's action id."""
DONE_NAME = "done"
"""Text of action 6, which is never offered."""

_FRENCH_DETERMINERS = {"the": "la", "a": "une"}
_FRENCH_NOUNS = {"box": "boîte", "ball": "balle", "key": "clef"}
_FRENCH_ADJECTIVES = {
    "red": "rouge",
    "green": "verte",
    "blue": "bleue",
    "purple": "violette",
    "yellow": "jaune",
    "grey": "grise",
}
_FRENCH_MISSION = re.compile(rf"go to (?:the|a) (?:\w+ )?(?:{'|'.join(_FRENCH_NOUNS)})")

_FEEDBACK = {
    True: "Your last instruction was better than the one before.",
    False: "Your last instruction was worse than the one before.",
}


def action_name(action: int) -> str:
    """Text of an action id, 0 to 6."""
    return ACTION_NAMES[action] if 0 <= action < len(ACTION_NAMES) else DONE_NAME


def lamorel_prompt(mission: str, descriptions: Sequence[str]) -> str:
    """Lamorel's PPO example: mission, where there is one, and current observation, no history."""
    goal = f"Goal of the agent: {mission}\n" if mission else ""
    return f"{goal}Observation: {', '.join(descriptions)}\nAction:"


def glam_prompt(
    mission: str,
    observations: Sequence[Sequence[str]],
    actions: Sequence[str],
    action_names: Sequence[str] = ACTION_NAMES,
) -> str:
    """GLAM's prompt (Carta et al. 2023): the actions on offer, the mission, and a window of the
    episode.

    Args:
        mission: Mission of the episode.
        observations: The last observations' sentences, oldest first; the last one is the current
            state.
        actions: Texts of the actions taken between them, one fewer.
        action_names: Texts of the actions on offer.

    Raises:
        ValueError: There is not exactly one action between every two observations.
    """
    goal = f" \n Goal of the agent: {mission}" if mission else ""
    head = f"Possible action of the agent: {', '.join(action_names)}{goal}"
    return head + _window(observations, actions)


def glam_prompt_french(
    mission: str,
    observations: Sequence[Sequence[str]],
    actions: Sequence[str],
    action_names: Sequence[str] = ACTION_NAMES,
) -> str:
    """The French variant of ``glam_prompt``.

    Every mission becomes a go-to mission: see ``french_goal``.
    """
    head = (
        f"Actions possibles pour l'agent: {', '.join(action_names)} \n But de l'agent:"
        f" {french_goal(mission)}"
    )
    return head + _window(observations, actions)


def can_say(mission: str, template: Template, language: Literal["en", "fr"]) -> bool:
    """True where a mission can be said in a template; the French ``glam`` one only knows how to go
    to a box, ball or key.
    """
    return template != "glam" or language != "fr" or _FRENCH_MISSION.fullmatch(mission) is not None


def french_goal(mission: str) -> str:
    """GLAM's translation of a mission, which always reads ``aller à ...``.

    Words are found as substrings and the last match of a table wins, so that the article is ``une``
    wherever an ``a`` occurs (``the red ball``). A word that is not found leaves its place empty.
    """
    found = []
    for table in (_FRENCH_DETERMINERS, _FRENCH_NOUNS, _FRENCH_ADJECTIVES):
        matches = [french for english, french in table.items() if english in mission]
        found.append(matches[-1] if matches else "")
    return "aller à " + " ".join(found)


def feedback_sentence(signal: float) -> str:
    """The paper's instruction feedback in words: whether the last instruction was better (``signal
    > 0``) or worse; nothing at 0.
    """
    return _FEEDBACK[signal > 0] if signal else ""


def with_feedback(prompt: str, signal: float) -> str:
    """Put the feedback in a line of its own, see ``with_line``.

    Args:
        prompt: A prompt of this module.
        signal: f_t of the last instruction; 0 leaves the prompt as it is.
    """
    sentence = feedback_sentence(signal)
    return with_line(prompt, sentence) if sentence else prompt


def with_line(prompt: str, sentence: str) -> str:
    """Put a sentence in a line of its own before the prompt's last line, in the manner of its
    template.
    """
    head, newline, last_line = prompt.rpartition("\n")
    edge = " " if last_line.startswith(" ") else ""
    return f"{head}{newline}{edge}{sentence}{edge}\n{last_line}"


def state_of(prompt: str) -> str:
    """A prompt of this module without its last line, which asks for an action: what else one asks
    about the state stands there.
    """
    head, newline, _ = prompt.rpartition("\n")
    return head + newline


def present_of(prompt: str) -> str:
    """The current observation of a prompt of this module, with what follows it."""
    return prompt.rpartition("Observation")[2]


def _window(observations: Sequence[Sequence[str]], actions: Sequence[str]) -> str:
    if len(actions) + 1 != len(observations):
        raise ValueError(
            f"{len(observations)} observations have {len(observations) - 1} actions between them,"
            f" got {len(actions)}"
        )
    lines = []
    for index, (sentences, action) in enumerate(zip(observations, (*actions, ""), strict=True)):
        lines.append(
            f" \n Observation {index}: {''.join(f'{sentence}, ' for sentence in sentences)}\n"
            f" Action {index}: {action}"
        )
    return "".join(lines)
