"""What comes from torch.distributed: the store where ranks find each other, and the sums among the
LLM servers. No other file uses it, but for ``llm/fsdp.py``.

The launch is torchrun's or accelerate's: ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and
``MASTER_PORT`` are in the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lamorel_ext.config import LamorelArgs
from lamorel_ext.errors import ConfigError, RpcError
from lamorel_ext.processes.heartbeat import SILENCE_S, SPACE, Heart, tell_death
from lamorel_ext.processes.presence import announce, have_met, on_death
from lamorel_ext.processes.ranks import rank_and_size
from lamorel_ext.rpc.link import VERDICT_S
from lamorel_ext.rpc.machines import agree_on_addresses, machine_of_environment
from lamorel_ext.rpc.topology import (
    Role,
    check_world_size,
    client_ranks,
    has_own_gpus,
    holds_together,
    role_of,
    server_ranks,
)

LOOPBACK = "127.0.0.1"
_found_address: list[str] = []
_shows_life = threading.Event()


def launched_role(args: LamorelArgs) -> Role | None:
    """The role of this process in the launch; None where it was started on its own.

    Raises:
        ConfigError: Another number of processes was launched than is configured, or the launch's
            variables contradict each other.
    """
    found = rank_and_size()
    if found is None:
        return None
    rank, size = found
    check_world_size(size, args.distributed_setup_args)
    return role_of(rank, args.distributed_setup_args)


@dataclass(frozen=True)
class Launch:
    """This process as one of the ranks.

    Attributes:
        store: Shared by all ranks.
        client_group: The RL clients among themselves (gloo); of no use on a server.
        server_groups: The LLM servers among themselves: gloo, and NCCL where there are several
            and each has GPUs of its own.
        model_group: The LLM servers that hold one model together, for its weights; None where each
            holds a model.
        one_machine: True where every rank is on this machine.
        address: Of this machine, for the other ranks.
    """

    rank: int
    role: Role
    store: Any
    client_group: Any
    server_groups: tuple[Any, Any]
    model_group: Any
    one_machine: bool
    address: str

    def leave(self) -> None:
        """Free the process groups."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join(args: LamorelArgs) -> Launch:
    """Meet the other ranks; every rank must call it. A process group that exists already,
    accelerate's for one, is used.

    Raises:
        ConfigError: This process was not launched as a rank, or another number of ranks was.
    """
    role = launched_role(args)
    if role is None:
        raise ConfigError(
            "this process is no rank of a launch (RANK and WORLD_SIZE do not say so); start it with"
            " accelerate launch or torchrun"
        )
    announce()
    timeout = timedelta(seconds=args.gloo_timeout)
    _show_life(args.peer_timeout)
    store, rank, ranks, address = _default_store(timeout, args.accelerate_args.num_machines)
    setup = args.distributed_setup_args
    client_group = dist.new_group(list(client_ranks(setup)), timeout=timeout, backend="gloo")
    gloo = nccl = model_group = None
    if setup.n_llm_processes > 1:
        gloo = dist.new_group(list(server_ranks(setup)), timeout=timeout, backend="gloo")
        if has_own_gpus(args) and dist.is_nccl_available():
            nccl = dist.new_group(list(server_ranks(setup)), timeout=timeout, backend="nccl")
    if holds_together(args):
        # Not the servers' own group: where one of them fails, it tells so there.
        model_group = nccl or dist.new_group(
            list(server_ranks(setup)), timeout=timeout, backend="gloo"
        )
    store = dist.PrefixStore("lamorel_ext", store)
    return Launch(
        rank,
        role,
        store,
        client_group,
        (gloo, nccl),
        model_group,
        address == LOOPBACK,
        address,
    )


def meet(timeout_s: float = 1800.0) -> None:
    """Join the launch's process group where this process is a rank; twice does no harm.

    Raises:
        ConfigError: The launch's variables contradict each other.
    """
    if rank_and_size() is not None and not dist.is_initialized():
        announce()
        _show_life(timeout_s)
        _default_store(timedelta(seconds=timeout_s))


def server_subgroups(ranks: Sequence[Sequence[int]], timeout_s: float) -> list[TorchGroup | None]:
    """Servers that sum among themselves only, for each list of ranks; every rank must call it.

    Returns:
        In the order of ``ranks``, None where this process is not in the list.
    """
    made = [
        dist.new_group(list(each), timeout=timedelta(seconds=timeout_s), backend="gloo")
        for each in ranks
    ]
    here = dist.get_rank()
    return [
        TorchGroup(group) if here in each else None for group, each in zip(made, ranks, strict=True)
    ]


