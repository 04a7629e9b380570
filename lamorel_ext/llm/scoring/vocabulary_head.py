"""Log-probabilities of single tokens from hidden states, without ever holding the logits of a whole
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lamorel_ext.llm.devices import put
from lamorel_ext.llm.scoring.products import apply_linear, linear, prefers_onednn

MAX_LOGITS = 2**23
"""Logits held at a time: 32 MiB in float32, above which the C library asks the system for fresh
pages each time.
"""
TRAINING_LOGITS = 2**26
"""Logits kept for the backward pass (256 MiB); where there are more, they are computed again there.
"""
GPU_LOGITS = 2**28
"""Both on a GPU, where small pieces leave most of it idle (1 GiB)."""

CAST_WEIGHTS = 2**18
"""Weights of a head that a CPU casts to float32 at a time (1 MiB): they stay in a core's
second-level cache.
"""

Head = Callable[[Tensor], Tensor]


def compute_logits(layer: nn.Module, states: Tensor, scale: float = 1.0) -> Tensor:
    """Logits of states, in float32 where states and weights are in bfloat16.

    Products of such numbers are added up in float32 anyway. Rounded once more, logits would be
    wrong by up to 1/256 of their size: three times the error that the scores of the embedded model
    in bfloat16 have without it.

    Args:
        layer: The output head. A module in the place of a plain linear one (LoRA) answers in its
            own precision.
        states: ``(n, d)``.
        scale: Factor of the states.

    Returns:
        ``(n, vocab_size)``.
    """
    if type(layer) is nn.Linear:
        states = states.to(layer.weight.device)
    if type(layer) is not nn.Linear or not states.dtype == layer.weight.dtype == torch.bfloat16:
        return apply_linear(layer, states if scale == 1.0 else states * scale)
    logits: Tensor = _Product.apply(states, layer.weight)  # type: ignore[no-untyped-call]
    if scale != 1.0:
        logits = logits.mul_(scale)
    return logits if layer.bias is None else logits.add_(layer.bias)


class _Product(torch.autograd.Function):
    """``(n, d)`` states times the transposed ``(vocab_size, d)`` weights, both bfloat16, as
    float32; gradients are bfloat16 as theirs always are.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(states, weight)
        if (
            states.device.type == "cuda" and torch.version.hip is None
        ):  # the CPU has no such product, and ROCm refuses it
            return torch.mm(states, weight.t(), out_dtype=torch.float32)
        logits = states.new_empty(len(states), len(weight), dtype=torch.float32)
        exact, rows = states.float(), max(1, CAST_WEIGHTS // weight.shape[1])
        for block, part in zip(weight.split(rows), logits.split(rows, dim=1), strict=True):
            if prefers_onednn():
                part.copy_(linear(exact, block.float()))
            else:
                torch.mm(exact, block.float().t(), out=part)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            gradient.t() @ states if ctx.needs_input_grad[1] else None,
        )


def edge_log_probs(
    head: Head, states: Tensor, edge_nodes: np.ndarray, edge_tokens: np.ndarray, vocab_size: int
) -> Tensor:
    """Log-probability of each edge's token after its node's prefix.

    Args:
        head: ``(n, d)`` states to ``(n, vocab_size)`` logits.
        states: ``(num_nodes, d)``.
        edge_nodes: ``(num_edges,)``, row of ``states`` that each edge leaves, ascending.
        edge_tokens: ``(num_edges,)``.
        vocab_size: Width of the logits; it only decides how many rows are worked on at a time.

    Returns:
        ``(num_edges,)``, in nats; float64 for float64 states, else float32.
    """
    if not len(edge_nodes):
        return states.new_zeros(0, dtype=_accurate(states.dtype))
    nodes, edge_rows = np.unique(edge_nodes, return_inverse=True)
    if len(nodes) < len(states):
        states = states[put(nodes, states.device)]
    rows, tokens = put(edge_rows, states.device), put(edge_tokens, states.device)
    step = max(1, _budget(states.device) // vocab_size)
    if len(nodes) <= step:
        return token_log_probs(head, states, rows, tokens)
    work = _recomputed if torch.is_grad_enabled() else token_log_probs
    starts = range(0, len(nodes), step)
    bounds = np.searchsorted(edge_rows, [*starts, len(nodes)]).tolist()
    return torch.cat(
        [
            work(head, states[start : start + step], rows[first:last] - start, tokens[first:last])
            for start, first, last in zip(starts, bounds[:-1], bounds[1:], strict=True)
        ]
    )


def token_log_probs(head: Head, states: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    logits = head(states)
    log_probs = torch.log_softmax(logits, dim=-1, dtype=_accurate(logits.dtype))
    return log_probs[rows.to(log_probs.device), tokens.to(log_probs.device)]


def _recomputed(*inputs: Any) -> Tensor:
    result: Tensor = checkpoint(token_log_probs, *inputs, use_reentrant=False)
    return result


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return GPU_LOGITS
    return TRAINING_LOGITS if torch.is_grad_enabled() else MAX_LOGITS


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
