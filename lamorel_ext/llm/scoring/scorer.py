"""Exact scores of candidates: the sum of their token log-probabilities after the prompt, without
computing anything twice.

Within a call every distinct prompt is read once, and the candidates that follow it are merged into
one prefix tree. How a model reads prompts and trees is an engine's business (``t5_forward``,
``causal``, ``plain``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lamorel_ext.llm.devices import put_integers
from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens, gather_paths, make_tree

MAX_TREE = 64
"""Candidates in one tree at most: its attention grows with the square of its nodes."""
TRAINING_POSITIONS = 4096
"""Decoder positions of a minibatch with gradients: they are all held until the backward pass
anyway, and every further minibatch adds its gradient to every weight's once more."""


@dataclass(frozen=True)
class Reading:
    """What an engine read.

    Attributes:
        edges: For each round ``(total_edges,)`` log-probabilities in nats, tree after tree.
        states: ``(num_prompts, d)``, last hidden state where the first token after each prompt is
            predicted; None where not asked for.
        num_tokens: Positions that the model computed, padding not counted.
    """

    edges: list[Tensor]
    states: Tensor | None
    num_tokens: int


class Engine(Protocol):
    """How one kind of model reads prompts and candidate trees.

    Gradients flow where they are enabled.
    """

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        """Read each prompt once and, after it, its tree of every round.

        Args:
            prompts: At least one, distinct, in ascending length.
            rounds: At least one; each holds one tree per prompt.
            with_states: Whether ``Reading.states`` is wanted.
        """

    def count(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]) -> int:
        """``Reading.num_tokens`` of the same call of ``read``, which is not made."""


@dataclass(frozen=True)
class Scores:
    """Answer of ``Scorer.score``, in its order.

    Attributes:
        log_probs: ``(total_candidates,)`` in nats, prompt after prompt; with ``per_token``
            ``(total_candidates, longest)``, 0 after a candidate's end.
        states: ``(n, d)`` or None, as in ``Reading``.
        num_tokens: As in ``Reading``.
    """

    log_probs: Tensor
    states: Tensor | None
    num_tokens: int


