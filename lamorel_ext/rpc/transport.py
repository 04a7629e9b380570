"""How requests reach servers: the protocol that ``Caller`` relies on, the transport for servers in
this process, and several answers as one result.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from lamorel_ext.errors import RequestError, RpcError
from lamorel_ext.processes.memory import MEMORY, MEMORY_OF_SERVER
from lamorel_ext.rpc.failures import error_of
from lamorel_ext.rpc.groups import SECOND_HAND
from lamorel_ext.types import Answer, Failure, InfoResult, Request

T = TypeVar("T")

Handler = Callable[[Request], Answer]
"""A server as seen from outside: it answers, with a ``Failure`` where it raised."""


class _Thread(threading.local):
    """What this thread is doing."""

    answering = False


_thread = _Thread()


@contextmanager
def answering() -> Iterator[None]:
    """Complete futures, whose callbacks run on this thread: what waits for another answer in one of
    them would keep that from arriving.
    """
    before, _thread.answering = _thread.answering, True
    try:
        yield
    finally:
        _thread.answering = before


def check_may_wait() -> None:
    """Raises ``RequestError`` where answers arrive: what is waited for there would never come."""
    if _thread.answering:
        raise RequestError(
            "a callback of submit_score waits for another answer, which arrives on the same thread:"
            " ask from another thread, or with submit_score, which waits too where several clients"
            " ask servers that hold one model together"
        )


class Transport(Protocol):
    """Carries requests to the servers; safe to use from several threads.

    Attributes:
        num_servers: How many there are.
        remote: True where they are processes of their own.
    """

    num_servers: int
    remote: bool

    def submit(self, server_index: int, request: Request) -> Future[Answer]:
        """Send a request to one server; answers come in the order of requests.

        The future raises ``PeerDiedError``, ``RemoteError``, ``RequestTimeout`` or
        ``ProtocolError`` where no answer comes.

        Raises:
            RequestError: The request cannot be sent; nothing was.
            RpcError: The server is gone.
        """

    def submit_together(self, requests: Sequence[Request]) -> list[Future[Answer]]:
        """Send one request to each server, which serve them in the same order on every server,
        whoever else sends some.

        Raises:
            RequestError: One of them cannot be sent; none was.
            RpcError: A server is gone.
        """

    def fail(self, error: BaseException) -> None:
        """Tell the servers that this process ends because of ``error``, and close."""

    def close(self) -> None:
        """Take leave of the servers. May be called twice."""


class Inbox(Generic[T]):
    """What a server has to do, in order of arrival; what carries a ticket waits until all smaller
    tickets are in.

    Tickets count from 1. A ticketed item never holds back one without ticket.
    """

    def __init__(self) -> None:
        self._ready: deque[T] = deque()
        self._early: dict[int, T] = {}
        self._next_ticket = 1
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T, ticket: int = 0) -> None:
        """Add an item; ticket 0 means none."""
        with self._changed:
            if not ticket:
                self._ready.append(item)
            else:
                self._early[ticket] = item
                while self._next_ticket in self._early:
                    self._ready.append(self._early.pop(self._next_ticket))
                    self._next_ticket += 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Let ``get`` raise ``error``, before anything that still waits; the first error stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def failure(self, timeout_s: float) -> BaseException | None:
        """What was given to ``fail``, or None where nothing was for ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None, timeout_s)
            return self._error

    def get(self) -> T:
        """Wait for the next item.

        Raises:
            BaseException: What was given to ``fail``.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error is not None)
            if self._error is not None:
                raise self._error
            return self._ready.popleft()

    def get_behind(
        self,
        taken: Sequence[T],
        joins: Callable[[Sequence[T], T], bool],
        at_most: int,
        wait_s: float,
    ) -> list[T]:
        """The items right behind those that were taken, as long as they join them.

        The first that does not join stays, and everything behind it: nothing is overtaken.

        Args:
            taken: At least one.
            joins: Whether the next item is to be taken together with all those taken so far.
            at_most: How many can come at all; with so many nobody is waited for any more.
            wait_s: Seconds to wait for more where nothing else waits.

        Raises:
            BaseException: What was given to ``fail``.
        """
        found: list[T] = []
        until = time.monotonic() + wait_s
        with self._changed:
            while len(found) < at_most:
                left_s = max(0.0, until - time.monotonic())
                self._changed.wait_for(lambda: self._ready or self._error is not None, left_s)
                if self._error is not None:
                    raise self._error
                if not self._ready or not joins([*taken, *found], self._ready[0]):
                    break
                found.append(self._ready.popleft())
        return found


class InProcessTransport:
    """Servers in this process, each in a thread of its own: for tests, debugging and single-process
    runs.

    Args:
        handlers: One per server.
    """

    remote = False

    def __init__(self, handlers: Sequence[Handler]) -> None:
        self.num_servers = len(handlers)
        self._closed = False
        self._lock = threading.Lock()
        self._inboxes: list[Inbox[tuple[Request, Future[Answer]] | None]] = [
            Inbox() for _ in handlers
        ]
        self._threads = [
            threading.Thread(
                target=_serve, args=(handler, inbox), name=f"llm server {index}", daemon=True
            )
            for index, (handler, inbox) in enumerate(zip(handlers, self._inboxes, strict=True))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, server_index: int, request: Request) -> Future[Answer]:
        """See ``Transport``."""
        with self._lock:
            return self._put(server_index, request)

    def submit_together(self, requests: Sequence[Request]) -> list[Future[Answer]]:
        """See ``Transport``; the lock makes the order the same everywhere."""
        with self._lock:
            return [self._put(index, request) for index, request in enumerate(requests)]

    def fail(self, error: BaseException) -> None:
        """The servers are in this process and end with it."""
        self.close()

    def close(self) -> None:
        """Let the servers finish what they have, and end their threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for inbox in self._inboxes:
                inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _put(self, server_index: int, request: Request) -> Future[Answer]:
        if self._closed:
            raise RpcError(f"cannot send {type(request).__name__}: the caller was closed")
        future: Future[Answer] = Future()
        self._inboxes[server_index].put((request, future))
        return future


