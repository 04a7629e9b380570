"""Batches of several groups of environments as one batch, in the order of the groups."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from lamorel_ext.experience import join_rows

T = TypeVar("T")


def join(batches: Sequence[T]) -> T:
    """Join dataclasses of arrays and tuples with one row per environment, field by field; what is
    None is None in all of them.

    Raises:
        ValueError: They are of different kinds, or of a kind without rows.
    """
    joined: T = batches[0] if len(batches) == 1 else _join(batches)
    return joined


def _join(batches: Sequence[Any]) -> Any:
    first = batches[0]
    if len({type(batch) for batch in batches}) == 1:
        if first is None:
            return None
        if isinstance(first, np.ndarray):
            return join_rows(batches)
        if isinstance(first, tuple):
            return tuple(itertools.chain.from_iterable(batches))
        if dataclasses.is_dataclass(first) and not isinstance(first, type):
            names = [field.name for field in dataclasses.fields(first)]
            return dataclasses.replace(
                first,
                **{name: _join([getattr(batch, name) for batch in batches]) for name in names},
            )
    raise ValueError(f"cannot join {', '.join(type(batch).__name__ for batch in batches)}")
