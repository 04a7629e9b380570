"""How a process ends that was asked to: by a signal, by another rank, or by the loss of whoever
started it.

Where nothing can be lost it ends at once. Inside ``deferring`` (a training run, a server that has
clients) the request is noted, and the work itself ends at the next moment where a checkpoint is
whole. A thread listens, because a main thread may be inside a long computation when a signal comes;
it also ends the process where the main thread does not come to an end by itself.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lamorel_ext.processes.identity import Process, process, read
from lamorel_ext.processes.ranks import rank_of_log, speaks

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
INSISTS = signal.SIGQUIT
"""What a launcher sends its ranks when it got a second signal."""
PARENTS = "LAMOREL_EXT_PARENTS"
"""Environment variable: the processes of our own launcher, whose end is the ranks' end too."""
SAVE_S = "LAMOREL_EXT_SAVE_S"
"""Environment variable: seconds from SIGUSR1 to the time limit of a batch job. Two thirds of them,
or all but a minute, are for the rollout on the way, the others for the checkpoint and the ends.
"""

OURS = ("experiments", "launchers", "lamorel_ext")
"""Packages whose modules are programmes."""
LOOK_S = 1.0
"""Seconds between two looks at the processes that started this one."""
SAME_S = 0.3
"""Two signals within so many seconds are one: nobody presses a key so fast."""
SAME_IN_LAUNCH_S = 3.0
"""The same for a rank: a batch system signals all processes, and the launcher passes on what it
got.
"""
FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
"""What holds back what was written to it."""
LAST = 255
"""Behind the numbers of all signals that were heard."""
IMPORTER = "<frozen importlib._bootstrap>"
"""File that Python names in the frames of an import."""
END_S = 5
"""Seconds for Python's own end."""
ANOTHER_S = 15.0
"""Seconds that a rank which failed may take for its end."""
AT_ONCE_S, TIDY_S = 2.0, 8.0
"""Seconds that remain for tidying up: after a second signal, and where nothing is deferred."""


@dataclass(frozen=True)
class Stop:
    """A request to end.

    Attributes:
        signum: The exit status is 128 more.
        why: For people: a signal's name, or what happened.
        patience_s: Seconds for which the present work may go on to a moment where a checkpoint is
            whole.
        limit_s: Seconds after which the process ends, whatever it does.
    """

    signum: int
    why: str
    patience_s: float = 20.0
    limit_s: float = 40.0

    @property
    def exit_status(self) -> int:
        """What a shell sees."""
        return 128 + self.signum


def seconds_to_limit() -> float:
    """What ``SAVE_S`` says; 0 where it says nothing."""
    text = os.environ.get(SAVE_S, "")
    return float(text) if text.isdecimal() else 0.0


def stop_of(signum: int, where: str = "") -> Stop:
    """What a signal asks for.

    Args:
        signum: Its number.
        where: Who got it, for people, such as " to rank 1".

    Raises:
        ValueError: There is no such signal.
    """
    name = signal.Signals(signum).name + where
    left = seconds_to_limit()
    if signum != signal.SIGUSR1 or not left:
        return Stop(signum, name)
    return Stop(signum, name, left - min(left / 3, 60.0), left - min(left / 6, 30.0))


def lost_parent(parent: Process) -> Stop:
    """Whoever started this process is gone: it ends within 15 s."""
    return Stop(signal.SIGHUP, f"the loss of {parent}, which had started this run", 7.0, 12.0)


class Stopped(KeyboardInterrupt):
    """This process ends because it was asked to. An interrupt, so that nothing takes it for a
    failure and goes on.

    Args:
        stop: The request.
        detail: What became of the work.
    """

    def __init__(self, stop: Stop, detail: str = "") -> None:
        self.stop = stop
        super().__init__(f"stopped by {stop.why}" + (f": {detail}" if detail else ""))


