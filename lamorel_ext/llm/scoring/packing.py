"""Sequences of several lengths kept as one stack of rows, so that padding costs nothing but in
attention.

Everything in a transformer but attention works on each position alone: there the rows of all
sequences lie one after the other. Attention sees them padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.llm.devices import put

CPU_ROWS = 512
"""Positions worked on at a time, per thread: their widest activations stay in a core's second-level
cache.
"""
TRAINING_ROWS = 4096
"""The same with gradients: every further chunk adds its gradient to every weight's once more, which
costs more than the cache saves.
"""
GPU_ROWS = 65_536


def cut_rows(
    lengths: Sequence[int], behind: Sequence[int], device: torch.device
) -> Iterator[slice]:
    """Neighbours among sequences, as many as fit into the padded positions that are worked on at a
    time, at least one.

    Args:
        lengths: Of at least one sequence, ascending.
        behind: Positions behind each, padded to a width of their own.
        device: Where they are worked on.
    """
    budget = GPU_ROWS
    if device.type == "cpu":
        rows = TRAINING_ROWS if torch.is_grad_enabled() else CPU_ROWS
        budget = rows * torch.get_num_threads()
    start, widest = 0, 0
    for stop, (length, more) in enumerate(zip(lengths, behind, strict=True)):
        widest = max(widest, more)
        if stop > start and (stop + 1 - start) * (length + widest) > budget:
            yield slice(start, stop)
            start, widest = stop, more
    yield slice(start, len(lengths))


@dataclass(frozen=True)
class Packing:
    """Where the rows of sequences go when they are padded.

    Attributes:
        lengths: Rows of each sequence, each at least 1.
        width: The longest length.
        spread: ``(n, width)`` int64, the row that belongs at each place, some other row on padding;
            None where the rows have their padding, or need none.
        keep: ``(rows,)`` int64, the place of each row in the flattened ``(n * width,)``; None like
            ``spread``.
        mask: ``(n, width)`` bool, True on real places; None where nothing is padded.
    """

    lengths: tuple[int, ...]
    width: int
    spread: Tensor | None
    keep: Tensor | None
    mask: Tensor | None

    def to(self, device: torch.device) -> Packing:
        """The same on a device."""
        if self.mask is None or self.mask.device == device:
            return self
        spread, keep, mask = (
            None if own is None else own.to(device) for own in (self.spread, self.keep, self.mask)
        )
        return Packing(self.lengths, self.width, spread, keep, mask)

    def pad(self, rows: Tensor) -> Tensor:
        """``(rows, ...)`` to ``(n, width, ...)``; padding repeats other rows, so mask it: no
        gradient comes from there.
        """
        if self.spread is None or self.keep is None:
            padded: Tensor = rows.unflatten(0, (len(self.lengths), self.width))
            return padded
        if torch.is_grad_enabled() and rows.requires_grad:
            padded = _Pad.apply(rows, self.spread, self.keep)  # type: ignore[no-untyped-call]
            return padded
        return rows[self.spread]

    def unpad(self, padded: Tensor) -> Tensor:
        """``(n, width, ...)`` back to ``(rows, ...)``."""
        rows = padded.flatten(0, 1)
        return rows if self.keep is None else rows[self.keep]


class _Pad(torch.autograd.Function):
    """``rows[spread]``, whose gradient is looked up too.

    That of an index adds up what came from each place, padding too, one after the other: a GPU
    sorts all places first, and a CPU takes one thread.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, spread: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        return rows[spread]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return gradient.flatten(0, 1)[keep], None, None


def make_packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """The packing of at least one sequence, each of length 1 or more."""
    width, sizes = max(lengths), tuple(lengths)
    if min(lengths) == width:
        return Packing(sizes, width, None, None, None)
    column = np.arange(width)
    mask = column[None, :] < np.asarray(lengths)[:, None]
    spread = np.cumsum([0, *sizes[:-1]])[:, None] + np.where(mask, column, 0)
    keep = np.flatnonzero(mask)
    return Packing(sizes, width, put(spread, device), put(keep, device), put(mask, device))
