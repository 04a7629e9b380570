"""Scoring the distinct pairs of a chunk once, and handing the results out to its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamorel_ext.updaters.base import Host
from lamorel_ext.updaters.batches import Chunk

COUNTERS = ("scored_pairs", "scored_tokens")


@dataclass(frozen=True)
class Scored:
    """What the model says of ``n`` samples.

    Attributes:
        scores: ``(n, k)``, summed token log-probabilities in nats, with gradient; minus infinity where there is no candidate.
        modules: What each module function gave, each ``(n, ...)``, with gradient.
        reference: ``(n, k)``, scores under the initial weights, where the updater asked for them.
    """

    scores: Tensor
    modules: dict[str, Tensor]
    reference: Tensor | None = None


def score_chunk(host: Host, chunk: Chunk, modules: Sequence[str], with_reference: bool) -> tuple[Scored, tuple[float, float]]:
    """Score with gradient.

    Returns:
        The scores of the chunk's ``m`` samples, and the values of ``COUNTERS``.
    """
    result = host.score(chunk.prompts, chunk.candidates, modules=modules, require_grad=True)
    scores = result.padded()
    place = chunk.pair_of_row.to(scores.device)
    outputs = {name: _per_prompt(values, result.counts).to(scores.device)[place] for name, values in result.modules.items()}
    reference = None
    if with_reference:
        flat = host.reference_log_probs(chunk.prompts, chunk.candidates)
        reference = dataclasses.replace(result, log_probs=flat.to(result.log_probs)).padded()[place]
    return Scored(scores[place], outputs, reference), (float(len(chunk.prompts)), result.stats.get("tokens", 0.0))


def _per_prompt(values: Tensor, counts: tuple[int, ...]) -> Tensor:
    """One row per prompt: of a module function that was evaluated on every candidate the first one's, as in Lamorel's examples."""
    if len(values) == len(counts):
        return values
    sizes = torch.tensor(counts, device=values.device)
    return values[sizes.cumsum(0) - sizes]
