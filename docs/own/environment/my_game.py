"""A game with three actions and nothing to see but a text: walk to the lamp and switch it on."""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env[str, np.int64]):
    """A corridor with a lamp at one of its places.

    Args:
        size: Places in the corridor.
    """

    action_texts = ("walk left", "walk right", "switch on")

    def __init__(self, size: int = 5) -> None:
        self.size = size
        self.observation_space = gymnasium.spaces.Text(200, charset=string.printable)
        self.action_space = gymnasium.spaces.Discrete(3)
        self._place = self._lamp = self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode; its seed says where everything is."""
        super().reset(seed=seed)
        self._place, self._lamp = self.np_random.integers(self.size, size=2).tolist()
        self._steps = 0
        return self._text(), {}

    def step(self, action: np.int64) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Walk, or end the episode by trying the switch."""
        self._steps += 1
        if action == 2:
            found = self._place == self._lamp
            return self._text(), 1.0 - 0.02 * self._steps if found else 0.0, True, False, {}
        self._place = int(np.clip(self._place + (1 if action == 1 else -1), 0, self.size - 1))
        return self._text(), 0.0, False, self._steps >= 4 * self.size, {}

    def expert_action(self) -> str:
        """Optional: for the arms bot, cloning and teacher_oracle."""
        if self._place == self._lamp:
            return "switch on"
        return "walk right" if self._place < self._lamp else "walk left"

    def _text(self) -> str:
        steps = self._lamp - self._place
        where = "right" if steps > 0 else "left"
        return f"The lamp is {abs(steps)} steps {where}" if steps else "The lamp is here"
