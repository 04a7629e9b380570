"""``accelerate launch`` that reports a failed rank in one line.

A rank that fails has said why; PyTorch's elastic agent adds its own traceback, which buries that.
The exit status is the failed rank's.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from lamorel_ext.errors import LamorelExtError
from lamorel_ext.processes import identity, stopping
from lamorel_ext.processes.network import is_here, own_addresses, why_nobody_meets_there
from lamorel_ext.processes.presence import share_a_host, tidy
from lamorel_ext.processes.secret import private_folder

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

SHUTDOWN_S = 45
"""Seconds that the ranks have after a signal: more than ``stopping.Stop`` gives them."""
ORPHAN_S = 9.0
TOGETHER_S = 60.0
"""Seconds in which somebody starts the launchers of a trial on one host, each in its terminal."""
NOTICE_S, NOTICES_S = 15.0, 60.0
"""Seconds after which, and then between which, a machine says what it waits for."""
CALL_S = 5.0
ASKING = (*stopping.HEARD, stopping.INSISTS)
SIGNALS = {int(each) for each in signal.Signals}


def main() -> NoReturn:
    """Run accelerate's launcher on this process's arguments, and end this process.

    Not by Python's own end, which takes seconds on a busy machine and leaves signals to the system:
    Slurm ends the other nodes of a step when one has ended, and would then see a process that a
    signal killed.
    """
    status = _launch()
    _hear_no_more()
    with contextlib.suppress(LamorelExtError):
        tidy(private_folder())
    stopping.end_now(status)


def _launch() -> int:
    stopping.release()
    # Until the agent has handlers of its own a signal ends this process: Python's exception for an
    # interrupt would be dropped where an import tidies up.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # PyTorch's launcher overwrites the first with its own option, which it takes from the second.
    for name in ("TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_SIGNALS_TO_HANDLE"):
        os.environ.setdefault(name, ",".join(each.name for each in ASKING))
    patience_s = max(SHUTDOWN_S, int(stopping.seconds_to_limit()))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(patience_s))
    threading.Thread(target=_end_with_launcher, name="launcher", daemon=True).start()
    heard = _hear_signals()
    # Before torch is imported, which takes seconds.
    meeting = _meeting_options()
    if problem := _meeting_problem(meeting) or _file_problem(meeting.config_file):
        stopping.say_last(f"launch: {problem}")
        return 2
    if meeting.num_machines > 1 and meeting.main_process_ip:
        threading.Thread(target=_say_who_waits, args=(meeting,), daemon=True).start()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    end_ranks = insisting(LocalElasticAgent._shutdown, lambda: _user_insists(heard))
    LocalElasticAgent._shutdown = end_ranks  # type: ignore[method-assign]
    try:
        launch_command(launch_command_parser().parse_args())
    except DistNetworkError as error:
        stopping.say_last(
            f"launch: machine {meeting.machine_rank} ({socket.gethostname()}) and the others of"
            f" {meeting.num_machines} did not meet at {meeting.main_process_ip}:"
            f"{meeting.main_process_port}: {str(error).splitlines()[0]}"
        )
        return 1
    except ChildFailedError as error:
        rank, failure = first_failure(error)
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        ended = (
            f"ended by {identity.signal_name(status - 128)}"
            if status - 128 in SIGNALS
            else f"ended with exit status {status}"
        )
        stopping.say_last(f"launch: rank {rank} {ended}; the other ranks were stopped")
        _tell_other_machines(f"rank {rank} {ended} on {socket.gethostname()}")
        return status
    except SignalException as error:
        _hear_no_more()
        # Slurm ends the other nodes of a step when one has ended; the first signal says why.
        first = _first_signal(heard) or error.sigval
        stopping.say_last(
            f"launch: stopped by {first.name}; the same command goes on from the last checkpoint"
        )
        return 128 + first
    return 0


def first_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The rank that failed first, and how.

    Of ranks that the agent saw ended in one look it is one that was killed or crashed, if any: the
    others have ended because of it, and PyTorch, which dates them to the second, would take the
    lowest. SIGTERM is what the agent sends to whoever is left, and SIGKILL long after that.
    """
    rank, first = error.get_first_failure()
    for at, each in error.failures.items():
        together = each.timestamp - first.timestamp <= 1
        if together and each.exitcode < 0 and each.exitcode != -signal.SIGTERM:
            return at, each
    return rank, first


