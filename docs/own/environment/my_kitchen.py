"""A game in which each state lists what can be done there: fetch the key, open the door, eat."""

from __future__ import annotations

import string
from typing import Any

import gymnasium

ROOMS = {"hall": ("kitchen", "cellar"), "kitchen": ("hall",), "cellar": ("hall",)}


class Kitchen(gymnasium.Env[Any, str]):
    """The kitchen is locked, the key is in the cellar or in the hall, the food in the kitchen.

    Args:
        max_steps: Steps after which an episode is cut off.
    """

    def __init__(self, max_steps: int = 12) -> None:
        self.max_steps = max_steps
        self.observation_space = gymnasium.spaces.Dict(
            {
                "text": gymnasium.spaces.Text(300, charset=string.printable),
                "mission": gymnasium.spaces.Text(50, min_length=0, charset=string.printable),
            }
        )
        self.action_space = gymnasium.spaces.Text(
            50, min_length=0, charset=string.printable
        )  # step gets the text that was chosen

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; its seed says what is to be eaten and where the key is."""
        super().reset(seed=seed)
        self._food = ("apple", "bread", "cheese")[int(self.np_random.integers(3))]
        self._key = ("hall", "cellar")[int(self.np_random.integers(2))]
        self._room, self._steps, self._eaten = "hall", 0, False
        return self._seen(), {"admissible": self._choices()}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Do what the text says."""
        self._steps += 1
        verb, _, thing = action.partition(" ")
        if verb == "go":
            self._room = thing.removeprefix("to the ")
        elif verb == "take":
            self._key = "hand"
        else:
            self._eaten = True
        reward = 1.0 if self._eaten else 0.0
        info = {"admissible": self._choices(), "success": self._eaten}
        return self._seen(), reward, self._eaten, self._steps >= self.max_steps, info

    def _seen(self) -> dict[str, Any]:
        key = "You carry a key" if self._key == "hand" else ""
        lying = "A key lies here" if self._key == self._room else ""
        text = "\n".join(filter(None, (f"You are in the {self._room}", lying, key)))
        return {"text": text, "mission": f"eat the {self._food}"}

    def _choices(self) -> list[str]:
        """Any number of texts, others in every state."""
        rooms = [room for room in ROOMS[self._room] if room != "kitchen" or self._key == "hand"]
        found = [f"go to the {room}" for room in rooms]
        if self._key == self._room:
            found.append("take the key")
        if self._room == "kitchen":
            found.append(f"eat the {self._food}")
        return found
