"""A batch on the servers: the data of its samples, its distinct (prompt, candidates) pairs, the
minibatches drawn over it, each server's share of one, and what the model says of each pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters.base import Host
from lamorel_ext.options import unknown_name
from lamorel_ext.types import UpdateRequest

COUNTERS = ("scored_pairs", "scored_tokens")


@dataclass(frozen=True)
class DataSpec:
    """Tensors that come with the samples, each ``(n,)`` where nothing else is said.

    Attributes:
        choices: Keys of integers that point into each sample's candidates.
        numbers: Keys of finite numbers.
        tables: Keys of finite numbers by candidate, ``(n, k)``; a sample with fewer than ``k``
            candidates uses the first ones of its row.
        optional: Keys of numbers that may be left out.
    """

    choices: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys."""
        return self.choices + self.numbers + self.tables


def read_data(request: UpdateRequest, spec: DataSpec) -> dict[str, Tensor]:
    """Check the per-sample tensors; choices become int64, numbers float64.

    Raises:
        RequestError: A key is missing or unknown, a shape or type is wrong, a number is not finite,
            or a choice is outside its candidates; rows are named as in the whole batch.
    """
    name, n = request.updater, len(request.prompts)
    for key in request.data:
        if key not in spec.keys:
            raise RequestError(f"{name}: {unknown_name('data', key, spec.keys)}")
    missing = [key for key in spec.keys if key not in request.data and key not in spec.optional]
    if missing:
        raise RequestError(
            f"{name}: data lacks {', '.join(repr(key) for key in missing)}; there are"
            f" {sorted(request.data)}"
        )
    counts = torch.tensor([len(candidates) for candidates in request.candidates], dtype=torch.int64)
    width = int(counts.max()) if n else 0
    for key, values in request.data.items():
        shape = tuple(values.shape)
        if key in spec.tables and not (len(shape) == 2 and shape[0] == n and shape[1] >= width):
            raise RequestError(
                f"{name}: data[{key!r}] must have shape ({n}, at least {width}): a number for each "
                f"candidate, got {shape}"
            )
        if key not in spec.tables and shape != (n,):
            raise RequestError(f"{name}: data[{key!r}] must have shape ({n},), got {shape}")
    data = {key: _choices(request, key, counts) for key in spec.choices}
    numbers = [key for key in (*spec.numbers, *spec.tables) if key in request.data]
    return data | {key: _numbers(request, key) for key in numbers}


def _choices(request: UpdateRequest, key: str, counts: Tensor) -> Tensor:
    name, values = request.updater, request.data[key]
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise RequestError(f"{name}: data[{key!r}] must hold integers, got {values.dtype}")
    values = values.to("cpu", torch.int64)
    outside = ((values < 0) | (values >= counts)).nonzero().flatten()
    if len(outside):
        i = int(outside[0])
        where = f"data[{key!r}][{int(request.indices[i])}]"
        raise RequestError(
            f"{name}: {where} is {int(values[i])}, but there are {int(counts[i])} candidates"
        )
    return values


def _numbers(request: UpdateRequest, key: str) -> Tensor:
    name, values = request.updater, request.data[key]
    if values.is_complex():
        raise RequestError(f"{name}: data[{key!r}] must hold real numbers, got {values.dtype}")
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        place = tuple(bad[0].tolist())
        told = (int(request.indices[place[0]]), *place[1:])
        where = f"data[{key!r}][{', '.join(map(str, told))}]"
        raise RequestError(
            f"{name}: {where} is {float(values[place])}; it must be finite ({len(bad)} of"
            f" {values.numel()} are not)"
        )
    return values.double()


@dataclass(frozen=True)
class Batch:
    """The samples of a whole batch, the same on every server.

    Attributes:
        prompts: Prompts of the distinct pairs, shortest first, so that neighbours need little
            padding.
        candidates: Candidates of the distinct pairs.
        pair_ids: ``(total,)`` int64, the distinct pair of each sample.
        data: Per-sample tensors, each ``(total,)``.
    """

    prompts: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    pair_ids: Tensor
    data: dict[str, Tensor]

    def share(self, places: Tensor, rank: int, size: int) -> Tensor:
        """One server's samples among ``places`` ``(m,)``; may be empty.

        A distinct pair is worked on by one server, and each server has as many pairs as the others,
        of about the same lengths: the slowest one decides when the step is made.
        """
        ids = self.pair_ids[places]
        return places[torch.isin(ids, ids.unique()[rank::size])]