def insisting(
    shutdown: Callable[..., None],
    user_insists: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[..., None]:
    """The agent's way to end its ranks, which tells them that the user insists: a signal that
    breaks off the first time would reach them as another SIGTERM, which a rank takes for the first
    one again. So does the agent for a moment: a batch system signals all processes, and the
    launcher passes on what it got.

    Args:
        shutdown: The agent's own.
        user_insists: Whether the launcher said so.
        clock: Seconds, for tests.
    """
    begun: list[float] = []

    def end_ranks(
        agent: object, death_sig: signal.Signals = signal.SIGTERM, **options: int
    ) -> None:
        begun.append(clock())
        insists = begun[-1] - begun[0] > stopping.SAME_IN_LAUNCH_S or user_insists()
        shutdown(agent, stopping.INSISTS if insists else death_sig, **options)

    return end_ranks


def _hear_signals() -> socket.socket:
    """A socket into which Python writes the number of each signal that has a handler."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    return ours


def _hear_no_more() -> None:
    """This process ends: what asks for it has nothing left to ask for."""
    for each in ASKING:
        signal.signal(each, signal.SIG_IGN)


def _user_insists(heard: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return stopping.INSISTS in heard.recv(100, socket.MSG_PEEK)
    return False


def _first_signal(heard: socket.socket) -> signal.Signals | None:
    with contextlib.suppress(BlockingIOError):
        numbers = stopping.as_sent(heard.recv(100))
        return next((signal.Signals(each) for each in numbers if each in ASKING), None)
    return None


def _meeting_options() -> argparse.Namespace:
    """Those of accelerate's options that say where the machines meet, and its file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, default in {"machine_rank": 0, "num_machines": 1, "main_process_port": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--main_process_ip", default="")
    parser.add_argument("--config_file", default="")
    return parser.parse_known_args()[0]


def _meeting_problem(options: argparse.Namespace) -> str:
    """Why the machines cannot meet; empty where nothing speaks against it."""
    machine, machines = options.machine_rank, options.num_machines
    address, port = options.main_process_ip, str(options.main_process_port)
    if machines == 1 or not address:
        return ""
    problem = why_nobody_meets_there(machine, address)
    if not problem:
        return ""
    try:
        if is_here(address):
            print(
                f"launch: machine {machine} meets the others of {machines} at {address}, which is"
                f" this host alone; waits {TOGETHER_S:.0f} s for their launches on it",
                file=sys.stderr,
                flush=True,
            )
            if share_a_host(port, machine, machines, TOGETHER_S):
                return ""
    except LamorelExtError as error:
        return str(error)
    return f"lamorel_args.accelerate_args.main_process_ip: {address} {problem}"


def _file_problem(name: str) -> str:
    """Why accelerate cannot read the file that the user has named; empty where it can."""
    key = "lamorel_args.accelerate_args.config_file"
    if not name:
        return ""
    if not os.path.isfile(name):
        return f"{key}: there is no file {name}"
    from accelerate.commands.config import load_config_from_file

    try:
        load_config_from_file(name)
    except Exception as error:  # an AttributeError where it is empty, and whatever else
        return f"{key}: accelerate cannot read {name}: {' '.join(str(error).split())}"
    return ""


def _say_who_waits(meeting: argparse.Namespace) -> None:
    """Until the ranks are started: what this machine waits for, in case nobody comes."""
    time.sleep(NOTICE_S)
    while not _has_children():
        print(f"launch: {_who_waits(meeting)}", file=sys.stderr, flush=True)
        time.sleep(NOTICES_S)


def _who_waits(meeting: argparse.Namespace) -> str:
    """Which machine waits for which others, and where."""
    place = f"{meeting.main_process_ip}:{meeting.main_process_port}"
    me = f"machine {meeting.machine_rank} ({socket.gethostname()})"
    if meeting.machine_rank == 0:
        others = "the other one" if meeting.num_machines == 2 else "the others"
        own = ", ".join(own_addresses()) or "one of its addresses"
        return (
            f"{me} waits at {place} for {others} of {meeting.num_machines} machines; there"
            f" main_process_ip must lead here: {own}"
        )
    try:
        address = (meeting.main_process_ip, meeting.main_process_port)
        with socket.create_connection(address, timeout=CALL_S) as sock:
            found = f"others of the {meeting.num_machines} machines, as machine 0 does"
            return f"{me} waits at {place} ({sock.getpeername()[0]}) for {found}"
    except OSError as error:
        return (
            f"{me} waits for machine 0 to listen at {place}: {error.strerror or error}; has it been"
            " started, and with this main_process_ip and port?"
        )


def _has_children() -> bool:
    """True once the ranks are started, and where the system does not tell."""
    try:
        return bool((identity.PROC / f"self/task/{os.getpid()}/children").read_text().strip())
    except OSError:
        return True


def _tell_other_machines(line: str) -> None:
    """Ranks there may still wait for ours to come."""
    from accelerate.commands.launch import launch_command_parser

    options = launch_command_parser().parse_args()
    if (options.num_machines or 1) > 1 and options.machine_rank:
        from lamorel_ext.processes.heartbeat import tell_death
        from lamorel_ext.rpc.distributed import signs_of_life

        # The first machine's agent keeps the store: where it is gone, everybody knows.
        with contextlib.suppress(RuntimeError):
            store = signs_of_life(options.main_process_ip, int(options.main_process_port), 5.0)
            tell_death(store, line)


def _end_with_launcher() -> None:
    """A launcher that was killed passes nothing on: its end is ours and the ranks'."""
    named = [identity.read(text) for text in os.environ.get(stopping.PARENTS, "").split(",")]
    parents = [each for each in named if each is not None and each.visible]
    while parents and all(each.alive for each in parents):
        time.sleep(stopping.LOOK_S)
    if parents:
        # The ranks see it too and save; whoever is left after that is ended.
        time.sleep(ORPHAN_S)
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
