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
    "actions": np.int32,
    "rewards": np.float32,
    "after": np.int32,
    "ended": np.bool_,
}
_OFFERS: dict[str, type[np.generic]] = {"offered_before": np.int32, "offered_after": np.int32}
_BETWEEN = -1
"""Between the texts of a list that is remembered as one."""


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions.

    Attributes:
        before: ``n`` texts of the states acted in.
        actions: ``(n,)`` int64.
        rewards: ``(n,)`` float32, unscaled.
        after: ``n`` texts of the states reached, before any reset.
        ended: ``(n,)`` bool, True where the task itself ended the episode there.
        offered_before: The actions' texts in the states acted in, where each state lists its own.
        offered_after: Likewise in the states reached.
    """

    before: list[Text]
    actions: np.ndarray
    rewards: np.ndarray
    after: list[Text]
    ended: np.ndarray
    offered_before: list[list[Text]] | None = None
    offered_after: list[list[Text]] | None = None


class Replay:
    """The last ``capacity`` transitions.

    Args:
        capacity: The oldest are overwritten once there are so many.
        offers: True where each state lists its own actions: they are remembered like texts.
    """

    def __init__(self, capacity: int, offers: bool = False) -> None:
        self._capacity = capacity
        self._types = _COLUMNS | (_OFFERS if offers else {})
        self._of_texts = ("before", "after", *(_OFFERS if offers else ()))
        self._columns: dict[str, np.ndarray] = {
            name: np.zeros(capacity, dtype=dtype) for name, dtype in self._types.items()
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
        offered_before: Sequence[Sequence[str]] = (),
        offered_after: Sequence[Sequence[str]] = (),
    ) -> None:
        """Remember one step of several environments; see ``Transitions``."""
        if len(self._texts) > 4 * self._capacity:
            self._forget_unused()
        rows = (self._next + np.arange(len(actions))) % self._capacity
        texts = [list(map(word_places, each)) for each in (before, after)]
        texts += [list(map(_as_text, each)) for each in (offered_before, offered_after)]
        known = [[self._place(text) for text in each] for each in texts]
        values = (known[0], actions, rewards, known[1], ended, *known[2:])
        for name, column in zip(self._types, values, strict=False):
            self._columns[name][rows] = column
        self._next = int((self._next + len(rows)) % self._capacity)
        self._size = min(self._size + len(rows), self._capacity)

    def sample(self, count: int, rng: np.random.Generator) -> Transitions:
        """Draw ``count`` transitions, each independently."""
        rows = rng.integers(self._size, size=count)
        drawn = {name: values[rows] for name, values in self._columns.items()}
        texts = {name: [self._texts[place] for place in drawn[name]] for name in self._of_texts}
        offers = [list(map(_as_texts, texts[name])) for name in _OFFERS if name in texts]
        return Transitions(
            texts["before"],
            drawn["actions"].astype(np.int64),
            drawn["rewards"],
            texts["after"],
            drawn["ended"],
            *offers,
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
        needed = (*self._types, "next", "lengths", "words")
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise CheckpointError(f"the saved replay memory lacks {', '.join(missing)}")
        size, position = len(tensors["before"]), int(tensors["next"])
        ends = np.cumsum(tensors["lengths"].numpy())
        words = tensors["words"].tolist()
        texts = [
            tuple(words[end - length : end])
            for end, length in zip(ends, tensors["lengths"].tolist(), strict=True)
        ]
        places = torch.cat([tensors[name] for name in self._of_texts])
        fits = (
            all(len(tensors[name]) == size for name in self._types)
            and size <= self._capacity
            and position < self._capacity
        )
        if not fits or (size and not 0 <= int(places.min()) <= int(places.max()) < len(texts)):
            raise CheckpointError(
                f"the saved replay memory does not fit one of {self._capacity} transitions"
            )
        for name in self._types:
            self._columns[name][:size] = tensors[name].numpy()
        self._size, self._next = size, position
        self._texts, self._places = texts, {text: place for place, text in enumerate(texts)}

    def _place(self, words: Text) -> int:
        place = self._places.setdefault(words, len(self._texts))
        if place == len(self._texts):
            self._texts.append(words)
        return place

    def _forget_unused(self) -> None:
        """Drop texts of transitions that were overwritten."""
        states = [self._columns[name][: self._size] for name in self._of_texts]
        used = np.unique(np.concatenate(states))
        for values in states:
            values[:] = np.searchsorted(used, values)
        self._texts = [self._texts[place] for place in used]
        self._places = {text: place for place, text in enumerate(self._texts)}


def _as_text(texts: Sequence[str]) -> Text:
    """A list of texts as one; of a state without actions, whose episode ended, an empty one."""
    return tuple(place for text in texts or ("",) for place in (*word_places(text), _BETWEEN))


def _as_texts(joined: Text) -> list[Text]:
    texts: list[Text] = []
    begin = 0
    for end, place in enumerate(joined):
        if place == _BETWEEN:
            texts.append(joined[begin:end])
            begin = end + 1
    return texts