@dataclass(frozen=True)
class Chunk:
    """Samples that are scored, and whose gradients are computed, at the same time.

    Attributes:
        prompts: Distinct prompts.
        candidates: Their candidates.
        rows: ``(m,)`` int64, places of the samples in their ``Batch``.
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


def make_batch(parts: Sequence[UpdateRequest]) -> Batch:
    """Put the parts of all servers together, and find the distinct pairs.

    Args:
        parts: With the candidates that are to be scored, and checked data.

    Raises:
        RequestError: The parts are not those of one whole batch.
    """
    name, total = parts[0].updater, parts[0].total
    indices = torch.cat([part.indices for part in parts])
    order = indices.argsort()
    if {part.total for part in parts} != {total} or indices[order].tolist() != list(range(total)):
        raise RequestError(
            f"{name}: the indices of all servers must be 0 to {total - 1}, each once; got"
            f" {len(indices)} samples"
        )
    told = [pair for part in parts for pair in zip(part.prompts, part.candidates, strict=True)]
    pairs = [told[row] for row in order.tolist()]
    distinct = sorted(dict.fromkeys(pairs), key=lambda pair: len(pair[0]))
    place = {pair: i for i, pair in enumerate(distinct)}
    return Batch(
        prompts=tuple(prompt for prompt, _ in distinct),
        candidates=tuple(own for _, own in distinct),
        pair_ids=torch.tensor([place[pair] for pair in pairs], dtype=torch.int64),
        data={key: torch.cat([part.data[key] for part in parts])[order] for key in parts[0].data},
    )


def draw_minibatches(total: int, size: int, epochs: int, seed: int) -> Iterator[Minibatch]:
    """Shuffle the whole batch anew in each epoch and cut it into minibatches; the last one of an
    epoch may be smaller.

    Args:
        total: Size of the whole batch.
        size: Samples of a minibatch; 0 takes all of them, in their order, in every epoch.
        epochs: Passes over the batch.
        seed: Fixes the shuffling, whatever the number of servers.
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        shuffled = torch.randperm(total, generator=generator) if size else torch.arange(total)
        parts = shuffled.split(size or total)
        for number, places in enumerate(parts):
            yield Minibatch(epoch, number, len(parts), places)


def cut_chunks(batch: Batch, rows: Tensor, max_pairs: int) -> Iterator[Chunk]:
    """Cut samples into chunks of at most ``max_pairs`` distinct pairs; all samples of a pair are in
    one chunk.

    Args:
        batch: Where the samples are.
        rows: ``(m,)`` places of the samples; none give no chunk.
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


@dataclass(frozen=True)
class Scored:
    """What the model says of ``n`` samples.

    Attributes:
        scores: ``(n, k)``, summed token log-probabilities in nats, with gradient; minus infinity
            where there is no candidate. Or the logits of a module function in their place.
        modules: What each module function gave, each ``(n, ...)``, with gradient.
        reference: ``(n, k)``, scores under the initial weights, where the updater asked for them.
        reference_tokens: Positions that the model computed for those.
    """

    scores: Tensor
    modules: dict[str, Tensor]
    reference: Tensor | None = None
    reference_tokens: float = 0.0


def score_chunk(
    host: Host, chunk: Chunk, modules: Sequence[str], with_reference: bool, logits_module: str = ""
) -> tuple[Scored, tuple[float, float]]:
    """Score with gradient.

    Args:
        host: Scores.
        chunk: What to score.
        modules: Module functions to evaluate.
        with_reference: Whether the scores under the initial weights are wanted.
        logits_module: Module function whose results take the place of the candidates' scores, which
            are not computed then; empty means none.

    Returns:
        The scores of the chunk's ``m`` samples, and the values of ``COUNTERS``.

    Raises:
        RequestError: ``logits_module`` does not give one number per candidate.
    """
    names = (*modules, logits_module) if logits_module else tuple(modules)
    result = host.score(
        chunk.prompts,
        chunk.candidates,
        modules=names,
        with_score=not logits_module,
        require_grad=True,
    )
    counts = tuple(len(texts) for texts in chunk.candidates)
    found = {name: _per_prompt(values, counts) for name, values in result.modules.items()}
    scores = (
        _logits(logits_module, found[logits_module], counts) if logits_module else result.padded()
    )
    place = chunk.pair_of_row.to(scores.device)
    outputs = {name: values.to(scores.device)[place] for name, values in found.items()}
    counters = float(len(chunk.prompts)), result.stats.get("tokens", 0.0)
    if not with_reference:
        return Scored(scores[place], outputs), counters
    initial = host.score_reference(chunk.prompts, chunk.candidates)
    reference = initial.padded().to(scores.device, scores.dtype)[place]
    return Scored(scores[place], outputs, reference, initial.stats.get("tokens", 0.0)), counters


def _logits(name: str, values: Tensor, counts: tuple[int, ...]) -> Tensor:
    if values.dim() != 2 or any(count != values.shape[1] for count in counts):
        raise RequestError(
            f"module {name!r} must give one logit per candidate, got shape {tuple(values.shape)}"
            f" for {min(counts)} to {max(counts)} candidates"
        )
    return values


def _per_prompt(values: Tensor, counts: tuple[int, ...]) -> Tensor:
    """One row per prompt: of a module function that was evaluated on every candidate the first
    one's, as in Lamorel's examples. A prompt without candidates has one row too.
    """
    if len(values) == len(counts):
        return values
    sizes = torch.tensor(counts, device=values.device).clamp(min=1)
    return values[sizes.cumsum(0) - sizes]