class OneModelTransport:
    """Servers that hold one model together, as one server: each gets every request, in the same
    order, and the first one's answer counts. See ``Transport``.

    Args:
        inner: To each of them.
    """

    num_servers = 1

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.remote = inner.remote

    def submit(self, server_index: int, request: Request) -> Future[Answer]:
        """See ``Transport``."""
        ranks = self._inner.num_servers
        return gather(self._inner.submit_together([request] * ranks), _as_one)

    def submit_together(self, requests: Sequence[Request]) -> list[Future[Answer]]:
        """See ``Transport``."""
        return [self.submit(0, request) for request in requests]

    def fail(self, error: BaseException) -> None:
        """See ``Transport``."""
        self._inner.fail(error)

    def close(self) -> None:
        """See ``Transport``."""
        self._inner.close()


def _as_one(answers: Sequence[Answer]) -> Answer:
    first = answers[0]
    if not isinstance(first, InfoResult):
        return first
    memory = {
        f"{MEMORY_OF_SERVER}{rank}": answer.info[MEMORY]
        for rank, answer in enumerate(answers)
        if isinstance(answer, InfoResult) and MEMORY in answer.info
    }
    return InfoResult({**first.info, **memory})


def _serve(handler: Handler, inbox: Inbox[tuple[Request, Future[Answer]] | None]) -> None:
    while (item := inbox.get()) is not None:
        request, future = item
        try:
            answer = handler(request)
        except BaseException as error:
            with answering():
                future.set_exception(error)
        else:
            with answering():
                future.set_result(answer)


def gather(futures: Sequence[Future[Answer]], finish: Callable[[Sequence[Answer]], T]) -> Future[T]:
    """A future of ``finish(answers)``, with the answers in the order of ``futures``, without a
    thread that waits for them.

    A lost server or a timeout ends it at once, without the other answers. A ``Failure`` waits for
    them, because the server that failed first knows the reason: one that only gave up because of
    another is believed last.
    """
    gathered: Future[T] = Future()
    gathered.set_running_or_notify_cancel()
    lock, missing = threading.Lock(), len(futures)

    def on_done(future: Future[Answer]) -> None:
        nonlocal missing
        error = future.exception()
        with lock:
            missing -= 1
            if gathered.done() or (error is None and missing):
                return
            if error is not None:
                gathered.set_exception(error)
                return
        settle()

    def settle() -> None:
        try:
            gathered.set_result(finish(_without_failures([each.result() for each in futures])))
        except Exception as problem:
            gathered.set_exception(problem)

    for future in futures:
        future.add_done_callback(on_done)
    if not futures:  # nobody will ever call back
        settle()
    return gathered


def _without_failures(answers: list[Answer]) -> list[Answer]:
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    first_hand = [failure for failure in failures if failure.type_name not in SECOND_HAND]
    if failures:
        raise error_of((first_hand or failures)[0])
    return answers
