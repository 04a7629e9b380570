"""Which process is meant, whether it still lives, and how it ended: a number alone may have gone to
another one meanwhile.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: Its number.
        started: When it started, in the kernel's ticks; 0 where the system does not tell.
        space: The space in which ``pid`` counts: containers have their own.
    """

    pid: int
    started: int
    space: str

    def __str__(self) -> str:
        return f"process {self.pid}"

    @property
    def text(self) -> str:
        """For an environment variable or a file; ``read`` takes it back."""
        return f"{self.pid}:{self.started}:{self.space}"

    @property
    def visible(self) -> bool:
        """True where this process could see it, alive or dead."""
        return self.space == _space()

    @property
    def alive(self) -> bool:
        """False once it has ended, also where nobody has asked for its exit status yet."""
        if not (PROC / "self").exists():
            return _answers(self.pid)
        state, started = _state(self.pid)
        return state not in ("", "Z", "X") and started == self.started


def this_process() -> Process:
    """The running process."""
    return process(os.getpid())


def process(pid: int) -> Process:
    """The process that has this number now."""
    return Process(pid, _state(pid)[1], _space())


def read(text: str) -> Process | None:
    """What ``text`` wrote; None where it is anything else."""
    pid, _, rest = text.partition(":")
    started, _, space = rest.partition(":")
    if not (pid.isdecimal() and started.isdecimal()):
        return None
    return Process(int(pid), int(started), space)


def how_it_ended(status: int) -> str:
    """The end of a process, for people.

    Args:
        status: As Python has it: below 0 it is the number of the signal that ended the process.
    """
    if status >= 0:
        return f"ended with exit status {status}"
    return f"died of {signal_name(-status)}"


def signal_name(signum: int) -> str:
    """SIGKILL or the like; most of the system's real-time signals have no name."""
    with suppress(ValueError):
        return signal.Signals(signum).name
    return f"signal {signum}"


def _state(pid: int) -> tuple[str, int]:
    """State letter and start of a process; empty and 0 where there is none."""
    try:
        # The name in brackets may hold anything, brackets too.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


def _space() -> str:
    try:
        return os.readlink(PROC / "self" / "ns" / "pid")
    except OSError:
        return ""


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
