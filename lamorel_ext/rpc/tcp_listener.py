"""The server's end of the TCP connections: to every RL client, and to the other servers, to notice
when one of them dies.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lamorel_ext.errors import ProtocolError, RemoteError, RequestError, RpcError
from lamorel_ext.processes import stopping
from lamorel_ext.processes.memory import MEMORY, resident_mib
from lamorel_ext.rpc.failures import failure_of
from lamorel_ext.rpc.link import Frame, Link, Peer
from lamorel_ext.rpc.transport import Inbox
from lamorel_ext.rpc.wire.codec import Kind, frame, pack
from lamorel_ext.types import Answer, CloseRequest, Done, InfoResult, Request

GRACE_S = 4.0
"""Seconds that a server has to end by itself after a peer died, before its process is ended."""

ASK_AFTER_S = 2.0
"""Seconds after which a server that was asked to end asks its clients."""


@dataclass(frozen=True)
class Call:
    """A request that waits for its answer.

    Attributes:
        sender: Global rank of the client.
        arrived: ``time.perf_counter()`` when it came in.
    """

    request: Request
    answer: Callable[[Answer], None]
    sender: int = 0
    arrived: float = field(default_factory=time.perf_counter)


class TcpListener:
    """Connections of one LLM server: where it takes its work from.

    When a client or another server dies, ``get`` raises. A main thread that is stuck elsewhere, in
    a sum over servers of which one is gone, or in a long computation that nobody waits for any
    more, is given ``grace_s`` seconds; then the process ends.

    Args:
        clients: Links to the RL clients; not yet started.
        servers: Links to the other LLM servers; not yet started.
        me: This server.
        grace_s: See above.
        end: Called with one line, which names the dead rank, to end the process.
    """

    def __init__(
        self,
        clients: Sequence[Link],
        servers: Sequence[Link],
        me: Peer,
        grace_s: float = GRACE_S,
        end: Callable[[str], None] = stopping.end_process,
    ) -> None:
        self._links, self._me, self._grace_s, self._end = [*clients, *servers], me, grace_s, end
        self._clients = list(clients)
        self._inbox: Inbox[Call] = Inbox()
        self._tickets = 0
        self._lock = threading.Lock()
        self._staying = {link.peer.rank for link in clients}
        self._closed = threading.Event()
        for link in self._links:
            link.start(self._on_frame, self._on_lost)

    def get(self) -> Call | None:
        """Wait for the next call; None once every client has said that it is done.

        Raises:
            RpcError: A client or another server is gone.
        """
        while self._staying:
            call = self._inbox.get()
            if not isinstance(call.request, CloseRequest):
                return call
            # Not counted: one whose leave was broken off takes it again at its end.
            self._staying.discard(call.sender)
            call.answer(Done())
        return None

    def get_behind(
        self, call: Call, joins: Callable[[Sequence[Call], Call], bool], wait_s: float
    ) -> list[Call]:
        """The calls of other clients right behind ``call`` that join it; see ``Inbox``.

        Raises:
            RpcError: As ``get``.
        """

        def joining(taken: Sequence[Call], following: Call) -> bool:
            senders = {each.sender for each in taken}
            return following.sender not in senders and joins(taken, following)

        return self._inbox.get_behind([call], joining, len(self._staying) - 1, wait_s)

    def loss(self, timeout_s: float) -> BaseException | None:
        """Why a peer is gone, or None where none is within ``timeout_s`` seconds."""
        return self._inbox.failure(timeout_s)

    def fail(self, error: BaseException) -> None:
        """Tell everybody that this process ends because of ``error``, and close."""
        if not self._closed.is_set():
            self._closed.set()
            last_word = failure_of(error, self._me.rank, self._me.role)
            for link in self._links:
                link.say_last_word(last_word)

    def ask_clients_to_stop(self, stop: stopping.Stop) -> None:
        """Tell the clients that this process was asked to end: they save, and take leave. May be
        called on any thread.
        """
        # Mostly everybody was asked alike: a client that knows for itself says what it was.
        if self._closed.wait(ASK_AFTER_S):
            return
        for link in self._clients:
            with contextlib.suppress(RpcError):
                link.send(frame(kind=Kind.STOP, call_id=stop.signum))

    def close(self) -> None:
        """Take leave of everybody. May be called twice."""
        if not self._closed.is_set():
            self._closed.set()
            for link in self._links:
                link.say_goodbye()

    # --- on the reading threads -------------------------------------------------------------------

    def _on_frame(self, link: Link, received: Frame) -> None:
        call_id, ticket = received.prefix.call_id, received.prefix.ticket
        if received.prefix.kind is Kind.TICKET:
            self._give_ticket(link, call_id)
            return

        def answer(message: Answer) -> None:
            if isinstance(message, InfoResult):
                message = InfoResult({**message.info, MEMORY: resident_mib()})
            _answer(link, call_id, message, self._me)

        request = received.message
        if isinstance(request, Request):
            if isinstance(request, CloseRequest):
                link.left = True
            self._inbox.put(Call(request, answer, link.peer.rank), ticket)
        else:
            problem = received.problem or ProtocolError(f"{type(request).__name__} is no request")
            answer(failure_of(problem, self._me.rank, self._me.role))

    def _give_ticket(self, link: Link, call_id: int) -> None:
        with self._lock:
            self._tickets += 1
            ticket = self._tickets
        link.send(frame(kind=Kind.TICKET, call_id=call_id, ticket=ticket))

    def _on_lost(self, link: Link, error: RpcError) -> None:
        if self._closed.is_set():
            return
        self._inbox.fail(error)
        first_line = str(error).splitlines()[0]
        line = f"rank {self._me.rank} ({self._me.role}) ends: {first_line}"
        if self._closed.wait(self._grace_s):
            return
        if isinstance(error, RemoteError):
            stopping.let_another_end_first()
        if not self._closed.is_set():
            self._end(line)


def _answer(link: Link, call_id: int, message: Answer, me: Peer) -> None:
    try:
        packed = pack(message)
    except RequestError as error:
        packed = pack(failure_of(error, me.rank, me.role))
    try:
        link.send(frame(packed, Kind.MESSAGE, call_id))
    except RpcError:
        # Who has taken leave does not wait for answers.
        if not link.left:
            raise
