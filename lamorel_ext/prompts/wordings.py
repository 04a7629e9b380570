"""Other words for the same things: what a policy is asked in after training, to see what its
success hangs on.

A wording changes texts and nothing else: the episode, its law and the number of candidates stay.
The tests are those of Carta et al. 2023 (arXiv 2302.02662, section 4.3, with the words of its
public code). There, words are replaced as substrings of the finished prompt; here only whole words
are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

_ACTION_LINE = re.compile(
    r"^( ?(?:Possible action of the agent|Actions possibles pour l'agent|Action \d+):)(.*)$",
    re.MULTILINE,
)
"""The lines of ``templates`` that name actions: those on offer, and those taken. Missions and
sentences may contain the same words.
"""


@dataclass(frozen=True)
class Wording:
    """Replacements. Those of one mapping are made at once, so that words may be swapped; names of
    actions come before words.

    Attributes:
        name: Of the wording.
        words: Whole words or phrases, replaced wherever they stand.
        actions: Names of actions, replaced in candidates and where a prompt lists actions or tells
            those taken, but not in missions.

    Raises:
        ValueError: Two words would become the same one, or something is to be replaced by nothing.
    """

    name: str
    words: Mapping[str, str] = field(default_factory=dict)
    actions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mapping in (self.words, self.actions):
            if len(set(mapping.values())) < len(mapping):
                raise ValueError(
                    f"{self.name}: two words would become the same one: {dict(mapping)}"
                )
            if not all(key and value for key, value in mapping.items()):
                raise ValueError(
                    f"{self.name}: words may be neither empty nor replaced by nothing:"
                    f" {dict(mapping)}"
                )

    def candidate(self, text: str) -> str:
        """A text to choose: the name of an action, or guidance that contains one."""
        return _replaced(_replaced(text, self.actions), self.words)

    def prompt(self, prompt: str) -> str:
        """A finished prompt of ``templates``."""
        if self.actions:
            prompt = _ACTION_LINE.sub(
                lambda line: line[1] + _replaced(line[2], self.actions), prompt
            )
        return _replaced(prompt, self.words)

    def __bool__(self) -> bool:
        """False where nothing is replaced."""
        return bool(self.words or self.actions)


def _replaced(text: str, mapping: Mapping[str, str]) -> str:
    """The text with other words and phrases."""
    return _pattern(tuple(mapping)).sub(lambda found: mapping[found[0]], text) if mapping else text


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Of whole words and phrases, the longest one where several begin at the same place."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


_INVENTED_NOUNS = {"key": "dax", "ball": "xolo", "box": "afze"}
_INVENTED_COLOURS = {
    "red": "faze",
    "green": "jatu",
    "blue": "croh",
    "purple": "vurst",
    "yellow": "gakul",
    "grey": "sil",
}

PLAIN = Wording("plain")
"""Everything as it is."""
WORDINGS = {
    wording.name: wording
    for wording in (
        Wording("other_nouns", {"key": "chair", "ball": "table", "box": "car"}),
        Wording(
            "other_colours",
            {
                "red": "vermilion",
                "green": "jade",
                "blue": "cyan",
                "purple": "violet",
                "yellow": "golden",
                "grey": "silver",
            },
        ),
        Wording("invented_nouns", _INVENTED_NOUNS),
        Wording("invented_colours", _INVENTED_COLOURS),
        Wording("invented_words", {**_INVENTED_NOUNS, **_INVENTED_COLOURS}),
        Wording("goal_as_wish", {"Goal of the agent": "I would like the agent to"}),
        Wording("goal_as_order", {"Goal of the agent": "You have to"}),
        Wording(
            "synonym_actions",
            actions={
                "turn left": "rotate left",
                "turn right": "rotate right",
                "go forward": "move ahead",
                "pick up": "take",
                "drop": "release",
                "toggle": "switch",
            },
        ),
    )
}
"""The wordings of GLAM's tests, by name."""
