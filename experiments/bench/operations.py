"""How many operations an answer needs, and how fast this machine multiplies matrices: the two sides
of ``score_limit``.

Needed means: without padding, each distinct prompt once through the encoder, cross-attention in the
    cheaper order of multiplication, the decoder
at every node of the candidates' prefix tree that has a child, and the head where the decoder ran. A
multiplication and an addition count as two operations; normalisations, activations, softmax and
look-ups count as none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.bench.checkpoint import Shape
from experiments.bench.harness import Seconds
from lamorel_ext.llm.scoring.products import linear

SAMPLES = 5
"""Times that a product is run to measure it."""


@dataclass(frozen=True)
class Work:
    """What scoring one prompt's candidates takes.

    Attributes:
        prompt_tokens: Length of the prompt.
        node_depths: For each internal node of the candidates' prefix tree, its distance from the
            root; the root is the start token.
    """

    prompt_tokens: int
    node_depths: tuple[int, ...]


def internal_node_depths(candidates: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Depths of the prefixes that some candidate continues, each distinct prefix once.

    Args:
        candidates: Token ids of each candidate, without the start token.
    """
    prefixes = {
        tuple(candidate[:length]) for candidate in candidates for length in range(len(candidate))
    }
    return tuple(sorted(len(prefix) for prefix in prefixes))


def work_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], candidates: Sequence[str]
) -> list[Work]:
    """The work of each distinct prompt with these candidates, in the order of first appearance."""
    depths = internal_node_depths([_ids(tokenizer, candidate) for candidate in candidates])
    return [Work(len(_ids(tokenizer, prompt)), depths) for prompt in dict.fromkeys(prompts)]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def count_operations(shape: Shape, work: Work) -> float:
    """Operations needed for one prompt: encoder, cross-attention, decoder nodes and head."""
    d, inner, length, nodes = (
        shape.d_model,
        shape.num_heads * shape.d_kv,
        work.prompt_tokens,
        len(work.node_depths),
    )
    feed_forward = 3 * 2 * d * shape.d_ff
    projection = 2 * d * inner
    encoder = length * (4 * projection + feed_forward + 4 * inner * length)
    # Cross-attention may project every encoder state to a key and a value, as is usual, or carry
    # each node's queries into the encoder's space and the mixed states back: the same numbers, and
    # cheaper for few nodes.
    projecting = 2 * projection * length + 4 * inner * length * nodes
    carrying = nodes * (2 * projection + 4 * shape.num_heads * d * length)
    # A node attends to its ancestors and itself; queries and outputs of both attentions are
    # projected in either order.
    decoder = nodes * (6 * projection + feed_forward) + 4 * inner * sum(
        depth + 1 for depth in work.node_depths
    )
    head = nodes * 2 * d * shape.vocab_size
    return float(shape.num_layers * (encoder + min(projecting, carrying) + decoder) + head)


@dataclass(frozen=True)
class Multiply:
    """A matrix product ``(rows, inner) x (inner, columns)``."""

    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.inner * self.columns


def multiplies_of(shape: Shape, tokens: int, nodes: int) -> dict[Multiply, int]:
    """The products of a call, attention aside, and how often each occurs.

    Args:
        shape: Sizes of the model.
        tokens: Prompt tokens of the call, over all prompts.
        nodes: Decoder positions of the call, over all prompts.
    """
    d, inner, layers = shape.d_model, shape.num_heads * shape.d_kv, shape.num_layers
    counts: dict[Multiply, int] = {}
    for multiply, times in (
        (Multiply(tokens, d, inner), 5 * layers),
        (Multiply(tokens, inner, d), layers),
        (Multiply(tokens, d, shape.d_ff), 2 * layers),
        (Multiply(tokens, shape.d_ff, d), layers),
        (Multiply(nodes, d, inner), 4 * layers),
        (Multiply(nodes, inner, d), 2 * layers),
        (Multiply(nodes, d, shape.d_ff), 2 * layers),
        (Multiply(nodes, shape.d_ff, d), layers),
        (Multiply(nodes, d, shape.vocab_size), 1),
    ):
        counts[multiply] = counts.get(multiply, 0) + times
    return counts


class MultiplyLimit:
    """Products of a call's sizes, one after the other, nothing between them: as fast as the machine
    multiplies.

    Args:
        shape: Sizes of the model.
        tokens: Prompt tokens of the call.
        nodes: Decoder positions of the call.
        device: Where it multiplies; the CPU where nothing is said.
        dtype: Of the factors.
        with_gradients: A training step's: each product, and the two that give the gradients of its
            factors.
    """

    def __init__(
        self,
        shape: Shape,
        tokens: int,
        nodes: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        with_gradients: bool = False,
    ) -> None:
        self._counts = multiplies_of(shape, tokens, nodes)
        self._device, self._dtype = device or torch.device("cpu"), dtype
        self._shape, self._times = shape, 3 if with_gradients else 1
        self._run = _with_gradients if with_gradients else linear
        self.operations = self._times * sum(
            multiply.operations * times for multiply, times in self._counts.items()
        )

    @classmethod
    def of(cls, shape: Shape, works: Sequence[Work], calls: int = 1, **how: Any) -> MultiplyLimit:
        """For one of so many calls, which share out the works.

        Args:
            shape: Sizes of the model.
            works: Of all the prompts.
            calls: How many.
            how: ``device``, ``dtype`` and ``with_gradients``.
        """
        tokens = sum(work.prompt_tokens for work in works)
        nodes = sum(len(work.node_depths) for work in works)
        return cls(shape, tokens // calls, nodes // calls, **how)

    def needed(self, works: Sequence[Work]) -> float:
        """Operations that works need, attention included; a training step's where it is one's."""
        return self._times * sum(count_operations(self._shape, work) for work in works)

    def run(self) -> Seconds:
        """Seconds of all products: each one's median time, times how often a call has it."""
        return Seconds(
            sum(times * self._seconds(multiply) for multiply, times in self._counts.items())
        )

    def _seconds(self, multiply: Multiply) -> float:
        left, weight = (
            torch.randn(rows, multiply.inner, device=self._device, dtype=self._dtype)
            for rows in (multiply.rows, multiply.columns)
        )
        with torch.no_grad():
            return _median_seconds(lambda: self._run(left, weight), self._synchronize)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class StepLimit:
    """What an optimiser's step takes besides products: PyTorch's fused Adam over as many numbers as
    the model has, and the sum where gradients come in several parts.

    Args:
        numbers: Of the model's parameters.
    """

    def __init__(self, numbers: int) -> None:
        self._weights, self._part = torch.zeros(numbers, requires_grad=True), torch.ones(numbers)
        self._weights.grad = torch.ones(numbers)
        self._adam = torch.optim.Adam([self._weights], fused=True)

    def run(self, steps: int, parts: int) -> Seconds:
        """Seconds of this many steps, whose gradients came in this many parts in all."""
        sums = _median_seconds(lambda: self._part.add_(self._part)) if parts > steps else 0.0
        return Seconds(steps * _median_seconds(self._adam.step) + (parts - steps) * sums)


def _median_seconds(
    work: Callable[[], object], synchronize: Callable[[], object] = lambda: None
) -> float:
    work()
    samples = []
    for _ in range(SAMPLES):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _with_gradients(left: Tensor, weight: Tensor) -> None:
    product = linear(left, weight)
    linear(product, weight.T)
    linear(product.T, left.T)