class _Watch:
    """State of this process; one instance."""

    def __init__(self) -> None:
        self.stop: Stop | None = None
        self.status: int | None = None
        self.deferred = self.saving = self.started = self.follows = False
        self.at_once = self.raised = self.begun = self.is_outermost = False
        self.hears = True
        self.on_stop: Callable[[Stop], None] | None = None
        self._at = self._limit = 0.0
        self._ours, self._theirs = socket.socketpair()
        self._asked: list[Stop] = []
        self._heard_all = threading.Event()
        self._parents: list[Process] = []
        self._parent = 0

    # --- on the main thread -----------------------------------------------------------------------

    def start(self) -> None:
        """Hear signals from now on, and look after the processes that started this one."""
        if self.started or threading.current_thread() is not threading.main_thread():
            return
        self.started = True
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._find_parents()
        threading.Thread(target=self._listen, name="requests to stop", daemon=True).start()
        atexit.register(self._limit_end)
        os.register_at_fork(after_in_child=_forget)
        signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGALRM, self._interrupt)
        for signum in (*HEARD, INSISTS):
            # What is ignored already, by nohup for one, stays ignored.
            if signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, _leave_to_the_thread)

    def release(self) -> None:
        """Stop hearing; a signal that came before is still heard."""
        if self.started:
            for signum in (*HEARD, INSISTS):
                if signal.getsignal(signum) is _leave_to_the_thread:
                    signal.signal(signum, _default(signum))
        if self.started and self.hears:
            signal.set_wakeup_fd(-1)
            self._theirs.send(bytes([LAST]))
            self._heard_all.wait()
            if self.stop is not None:
                # Also where ``_interrupt`` raised already: an import, for one, drops what is raised
                # while it tidies up.
                self.raised = True
                raise Stopped(self.stop)
        self.hears = False

    def _limit_end(self) -> None:
        """Python's own end may wait for other processes, and the thread does not run then. It also
        frees every module, which takes seconds with torch: other ranks wait, and so do users.
        """
        asked = self.stop is not None
        if self.status is not None and (asked or self.is_outermost) and _flushed():
            # Whatever else had to be done at the end came before: this was the first to register.
            end_now(self.status)
        if not asked:
            return
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(END_S)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """The thread asks the main thread to end."""
        stop = self.stop
        if stop is None or (self.raised and not self.at_once):
            return
        if _imports(frame):
            # What is raised there can be dropped, or abort the process in a module of C++.
            if not self.deferred:
                _end(Stopped(stop), stop.exit_status, aloud=speaks())
            return
        if self.at_once:
            self.raised, self.at_once = True, False
            raise Stopped(stop, "at once, as a second signal asked")
        if not self.deferred:
            self.raised = True
            raise Stopped(stop)
        waits = self.saving or self.follows
        if not waits and time.monotonic() - self._at >= stop.patience_s:
            self.raised = True
            raise Stopped(
                stop,
                f"no checkpoint was whole within {stop.patience_s:g} s; the last one stands"
                ", and the same command goes on from it",
            )

    def check(self) -> None:
        """Raise ``Stopped`` where a request is waiting."""
        if self.stop is not None and not self.raised:
            self.raised = True
            raise Stopped(self.stop)

    # --- on any thread ----------------------------------------------------------------------------

    def ask(self, stop: Stop) -> None:
        """A request that is no signal."""
        if self.started:
            self._asked.append(stop)
            self._theirs.send(b"\0")

    # --- on the listening thread ------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            ready, _, _ = select.select([self._ours], [], [], self._next_look())
            received = self._ours.recv(100) if ready else b""
            for signum in as_sent(received):
                if signum in (*HEARD, INSISTS):
                    self._note(stop_of(signum), a_signal=True)
            while self._asked:
                self._note(self._asked.pop(0), a_signal=False)
            if self.stop is None and (lost := self._lost()) is not None:
                self._note(lost_parent(lost), a_signal=False)
            if set(received) != {signal.SIGALRM}:  # which is the last press itself: no answer to it
                self._press()
            if LAST in received:
                self._heard_all.set()

    def _next_look(self) -> float | None:
        if self.stop is not None:
            return 0.25
        return LOOK_S if self._parents or self._parent else None

    def _note(self, stop: Stop, a_signal: bool) -> None:
        if not self.hears:
            return
        now = time.monotonic()
        if not self.begun:
            # Imports are going on: there is nothing to tidy up.
            _end(Stopped(stop), stop.exit_status, aloud=speaks())
        if self.stop is None:
            self._at, self._limit = now, now + (stop.limit_s if self.deferred else TIDY_S)
            self.stop = stop  # after its limit: the main thread may answer it at once
            if self.on_stop is not None:
                threading.Thread(target=self.on_stop, args=(stop,), daemon=True).start()
        elif stop.signum == INSISTS:
            self.at_once, self._limit = True, now + AT_ONCE_S
        elif a_signal and now - self._at > (SAME_S if rank_of_log() is None else SAME_IN_LAUNCH_S):
            self.at_once, self._limit = True, now + AT_ONCE_S

    def _press(self) -> None:
        """Have the main thread look whether it has to end, and end the process where it cannot."""
        if self.stop is None or not self.hears:
            return
        if time.monotonic() > self._limit:
            _end(
                Stopped(self.stop, "its work did not come to an end in time"), self.stop.exit_status
            )
        if not self.raised or self.at_once:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    def _find_parents(self) -> None:
        named = [read(text) for text in os.environ.get(PARENTS, "").split(",")]
        self._parents = [each for each in named if each is not None and each.visible]
        # Started by torch's agent, ours or another one; a shell may go without taking its jobs
        # along.
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self._parent = os.getppid()
            self._agent = process(self._parent)

    def _lost(self) -> Process | None:
        if self._parent and os.getppid() != self._parent:
            return self._agent
        return next((each for each in self._parents if not each.alive), None)


def _default(signum: int) -> Callable[..., object] | int:
    return signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL


def _forget() -> None:
    """In a process that was forked, such as one of a pool: it hears for itself, as it would without
    us, and what it hears is not for this one.
    """
    signal.set_wakeup_fd(-1)
    for signum in (*HEARD, INSISTS, signal.SIGALRM):
        if getattr(signal.getsignal(signum), "__module__", "") == __name__:
            signal.signal(signum, _default(signum))


