"""How far a launch is, and how long it will still take, in lines of the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

QUIET_S = 5.0
"""Seconds between two lines at least."""


class Ticker:
    """Tells the progress of several runs, one after the other.

    Args:
        total_steps: Environment steps of all runs that are to be done.
        clock: Seconds, for tests.
    """

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total_steps
        self._clock = clock
        self._started = clock()
        self._last_line = -QUIET_S + self._started
        self._before = 0
        self._skipped = 0

    def tell(self, name: str, done: int, total: int) -> None:
        """Hear that the current run is at step ``done`` of ``total``; says so unless it has just
        spoken.
        """
        now = self._clock()
        if now - self._last_line >= QUIET_S or done >= total:
            self._last_line = now
            log.info("%s: %d of %d steps%s", name, done, total, self._left(done, now))
        if done >= total:
            self._before += total

    def listener(self, name: str) -> Callable[[int, int, object], None]:
        """``tell`` for a run of this name, as a run folder calls it."""
        return lambda done, total, _: self.tell(name, done, total)

    def skip(self, steps: int) -> None:
        """Hear that the next run starts at this step of its own, from a checkpoint."""
        self._skipped += steps

    def _left(self, done: int, now: float) -> str:
        """From the mean speed so far; runs are not equally fast, so it is a guess."""
        worked = self._before + done - self._skipped
        left = self._total - self._before - done
        if worked <= 0 or left <= 0:
            return ""
        return f", about {describe_seconds((now - self._started) / worked * left)} left in all"


def describe_seconds(seconds: float) -> str:
    """Rounded for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
