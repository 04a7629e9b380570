"""Whether all servers hold the same: models that each has loaded for itself, and weights after an
update of the user's own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lamorel_ext.errors import UpdateError
from lamorel_ext.finite import not_finite
from lamorel_ext.llm.fsdp import own_part
from lamorel_ext.llm.weights import distinct_tensors
from lamorel_ext.rpc.groups import gather_bytes, gather_numbers
from lamorel_ext.types import Scalar, ServerGroup

REMEDY = (
    "every server must step on the same gradients: call average_gradients() between loss.backward()"
    " and optimizer.step(), on every server, also where its part of the batch is empty; then load a"
    " checkpoint or reset"
)


FACTS = ("architecture", "dtype", "quantize", "vocab_size")
"""Of ``info``: what servers must have alike beside their tensors."""
ROUNDING = 1e-5
"""How far the sum of a tensor may be off, in parts of its norm: what is drawn is rounded otherwise
on another processor."""
AT_ONCE = 2**22
"""Numbers that are made float64 at a time."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers to read numbers of so many bytes as."""


def held_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once; of a divided one this rank's part."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: own_part(tensor) for name, tensor in named.items()}


def checksum(data: Tensor) -> int:
    """56 bits that stand for every bit of a tensor."""
    return _digest(data.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())


def bit_sum(data: Tensor) -> int:
    """The sum of a tensor's bits, read as integers of its numbers' size: some 25 times as fast
    as ``checksum``, for every update; differences that cancel each other escape it.
    """
    bits = data.detach().contiguous().view(_BITS[data.element_size()])
    return int(bits.sum(dtype=bits.dtype))


def check_servers(module: nn.Module, group: ServerGroup, updater: str) -> None:
    """Make sure that the servers have finite weights, and the same ones bit by bit. Every server
    must call it.

    Args:
        module: What this server hosts.
        group: The servers.
        updater: Name of the updater that has just run, for messages.

    Raises:
        UpdateError: On every server, naming the first tensor that is not finite or that differs.
    """
    tensors = held_tensors(module)
    bad = not_finite(tensors)
    shapes = "".join(
        f"{name} {tuple(tensor.shape)} {tensor.dtype}\n" for name, tensor in tensors.items()
    )
    flags = gather_numbers([int(bool(bad)), _digest(shapes.encode())], group)
    if flags[:, 0].any():
        what = bad or f"the weights of llm server {int(flags[:, 0].nonzero()[0])} are not finite"
        raise UpdateError(
            f"updater {updater!r}: {what} after its update; load a checkpoint or reset"
        )
    if group.size == 1:
        return
    if (flags[:, 1] != flags[0, 1]).any():
        raise UpdateError(
            f"updater {updater!r}: after its update the servers hold tensors of other names or"
            " shapes"
        )
    sums = gather_numbers([checksum(tensor) for tensor in tensors.values()], group)
    apart = (sums != sums[0]).any(dim=0).nonzero().flatten().tolist()
    if apart:
        first = apart[0]
        rank = int((sums[:, first] != sums[0, first]).nonzero()[0])
        raise UpdateError(
            f"updater {updater!r}: after its update llm server {rank} has other weights than llm"
            f" server 0, the first of {len(apart)} tensors that differ is {list(tensors)[first]}:"
            f" {REMEDY}"
        )


def unlike(module: nn.Module, info: Mapping[str, Scalar], group: ServerGroup) -> str:
    """How another server's model differs from the first one's; empty where all have the same, but
    for rounding. Every server must call it.

    Args:
        module: What this server hosts.
        info: What it says of itself.
        group: The servers.
    """
    own = [
        {name: info.get(name) for name in FACTS},
        {name: _told(tensor) for name, tensor in distinct_tensors(module).items()},
    ]
    packed = json.dumps(own).encode()
    sizes: list[int] = gather_numbers([len(packed)], group).flatten().tolist()
    first, *others = map(json.loads, gather_bytes(packed, sizes, group))
    for rank, other in enumerate(others, start=1):
        if found := _difference(first, other):
            return f"llm server {rank} does not hold what llm server 0 does: {found}"
    return ""


def _difference(first: Any, other: Any) -> str:
    (facts, tensors), (other_facts, other_tensors) = first, other
    for name, value in facts.items():
        if other_facts[name] != value:
            return f"its {name} is {other_facts[name]!r}, not {value!r}"
    for name in (*tensors, *other_tensors):
        if name not in other_tensors or name not in tensors:
            return f"{name} is {'not there' if name in tensors else 'there alone'}"
        (kind, total, norm), (other_kind, other_total, _) = tensors[name], other_tensors[name]
        if kind != other_kind:
            return f"{name} is {other_kind}, not {kind}"
        if abs(total - other_total) > ROUNDING * norm:
            return f"{name} has other numbers"
    return ""


def _told(tensor: Tensor) -> tuple[str, float, float]:
    """Kind, sum and norm of a tensor."""
    whole = own_part(tensor).detach()
    real = torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole
    total, squares = 0.0, 0.0
    for part in real.reshape(-1).split(AT_ONCE):
        numbers = part.double()
        total, squares = total + float(numbers.sum()), squares + float(numbers.dot(numbers))
    return f"{whole.dtype} {tuple(whole.shape)}", total, math.sqrt(squares)


def _digest(data: object) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "big")  # type: ignore[arg-type]
