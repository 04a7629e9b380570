"""Log-probabilities of single tokens from hidden states, without ever holding the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lamorel_ext.models.devices import put

MAX_LOGITS = 2**23
"""Logits held at a time: 32 MiB in float32, above which the C library asks the system for fresh pages each time."""
TRAINING_LOGITS = 2**26
"""Logits kept for the backward pass (256 MiB); where there are more, they are computed again there."""
GPU_LOGITS = 2**28
"""Both on a GPU, where small pieces leave most of it idle (1 GiB)."""

Head = Callable[[Tensor], Tensor]


def edge_log_probs(head: Head, states: Tensor, edge_nodes: np.ndarray, edge_tokens: np.ndarray, vocab_size: int) -> Tensor:
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
        return _token_log_probs(head, states, rows, tokens)
    work = _recomputed if torch.is_grad_enabled() else _token_log_probs
    starts = range(0, len(nodes), step)
    bounds = np.searchsorted(edge_rows, [*starts, len(nodes)]).tolist()
    return torch.cat([
        work(head, states[start : start + step], rows[first:last] - start, tokens[first:last])
        for start, first, last in zip(starts, bounds[:-1], bounds[1:], strict=True)
    ])  # fmt: skip


def _token_log_probs(head: Head, states: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    logits = head(states)
    log_probs = torch.log_softmax(logits, dim=-1, dtype=_accurate(logits.dtype))
    return log_probs[rows, tokens]


def _recomputed(*inputs: Any) -> Tensor:
    result: Tensor = checkpoint(_token_log_probs, *inputs, use_reentrant=False)
    return result


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return GPU_LOGITS
    return TRAINING_LOGITS if torch.is_grad_enabled() else MAX_LOGITS


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
