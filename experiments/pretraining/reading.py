"""Questions about what an observation says, with their answers: how the model learns to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.pretraining.states import State
from lamorel_ext.envs.babyai.describe import COLOR_NAMES

NOT_SEEN = "not in sight"
NOT_SEEN_FRENCH = "pas en vue"
_THING = re.compile(r"You see a (?:(?:open|closed|locked) )?(?P<name>\w+ \w+) (?P<where>\d.*)")
_FRENCH_THING = re.compile(
    r"Tu vois une (?P<name>\w+ \w+) (?:ouverte |fermée à clef |fermée )?(?P<where>\d.*)"
)
_WALL = re.compile(r"You see a wall (?P<where>(?P<distance>\d+ steps?) (?P<side>\w+))")
_TARGET = re.compile(rf"(?:({'|'.join(COLOR_NAMES)}) )?(door|key|ball|box)|object")
_KINDS = ("door", "key", "ball", "box")
_FRENCH_NOUNS = ("porte", "clef", "balle", "boîte")
_FRENCH_COLORS = ("rouge", "verte", "bleue", "violette", "jaune", "grise")


@dataclass(frozen=True)
class Seen:
    """Something that a sentence speaks of: ``red ball`` at ``2 steps left and 3 steps forward``."""

    name: str
    where: str


def read_things(sentences: Sequence[str], french: bool = False) -> tuple[Seen, ...]:
    """Everything seen that is not a wall, in the order of the sentences."""
    pattern = _FRENCH_THING if french else _THING
    return tuple(
        Seen(match["name"], match["where"]) for match in map(pattern.fullmatch, sentences) if match
    )


def read_walls(sentences: Sequence[str]) -> dict[str, str]:
    """Distance in words of the wall in each direction that has one: ``{"forward": "3 steps"}``."""
    return {match["side"]: match["distance"] for match in map(_WALL.fullmatch, sentences) if match}


def target_name(mission: str) -> str:
    """What the mission speaks of first: ``red ball``, ``ball`` or ``object``."""
    match = _TARGET.search(mission)
    return match[0] if match else "object"


def target_place(mission: str, sentences: Sequence[str]) -> str:
    """Where the mission's first thing is seen first; where it is not seen, how far the wall ahead
    is.
    """
    name = target_name(mission)
    for seen in read_things(sentences):
        if name in (seen.name, seen.name.split()[-1], "object"):
            return seen.where
    return f"wall {read_walls(sentences).get('forward', 'not seen')}"


def ask(state: State, rng: np.random.Generator) -> tuple[str, str]:
    """Draw a question about a state; gives question and answer."""
    kind = rng.choice(
        ("where", "target", "what", "side", "wall", "carry", "goal"),
        p=(0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.03),
    )
    things = read_things(state.english)
    if kind == "goal":
        return "what is the goal?", state.mission
    if kind == "carry":
        carried = [
            sentence.removeprefix("You carry ")
            for sentence in state.english
            if sentence.startswith("You carry ")
        ]
        return "what do you carry?", carried[0] if carried else "nothing"
    if kind == "wall":
        side = rng.choice(("forward", "left", "right"))
        return f"how far is the wall {side}?", read_walls(state.english).get(side, NOT_SEEN)
    if kind == "what" and things:
        seen = things[int(rng.integers(len(things)))]
        return f"what is {seen.where}?", f"a {seen.name}"
    if kind == "target":
        return "where is what you look for?", _where(target_name(state.mission), things)
    name = _name_to_ask_for(things, rng)
    if kind == "side":
        where = _where(name, things)
        return f"on which side is the {name}?", where if where == NOT_SEEN else where.split()[2]
    return f"where is the {name}?", _where(name, things)


def ask_in_french(state: State, rng: np.random.Generator) -> tuple[str, str]:
    """The same for the French sentences: where something is."""
    things = read_things(state.french, french=True)
    if things and rng.random() < 0.75:
        name = things[int(rng.integers(len(things)))].name
    else:
        name = f"{rng.choice(_FRENCH_NOUNS)} {rng.choice(_FRENCH_COLORS)}"
    return f"où est la {name}?", next(
        (seen.where for seen in things if seen.name == name), NOT_SEEN_FRENCH
    )


def _where(name: str, things: Sequence[Seen]) -> str:
    """Place of the first thing of that name; a name without a colour, or ``object``, takes any."""
    return next(
        (seen.where for seen in things if name in (seen.name, seen.name.split()[-1], "object")),
        NOT_SEEN,
    )


def _name_to_ask_for(things: Sequence[Seen], rng: np.random.Generator) -> str:
    if things and rng.random() < 0.75:
        return things[int(rng.integers(len(things)))].name
    return f"{rng.choice(COLOR_NAMES)} {rng.choice(_KINDS)}"
