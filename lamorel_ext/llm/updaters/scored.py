"""Scoring the distinct pairs of a chunk once, and handing the results out to its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters.base import Host
from lamorel_ext.llm.updaters.batches import Chunk

COUNTERS = ("scored_pairs", "scored_tokens")


@dataclass(frozen=True)
class Scored:
    """What the model says of ``n`` samples.

    Attributes:
        scores: ``(n, k)``, summed token log-probabilities in nats, with gradient; minus infinity
            where there is no candidate. Or the logits of a module function in their place.
        modules: What each module function gave, each ``(n, ...)``, with gradient.
        reference: ``(n, k)``, scores under the initial weights, where the updater asked for them.
    """

    scores: Tensor
    modules: dict[str, Tensor]
    reference: Tensor | None = None


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
    reference = None
    if with_reference:
        flat = host.reference_log_probs(chunk.prompts, chunk.candidates)
        reference = dataclasses.replace(result, log_probs=flat.to(result.log_probs)).padded()[place]
    return Scored(scores[place], outputs, reference), (
        float(len(chunk.prompts)),
        result.stats.get("tokens", 0.0),
    )


def _logits(name: str, values: Tensor, counts: tuple[int, ...]) -> Tensor:
    if values.dim() != 2 or any(count != values.shape[1] for count in counts):
        raise RequestError(
            f"module {name!r} must give one logit per candidate, got shape {tuple(values.shape)}"
            f" for {min(counts)} to {max(counts)} candidates"
        )
    return values


def _per_prompt(values: Tensor, counts: tuple[int, ...]) -> Tensor:
    """One row per prompt: of a module function that was evaluated on every candidate the first
    one's, as in Lamorel's examples.
    """
    if len(values) == len(counts):
        return values
    sizes = torch.tensor(counts, device=values.device)
    return values[sizes.cumsum(0) - sizes]
