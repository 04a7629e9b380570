"""One model that the ranks of all LLM servers hold together, with PyTorch's ``fully_shard``
(FSDP2): each has a part of every weight, and a layer is whole only while it is read.

Every rank computes the whole of every request, so that what one holds grows smaller with their
number, not what it computes. What is called here on a divided model talks to the other ranks:
all of them must call it, in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def divide(model: nn.Module, group: Any, device: torch.device) -> None:
    """Leave this rank its part of a model's weights.

    Args:
        model: Of transformers, whole, the same on every rank.
        group: Process group of the ranks: NCCL for GPUs, gloo for CPUs.
        device: Where this rank's part goes.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # Every rank brings the same gradient: in half precision the mean of three would round it.
    half = any(parameter.dtype.itemsize == 2 for parameter in model.parameters())
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None)
    mesh = DeviceMesh.from_group(group, device.type)
    # Of blocks within blocks the innermost ones too: each is whole by itself.
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    layers = [part for part in model.modules() if type(part).__name__ in blocks]
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def is_divided(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of it."""
    return hasattr(tensor, "to_local")


def model_is_divided(model: nn.Module) -> bool:
    """Whether any of its weights is divided."""
    return any(is_divided(parameter) for parameter in model.parameters())


def own_class(model: nn.Module) -> type:
    """The model's class, as it was before ``divide``."""
    return next(
        kind for kind in type(model).__mro__ if not kind.__module__.startswith("torch.distributed.")
    )


def own_part(tensor: Tensor) -> Tensor:
    """What this rank holds of it, in the same memory; itself where it is not divided."""
    if not is_divided(tensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def part_of(value: Tensor, tensor: Tensor) -> Tensor:
    """The part of ``value`` that belongs into this rank's part of ``tensor``; ``value`` itself
    where it is such a part already, or where ``tensor`` is not divided.
    """
    if not is_divided(tensor) or value.shape != tensor.shape:
        return value
    mesh = _mesh(tensor)
    chunks, rank = value.chunk(mesh.size()), mesh.get_local_rank()
    return chunks[rank] if rank < len(chunks) else value[:0]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on its device; itself where it is not divided."""
    if not is_divided(tensor):
        return tensor
    gathered: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return gathered


def whole_as(part: Tensor, tensor: Tensor) -> Tensor:
    """All of what the ranks hold parts of, cut as they hold ``tensor``: a moment, a gradient."""
    if not is_divided(tensor):
        return part
    from torch.distributed.tensor import DTensor

    divided: Any = tensor
    return DTensor.from_local(
        part.to(tensor.device),
        divided.device_mesh,
        divided.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
    ).full_tensor()


def any_rank(flag: bool, tensors: Sequence[Tensor]) -> bool:
    """Whether it is so on any of the ranks that hold these, one of which is divided."""
    divided = next(tensor for tensor in tensors if is_divided(tensor))
    return bool(_summed(torch.tensor(float(flag), device=divided.device), divided) > 0)


def gradient_norm(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a scalar.

    Those of parameters that every rank holds whole beside a divided model, such as a head's, become
    their mean over the ranks, so that these parameters stay the same to the last bit.

    Args:
        parameters: At least one of them divided.
        gradients: One for each, this rank's part of it.
    """
    pairs = list(zip(parameters, gradients, strict=True))
    parts = [gradient for parameter, gradient in pairs if is_divided(parameter)]
    divided = next(parameter for parameter in parameters if is_divided(parameter))
    wholes = [gradient for parameter, gradient in pairs if not is_divided(parameter)]
    for gradient in wholes:
        gradient.copy_(_summed(gradient.clone(), divided) / _mesh(divided).size())
    square = _summed(get_total_norm(parts).square(), divided)
    return (square + get_total_norm(wholes).square()).sqrt() if wholes else square.sqrt()


def _summed(tensor: Tensor, divided: Tensor) -> Tensor:
    """The sum over the ranks that hold ``divided``, in place."""
    import torch.distributed as dist

    dist.all_reduce(tensor, group=_mesh(divided).get_group())
    return tensor


def _mesh(tensor: Any) -> Any:
    return tensor.device_mesh
