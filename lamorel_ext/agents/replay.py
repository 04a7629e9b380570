"""The memory of transitions that Q-learning draws from; each distinct text is kept once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.word_places import word_places
from lamorel_ext.errors import CheckpointError

Text = tuple[int, ...]
"""Places of a text's words."""
_COLUMNS: dict[str, type[np.generic]] = {
    "before": np.int32,
    "actions": np.int8,
    "rewards": np.float32,
    "after": np.int32,
    "ended": np.bool_,
}


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions.

    Attributes:
        before: ``n`` texts of the states acted in.
        actions: ``(n,)`` int64.
        rewards: ``(n,)`` float32, unscaled.
        after: ``n`` texts of the states reached, before any reset.
        ended: ``(n,)`` bool, True where the task itself ended the episode there.
    """

    before: list[Text]
    actions: np.ndarray
    rewards: np.ndarray
    after: list[Text]
    ended: np.ndarray


class Replay:
    """The last ``capacity`` transitions.

    Args:
        capacity: The oldest are overwritten once there are so many.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._columns: dict[str, np.ndarray] = {
            name: np.zeros(capacity, dtype=dtype) for name, dtype in _COLUMNS.items()
        }
        self._size = self._next = 0
        self._texts: list[Text] = []
        self._places: dict[Text, int] = {}

    def __len__(self) -> int:
        return self._size

    def add(
        self,
        before: Sequence[str],
        actions: np.ndarray,
        rewards: np.ndarray,
        after: Sequence[str],
        ended: np.ndarray,
    ) -> None:
        """Remember one step of several environments; see ``Transitions``."""
        if len(self._texts) > 4 * self._capacity:
            self._forget_unused()
        rows = (self._next + np.arange(len(actions))) % self._capacity
        known = [[self._place(text) for text in texts] for texts in (before, after)]
        for name, values in zip(
            _COLUMNS, (known[0], actions, rewards, known[1], ended), strict=True
        ):
            self._columns[name][rows] = values
        self._next = int((self._next + len(rows)) % self._capacity)
        self._size = min(self._size + len(rows), self._capacity)

    def sample(self, count: int, rng: np.random.Generator) -> Transitions:
        """Draw ``count`` transitions, each independently."""
        rows = rng.integers(self._size, size=count)
        drawn = {name: values[rows] for name, values in self._columns.items()}
        texts = {
            name: [self._texts[place] for place in drawn[name]] for name in ("before", "after")
        }
        return Transitions(
            texts["before"],
            drawn["actions"].astype(np.int64),
            drawn["rewards"],
            texts["after"],
            drawn["ended"],
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is remembered."""
        self._forget_unused()
        saved = {
            name: torch.from_numpy(values[: self._size].copy())
            for name, values in self._columns.items()
        }
        lengths = np.array([len(text) for text in self._texts], dtype=np.int32)
        words = np.array([place for text in self._texts for place in text], dtype=np.int32)
        return {
            **saved,
            "next": torch.tensor(self._next),
            "lengths": torch.from_numpy(lengths),
            "words": torch.from_numpy(words),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Come back to what ``tensors`` gave.

        Raises:
            CheckpointError: Something is missing, or is not from a memory of this capacity.
        """
        missing = [name for name in (*_COLUMNS, "next", "lengths", "words") if name not in tensors]
        if missing:
            raise CheckpointError(f"the saved replay memory lacks {', '.join(missing)}")
        size, position = len(tensors["before"]), int(tensors["next"])
        ends = np.cumsum(tensors["lengths"].numpy())
        words = tensors["words"].tolist()
        texts = [
            tuple(words[end - length : end])
            for end, length in zip(ends, tensors["lengths"].tolist(), strict=True)
        ]
        places = torch.cat([tensors["before"], tensors["after"]])
        fits = (
            all(len(tensors[name]) == size for name in _COLUMNS)
            and size <= self._capacity
            and position < self._capacity
        )
        if not fits or (size and not 0 <= int(places.min()) <= int(places.max()) < len(texts)):
            raise CheckpointError(
                f"the saved replay memory does not fit one of {self._capacity} transitions"
            )
        for name in _COLUMNS:
            self._columns[name][:size] = tensors[name].numpy()
        self._size, self._next = size, position
        self._texts, self._places = texts, {text: place for place, text in enumerate(texts)}

    def _place(self, text: str) -> int:
        words = word_places(text)
        place = self._places.setdefault(words, len(self._texts))
        if place == len(self._texts):
            self._texts.append(words)
        return place

    def _forget_unused(self) -> None:
        """Drop texts of transitions that were overwritten."""
        states = [self._columns[name][: self._size] for name in ("before", "after")]
        used = np.unique(np.concatenate(states))
        for values in states:
            values[:] = np.searchsorted(used, values)
        self._texts = [self._texts[place] for place in used]
        self._places = {text: place for place, text in enumerate(self._texts)}
