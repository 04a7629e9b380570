"""Start a command on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType

from lamorel_ext.errors import ConfigError
from lamorel_ext.processes import stopping
from lamorel_ext.processes.identity import how_it_ended, read, this_process
from lamorel_ext.processes.ranks import LAUNCH_VARIABLES
from lamorel_ext.processes.secret import VARIABLE, new_secret
from launchers.command import ACCELERATE, Command


def run_here(command: Command) -> int:
    """Run ``command`` to its end and give its exit status; an interruption is passed on, so that
    the ranks can finish their files.

    The command has a session of its own: Ctrl-C on a terminal would otherwise reach it twice, and
    break off what the first one has begun. ``accelerate launch`` runs as ``launchers.elastic``
    under this interpreter: the same ranks, a shorter last word when one fails.

    Raises:
        ConfigError: There is no such program.
    """
    argv = command.argv
    if argv[:2] == ACCELERATE:
        argv = (sys.executable, "-m", "lamorel_ext", "elastic", *argv[2:])
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    first: list[float] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        if not children:
            early.append(signum)
            return
        now = time.monotonic()
        # The ranks may get a signal from several sides at once; SIGQUIT says that the user means
        # it.
        second = bool(first) and now - first[0] > stopping.SAME_S
        first.append(now)
        if children[0].poll() is None and (second or len(first) == 1):
            children[0].send_signal(signal.SIGQUIT if second else signum)

    # What is ignored already, by nohup for one, stays ignored. What comes before the child is there
    # is kept for it.
    heard = [signum for signum in stopping.HEARD if signal.getsignal(signum) != signal.SIG_IGN]
    previous = {signum: signal.signal(signum, forward) for signum in heard}
    try:
        stopping.release()
        try:
            child = subprocess.Popen(argv, env=child_environment(command), start_new_session=True)
        except OSError as error:
            raise ConfigError(f"{argv[0]} cannot be started: {error.strerror}") from error
        children.append(child)
        for signum in early[:1]:
            forward(signum, None)
        status = child.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        stopping.release()  # those of its handlers that were put back
    if status < 0:
        stopping.say_last(f"launch: its agent (process {child.pid}) {how_it_ended(status)}")
        return 128 - status
    return status


def child_environment(command: Command) -> dict[str, str]:
    """For the process that starts the ranks: who its launchers are, a secret where it starts all of
    them, and nothing else of a launch around this one.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    # Several launches need a common secret, which their ranks ask for.
    all_ranks = command.argv[:2] == ACCELERATE and "--machine_rank" not in command.argv
    secret = {VARIABLE: new_secret()} if all_ranks else {}
    # Of Lamorel's own command line under ``alias`` there are two.
    above = [read(text) for text in inherited.get(stopping.PARENTS, "").split(",")]
    launchers = [each.text for each in (*above, this_process()) if each is not None and each.alive]
    own = {stopping.PARENTS: ",".join(launchers)}
    return {**secret, **inherited, **own, **command.environment}
