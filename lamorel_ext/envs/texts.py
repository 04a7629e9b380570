"""A space of texts that Gymnasium's asynchronous vector environments show as they are now.

Gymnasium 1.4 reads the memory that it shares with its workers once, before the first reset. Arrays
made of it follow what the workers write, strings do not: with Gymnasium's own ``Text`` every
observation is the one of that moment, a row of the alphabet's first letter. A ``SharedText`` gives
a view instead, whose copy, which is what ``reset`` and ``step`` return, holds the texts of now.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils.shared_memory import (
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)


class SharedText(gymnasium.spaces.Text):
    """``gymnasium.spaces.Text`` for shared memory; otherwise the same."""


class TextsOfNow(Sequence[str]):
    """The texts of several environments in shared memory, read whenever they are looked at.

    Args:
        memory: ``(num_envs, longest)`` int32, code points; zeros follow a text.
    """

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self)[index]
        return str(self._memory[index].tobytes().decode("utf-32-le").rstrip("\0"))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


@create_shared_memory.register(SharedText)
def _create(space: SharedText, n: int = 1, ctx: Any = multiprocessing) -> Any:
    return ctx.Array("i", n * space.max_length)


@read_from_shared_memory.register(SharedText)
def _read(space: SharedText, shared_memory: Any, n: int = 1) -> TextsOfNow:
    return TextsOfNow(_rows(space, shared_memory))


@write_to_shared_memory.register(SharedText)
def _write(space: SharedText, index: int, value: str, shared_memory: Any) -> None:
    codes = np.frombuffer(value.encode("utf-32-le"), dtype=np.int32)
    row = _rows(space, shared_memory)[index]
    row[: len(codes)] = codes
    row[len(codes) :] = 0


def _rows(space: SharedText, shared_memory: Any) -> np.ndarray:
    memory = np.frombuffer(shared_memory.get_obj(), dtype=np.int32)
    return memory.reshape(-1, space.max_length)
