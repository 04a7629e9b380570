"""Signs of life of ranks on several machines until they have met; on one machine, ``presence``
knows better.

Each rank counts up a number of its own in the launch's store. Who waits for the others watches
their numbers: a rank whose number stands still is given up and named with its machine. Where
somebody knows that a rank is dead, because it shares the machine or started it, its word is in the
store too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from lamorel_ext.processes.stopping import end_process

BEAT_S = 2.0
SILENCE_S = 90
"""Seconds of silence at most, less where ``peer_timeout`` is: a process that was stopped for a
minute goes on.
"""
SPACE = "lamorel_ext signs of life"
"""Prefix in the store."""
_WORD, _LAST_WORD = "number of last words", "last word"
_MET = 2**40


class Counters(Protocol):
    """The part of ``torch.distributed.Store`` that is used; ``add`` of 0 reads, without waiting."""

    def add(self, key: str, amount: int) -> int: ...

    def set(self, key: str, value: str) -> object: ...

    def get(self, key: str) -> bytes: ...


@dataclass
class Heart:
    """Signs of life of one rank, and its watch over the others.

    Args:
        store: A connection of its own: a wait on another thread would hold this one up.
        rank: This rank.
        size: Number of ranks.
        host: Name of this machine.
        silence_s: See ``SILENCE_S``.
        met: Set once the ranks are connected.
        end: Called with one line to end the process.
    """

    store: Counters
    rank: int
    size: int
    host: str
    silence_s: float
    met: threading.Event
    end: Callable[[str], None] = end_process
    _moved: dict[int, tuple[int, float]] = field(default_factory=dict)

    def beat(self) -> None:
        """Give signs of life, and look at those of the others, until the ranks have met."""
        try:
            self.store.set(f"host of rank {self.rank}", self.host)
            while not self.met.is_set():
                self.store.add(f"rank {self.rank}", 1)
                problem = self.look(time.monotonic())
                if problem and not self.met.wait(BEAT_S):
                    return self.end(f"rank {self.rank} ends: {problem}")
                self.met.wait(BEAT_S)
            self.store.add(f"rank {self.rank}", _MET)
        except RuntimeError as error:  # of torch.distributed: whoever keeps the store is gone
            if not self.met.wait(2 * BEAT_S):
                first = str(error).splitlines()[0]
                self.end(f"rank {self.rank} ends: the launch's store is gone: {first}")

    def look(self, now: float) -> str:
        """Who is dead or silent, as text; empty where nobody is.

        Args:
            now: Seconds on a monotonic clock.
        """
        if self.store.add(_WORD, 0):
            return self.store.get(_LAST_WORD).decode()
        for peer in range(self.size):
            count = self.store.add(f"rank {peer}", 0) if peer != self.rank else 0
            if not 0 < count < _MET:
                self._moved.pop(peer, None)  # still importing, on its way here; or through
                continue
            before, since = self._moved.get(peer, (0, now))
            if count != before:
                self._moved[peer] = (count, now)
            elif now - since > self.silence_s:
                host = self.store.get(f"host of rank {peer}").decode()
                return (
                    f"no sign of life of rank {peer} on {host} for {self.silence_s:g} s"
                    " before the ranks had met"
                )
        return ""


def tell_death(store: Counters, line: str) -> None:
    """Leave word for ranks on other machines, which cannot see that a rank is dead."""
    with contextlib.suppress(RuntimeError):
        store.set(_LAST_WORD, line)
        store.add(_WORD, 1)
