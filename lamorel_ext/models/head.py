"""Log-probabilities of single tokens from hidden states, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**23
"""Logits held at a time (32 MiB in float32)."""

Head = Callable[[Tensor], Tensor]


def edge_log_probs(head: Head, states: Tensor, edge_nodes: Tensor, edge_tokens: Tensor, vocab_size: int) -> Tensor:
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
    nodes, edge_rows = torch.unique_consecutive(edge_nodes, return_inverse=True)
    step = max(1, MAX_LOGITS // vocab_size)
    if len(nodes) <= step:
        return _token_log_probs(head, states[nodes], edge_rows, edge_tokens)
    # With a gradient, the logits of all pieces together would stay alive until the backward pass; they are computed again there instead.
    work = _recomputed if torch.is_grad_enabled() else _token_log_probs
    starts = range(0, len(nodes), step)
    bounds = torch.searchsorted(edge_rows, torch.tensor([*starts, len(nodes)], device=edge_rows.device)).tolist()
    return torch.cat([
        work(head, states[nodes[start : start + step]], edge_rows[first:last] - start, edge_tokens[first:last])
        for start, first, last in zip(starts, bounds[:-1], bounds[1:], strict=True)
    ])  # fmt: skip


def _token_log_probs(head: Head, states: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    logits = head(states)
    log_probs = torch.log_softmax(logits, dim=-1, dtype=_accurate(logits.dtype))
    return log_probs[rows, tokens]


def _recomputed(*inputs: Any) -> Tensor:
    result: Tensor = checkpoint(_token_log_probs, *inputs, use_reentrant=False)
    return result


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
