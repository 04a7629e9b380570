"""One connection between two ranks: frames out under a lock, frames in on a thread that never sends
more than a few bytes itself.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lamorel_ext.errors import PeerDiedError, ProtocolError, RpcError
from lamorel_ext.rpc.failures import error_of
from lamorel_ext.rpc.wire.codec import (
    PREFIX,
    Buffer,
    Kind,
    Message,
    Prefix,
    decode_message,
    decode_prefix,
    frame,
    pack,
)
from lamorel_ext.types import Failure

SILENCE_S = 300
"""Seconds after which a machine that answers no packet counts as gone, where nothing else is said:
a switch restarts in less.
"""

VERDICT_S = 10.0
"""Seconds for which something that failed waits to hear who is gone: longer only where nobody is.
"""

_MAX_BUFFERS = 512
_PARTING_S = 1.0


@dataclass(frozen=True)
class Peer:
    """Who is at the other end: global rank and role, such as ``"llm server 0"``."""

    rank: int
    role: str

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.role})"


@dataclass(frozen=True)
class Frame:
    """One frame that came in; ``problem`` in place of ``message`` where the frame is whole but its
    message is not one of ours.
    """

    prefix: Prefix
    message: Message | None
    problem: ProtocolError | None = None


def tune(sock: socket.socket, silence_s: int = SILENCE_S) -> None:
    """No delay for small messages; notice after ``silence_s`` seconds that the other machine has
    vanished.

    A process that dies is noticed at once, whatever ``silence_s`` is: its system closes the
    connection.
    """
    idle, every = max(1, min(10, silence_s // 3)), max(1, min(5, silence_s // 6))
    probes = max(1, min(127, (silence_s - idle) // every))
    options = (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", every),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", silence_s * 1000),
    )
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Link:
    """A connection to one peer.

    Args:
        sock: Connected, after the handshake.
        peer: Who is at the other end.
        silence_s: Seconds without any sign of its machine after which it counts as gone.

    Attributes:
        lost: Why the connection is of no use any more; None as long as it is, and after a regular
            end.
        left: True once the peer has taken leave: the end of the connection is then no accident.
    """

    def __init__(self, sock: socket.socket, peer: Peer, silence_s: int = SILENCE_S) -> None:
        tune(sock, silence_s)
        self._silence_s = silence_s
        self.peer = peer
        self.lost: RpcError | None = None
        self.left = False
        self._sock = sock
        self._reader = sock.makefile("rb")
        self._sending = threading.Lock()
        self._closing = False
        self._broken_off_by = ""
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def start(
        self, on_frame: Callable[[Link, Frame], None], on_lost: Callable[[Link, RpcError], None]
    ) -> None:
        """Begin to read.

        Args:
            on_frame: Called on the reading thread with every ``MESSAGE``, ``TICKET`` and ``STOP``;
                must not block.
            on_lost: Called on the reading thread, once, where the peer died, raised
                (``RemoteError``) or speaks nonsense.
        """
        self._thread = threading.Thread(
            target=self._read, args=(on_frame, on_lost), name=f"from {self.peer}", daemon=True
        )
        self._thread.start()

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write one frame. An interrupt meanwhile ends the connection.

        Raises:
            PeerDiedError: The peer is gone; not on the thread that reads, which hears of it next.
            RemoteError: It said why before it went.
        """
        try:
            with self._sending, self._unbroken():
                for start in range(0, len(buffers), _MAX_BUFFERS):
                    self._write(list(buffers[start : start + _MAX_BUFFERS]))
        except OSError as error:
            # The reading thread knows better what happened: the peer's last word may still be on
            # its way. Where this is that thread, it reads on.
            if threading.current_thread() is self._thread:
                return
            self._ended.wait(VERDICT_S)
            raise self.lost or PeerDiedError(
                self.peer.rank, self.peer.role, f"sending failed: {error}"
            ) from error

    def say_last_word(self, failure: Failure) -> None:
        """Tell the peer why this process ends, if it still listens, and close."""
        self._part(frame(pack(failure), Kind.LAST_WORD))

    def say_goodbye(self) -> None:
        """Take leave of the peer, if it still listens, and close."""
        self._part(frame(kind=Kind.GOODBYE))

    def break_off(self, error: BaseException) -> None:
        """End the connection, on which less came than the peer must have: ``error`` was raised
        meanwhile.
        """
        self._broken_off_by = type(error).__name__
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection. May be called twice."""
        self._closing = True
        # Without the shutdown the reading thread would sleep on; where it fails, the connection has
        # ended already.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if self._thread is None:
            self._reader.close()

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Half a frame may be out where something is raised in here, by a handler of signals: the
        peer would take whatever comes next for its rest.
        """
        try:
            yield
        except OSError:
            raise
        except BaseException as error:
            self.break_off(error)
            raise

    def _part(self, buffers: Sequence[Buffer]) -> None:
        self._closing = True
        # A peer that does not read must not keep this process from ending, and one that has gone
        # already needs no word.
        if self._sending.acquire(timeout=_PARTING_S):
            with contextlib.suppress(OSError):
                self._sock.settimeout(_PARTING_S)
                self._write(list(buffers))
            self._sending.release()
        self.close()

    def _write(self, buffers: list[Buffer]) -> None:
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while views:
            sent = self._sock.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def _read(
        self, on_frame: Callable[[Link, Frame], None], on_lost: Callable[[Link, RpcError], None]
    ) -> None:
        try:
            while True:
                received = self._receive()
                if received.prefix.kind is Kind.GOODBYE:
                    self.left = True
                else:
                    on_frame(self, received)
        except (OSError, EOFError) as error:
            verdict: RpcError = PeerDiedError(
                self.peer.rank, self.peer.role, _what_happened(error, self._silence_s)
            )
            if self._broken_off_by:
                verdict = RpcError(
                    f"the connection to {self.peer} was ended: {self._broken_off_by} was raised"
                    " here while something was sent"
                )
        except RpcError as error:
            verdict = error
        except Exception as error:
            # Whoever waits for an answer must learn that nobody reads any more.
            verdict = RpcError(f"reading from {self.peer} failed: {type(error).__name__}: {error}")
        # Once a peer has taken leave, the end of its connection is no news.
        expected = self._closing or (
            self.left and isinstance(verdict, PeerDiedError) and verdict.rank == self.peer.rank
        )
        self.lost = None if expected else verdict
        self._ended.set()
        self.close()
        self._reader.close()
        if not expected:
            on_lost(self, verdict)

    def _receive(self) -> Frame:
        prefix = decode_prefix(self._exactly(PREFIX.size))
        header_bytes = self._exactly(prefix.header_bytes)
        message, problem = None, None
        if not header_bytes and prefix.kind in (Kind.TICKET, Kind.GOODBYE, Kind.STOP):
            return Frame(prefix, None)
        payload = self._exactly(prefix.payload_bytes)
        try:
            message = decode_message(header_bytes, payload)
        except ProtocolError as error:
            problem = error
        if prefix.kind is Kind.LAST_WORD:
            raise (
                error_of(message)
                if isinstance(message, Failure)
                else ProtocolError(f"{self.peer} sent a last word that is none")
            )
        return Frame(prefix, message, problem)

    def _exactly(self, num_bytes: int) -> bytearray:
        received = bytearray(num_bytes)
        if self._reader.readinto(received) < num_bytes:  # waits for all of them
            raise EOFError
        return received


def _what_happened(error: Exception, silence_s: int) -> str:
    if isinstance(error, EOFError):
        return "its connection was closed"
    if isinstance(error, TimeoutError):
        return f"no sign of life for {silence_s} s (lamorel_args.peer_timeout)"
    return f"its connection broke: {error}"
