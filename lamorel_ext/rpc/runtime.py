"""The client's end of a launch: from the environment of a rank to a ``Caller``."""

from __future__ import annotations

import atexit
import sys
from types import TracebackType

from lamorel_ext.config import LamorelArgs
from lamorel_ext.errors import ConfigError
from lamorel_ext.processes.presence import met
from lamorel_ext.processes.secret import secret_of_environment
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import TorchClients, join
from lamorel_ext.rpc.rendezvous import connect_to_servers, peer_of
from lamorel_ext.rpc.tcp_transport import TcpTransport
from lamorel_ext.rpc.topology import holds_together
from lamorel_ext.rpc.transport import OneModelTransport


def connect(args: LamorelArgs) -> Caller:
    """Connect this RL client rank to the LLM servers of its launch.

    An exception that ends this process reaches the servers with its traceback, also where the
    caller is not used as a context manager; a process that ends well takes leave of them.

    Raises:
        ConfigError: This process is not an RL client of a launch.
        RpcError: A server cannot be reached.
    """
    launch = join(args)
    if launch.role.is_server:
        raise ConfigError(f"rank {launch.rank} is {launch.role}; only an RL client connects")
    setup = args.distributed_setup_args
    token = secret_of_environment(launch.one_machine)
    links = connect_to_servers(
        launch.store, setup, launch.rank, args.gloo_timeout, token, args.peer_timeout
    )
    met()
    transport = TcpTransport(
        links, peer_of(launch.rank, setup), args.gloo_timeout, with_tickets=setup.n_rl_processes > 1
    )
    servers = OneModelTransport(transport) if holds_together(args) else transport
    clients = (
        TorchClients(launch.client_group, transport.loss) if setup.n_rl_processes > 1 else None
    )
    first_server = launch.rank % servers.num_servers
    caller = Caller(servers, first_server, launch.client_group, clients, setup.shards)
    _end_with_process(caller)
    return caller


def _end_with_process(caller: Caller) -> None:
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        report(kind, error, trace)
        caller.fail(error)

    sys.excepthook = hook
    atexit.register(caller.close)
