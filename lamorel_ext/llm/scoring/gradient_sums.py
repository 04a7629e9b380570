"""Gradients of large tables, added to what earlier backward passes have left, without a tensor of
the table's size in between.

PyTorch writes each pass's gradient of a parameter into a tensor of its own and adds that to the sum
of the passes before. The table of tokens of flan-t5-small has 66 MB, of which a text touches a few
rows, and its output head as many; such a tensor is taken from the system and returned to it in each
pass, which takes several times as long as the sum. Where a sum is there already, the gradient here
is a sparse tensor: of those rows, or of none because it was added at once. The sum is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**23
"""Numbers from which a table is large: 32 MiB in float32, the most that glibc keeps when it is
freed.
"""
BLOCK = 2**20
"""Numbers of a product that are added at a time: they stay in a core's second-level cache."""

_will_run = getattr(torch._C, "_will_engine_execute_node", None)
"""PyTorch's own, which may change it: whether this backward pass runs a node."""


def running_sum(node: Any) -> Tensor | None:
    """Where the backward pass that runs now will add a gradient to: what earlier passes have left.

    Args:
        node: What follows in the graph, as in ``grad_fn.next_functions``.

    Returns:
        None where the gradient has to be as PyTorch would have it, since there is no sum yet, or
        somebody gets the gradient itself: a hook, ``torch.autograd.grad``, a second derivative.
    """
    parameter = getattr(node, "variable", None)
    if parameter is None or _will_run is None or torch.is_grad_enabled():
        return None
    total: Tensor | None = parameter.grad
    if type(total) is not Tensor or total.layout != torch.strided or total.device.type != "cpu":
        return None
    if parameter._backward_hooks:
        return None
    try:
        return total if _will_run(node) else None
    except RuntimeError:  # raised for a leaf in torch.autograd.grad
        return None


def add_product(
    total: Tensor, gradient: Tensor, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Add the gradient of a product's weights to their sum, part by part.

    Args:
        total: ``(m, k)``, is added to.
        gradient: ``(n, m)``, of the product.
        x: ``(n, k)``, what was multiplied.
        multiply: Gives ``(a, n)`` times the transposed ``(k, n)``.

    Returns:
        The gradient that is left to add: zero, sparse. With it PyTorch calls what waits for the sum
        (``register_post_accumulate_grad_hook``).
    """
    rows = max(1, BLOCK // x.shape[1])
    for part, own in zip(total.split(rows), gradient.split(rows, dim=1), strict=True):
        part.add_(multiply(own.t(), x.t()))
    return torch.zeros(total.shape, dtype=total.dtype, layout=torch.sparse_coo)


def look_up(table: nn.Embedding, tokens: Tensor) -> Tensor:
    """What a table gives for ``(n,)`` distinct tokens, ``(n, d)``."""
    asks = table.padding_idx is not None or table.max_norm is not None
    if asks or table.scale_grad_by_freq or table.sparse or type(table.weight) is not nn.Parameter:
        found: Tensor = table(tokens)
        return found
    rows: Tensor = _Rows.apply(table.weight, tokens)  # type: ignore[no-untyped-call]
    return rows


class _Rows(torch.autograd.Function):
    """Distinct rows of a table ``(m, k)``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.shape = weight.shape
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        (tokens,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        total = running_sum(ctx.next_functions[0][0])
        if total is not None and total.dtype == gradient.dtype:
            # Distinct, so that no two rows need to be added up first.
            return torch.sparse_coo_tensor(
                tokens[None], gradient, ctx.shape, is_coalesced=True, check_invariants=False
            ), None
        dense: Tensor = torch.ops.aten.embedding_dense_backward(
            gradient, tokens, ctx.shape[0], -1, False
        )
        return dense, None