class TorchGroup:
    """The LLM servers as separate processes. See ``types.ServerGroup``.

    Args:
        gloo: Process group of the servers, for tensors on the CPU.
        nccl: The same for tensors on GPUs; None lets them travel over the CPU.
    """

    def __init__(self, gloo: Any, nccl: Any = None) -> None:
        self._gloo, self._nccl = gloo, nccl
        self.rank, self.size = dist.get_rank(gloo), dist.get_world_size(gloo)

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Replace each of ``tensors`` by its sum over all servers, in place.

        Raises:
            RuntimeError: A server is gone, or did not come in time.
        """
        for tensor in tensors:
            self._sum(tensor)

    def _sum(self, tensor: Tensor) -> None:
        values = tensor.detach()
        group = self._nccl if values.is_cuda else self._gloo
        if group is None or not values.is_contiguous():
            values = values.to("cpu" if group is None else values.device).contiguous()
            dist.all_reduce(values, group=group or self._gloo)
            tensor.detach().copy_(values)
        else:
            dist.all_reduce(values, group=group)

    def barrier(self) -> None:
        """Wait until every server is here."""
        self.all_reduce_sum(torch.zeros(1))


class TorchClients:
    """The RL clients as separate processes. See ``rpc.clients.ClientGroup``.

    Args:
        gloo: Process group of the clients.
        loss: What the servers have told of a rank that is gone, within so many seconds: gloo does
            not know which one it is, or why.
    """

    def __init__(self, gloo: Any, loss: Callable[[float], RpcError | None]) -> None:
        self._gloo, self._loss = gloo, loss
        self.rank, self.size = dist.get_rank(gloo), dist.get_world_size(gloo)

    def gather(self, payload: bytes) -> list[bytes]:
        """See ``ClientGroup``.

        Payloads are padded to the longest; where one client alone brings something, it is sent
        once.
        """
        try:
            lengths = torch.zeros(self.size, dtype=torch.int64)
            lengths[self.rank] = len(payload)
            dist.all_reduce(lengths, group=self._gloo)
            sizes: list[int] = lengths.tolist()
            own = torch.zeros(max(sizes), dtype=torch.uint8)
            own[: len(payload)] = torch.frombuffer(bytearray(payload or b"\0"), dtype=torch.uint8)[
                : len(payload)
            ]
            bringing = [rank for rank, size in enumerate(sizes) if size]
            if len(bringing) == 1:
                dist.broadcast(own, dist.get_global_rank(self._gloo, bringing[0]), group=self._gloo)
                return [own.numpy().tobytes() if size else b"" for size in sizes]
            arrived = [torch.empty_like(own) for _ in sizes]
            dist.all_gather(arrived, own, group=self._gloo)
            return [
                each.numpy()[:size].tobytes() for each, size in zip(arrived, sizes, strict=True)
            ]
        except RuntimeError as error:
            raise self._loss(VERDICT_S) or RpcError(
                f"rl client {self.rank} waited for the other clients: one of them is gone, or did"
                " not come within lamorel_args.gloo_timeout"
            ) from error


def _show_life(peer_timeout_s: float) -> None:
    """Ranks on several machines show each other that they live until they have met."""
    found = rank_and_size()
    if found is None or os.environ.get("LOCAL_WORLD_SIZE") == str(found[1]):
        return
    if have_met().is_set() or _shows_life.is_set():
        return
    _shows_life.set()
    silence_s = min(peer_timeout_s, SILENCE_S)

    def begin() -> None:
        # A connection of its own, and a thread: the store may not be there yet.
        with contextlib.suppress(RuntimeError):
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            counters = signs_of_life(address, port, peer_timeout_s)
            on_death(lambda line: tell_death(counters, line))
            Heart(counters, *found, socket.gethostname(), silence_s, have_met()).beat()

    threading.Thread(target=begin, name="signs of life", daemon=True).start()


def signs_of_life(address: str, port: int, timeout_s: float) -> Any:
    """The part of the launch's store for signs of life, over a connection of its own.

    Raises:
        RuntimeError: There is none.
    """
    timeout = timedelta(seconds=timeout_s)
    store = dist.TCPStore(address, port, None, False, timeout, wait_for_workers=False)
    return dist.PrefixStore(SPACE, store)


def _default_store(timeout: timedelta, num_machines: int = 1) -> tuple[Any, int, int, str]:
    """The launch's store, this rank, the number of ranks, and the address of this machine."""
    if dist.is_initialized():
        store, rank, ranks = (
            dist.distributed_c10d._get_default_store(),
            dist.get_rank(),
            dist.get_world_size(),
        )
        return store, rank, ranks, _address(store, ranks, num_machines, timeout)
    store, rank, ranks = next(iter(dist.rendezvous("env://", timeout=timeout)))
    store.set_timeout(timeout)
    # Before the process group, which takes its interface from the environment.
    address = _address(store, ranks, num_machines, timeout)
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore("default", store),
        rank=rank,
        world_size=ranks,
        timeout=timeout,
    )
    return store, rank, ranks, address


def _address(store: Any, ranks: int, num_machines: int, timeout: timedelta) -> str:
    """Address of this machine, found once for each launch."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or ranks // num_machines)
    if local == ranks:
        return LOOPBACK
    if not _found_address:
        _found_address.append(
            agree_on_addresses(
                dist.PrefixStore("lamorel_ext machines", store),
                machine_of_environment(num_machines, ranks),
                timeout.total_seconds(),
                lambda line: tell_death(dist.PrefixStore(SPACE, store), line),
            )
        )
    return _found_address[0]
