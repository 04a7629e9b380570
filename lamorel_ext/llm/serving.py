"""The server's end of a launch, and servers inside the client's process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lamorel_ext.config import LamorelArgs, Shards
from lamorel_ext.errors import ConfigError, PeerDiedError, RemoteError
from lamorel_ext.llm.handlers import Host, RequestHandler, Updater
from lamorel_ext.llm.server import ALONE, Merging, Server
from lamorel_ext.processes import stopping
from lamorel_ext.processes.memory import keep_freed_memory
from lamorel_ext.processes.presence import met
from lamorel_ext.processes.secret import secret_of_environment
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import Launch, TorchGroup, join
from lamorel_ext.rpc.groups import LockstepGroup, make_thread_groups
from lamorel_ext.rpc.link import Peer
from lamorel_ext.rpc.rendezvous import meet_peers, peer_of
from lamorel_ext.rpc.tcp_listener import TcpListener
from lamorel_ext.rpc.topology import Placement, placements_on, ranks_by_machine
from lamorel_ext.rpc.transport import InProcessTransport
from lamorel_ext.types import ServerGroup


@dataclass(frozen=True)
class Hosted:
    """What one server offers: the language model, and the updaters by name."""

    host: Host
    updaters: Mapping[str, Updater]


def serve(
    args: LamorelArgs, build: Callable[[Placement], Hosted], group: ServerGroup | None = None
) -> None:
    """Be the LLM server that this rank is; returns once every client is done.

    The connections stand before the model is loaded, so that a client learns at once when loading
    fails. Where a client or another server dies, one line says so and the process ends with status
    1, without Python's usual end, which could wait for the dead.

    Args:
        args: Lamorel's keys.
        build: Loads the model and makes the updaters, for the devices of the placement.
        group: The servers that sum gradients with this one; None means all of them.

    Raises:
        ConfigError: This process is not an LLM server of a launch.
    """
    launch = join(args)
    if not launch.role.is_server:
        raise ConfigError(f"rank {launch.rank} is {launch.role}; only an LLM server serves")
    # Before the threads of the connections get memory of their own.
    keep_freed_memory()
    setup = args.distributed_setup_args
    me = peer_of(launch.rank, setup)
    token = secret_of_environment(launch.one_machine)
    rank, store = launch.rank, launch.store
    links = meet_peers(
        store, setup, rank, launch.address, args.gloo_timeout, token, args.peer_timeout
    )
    listener = TcpListener(*links, me)
    met()
    try:
        # A client must be able to save first: this server ends when the clients have taken leave.
        with stopping.deferring(listener.ask_clients_to_stop, follows=True):
            placement = replace(_placement(launch.rank, args), model_group=launch.model_group)
            _host_and_serve(args, build, placement, listener, me, group or _group(launch))
            listener.close()
            stopping.settled()
    except (PeerDiedError, RemoteError) as error:
        listener.fail(error)
        stopping.say_last(f"{me} ends: {str(error).splitlines()[0]}")
        if isinstance(error, RemoteError):
            stopping.let_another_end_first()
        stopping.end_now(1)
    except BaseException as error:
        listener.fail(error)
        raise
    launch.leave()


def _host_and_serve(
    args: LamorelArgs,
    build: Callable[[Placement], Hosted],
    placement: Placement,
    listener: TcpListener,
    me: Peer,
    group: ServerGroup,
) -> None:
    if placement.gpus:
        # Pinned memory, kernels compiled on the way and NCCL go by the current device: or every
        # server would open the first card too.
        torch.cuda.set_device(placement.gpus[0])
    hosted = build(placement)
    setup = args.distributed_setup_args
    together = placement.model_group is not None
    # PyTorch begins with the same random state in every process: servers that sample without a seed
    # must not say the same, but ranks that hold one model together must.
    torch.manual_seed(args.llm_args.seed + (0 if together else group.rank))
    # What waits at the same time differs from rank to rank: those of one model read one by one.
    merging = ALONE if together else Merging(setup.merge_prompts, setup.merge_wait_s)
    Server(hosted.host, hosted.updaters, listener, group, me, merging, together).serve()


def in_process(hosted: Sequence[Hosted], shards: Shards = "contiguous") -> Caller:
    """Servers in threads of this process, one for each, behind the same ``Caller``; for debugging,
    tests and runs in one process.

    Args:
        hosted: One per server; each needs a host and updaters of its own.
        shards: See ``Caller``.
    """
    random_state = threading.Lock()
    handlers = [
        RequestHandler(
            each.host,
            dict(each.updaters),
            LockstepGroup(group),
            group.rank,
            f"llm server {group.rank}",
            random_state=random_state,
        )
        for each, group in zip(hosted, make_thread_groups(len(hosted)), strict=True)
    ]
    for handler in handlers:
        handler.open()
    return Caller(InProcessTransport([handler.handle for handler in handlers]), shards=shards)


def _placement(rank: int, args: LamorelArgs) -> Placement:
    machine = next(node for node, ranks in enumerate(ranks_by_machine(args)) if rank in ranks)
    num_gpus = torch.cuda.device_count() if args.llm_args.parallelism.use_gpu else None
    return next(each for each in placements_on(machine, args, num_gpus) if each.rank == rank)


def _group(launch: Launch) -> ServerGroup:
    gloo, nccl = launch.server_groups
    return make_thread_groups(1)[0] if gloo is None else TorchGroup(gloo, nccl)
