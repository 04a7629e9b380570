"""Products of matrices of 8-bit integers on a CPU, for answers that no gradient is taken of.

A row of weights has one scale, and each row of what it is multiplied by another one, found anew
(symmetric, largest magnitude to 127; Dettmers et al. 2022, arXiv 2208.07339, without their
outliers). The output head keeps its precision: its products are the fewest, and its errors would be
those of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lamorel_ext.llm.scoring.candidate_tree import CandidateTree, Tokens
from lamorel_ext.llm.scoring.products import ROUNDED
from lamorel_ext.llm.scoring.scorer import Engine, Reading

LARGEST = 127
NARROWEST = 64
"""Rows and columns of the smallest weights that are rounded: adapters are narrower, and keep their
precision."""
LEAST = 2**19
"""Multiplications from which 8 bits are ahead: to find the scales takes some microseconds."""


class RoundedWeights:
    """Weights of linear layers in 8 bits, each rounded when it is first multiplied by.

    They stand beside the model's own, and must be cleared when those change.

    Args:
        vocab_size: Rows of the output head, which keeps its precision.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._last: tuple[Tensor, int, Tensor, Tensor] | None = None

    def clear(self) -> None:
        """The model's weights have changed."""
        self._known.clear()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Products of linear layers take them meanwhile."""
        token = ROUNDED.set(self)
        try:
            yield
        finally:
            ROUNDED.reset(token)
            self._last = None

    def suits(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a product is to be one of integers: weights that were computed for it alone
        would be rounded each time.
        """
        return (
            type(weight) is nn.Parameter
            and len(weight) != self._vocab_size
            and min(weight.shape) >= NARROWEST
            and x.numel() * len(weight) >= LEAST
            and x.dtype == weight.dtype == torch.float32
        )

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., in)`` times the transposed ``(out, in)`` weights, plus ``(out,)``, up to the
        rounding of both.
        """
        if id(weight) not in self._known:
            numbers, scales = _rounded(weight.detach())
            self._known[id(weight)] = numbers.t(), scales[:, 0]
        columns, by_column = self._known[id(weight)]
        rows, by_row = self._rows(x)
        product = (torch._int_mm(rows, columns) * by_row).mul_(by_column)
        return (product if bias is None else product.add_(bias)).view(*x.shape[:-1], len(weight))

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys and values are products of the same tensor, one after the other."""
        last = self._last
        if last is None or last[0] is not x or last[1] != x._version:
            last = self._last = x, x._version, *_rounded(x.reshape(-1, x.shape[-1]))
        return last[2], last[3]


class Int8Engine:
    """See ``scorer.Engine``: another engine, whose linear layers multiply in 8 bits where no
    gradient is to flow.
    """

    def __init__(self, engine: Engine, weights: RoundedWeights) -> None:
        self._engine, self._weights = engine, weights

    def read(
        self,
        prompts: Sequence[Tokens],
        rounds: Sequence[Sequence[CandidateTree]],
        with_states: bool,
    ) -> Reading:
        """See ``scorer.Engine``."""
        if torch.is_grad_enabled():
            return self._engine.read(prompts, rounds, with_states)
        with self._weights.used():
            return self._engine.read(prompts, rounds, with_states)

    def count(self, prompts: Sequence[Tokens], rounds: Sequence[Sequence[CandidateTree]]) -> int:
        """See ``scorer.Engine``."""
        return self._engine.count(prompts, rounds)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``(n, k)`` as int8, and the scale of each row, ``(n, 1)`` float32; a row of zeros has the
    smallest.
    """
    tiny = torch.finfo(rows.dtype).tiny
    scales = rows.abs().amax(-1, keepdim=True).div_(LARGEST).clamp_(min=tiny)
    return rows.div(scales).round_().to(torch.int8), scales
