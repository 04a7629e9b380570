"""How far a launch is, how well it does, and how long it will still take: one line that is drawn
anew on a terminal, else lines of the log.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TextIO

log = logging.getLogger(__name__)

QUIET_S = 5.0
"""Seconds between two lines of the log at least."""
REDRAW_S = 0.1
_CLEAR = "\r\x1b[2K"
_MEASURED = ("success", "return")


class LiveHandler(logging.StreamHandler[TextIO]):
    """Writes the log to standard error and keeps one line below it that is drawn anew.

    Args:
        stream: Standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.on_terminal = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._line = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line of the log above the line that is drawn."""
        self._write(_CLEAR if self._line else "")
        super().emit(record)
        self._write(self._line)

    def draw(self, line: str) -> None:
        """Put this line in the place of the last one, cut to the terminal's width; "" ends it."""
        self._line = line[: shutil.get_terminal_size().columns - 1]
        self._write(_CLEAR + self._line)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a run outlives the terminal that shows it
            self.stream.write(text)
            self.flush()


def _live_handler() -> LiveHandler | None:
    """The handler of the log, where it writes to a terminal and the log is wanted."""
    found = (one for one in logging.getLogger().handlers if isinstance(one, LiveHandler))
    return next((one for one in found if one.on_terminal and log.isEnabledFor(logging.INFO)), None)


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

    def tell(
        self, name: str, done: int, total: int, measured: Mapping[str, float] | None = None
    ) -> None:
        """Hear that the current run is at step ``done`` of ``total``; says so unless it has just
        spoken.

        Args:
            name: Of the run.
            done: Its environment steps.
            total: Those that it will have.
            measured: ``success`` and ``return`` of its last evaluation are told, where they are
                known.
        """
        now, live = self._clock(), _live_handler()
        if now - self._last_line >= (REDRAW_S if live else QUIET_S) or done >= total:
            self._last_line = now
            numbers = _numbers(measured or {})
            line = f"{name}: {done} of {total} steps{numbers}{self._left(done, now)}"
            if live and done < total:
                live.draw(line)
            else:
                if live:
                    live.draw("")
                log.info("%s", line)
        if done >= total:
            self._before += total

    def listener(self, name: str) -> Callable[[int, int, Mapping[str, float]], None]:
        """``tell`` for a run of this name, as a run folder calls it."""
        return lambda done, total, measured: self.tell(name, done, total, measured)

    def skip(self, steps: int) -> None:
        """Hear that the next run starts at this step of its own, from a checkpoint."""
        self._skipped += steps

    def leave_out(self, steps: int) -> None:
        """Hear that a run of so many steps is complete already."""
        self._total -= steps

    def _left(self, done: int, now: float) -> str:
        """From the mean speed so far; runs are not equally fast, so it is a guess."""
        worked = self._before + done - self._skipped
        left = self._total - self._before - done
        if worked <= 0 or left <= 0:
            return ""
        return f", about {describe_seconds((now - self._started) / worked * left)} left in all"


def _numbers(measured: Mapping[str, float]) -> str:
    known = {name: measured.get(name, math.nan) for name in _MEASURED}
    return "".join(f", {name} {value:.3f}" for name, value in known.items() if value == value)


def describe_seconds(seconds: float) -> str:
    """Rounded for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
