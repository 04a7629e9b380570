"""Who is who in a launch: rank to role, node and devices. Pure: no torch, no processes, so that a
launcher can print it beforehand.

Lamorel's rule: the first ``n_rl_processes`` ranks are RL clients, the next ``n_llm_processes`` are
LLM servers. Ranks fill the machines one after the other, as many on each, the first machines one
more where that does not come out even, or as ``processes_per_machine`` says. The GPUs of a machine
are divided evenly among the LLM servers on it, and each takes the first ``model_parallelism_size``
of its share; ``devices_per_process`` names them by hand instead. An RL client has a GPU where
``client_devices`` gives it one, which is then none of the servers' share.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lamorel_ext.config import DistributedSetupArgs, LamorelArgs
from lamorel_ext.errors import ConfigError

DEVICES = "lamorel_args.distributed_setup_args.devices_per_process"
CLIENT_DEVICES = "lamorel_args.distributed_setup_args.client_devices"
RoleKind = Literal["rl client", "llm server"]


@dataclass(frozen=True)
class Role:
    """What a rank does, and which one of its kind it is (from 0)."""

    kind: RoleKind
    index: int

    @property
    def is_server(self) -> bool:
        """True for an LLM server, False for an RL client."""
        return self.kind == "llm server"

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


@dataclass(frozen=True)
class Placement:
    """Where a rank lives.

    Attributes:
        node: Number of its machine.
        local_rank: Its number among the ranks of that machine.
        gpus: CUDA devices of its machine that it uses; empty means the CPU.
        model_group: Process group of the servers that hold one model together, once they have met;
            None where each holds a model.
    """

    rank: int
    role: Role
    node: int
    local_rank: int
    gpus: tuple[int, ...] = ()
    model_group: Any = None

    @property
    def device(self) -> str:
        """Where its inputs go, as ``torch.device`` reads it."""
        return f"cuda:{self.gpus[0]}" if self.gpus else "cpu"


def split_evenly(num_items: int, num_parts: int) -> list[range]:
    """Cut ``range(num_items)`` into ``num_parts`` contiguous ranges; the first ones are longer by
    one where it does not divide.
    """
    size, longer = divmod(num_items, num_parts)
    starts = [part * size + min(part, longer) for part in range(num_parts + 1)]
    return [range(start, stop) for start, stop in zip(starts[:-1], starts[1:], strict=True)]


def world_size(setup: DistributedSetupArgs) -> int:
    """Number of processes of the launch."""
    return setup.n_rl_processes + setup.n_llm_processes


def ranks_by_machine(args: LamorelArgs) -> tuple[range, ...]:
    """The global ranks of each machine.

    Raises:
        ConfigError: The processes cannot be shared out so.
    """
    _check_counts(args)
    counts = args.accelerate_args.processes_per_machine
    if not counts:
        size = world_size(args.distributed_setup_args)
        return tuple(split_evenly(size, args.accelerate_args.num_machines))
    starts = [sum(counts[:machine]) for machine in range(len(counts) + 1)]
    return tuple(range(start, stop) for start, stop in itertools.pairwise(starts))


def client_ranks(setup: DistributedSetupArgs) -> range:
    """Global ranks of the RL clients."""
    return range(setup.n_rl_processes)


def server_ranks(setup: DistributedSetupArgs) -> range:
    """Global ranks of the LLM servers."""
    return range(setup.n_rl_processes, world_size(setup))


def role_of(rank: int, setup: DistributedSetupArgs) -> Role:
    """The role of a global rank.

    Raises:
        ConfigError: There is no such rank.
    """
    if not 0 <= rank < world_size(setup):
        raise ConfigError(f"rank {rank} has no role: {_processes(setup)}")
    if rank < setup.n_rl_processes:
        return Role("rl client", rank)
    return Role("llm server", rank - setup.n_rl_processes)


def holds_together(args: LamorelArgs) -> bool:
    """Whether the LLM servers hold one model together; a single one holds it all."""
    return args.llm_args.parallelism.fsdp and args.distributed_setup_args.n_llm_processes > 1


def has_own_gpus(args: LamorelArgs) -> bool:
    """Whether each LLM server has a GPU, or several, that no other has: NCCL asks for that."""
    setup = args.distributed_setup_args
    if not (args.llm_args.parallelism.use_gpu and setup.devices_per_process):
        return args.llm_args.parallelism.use_gpu
    machine = {rank: node for node, ranks in enumerate(ranks_by_machine(args)) for rank in ranks}
    named = zip(server_ranks(setup), setup.devices_per_process, strict=True)
    devices = [(machine[rank], gpu) for rank, gpus in named for gpu in gpus]
    return all(setup.devices_per_process) and len(set(devices)) == len(devices)


def check_world_size(launched: int, setup: DistributedSetupArgs) -> None:
    """Compare what was launched with what is configured.

    Raises:
        ConfigError: Naming both numbers and the keys.
    """
    if launched != world_size(setup):
        raise ConfigError(
            f"{launched} processes were launched (WORLD_SIZE={launched}), but {_processes(setup)}"
        )


def placements(args: LamorelArgs) -> tuple[Placement, ...]:
    """Every rank with its role, node and devices, in order of rank, on machines that have just as
    many GPUs as are needed.

    Raises:
        ConfigError: With every problem: a role without a process, processes that cannot be shared
            out over the machines.
    """
    nodes = range(args.accelerate_args.num_machines)
    return tuple(itertools.chain.from_iterable(placements_on(node, args) for node in nodes))


def placements_on(
    node: int, args: LamorelArgs, num_gpus: int | None = None
) -> tuple[Placement, ...]:
    """The ranks of one machine, which may have another number of GPUs than the next.

    Args:
        node: Number of the machine.
        args: ``distributed_setup_args``, ``accelerate_args`` and ``llm_args.parallelism`` are read.
        num_gpus: GPUs that it has; None, where nobody knows yet, means just as many as are needed.

    Raises:
        ConfigError: As ``placements``, or it has too few GPUs.
    """
    ranks = ranks_by_machine(args)[node]
    setup, parallelism = args.distributed_setup_args, args.llm_args.parallelism
    servers = [rank for rank in ranks if role_of(rank, setup).is_server]
    shares = _devices_by_hand(node, ranks, setup, num_gpus)
    if parallelism.use_gpu and servers and not setup.devices_per_process:
        taken = {gpu for gpus in shares.values() for gpu in gpus}
        size = parallelism.model_parallelism_size
        there = range(len(servers) * size + len(taken) if num_gpus is None else num_gpus)
        free = [gpu for gpu in there if gpu not in taken]
        if num_gpus is None:
            free = free[: len(servers) * size]
        shares |= _share_gpus(node, servers, free, size)
    return tuple(
        Placement(rank, role_of(rank, setup), node, place, shares.get(rank, ()))
        for place, rank in enumerate(ranks)
    )


def format_table(table: Sequence[Placement], num_envs: int = 0) -> str:
    """The placements as text, one line per rank.

    Args:
        table: Every rank.
        num_envs: Copies of the environment that the RL clients divide among themselves; told where
            several do.
    """
    rows = [["rank", "role", "node", "local rank", "devices"]]
    for place in table:
        devices = ", ".join(f"cuda:{gpu}" for gpu in place.gpus) or "cpu"
        rows.append(
            [str(place.rank), str(place.role), str(place.node), str(place.local_rank), devices]
        )
    clients = [place for place in table if not place.role.is_server]
    if num_envs and len(clients) > 1:
        rows[0].append("environments")
        for row, own in zip(rows[1:], split_evenly(num_envs, len(clients)), strict=False):
            row.append(f"{own.start} to {own.stop - 1}" if own else "none")
        rows = [row + [""] * (len(rows[0]) - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _share_gpus(
    node: int, servers: Sequence[int], free: Sequence[int], size: int
) -> dict[int, tuple[int, ...]]:
    shares = split_evenly(len(free), len(servers))
    if len(shares[-1]) < size:
        raise ConfigError(
            f"lamorel_args.llm_args.parallelism.model_parallelism_size: {len(servers)} LLM servers"
            f" on machine {node} need {size} GPUs each, {len(servers) * size} in all, and it has"
            f" {len(free)} for them"
        )
    return {
        rank: tuple(free[place] for place in share[:size])
        for rank, share in zip(servers, shares, strict=True)
    }


def _devices_by_hand(
    node: int, ranks: Sequence[int], setup: DistributedSetupArgs, available: int | None
) -> dict[int, tuple[int, ...]]:
    """``client_devices`` and ``devices_per_process`` by rank. Ranks may share a GPU."""
    named: dict[int, tuple[int, ...]] = {
        rank: (gpu,) for rank, gpu in enumerate(setup.client_devices)
    }
    named |= dict(enumerate(setup.devices_per_process, start=setup.n_rl_processes))
    shares = {rank: named[rank] for rank in ranks if rank in named}
    missing = [
        f"{DEVICES if role_of(rank, setup).is_server else CLIENT_DEVICES}: {role_of(rank, setup)}"
        f" is to use GPU {gpu} of machine {node}, which has {available}"
        for rank, gpus in shares.items()
        for gpu in gpus
        if available is not None and gpu >= available
    ]
    if missing:
        raise ConfigError(missing)
    return shares


def _check_counts(args: LamorelArgs) -> None:
    """What the bounds of single keys do not say."""
    if problems := [*_machine_problems(args), *_device_problems(args)]:
        raise ConfigError(problems)


def _machine_problems(args: LamorelArgs) -> list[str]:
    setup, accelerate = args.distributed_setup_args, args.accelerate_args
    machines, counts = accelerate.num_machines, accelerate.processes_per_machine
    if world_size(setup) < machines:
        return [
            f"lamorel_args.accelerate_args.num_machines: {world_size(setup)} processes cannot be"
            f" shared among {machines} machines; each needs one"
        ]
    if counts and (len(counts) != machines or sum(counts) != world_size(setup)):
        return [
            f"lamorel_args.accelerate_args.processes_per_machine: {list(counts)} are {sum(counts)}"
            f" processes on {len(counts)} machines; expected {machines} machines and"
            f" {_processes(setup)}"
        ]
    return []


def _device_problems(args: LamorelArgs) -> list[str]:
    setup, parallelism = args.distributed_setup_args, args.llm_args.parallelism
    devices, problems = setup.devices_per_process, []
    if setup.client_devices and len(setup.client_devices) != setup.n_rl_processes:
        problems.append(
            f"{CLIENT_DEVICES}: expected a GPU for each of the n_rl_processes="
            f"{setup.n_rl_processes} clients, got {len(setup.client_devices)}"
        )
    if devices and len(devices) != setup.n_llm_processes:
        problems.append(
            f"{DEVICES}: expected an entry for each of the n_llm_processes={setup.n_llm_processes}"
            f" servers, got {len(devices)}"
        )
    if any(devices) and not parallelism.use_gpu:
        problems.append(
            f"{DEVICES}: names GPUs, but lamorel_args.llm_args.parallelism.use_gpu is false"
        )
    size = parallelism.model_parallelism_size
    problems += [
        f"{DEVICES}[{place}]: expected {size} GPUs (model_parallelism_size), or none for the CPU,"
        f" got {list(gpus)}"
        for place, gpus in enumerate(devices)
        if gpus and (len(set(gpus)) != size or len(gpus) != size or min(gpus) < 0)
    ]
    return problems


def _processes(setup: DistributedSetupArgs) -> str:
    return (
        f"lamorel_args.distributed_setup_args asks for {world_size(setup)}:"
        f" n_rl_processes={setup.n_rl_processes} and n_llm_processes={setup.n_llm_processes}"
    )
