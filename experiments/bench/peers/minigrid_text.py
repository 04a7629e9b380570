"""minigrid's own environment with BabyAI-Text's sentences, written down as one does without a
thought of speed: nothing is remembered.

Only for comparison. Its sentences are those of ``lamorel_ext.envs.babyai.describe``, which a test
holds it to.
"""

from __future__ import annotations

import contextlib
import io

import gymnasium
import minigrid  # registers its levels
import numpy as np
from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

VERSION = minigrid.__version__
DOOR_STATES = ("open", "closed", "locked")
SIDES = {"forward": (0, -1, 6), "left": (-1, 0, 3), "right": (1, 0, 3)}
"""Of the agent at (3, 6): step in x, step in y, and cells up to the edge of the view."""


class MinigridText:
    """A level that says what it shows.

    Args:
        level: Id under which minigrid has registered it.
    """

    def __init__(self, level: str) -> None:
        self._level = gymnasium.make(level, disable_env_checker=True).unwrapped

    def reset(self, seed: int | None = None) -> tuple[str, list[str]]:
        """Start an episode; gives mission and sentences."""
        with contextlib.redirect_stdout(io.StringIO()):  # minigrid prints while it draws a level
            observation, _ = self._level.reset(seed=seed)
        return observation["mission"], sentences(observation["image"])

    def step(self, action: int) -> tuple[list[str], float, bool]:
        """Take an action; gives sentences, reward, and whether the episode is over."""
        observation, reward, terminated, truncated, _ = self._level.step(action)
        return sentences(observation["image"]), float(reward), bool(terminated or truncated)


def sentences(image: np.ndarray) -> list[str]:
    """Sentences of a view ``(7, 7, 3)`` in English."""
    said = []
    carried = image[3, 6]
    if IDX_TO_OBJECT[int(carried[0])] != "empty":
        said.append(f"You carry a {_name(carried)}")
    for side, (dx, dy, reach) in SIDES.items():
        for distance in range(1, reach + 1):
            thing = IDX_TO_OBJECT[int(image[3 + distance * dx, 6 + distance * dy, 0])]
            if thing not in ("empty", "unseen"):
                if thing == "wall":
                    said.append(f"You see a wall {_steps(distance, side)}")
                break
    for x in range(7):
        for y in range(7):
            if (x, y) != (3, 6) and IDX_TO_OBJECT[int(image[x, y, 0])] not in (
                "unseen",
                "empty",
                "wall",
            ):
                said.append(f"You see a {_name(image[x, y])} {_place(x - 3, 6 - y)}")
    return said


def _name(cell: np.ndarray) -> str:
    thing, colour = IDX_TO_OBJECT[int(cell[0])], IDX_TO_COLOR[int(cell[1])]
    return f"{DOOR_STATES[int(cell[2])]} {colour} door" if thing == "door" else f"{colour} {thing}"


def _place(dx: int, dy: int) -> str:
    sideways = [_steps(abs(dx), "left" if dx < 0 else "right")] if dx else []
    return " and ".join(sideways + ([_steps(dy, "forward")] if dy else []))


def _steps(count: int, way: str) -> str:
    return f"{count} {'step' if count == 1 else 'steps'} {way}"