class Scorer:
    """Scores token sequences with one model.

    Args:
        engine: Reads prompts and trees.
        minibatch_size: Bounds the memory of a call without gradients: at a time no more prompts are
            read than this, and the decoder has no more positions than this many sequences as long
            as the longest candidate would have, each on its own.
        dtype: Of the scores.
    """

    def __init__(
        self, engine: Engine, minibatch_size: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.engine, self.minibatch_size, self.dtype = engine, minibatch_size, dtype

    def score(
        self,
        prompts: Sequence[Tokens],
        candidates: Sequence[tuple[Tokens, ...]],
        with_states: bool = False,
        per_token: bool = False,
    ) -> Scores:
        """Score the candidates of each prompt.

        Args:
            prompts: Distinct prompts.
            candidates: For each prompt any number of distinct candidates; an empty one scores 0.
            with_states: Whether ``Scores.states`` is wanted.
            per_token: Whether the tokens' log-probabilities are wanted instead of their sums.
        """
        units = self._units(prompts, candidates)
        values, states, num_tokens = [], [], 0
        places: list[list[range]] = [[] for _ in units]
        total = 0
        for batch in self._minibatches(units):
            rounds = list(zip(*(unit.trees for unit in batch), strict=True))
            reading = self._read([unit.prompt for unit in batch], rounds, with_states)
            for edges, trees in zip(reading.edges, rounds, strict=True):
                paths = gather_paths(edges.to(self.dtype), trees)
                values.append(paths if per_token else paths.sum(-1))
                for unit, tree in zip(batch, trees, strict=True):
                    end = total + len(tree.candidates)
                    places[unit.index].append(range(total, end))
                    total = end
            if reading.states is not None:
                states.append(reading.states)
            num_tokens += reading.num_tokens
        order: list[int] = []
        for unit in sorted(units, key=lambda unit: unit.index):
            own = [*itertools.chain(*places[unit.index])]
            order += own if len(unit.trees) == 1 else [own[k] for k in unit.order]
        read = sorted(range(len(units)), key=lambda place: units[place].index)
        return Scores(
            self._in_order(values, order),
            self._in_order(states, read) if states else None,
            num_tokens,
        )

    def count(
        self,
        prompts: Sequence[Tokens],
        candidates: Sequence[tuple[Tokens, ...]],
        with_states: bool = False,
    ) -> int:
        """``Scores.num_tokens`` that ``score`` would give; nothing is computed."""
        total = 0
        for batch in self._minibatches(self._units(prompts, candidates)):
            rounds = list(zip(*(unit.trees for unit in batch), strict=True))
            if with_states or _has_edges(rounds):
                total += self.engine.count([unit.prompt for unit in batch], rounds)
        return total

    def _units(
        self, prompts: Sequence[Tokens], candidates: Sequence[tuple[Tokens, ...]]
    ) -> list[_Unit]:
        """Prompts with their trees, in the order in which they are read."""
        largest = MAX_TREE if torch.is_grad_enabled() else min(MAX_TREE, self.minibatch_size)
        units = [
            _Unit(i, prompt, *_grow(own, largest))
            for i, (prompt, own) in enumerate(zip(prompts, candidates, strict=True))
        ]
        units.sort(key=lambda unit: (len(unit.trees), len(unit.prompt)))
        return units

    def _read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        if with_states or _has_edges(rounds):
            return self.engine.read(prompts, rounds, with_states)
        return Reading([torch.zeros(0, dtype=self.dtype) for _ in rounds], None, 0)

    def _minibatches(self, units: Sequence[_Unit]) -> Iterator[list[_Unit]]:
        """Neighbours in length together, and prompts with as many trees as each other."""
        longest = max((tree.paths.shape[1] for unit in units for tree in unit.trees), default=0)
        prompts, positions = self.minibatch_size, self.minibatch_size * max(1, longest)
        if torch.is_grad_enabled():
            prompts, positions = (
                max(prompts, TRAINING_POSITIONS),
                max(positions, TRAINING_POSITIONS),
            )
        batch: list[_Unit] = []
        size = 0
        for unit in units:
            if batch and (
                len(batch) == prompts
                or size + unit.positions > positions
                or len(unit.trees) != len(batch[0].trees)
            ):
                yield batch
                batch, size = [], 0
            batch.append(unit)
            size += unit.positions
        if batch:
            yield batch

    def _in_order(self, values: Sequence[Tensor], order: list[int]) -> Tensor:
        if not values:
            return torch.zeros(0, dtype=self.dtype)
        longest = max(value.shape[-1] for value in values) if values[0].dim() == 2 else 0
        device = next(
            (value.device for value in values if value.device.type != "cpu"), values[0].device
        )
        flat = torch.cat(
            [
                (F.pad(value, (0, longest - value.shape[-1])) if value.dim() == 2 else value).to(
                    device
                )
                for value in values
            ]
        )
        return flat if order == list(range(len(order))) else flat[put_integers(order, device)]


@dataclass(frozen=True)
class _Unit:
    """One prompt with its trees; ``order[k]`` says where candidate ``k`` is among the candidates of
    all trees.
    """

    index: int
    prompt: Tokens
    trees: tuple[CandidateTree, ...]
    order: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Of the decoder, in the round that has the most."""
        return max(tree.num_nodes for tree in self.trees)


def _has_edges(rounds: Sequence[Sequence[CandidateTree]]) -> bool:
    return any(tree.num_edges for trees in rounds for tree in trees)


@lru_cache(maxsize=512)
def _grow(
    candidates: tuple[Tokens, ...], at_most: int
) -> tuple[tuple[CandidateTree, ...], tuple[int, ...]]:
    """The trees of some candidates, and where each candidate is in them; what starts alike goes
    into the same tree.
    """
    if len(candidates) <= at_most:
        return (make_tree(candidates),), tuple(range(len(candidates)))
    ordered = sorted(range(len(candidates)), key=lambda i: candidates[i])
    trees = tuple(
        make_tree([candidates[i] for i in ordered[start : start + at_most]])
        for start in range(0, len(ordered), at_most)
    )
    return trees, tuple(sorted(range(len(ordered)), key=lambda place: ordered[place]))
