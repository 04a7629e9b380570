"""Start a command on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType

from launchers.command import Command


def run_here(command: Command) -> int:
    """Run ``command`` to its end and give its exit status; an interruption is passed on, so that the ranks can finish their files.

    The command has a session of its own: Ctrl-C on a terminal would otherwise reach it twice, and break off what the first one has begun.
    ``accelerate launch`` runs as ``launchers.elastic`` under this interpreter: the same ranks, a shorter last word when one fails.
    """
    argv = list(command.argv)
    if argv[:2] == ["accelerate", "launch"]:
        argv = [sys.executable, "-m", "launchers.elastic", *argv[2:]]
    child = subprocess.Popen(argv, env={**os.environ, **command.environment}, start_new_session=True)

    def forward(signum: int, frame: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(signum)

    # What is ignored already, by nohup for one, stays ignored.
    heard = [signum for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(signum) != signal.SIG_IGN]
    previous = {signum: signal.signal(signum, forward) for signum in heard}
    try:
        status = child.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return status if status >= 0 else 128 - status
