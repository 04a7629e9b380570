"""Numbers that are not finite, found before they spread: after a step, before a file is written,
after one is read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def sizes(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of each tensor, ``(n,)`` float64: not finite where one of its numbers is not, or
    where they are so large that their squares are none of its precision; 0 for one without numbers
    that could be.

    The Euclidean norm takes a CPU a fifth of the time that it needs for the largest magnitude
    (``order`` infinity).
    """
    found = torch.zeros(len(tensors), dtype=torch.float64)
    alike = defaultdict[tuple[torch.device, torch.dtype], list[int]](list)
    for place, tensor in enumerate(tensors):
        if tensor.is_floating_point() and tensor.numel():
            alike[tensor.device, tensor.dtype].append(place)
    for places in alike.values():  # a GPU is asked, and waited for, once for each kind
        norms = torch._foreach_norm([tensors[place].detach() for place in places], order)
        found[places] = torch.stack(norms).to("cpu", torch.float64)
    return found


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or infinity, and how many; empty where none does.

    Args:
        tensors: By name; those of integers hold none.
    """
    for name, size in zip(tensors, sizes(list(tensors.values())).tolist(), strict=True):
        if not math.isfinite(size):
            tensor = tensors[name]
            if bad := int((~torch.isfinite(tensor)).sum()):
                return f"{name} is not finite in {bad} of {tensor.numel()} numbers"
    return ""


def not_finite_value(value: Any, name: str) -> str:
    """The same for what JSON can hold: numbers in dictionaries and lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}"
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = ((f"{name}.{key}", item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        items = ((f"{name}[{place}]", item) for place, item in enumerate(value))
    return next((found for key, item in items if (found := not_finite_value(item, key))), "")
