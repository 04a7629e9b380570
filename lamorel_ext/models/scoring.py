"""Exact scores of candidates: the sum of their token log-probabilities after the prompt, without computing anything twice.

Within a call every distinct prompt is read once, and the candidates that follow it are merged into one prefix tree. How a model reads prompts and
trees is an engine's business (``scoring_t5``, ``scoring_causal``, ``scoring_plain``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lamorel_ext.models.candidate_tree import CandidateTree, Tokens, gather_paths, make_tree

MAX_TREE = 64
"""Candidates in one tree at most: its attention grows with the square of its nodes."""


@dataclass(frozen=True)
class Reading:
    """What an engine read.

    Attributes:
        edges: For each round ``(total_edges,)`` log-probabilities in nats, tree after tree.
        states: ``(num_prompts, d)``, last hidden state where the first token after each prompt is predicted; None where not asked for.
        num_tokens: Positions that the model computed, padding not counted.
    """

    edges: list[Tensor]
    states: Tensor | None
    num_tokens: int


class Engine(Protocol):
    """How one kind of model reads prompts and candidate trees. Gradients flow where they are enabled."""

    def read(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]], with_states: bool) -> Reading:
        """Read each prompt once and, after it, its tree of every round.

        Args:
            prompts: At least one, distinct, in ascending length.
            rounds: At least one; each holds one tree per prompt.
            with_states: Whether ``Reading.states`` is wanted.
        """


@dataclass(frozen=True)
class Scores:
    """Answer of ``Scorer.score``, in its order.

    Attributes:
        log_probs: ``(total_candidates,)`` in nats, prompt after prompt; with ``per_token`` ``(total_candidates, longest)``, 0 after a candidate's end.
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
        minibatch_size: Candidates scored at a time at most (a prompt without any counts as one); bounds the memory of a call.
        dtype: Of the scores.
    """

    def __init__(self, engine: Engine, minibatch_size: int, dtype: torch.dtype = torch.float32) -> None:
        self.engine, self.minibatch_size, self.dtype = engine, minibatch_size, dtype

    def score(
        self, prompts: Sequence[Tokens], candidates: Sequence[tuple[Tokens, ...]], with_states: bool = False, per_token: bool = False
    ) -> Scores:
        """Score the candidates of each prompt.

        Args:
            prompts: Distinct prompts.
            candidates: For each prompt any number of distinct candidates; an empty one scores 0.
            with_states: Whether ``Scores.states`` is wanted.
            per_token: Whether the tokens' log-probabilities are wanted instead of their sums.
        """
        units = [
            _Unit(i, prompt, *_grow(own, min(MAX_TREE, self.minibatch_size)))
            for i, (prompt, own) in enumerate(zip(prompts, candidates, strict=True))
        ]
        units.sort(key=lambda unit: len(unit.prompt))
        values, states, num_tokens = [], [], 0
        for batch in self._minibatches(units):
            rounds = [[tree] for tree in batch[0].trees] if len(batch) == 1 else [[unit.trees[0] for unit in batch]]
            if not with_states and not any(tree.num_edges for trees in rounds for tree in trees):
                readings = Reading([torch.zeros(0, dtype=self.dtype) for _ in rounds], None, 0)
            else:
                readings = self.engine.read([unit.prompt for unit in batch], rounds, with_states)
            for edges, trees in zip(readings.edges, rounds, strict=True):
                paths = gather_paths(edges.to(self.dtype), trees)
                values.append(paths if per_token else paths.sum(-1))
            if readings.states is not None:
                states.append(readings.states)
            num_tokens += readings.num_tokens
        return Scores(self._in_order(values, units), _unsort(states, units) if with_states else None, num_tokens)

    def _minibatches(self, units: Sequence[_Unit]) -> Iterator[list[_Unit]]:
        """Neighbours in length together; a prompt whose candidates fill several trees is alone."""
        batch: list[_Unit] = []
        size = 0
        for unit in units:
            if batch and (size + unit.size > self.minibatch_size or len(unit.trees) > 1 or len(batch[-1].trees) > 1):
                yield batch
                batch, size = [], 0
            batch.append(unit)
            size += unit.size
        if batch:
            yield batch

    def _in_order(self, values: Sequence[Tensor], units: Sequence[_Unit]) -> Tensor:
        if not values:
            return torch.zeros(0, dtype=self.dtype)
        longest = max(value.shape[-1] for value in values) if values[0].dim() == 2 else 0
        device = next((value.device for value in values if value.device.type != "cpu"), values[0].device)
        flat = torch.cat([(F.pad(value, (0, longest - value.shape[-1])) if value.dim() == 2 else value).to(device) for value in values])
        places: list[list[int]] = [[] for _ in units]
        start = 0
        for unit in units:
            places[unit.index] = [start + place for place in unit.order]
            start += len(unit.order)
        order = [place for own in places for place in own]
        return flat if order == list(range(start)) else flat[torch.tensor(order, device=device)]


@dataclass(frozen=True)
class _Unit:
    """One prompt with its trees; ``order[k]`` says where candidate ``k`` is among the candidates of all trees."""

    index: int
    prompt: Tokens
    trees: tuple[CandidateTree, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return max(1, len(self.order))


@lru_cache(maxsize=512)
def _grow(candidates: tuple[Tokens, ...], at_most: int) -> tuple[tuple[CandidateTree, ...], tuple[int, ...]]:
    """The trees of some candidates, and where each candidate is in them; what starts alike goes into the same tree."""
    if len(candidates) <= at_most:
        return (make_tree(candidates),), tuple(range(len(candidates)))
    ordered = sorted(range(len(candidates)), key=lambda i: candidates[i])
    trees = tuple(make_tree([candidates[i] for i in ordered[start : start + at_most]]) for start in range(0, len(ordered), at_most))
    return trees, tuple(sorted(range(len(ordered)), key=lambda place: ordered[place]))


def _unsort(states: Sequence[Tensor], units: Sequence[_Unit]) -> Tensor | None:
    if not states:
        return None
    flat, order = torch.cat(list(states)), sorted(range(len(units)), key=lambda place: units[place].index)
    return flat if order == list(range(len(order))) else flat[torch.tensor(order, device=flat.device)]
