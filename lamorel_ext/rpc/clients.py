"""The RL clients of one run among themselves: what each of them does, all get; what the first does
for all, all hear of.

Every client does the same work in the same order, on the same numbers, and what only one of them
has done is exchanged. An exception in such a piece of work is raised on every client, so that none
waits for one that has given up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from lamorel_ext.errors import LamorelExtError, RpcError
from lamorel_ext.rpc.failures import error_of, failure_of
from lamorel_ext.rpc.wire.codec import decode, encode
from lamorel_ext.types import CallResult, Failure

T = TypeVar("T")


class ClientGroup(Protocol):
    """Carries bytes among the clients.

    Attributes:
        rank: Which client this is.
        size: How many there are.
    """

    rank: int
    size: int

    def gather(self, payload: bytes) -> list[bytes]:
        """What each client brings, in order of rank; every client must call it.

        Raises:
            RpcError: Another client is gone, or did not come in time.
        """


class Clients:
    """The clients of one run, as one of them sees them.

    Args:
        group: Carries the bytes; None where there is one client, which then exchanges nothing.

    Attributes:
        rank: Which client this is; the first one, 0, writes what is written.
        size: How many there are.
        leading: True while this client does something for all, so that nothing inside is exchanged.
    """

    def __init__(self, group: ClientGroup | None = None) -> None:
        self._group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank, group.size)
        self.leading = False

    def share(self, work: Callable[[], T]) -> list[T]:
        """Let every client do its own part; gives what came of each, in order of rank.

        Args:
            work: Gives plain values, tensors and arrays, nested (``rpc.wire.nested``).

        Raises:
            Exception: What ``work`` raised here; ``RemoteError`` where it failed on another client.
            RpcError: Another client is gone.
        """
        if self._group is None or self.leading:
            return [work()]
        return self._exchange(self._group, work)

    def lead(self, work: Callable[[], T]) -> T:
        """Let the first client do something for all; gives what came of it everywhere.

        Args:
            work: As in ``share``; the first client's own result is handed on as it is.

        Raises:
            Exception: As in ``share``.
        """
        if self._group is None or self.leading:
            return work()
        self.leading = self.rank == 0
        try:
            answer: T = self._exchange(self._group, work if self.leading else None)[0]
        finally:
            self.leading = False
        return answer

    def same(self, value: Callable[[], str], what: str) -> None:
        """Make sure that every client has the same text; asks for it only where there are several.

        Raises:
            LamorelExtError: They have not; names the clients and ``what``.
        """
        told = [] if self.size == 1 else self.share(value)
        others = [f"rl client {rank}" for rank, each in enumerate(told) if each != told[0]]
        if others:
            raise LamorelExtError(
                f"{what} of {', '.join(others)} is not that of rl client 0: processors of different"
                " kinds round differently; run.portable=true makes them round alike"
            )

    def _exchange(self, group: ClientGroup, work: Callable[[], T] | None) -> list[Any]:
        """``share``, where a client without work brings nothing: None."""
        own: Exception | None = None
        value: T | None = None
        payload = b""
        try:
            if work is not None:
                value = work()
                payload = encode(CallResult({"value": value}))
        except Exception as error:
            own, payload = error, encode(failure_of(error, self.rank, f"rl client {self.rank}"))
        try:
            arrived = group.gather(payload)
        except RpcError:
            if own is None:
                raise
        if own is not None:
            raise own
        return [value if rank == self.rank else _read(each) for rank, each in enumerate(arrived)]


class ThreadClients:
    """Clients that are threads of one process. See ``ClientGroup``.

    Args:
        rank: Which client this is.
        table: Shared by all of them, one place each.
        barrier: Shared by all of them.
    """

    def __init__(self, rank: int, table: list[bytes], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, len(table), table, barrier

    def gather(self, payload: bytes) -> list[bytes]:
        """See ``ClientGroup``."""
        try:
            self._table[self.rank] = payload
            self._barrier.wait()
            arrived = list(self._table)
            self._barrier.wait()
            return arrived
        except threading.BrokenBarrierError as error:
            raise RpcError(f"rl client {self.rank}: another client is gone") from error


def make_thread_clients(size: int, timeout_s: float = 60.0) -> list[Clients]:
    """One object for each of several clients in threads of this process.

    Args:
        size: Number of clients.
        timeout_s: Seconds for which one waits for the others.
    """
    table, barrier = [b""] * size, threading.Barrier(size, timeout=timeout_s)
    return [Clients(ThreadClients(rank, table, barrier)) for rank in range(size)]


def _read(payload: bytes) -> Any:
    """What another client brings; its failure is raised."""
    if not payload:
        return None
    answer = decode(payload)
    if isinstance(answer, Failure):
        raise error_of(answer)
    return cast(CallResult, answer).values["value"]