def _leave_to_the_thread(signum: int, frame: FrameType | None) -> None:
    """A handler must be there, or the signal would end the process."""


def as_sent(signums: Iterable[int]) -> list[int]:
    """Signals that were heard together, the first one first: the kernel gives them the other way
    round, and a batch system warns (SIGUSR1) before it ends.
    """
    return sorted(signums, key=lambda each: each != signal.SIGUSR1)


def _flushed() -> bool:
    """Whether all that was printed is out; where it is not, Python's own end says why. Files that
    somebody's code left open are written out too, as they would be there.
    """
    for each in gc.get_objects():
        if type(each) in FILES and each not in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                each.flush()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is going on where the main thread is."""
    while frame is not None and frame.f_code.co_filename != IMPORTER:
        frame = frame.f_back
    return frame is not None


_ends = threading.Lock()


def _end(stopped: Stopped, status: int, aloud: bool = True) -> None:
    if not _ends.acquire(blocking=False):
        return  # another thread is at it, or the lines below were interrupted
    if aloud:
        rank = rank_of_log()
        say_last(f"{'' if rank is None else f'[rank {rank}] '}{stopped}")
    os._exit(status)


_watch = _Watch()


def listen_early() -> None:
    """Hear signals while a programme of ours still imports; for the packages that are run with
    ``python -m`` or as a command.
    """
    command = Path(sys.argv[0]).name if getattr(sys, "argv", None) else ""
    if command == "-m":  # whose package is imported first, which may import ours
        after = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if "-m" in sys.orig_argv else []
        ours = bool(after) and after[0].split(".")[0] in OURS
    else:
        ours = command.startswith("lamorel-ext-")
    if ours:
        _watch.is_outermost = True
        _watch.start()


def begin() -> None:
    """Hear signals, and let them raise ``Stopped`` in the main thread from now on."""
    _watch.start()
    _watch.begun = True


def release() -> None:
    """Leave signals to others: this process starts another one and passes them on."""
    _watch.release()


def ask(stop: Stop) -> None:
    """Ask this process to end, as a signal would; from any thread."""
    _watch.ask(stop)


def asked() -> Stop | None:
    """The request to end, if there is one."""
    return _watch.stop


def check() -> None:
    """End here where a request is waiting.

    Raises:
        Stopped: There is one.
    """
    _watch.check()


def let_another_end_first() -> None:
    """Another rank failed, and is on its way out: PyTorch's agent takes the first rank that ends
    for the one that failed. Waits until the agent asks this one to end, ``ANOTHER_S`` at most.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    limit = time.monotonic() + ANOTHER_S
    with suppress(Stopped):
        while _watch.stop is None and time.monotonic() < limit:
            time.sleep(0.05)


def say_last(line: str) -> None:
    """Print a line on the way out, on any thread: whoever would have read it may be gone."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def end_process(line: str) -> None:
    """End this process at once, whatever its main thread is stuck in."""
    say_last(line)
    os._exit(1)


def end_now(status: int) -> NoReturn:
    """End this process without Python's own end, which takes long on a busy machine."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def end_with(status: int) -> None:
    """This process has nothing left to do: ``end_now`` follows what is registered for its end.
    Where code of the user's has called a program of ours, and may end otherwise, only if this
    process was asked to end.
    """
    _watch.status = status


def settled() -> None:
    """The work has come to its end, and a request has nothing left to ask for."""
    _watch.raised = True
    _watch.hears = False


def leave(detail: str, stop: Stop | None = None) -> Stopped:
    """What to raise where deferred work ends as asked.

    Args:
        detail: What became of the work.
        stop: The request, where another process was asked.
    """
    _watch.raised = True
    return Stopped(_watch.stop or stop or Stop(signal.SIGTERM, "a request"), detail)


@contextmanager
def deferring(
    on_stop: Callable[[Stop], None] | None = None, follows: bool = False
) -> Iterator[None]:
    """Note requests instead of ending; whoever is inside looks at ``asked`` where it can end
    without a loss.

    Args:
        on_stop: Called with the request when it comes, on another thread.
        follows: True where others have to end first, for which they need this process.

    Raises:
        Stopped: There was a request before, or the work has taken longer than the request allows.
    """
    check()
    before = _watch.deferred, _watch.on_stop, _watch.follows
    _watch.deferred, _watch.on_stop, _watch.follows = True, on_stop, follows
    try:
        yield
    except BaseException:
        # What is on its way out is noted by those around; an interrupt would take its place.
        _watch.raised = _watch.stop is not None
        raise
    finally:
        _watch.deferred, _watch.on_stop, _watch.follows = before


@contextmanager
def finishing() -> Iterator[None]:
    """What is done inside, such as the last checkpoint, is broken off by a second signal only."""
    _watch.saving = True
    try:
        yield
    finally:
        _watch.saving = False
