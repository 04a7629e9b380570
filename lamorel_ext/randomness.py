"""Random streams by purpose, all from one seed: what one part of a run draws never shifts what
another part draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamorel_ext.errors import CheckpointError, UpdateError

PURPOSES = ("actions", "guidance", "feedback", "updates", "weights", "evaluation", "method")


def make_rng(seed: int, purpose: str) -> np.random.Generator:
    """The stream of one purpose.

    Args:
        seed: Seed of the run.
        purpose: One of ``PURPOSES``.
    """
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose),)))
    )


class Draws:
    """The two streams that acting consumes, apart, so that what one draws never shifts the other.

    Args:
        actions: Stream behind the sampled actions.
        guidance: Stream behind the sampled guidance.
    """

    def __init__(self, actions: np.random.Generator, guidance: np.random.Generator) -> None:
        self.actions = actions
        self.guidance = guidance

    @classmethod
    def of_evaluation(cls, seed: int) -> Draws:
        """Fresh streams for one evaluation: every evaluation of a run draws the same numbers."""
        actions, guidance = make_rng(seed, "evaluation").spawn(2)
        return cls(actions, guidance)


def sample_rows(log_probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one column per row.

    Args:
        log_probs: ``(n, k)`` in nats, normalised or not; minus infinity is never drawn.
        rng: One uniform number is taken per row.

    Returns:
        ``(n,)`` int64.

    Raises:
        UpdateError: A row is no distribution: a network or an LLM gives numbers that are not
            finite.
    """
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    check_distributions(cumulative[:, -1], log_probs)
    threshold = rng.random(len(log_probs))[:, None] * cumulative[:, -1:]
    columns = np.sum(cumulative <= threshold, axis=1)
    # Rounding can lift the threshold to the very end.
    chosen: np.ndarray = np.minimum(columns, log_probs.shape[1] - 1)
    return chosen


def check_distributions(totals: np.ndarray, rows: np.ndarray) -> None:
    """Make sure that every row's total is finite.

    Raises:
        UpdateError: Naming the first row that is not a distribution.
    """
    bad = np.flatnonzero(~np.isfinite(totals))
    if len(bad):
        raise UpdateError(
            f"what is chosen from is no distribution: row {bad[0]} of {len(rows)} is"
            f" {rows[bad[0]].tolist()}"
        )


def uniform(offered: Sequence[Sequence[str]]) -> np.ndarray:
    """``(n, longest list)`` float64: all that a state offers alike, 0 behind the end of a list."""
    numbers = np.array([len(texts) for texts in offered])[:, None]
    probs: np.ndarray = np.where(np.arange(numbers.max()) < numbers, 1.0 / numbers, 0.0)
    return probs


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Normalise rows ``(n, k)`` of log-weights in float64; minus infinity stays minus infinity."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    return normalised


def entropies(log_probs: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row of normalised log-probabilities ``(n, k)``; gives ``(n,)``."""
    probs = np.exp(log_probs)
    total: np.ndarray = -np.sum(probs * np.where(probs > 0, log_probs, 0.0), axis=1)
    return total


def rng_states(streams: Mapping[str, np.random.Generator]) -> dict[str, Any]:
    """States of named streams as JSON can hold them."""
    return {name: rng.bit_generator.state for name, rng in streams.items()}


def restore_rng_states(
    streams: Mapping[str, np.random.Generator], states: Mapping[str, Any]
) -> None:
    """Bring named streams back.

    Raises:
        CheckpointError: A stream is missing or its state is not one.
    """
    try:
        for name, rng in streams.items():
            rng.bit_generator.state = states[name]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not saved random streams: {error!r}") from error
