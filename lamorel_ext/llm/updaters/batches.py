"""A server's part of a batch: its distinct (prompt, candidates) pairs, and the minibatches drawn
over the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The samples of one server.

    Attributes:
        prompts: Prompts of the distinct pairs, shortest first, so that neighbours need little
            padding.
        candidates: Candidates of the distinct pairs.
        pair_ids: ``(n,)`` int64, the distinct pair of each sample.
        indices: ``(n,)`` int64, place of each sample in the whole batch.
        total: Size of the whole batch, over all servers.
        data: Per-sample tensors, each ``(n,)``.
    """

    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    pair_ids: Tensor
    indices: Tensor
    total: int
    data: dict[str, Tensor]

    def rows(self, places: Tensor) -> Tensor:
        """Rows of this server's samples among ``places`` ``(m,)`` of the batch; may be empty."""
        row_of = torch.full((self.total,), -1)
        row_of[self.indices] = torch.arange(len(self.indices))
        rows = row_of[places]
        return rows[rows >= 0]


@dataclass(frozen=True)
class Chunk:
    """Samples that are scored, and whose gradients are computed, at the same time.

    Attributes:
        prompts: Distinct prompts.
        candidates: Their candidates.
        rows: ``(m,)`` int64, rows of the samples in their ``Batch``.
        pair_of_row: ``(m,)`` int64, the place in ``prompts`` of each of those samples.
    """

    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    rows: Tensor
    pair_of_row: Tensor


@dataclass(frozen=True)
class Minibatch:
    """Places of the whole batch that one optimiser step uses; the same on every server."""

    epoch: int
    number: int
    count: int
    places: Tensor

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}, minibatch {self.number + 1} of {self.count} ({len(self.places)}"
            " samples)"
        )


def make_batch(
    prompts: Sequence[str],
    candidates: Sequence[tuple[str, ...]],
    indices: Tensor,
    total: int,
    data: dict[str, Tensor],
) -> Batch:
    """Find the distinct pairs of ``n`` samples. Arguments as in ``types.UpdateRequest``."""
    pairs = list(zip(prompts, candidates, strict=True))
    distinct = sorted(dict.fromkeys(pairs), key=lambda pair: len(pair[0]))
    place = {pair: i for i, pair in enumerate(distinct)}
    pair_ids = torch.tensor([place[pair] for pair in pairs], dtype=torch.int64)
    return Batch(
        tuple(p for p, _ in distinct), tuple(c for _, c in distinct), pair_ids, indices, total, data
    )


def draw_minibatches(total: int, size: int, epochs: int, seed: int) -> Iterator[Minibatch]:
    """Shuffle the whole batch anew in each epoch and cut it into minibatches; the last one of an
    epoch may be smaller.

    Args:
        total: Size of the whole batch.
        size: Samples of a minibatch.
        epochs: Passes over the batch.
        seed: Fixes the shuffling, whatever the number of servers.
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        parts = torch.randperm(total, generator=generator).split(size)
        for number, places in enumerate(parts):
            yield Minibatch(epoch, number, len(parts), places)


def cut_chunks(batch: Batch, rows: Tensor, max_pairs: int) -> Iterator[Chunk]:
    """Cut samples into chunks of at most ``max_pairs`` distinct pairs; all samples of a pair are in
    one chunk.

    Args:
        batch: Where the samples are.
        rows: ``(m,)`` rows of the samples; none give no chunk.
        max_pairs: 0 means no limit.
    """
    distinct, pair_of_row = batch.pair_ids[rows].unique(return_inverse=True)
    size = max_pairs or max(len(distinct), 1)
    for start in range(0, len(distinct), size):
        ids = distinct[start : start + size].tolist()
        inside = (pair_of_row >= start) & (pair_of_row < start + size)
        yield Chunk(
            tuple(batch.prompts[i] for i in ids),
            tuple(batch.candidates[i] for i in ids),
            rows[inside],
            pair_of_row[inside] - start,
        )
