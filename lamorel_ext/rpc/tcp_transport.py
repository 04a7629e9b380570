"""The client's end of the TCP connections to the servers.

Why plain sockets and not the collectives of torch.distributed: a process that dies is seen as a
closed connection within milliseconds instead of a collective's timeout, tensors travel as the bytes
they are, every server gets its own shard only, a call is one round trip, and calls may overlap.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

from lamorel_ext.errors import ProtocolError, RemoteError, RequestTimeout, RpcError
from lamorel_ext.processes import stopping
from lamorel_ext.rpc.failures import failure_of
from lamorel_ext.rpc.link import Frame, Link, Peer
from lamorel_ext.rpc.transport import answering, check_may_wait
from lamorel_ext.rpc.wire.codec import Kind, Packed, frame, pack
from lamorel_ext.types import Answer, CloseRequest, InfoRequest, Request

CLOSE_TIMEOUT_S = 5.0


class _Pending:
    """A call without an answer so far.

    The future of a request becomes its ``Answer``, that of a ticket its number.
    """

    def __init__(self, link: Link, what: str, deadline: float) -> None:
        self.link, self.what, self.deadline = link, what, deadline
        self.future: Future[Any] = Future()
        # What is on the wire cannot be cancelled any more.
        self.future.set_running_or_notify_cancel()


class TcpTransport:
    """Connections of one RL client to every LLM server. See ``Transport``.

    Args:
        links: One per server, in order; not yet started.
        me: This client.
        timeout_s: Seconds after which a call without an answer is given up.
        with_tickets: True where other clients send requests too: server 0 then decides their order.
    """

    remote = True

    def __init__(
        self, links: Sequence[Link], me: Peer, timeout_s: float, with_tickets: bool
    ) -> None:
        self.num_servers = len(links)
        self._links, self._me, self._timeout_s, self._with_tickets = (
            list(links),
            me,
            timeout_s,
            with_tickets,
        )
        self._call_ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()
        self._together = threading.Lock()
        self._lost: RpcError | None = None
        self._knows_loss = threading.Event()
        self._closed = threading.Event()
        for link in links:
            link.start(self._on_frame, self._on_lost)
        threading.Thread(
            target=self._give_up_late_calls, name="request timeouts", daemon=True
        ).start()

    def submit(self, server_index: int, request: Request) -> Future[Answer]:
        """See ``Transport``."""
        return self._send(server_index, type(request).__name__, pack(request))

    def submit_together(self, requests: Sequence[Request]) -> list[Future[Answer]]:
        """See ``Transport``."""
        if self._with_tickets:
            check_may_wait()
        packed = [pack(request) for request in requests]
        names = [type(request).__name__ for request in requests]
        # Within one client the lock keeps the order the same on every server; among several clients
        # the ticket does.
        with self._together:
            ticket = self._ticket() if self._with_tickets else 0
            try:
                return [
                    self._send(index, name, each, ticket)
                    for index, (name, each) in enumerate(zip(names, packed, strict=True))
                ]
            except RpcError:  # a lost link ends them all
                raise
            except BaseException as error:  # an interrupt: some servers may wait for the others
                for link in self._links:
                    link.break_off(error)
                raise

    def loss(self, timeout_s: float) -> RpcError | None:
        """Why a server is gone, which may be what it heard of another client; None where none is
        within ``timeout_s`` seconds.
        """
        self._knows_loss.wait(timeout_s)
        return self._lost

    def fail(self, error: BaseException) -> None:
        """See ``Transport``."""
        if not self._closed.is_set():
            self._closed.set()
            # Seen before the last word: the servers end because of it, and say so.
            # Another client may have told this one itself, before a server could.
            of_a_client = isinstance(error, RemoteError) and error.role.startswith("rl client")
            another_failed = self._is_anothers(self._lost) or (
                of_a_client and self._is_anothers(error)
            )
            last_word = failure_of(error, self._me.rank, self._me.role)
            for link in self._links:
                link.say_last_word(last_word)
            self._fail_pending(RpcError(f"the caller failed: {type(error).__name__}: {error}"))
            if another_failed:
                stopping.let_another_end_first()

    def _is_anothers(self, error: BaseException | None) -> bool:
        """Whether a rank failed that is not this one, of whose own failure others tell too."""
        return isinstance(error, RemoteError) and error.rank != self._me.rank

    def close(self) -> None:
        """See ``Transport``.

        Waits up to ``CLOSE_TIMEOUT_S`` for servers that are busy with another client.
        """
        if self._closed.is_set():
            return
        with contextlib.suppress(RpcError):
            packed = pack(CloseRequest())
            wait(
                [self._send(index, "CloseRequest", packed) for index in range(self.num_servers)],
                CLOSE_TIMEOUT_S,
            )
        if self._lost is not None:
            # The other servers are of no use without the one that is gone.
            self.fail(self._lost)
            return
        self._closed.set()
        for link in self._links:
            link.say_goodbye()
        self._fail_pending(RpcError("the caller was closed"))

    # --- sending ----------------------------------------------------------------------------------

    def _send(
        self, server_index: int, what: str, packed: Packed, ticket: int = 0
    ) -> Future[Answer]:
        call_id, pending = self._expect(server_index, what)
        self._write(call_id, frame(packed, Kind.MESSAGE, call_id, ticket))
        return pending.future

    def _ticket(self) -> int:
        call_id, pending = self._expect(0, "ticket")
        self._write(call_id, frame(kind=Kind.TICKET, call_id=call_id))
        try:
            ticket: int = pending.future.result()
        except BaseException:  # an interrupt: the ticket is still on its way
            with self._lock:
                self._pending.pop(call_id, None)
            if pending.future.done() and pending.future.exception() is None:
                self._use_up(pending.future.result())
            raise
        return ticket

    def _use_up(self, ticket: int) -> None:
        """Send something that changes nothing with a ticket that nobody waits for any more: every
        server would hold back what has a higher one, whosever it is.
        """
        packed = pack(InfoRequest())
        for link in self._links:
            with contextlib.suppress(RpcError):  # a lost link is told to whoever asks next
                link.send(frame(packed, Kind.MESSAGE, next(self._call_ids), ticket))

    def _expect(self, server_index: int, what: str) -> tuple[int, _Pending]:
        pending = _Pending(self._links[server_index], what, time.monotonic() + self._timeout_s)
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self._closed.is_set():
                raise RpcError(f"cannot send {what}: the caller was closed")
            call_id = next(self._call_ids)
            self._pending[call_id] = pending
        return call_id, pending

    def _write(self, call_id: int, buffers: Sequence[bytes | memoryview]) -> None:
        pending = self._pending.get(call_id)
        if pending is None:
            return
        try:
            pending.link.send(buffers)
        except RpcError as error:
            with self._lock:
                self._pending.pop(call_id, None)
                first = self._lost or error
            if first is error:
                raise
            raise first from error

    # --- on the reading threads -------------------------------------------------------------------

    def _on_frame(self, link: Link, received: Frame) -> None:
        if received.prefix.kind is Kind.STOP:
            with contextlib.suppress(ValueError):
                stopping.ask(stopping.stop_of(received.prefix.call_id, f" to {link.peer}"))
            return
        with self._lock:
            pending = self._pending.pop(received.prefix.call_id, None)
        if pending is None:
            # The answer to a call that was given up.
            if received.prefix.kind is Kind.TICKET:
                self._use_up(received.prefix.ticket)
            return
        with answering():
            if received.prefix.kind is Kind.TICKET:
                pending.future.set_result(received.prefix.ticket)
            elif received.message is None:
                pending.future.set_exception(
                    received.problem
                    or ProtocolError(f"{link.peer} answered {pending.what} with nothing")
                )
            else:
                pending.future.set_result(received.message)

    def _on_lost(self, link: Link, error: RpcError) -> None:
        with self._lock:
            self._lost = self._lost or error
        self._knows_loss.set()
        # The servers work together: without one of them no other answer is worth waiting for.
        self._fail_pending(error)

    def _fail_pending(self, error: RpcError) -> None:
        with self._lock:
            pending, self._pending = list(self._pending.values()), {}
        with answering():
            for each in pending:
                each.future.set_exception(error)

    def _give_up_late_calls(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            now = time.monotonic()
            with self._lock:
                late = {
                    call_id: each for call_id, each in self._pending.items() if each.deadline < now
                }
                for call_id in late:
                    del self._pending[call_id]
            with answering():
                for each in late.values():
                    each.future.set_exception(
                        RequestTimeout(
                            f"{each.link.peer} did not answer {each.what} within"
                            f" {self._timeout_s:g} s"
                        )
                    )
