"""Numbers on their way from the host to a model's device, without the host waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def put(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on the device. On the CPU it may be the array's own memory.

    A copy to a GPU from ordinary memory makes the host wait until all work queued there is done; from pinned memory it queues up behind it.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def put_integers(values: Iterable[int], device: torch.device) -> Tensor:
    """``(n,)`` int64."""
    return put(np.fromiter(values, dtype=np.int64), device)
