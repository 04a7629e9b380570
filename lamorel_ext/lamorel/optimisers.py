"""Adam in one kernel on a CPU, for updaters that ask for Adam and say nothing of how."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


@contextmanager
def fused_adam() -> Iterator[None]:
    """Let every Adam and AdamW that steps meanwhile step with PyTorch's fused kernel on a CPU.

    PyTorch chooses it by itself on no device. Weights differ from those of the plain kernels by
    rounding. An optimiser that was made with ``fused`` or ``foreach``, or is a class of somebody's
    own, keeps its way.
    """
    before, _HERE.fusing = getattr(_HERE, "fusing", False), True
    try:
        yield
    finally:
        _HERE.fusing = before


_HERE = threading.local()
"""``fusing``, of this thread."""


def _fuse(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    fusing = getattr(_HERE, "fusing", False)
    if not fusing or type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        asked = group.get("fused") is not None or group.get("foreach") is not None
        other_ways = group.get("differentiable") or isinstance(group["lr"], torch.Tensor)
        if not asked and not other_ways and all(_suits(each) for each in group["params"]):
            group["fused"] = True
        if group.get("fused"):
            for each in group["params"]:
                _lay_out(each)


def _suits(parameter: torch.Tensor) -> bool:
    gradient = parameter.grad
    return (
        parameter.device.type == "cpu"
        and parameter.is_floating_point()
        and parameter.is_contiguous()
        and (gradient is None or gradient.layout == torch.strided)
    )


def _lay_out(parameter: torch.Tensor) -> None:
    """The kernel reads what follows in memory: of a gradient that the updater cut out of a matrix,
    as gradient surgery does, the neighbours.
    """
    gradient = parameter.grad
    if parameter.is_contiguous() and gradient is not None and gradient.layout == torch.strided:
        parameter.grad = gradient.contiguous()


# Once and for good: PyTorch walks through its list of hooks unguarded, while other servers that are
# threads of this process step.
register_optimizer_step_pre_hook(_fuse)
