"""How the ranks of a launch find and connect each other: addresses in a shared store, then one
connection per pair, proved with the launch's secret, which is not in the store
(``processes/secret.py``).

Every client connects to every server, and every server to the servers before it. A server listens
only until all its peers are there, on a port that the system chooses.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

from lamorel_ext.config import DistributedSetupArgs
from lamorel_ext.errors import PeerDiedError, ProtocolError, RpcError
from lamorel_ext.processes.secret import read_secret, remove_secret, write_secret
from lamorel_ext.rpc.handshake import examine, introduce
from lamorel_ext.rpc.link import SILENCE_S, Link, Peer
from lamorel_ext.rpc.topology import role_of, server_ranks, world_size

HANDSHAKE_S = 10.0
MAX_STRANGERS = 64
"""Connections examined at the same time; one more pushes the oldest out."""
AGAIN_S = 0.2
"""Seconds after which a rank that was turned away tries again."""


SECRET_FILE = "file of the secret"
"""Key of the store; its value is of use only to who can open the file."""


class Store(Protocol):
    """The part of ``torch.distributed.Store`` that is used."""

    def set(self, key: str, value: str) -> Any: ...

    def get(self, key: str) -> bytes: ...

    def wait(self, keys: list[str], timeout: timedelta) -> Any: ...


def peer_of(rank: int, setup: DistributedSetupArgs) -> Peer:
    """Rank and role, as error messages name them."""
    return Peer(rank, str(role_of(rank, setup)))


def connect_to_servers(
    store: Store,
    setup: DistributedSetupArgs,
    rank: int,
    timeout_s: float,
    token: bytes | None = None,
    silence_s: int = SILENCE_S,
) -> list[Link]:
    """The client's part: one link per LLM server, in order.

    Args:
        token: The launch's secret; None reads it from the file that the first server has written.
        silence_s: See ``Link``.

    Raises:
        RpcError: A server cannot be reached within ``timeout_s`` seconds, or is not what it should
            be.
    """
    token = token or read_secret(read_text(store, SECRET_FILE, timeout_s))
    return _connect(store, setup, rank, server_ranks(setup), token, timeout_s, silence_s)


def meet_peers(
    store: Store,
    setup: DistributedSetupArgs,
    rank: int,
    host: str,
    timeout_s: float,
    token: bytes | None = None,
    silence_s: int = SILENCE_S,
) -> tuple[list[Link], list[Link]]:
    """The server's part: links to all clients and to all other servers, each in order of rank.

    Args:
        host: Address of this machine to listen on.
        token: The launch's secret; None lets the first server write one into a file for the others.
        silence_s: See ``Link``.

    Raises:
        RpcError: A peer did not come within ``timeout_s`` seconds.
    """
    first = server_ranks(setup)[0]
    name = "" if token or rank != first else f"secret-{uuid.uuid4().hex}"
    if name:
        token = write_secret(name)
        store.set(SECRET_FILE, name)
    token = token or read_secret(read_text(store, SECRET_FILE, timeout_s))
    expected = {
        peer: peer_of(peer, setup) for peer in (*range(first), *range(rank + 1, world_size(setup)))
    }
    try:
        links = _connect(store, setup, rank, range(first, rank), token, timeout_s, silence_s)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server(
            (host, 0), family=family, backlog=2 * len(expected) + MAX_STRANGERS
        ) as listening:
            # Only now, because who connects expects an answer within the seconds of a handshake.
            store.set(f"address of rank {rank}", f"{listening.getsockname()[1]} {host}")
            links += accept_peers(listening, token, rank, expected, timeout_s, silence_s)
    finally:
        if name:
            remove_secret(name)
    links.sort(key=lambda link: link.peer.rank)
    return links[:first], links[first:]


def accept_peers(
    listening: socket.socket,
    token: bytes,
    rank: int,
    expected: Mapping[int, Peer],
    timeout_s: float,
    silence_s: int = SILENCE_S,
) -> list[Link]:
    """Accept connections until every expected peer has come; strangers are turned away, and silent
    ones, however many, hold nobody up.

    Raises:
        RpcError: Somebody did not come within ``timeout_s`` seconds; names them.
    """
    deadline = time.monotonic() + timeout_s
    missing = dict(expected)
    arrived: queue.Queue[tuple[int, socket.socket]] = queue.Queue()
    examined: deque[socket.socket] = deque()
    links: list[Link] = []
    listening.settimeout(0.02)
    while missing:
        if time.monotonic() > deadline:
            raise RpcError(
                f"{', '.join(map(str, missing.values()))} did not connect to rank {rank} within"
                f" {timeout_s:g} s"
            )
        try:
            sock, _ = listening.accept()
            examined.append(sock)
            threading.Thread(
                target=_examine, args=(sock, token, rank, arrived), daemon=True
            ).start()
        except TimeoutError:
            pass  # nobody at the door: look who has passed the examination meanwhile
        except OSError as error:
            # A stranger that has gone already, or too many of them for this process's number of
            # open files.
            if error.errno in (errno.EMFILE, errno.ENFILE) and examined:
                _turn_away(examined.popleft())
            time.sleep(0.02)
        while len(examined) > MAX_STRANGERS:
            _turn_away(examined.popleft())
        while not arrived.empty():
            peer_rank, sock = arrived.get()
            if sock in examined:
                examined.remove(sock)
            if peer_rank in missing:
                links.append(Link(sock, missing.pop(peer_rank), silence_s))
            else:
                sock.close()
    for sock in examined:
        _turn_away(sock)
    return links


def _examine(
    sock: socket.socket, token: bytes, rank: int, arrived: queue.Queue[tuple[int, socket.socket]]
) -> None:
    try:
        sock.settimeout(HANDSHAKE_S)
        arrived.put((examine(sock, token, rank), sock))
    except (OSError, ProtocolError):
        sock.close()


def _turn_away(sock: socket.socket) -> None:
    # The thread that examines it wakes up and closes it.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _connect(
    store: Store,
    setup: DistributedSetupArgs,
    rank: int,
    servers: Sequence[int],
    token: bytes,
    timeout_s: float,
    silence_s: int,
) -> list[Link]:
    links: list[Link] = []
    deadline = time.monotonic() + timeout_s
    for server in servers:
        peer = peer_of(server, setup)
        port, host = read_text(store, f"address of rank {server}", timeout_s).split(" ", 1)
        try:
            sock = _introduced((host, int(port)), token, rank, server, deadline)
        except OSError as error:
            raise PeerDiedError(
                peer.rank, peer.role, f"{host}:{port} cannot be reached: {error}"
            ) from error
        links.append(Link(sock, peer, silence_s))
    return links


def _introduced(
    address: tuple[str, int], token: bytes, rank: int, server: int, deadline: float
) -> socket.socket:
    """A connection after the handshake.

    Who is turned away among a crowd of strangers, or meets a server that is stopped, tries again.
    """
    while True:
        sock: socket.socket | None = None
        try:
            sock = socket.create_connection(address, timeout=HANDSHAKE_S)
            introduce(sock, token, rank, server)
            return sock
        except ConnectionRefusedError:
            raise  # it had listened when it told its address: it is gone
        except OSError:
            if sock is not None:
                sock.close()
            if time.monotonic() + AGAIN_S > deadline:
                raise
            time.sleep(AGAIN_S)
        except ProtocolError:
            if sock is not None:
                sock.close()
            raise


def read_text(store: Store, key: str, timeout_s: float) -> str:
    """The text under a key that another rank sets.

    Raises:
        RpcError: Nobody did within ``timeout_s`` seconds.
    """
    try:
        store.wait([key], timedelta(seconds=timeout_s))
        return store.get(key).decode("ascii")
    except RuntimeError as error:
        raise RpcError(
            f"no {key} in the store of the launch within {timeout_s:g} s: {error}"
        ) from error
