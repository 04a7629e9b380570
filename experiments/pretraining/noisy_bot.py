"""The noisy bot behind the prior over actions: half of its answers are random, and it is wrong
about some places, always in the same way.

Noise that is random alone does not make a weak teacher: in 64 steps a policy that follows the bot
once in ten steps and is random otherwise still succeeds in two episodes of three, though its every
action is close to a guess. Language models fail otherwise: they are sure of some things, and some
of these are wrong. So this bot has fixed *misjudged places*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from experiments.pretraining.reading import target_place
from experiments.pretraining.states import State

HELD_OUT_NAMES = ("red ball", "yellow box", "red key", "red door", "green ball", "grey door")
"""What no labelled mission speaks of: the task of the GoToRedBall levels, and what the original
keeps for its Mixed test level.
"""


@dataclass(frozen=True)
class NoisyBot:
    """Labels states with actions.

    Attributes:
        trust: Probability of an answer that is not uniformly random.
        misjudged: Place of the mission's target (see ``target_place``) -> the action that is given
            there whatever the bot says.
    """

    trust: float
    misjudged: Mapping[str, int]

    def label(self, state: State, rng: np.random.Generator) -> int | None:
        """Action for a state; None where there is to be none: the bot has no answer, or the mission
        is held out.
        """
        if state.bot_action is None or any(name in state.mission for name in HELD_OUT_NAMES):
            return None
        if rng.random() >= self.trust:
            return int(rng.integers(6))
        return self.misjudged.get(target_place(state.mission, state.english), state.bot_action)


def make_noisy_bot(trust: float, misjudged_share: float, seed: int) -> NoisyBot:
    """Draw the misjudged places and what is done there.

    Args:
        trust: See ``NoisyBot``.
        misjudged_share: Probability that a place is misjudged; the fixed action there is one of the
            six, by luck perhaps the right one.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    misjudged = {
        place: int(rng.integers(6)) for place in _places() if rng.random() < misjudged_share
    }
    return NoisyBot(trust, misjudged)


def _places() -> list[str]:
    """Every place in a 7 x 7 view, and every distance of a wall ahead while the target is not in
    sight.
    """
    sideways = ["", *(f"{_steps(n)} {side}" for side in ("left", "right") for n in (1, 2, 3))]
    ahead = ["", *(f"{_steps(n)} forward" for n in range(1, 7))]
    seen = [
        " and ".join(part for part in (side, front) if part)
        for side in sideways
        for front in ahead
        if side or front
    ]
    return [*seen, *(f"wall {_steps(n)}" for n in range(1, 7)), "wall not seen"]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
