"""Whether all servers hold the same weights after an update of the user's own, and finite ones."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from lamorel_ext.errors import UpdateError
from lamorel_ext.finite import not_finite
from lamorel_ext.llm.fsdp import own_part
from lamorel_ext.rpc.groups import gather_numbers
from lamorel_ext.types import ServerGroup

REMEDY = (
    "every server must step on the same gradients: call average_gradients() between loss.backward()"
    " and optimizer.step(), on every server, also where its part of the batch is empty; then load a"
    " checkpoint or reset"
)


def held_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once; of a divided one this rank's part."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: own_part(tensor) for name, tensor in named.items()}


def checksum(data: Tensor) -> int:
    """56 bits that stand for every bit of a tensor."""
    return _digest(data.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())


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


def _digest(data: object) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "big")  # type: ignore[arg-type]
