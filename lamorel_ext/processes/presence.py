"""Ranks of one machine that notice each other's death before they have met; afterwards their
connections tell.

Each leaves a file with its process, long before torch is imported, and looks at the files of the
others. A file of an earlier launch names a process that was never seen alive, and says nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lamorel_ext.errors import LamorelExtError
from lamorel_ext.processes.identity import Process, read, this_process
from lamorel_ext.processes.ranks import rank_and_size
from lamorel_ext.processes.secret import private_folder
from lamorel_ext.processes.stopping import say_last

LOOK_S = 0.5
GRACE_S = 3.0
"""Seconds for a better message: the dead rank's last word, or its launcher's."""

OLD_S = 86400.0
"""Seconds after which no launch needs a file any more, also where its process is out of sight."""

_started, _met = threading.Event(), threading.Event()
_listeners: list[Callable[[str], None]] = []


def announce() -> None:
    """Leave this rank's file and watch the others' until ``met``; does nothing in a process that is
    no rank, or the second time.
    """
    with contextlib.suppress(LamorelExtError, OSError):
        found = rank_and_size()
        if found is None or _started.is_set():
            return
        _started.set()
        rank, size = found
        folder = private_folder()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            tidy(folder)
        _file(folder, rank).write_text(this_process().text, encoding="ascii")
        threading.Thread(
            target=_watch, args=(folder, rank, size), name="presence", daemon=True
        ).start()


def met() -> None:
    """The ranks are connected: their connections tell from now on."""
    _met.set()


def have_met() -> threading.Event:
    """Set by ``met``."""
    return _met


def on_death(listener: Callable[[str], None]) -> None:
    """Have ``listener`` called with a line on a rank of this machine that died before ``met``."""
    _listeners.append(listener)


def share_a_host(port: str, machine: int, machines: int, patience_s: float) -> bool:
    """Whether the launchers of all ``machines`` run on this host, as in a trial.

    Args:
        port: Where they meet.
        machine: Number of this one.
        machines: How many there are.
        patience_s: Seconds to wait for the others to be started.
    """
    files = {each: private_folder() / f"launch-{port}-machine-{each}" for each in range(machines)}
    files[machine].write_text(this_process().text, encoding="ascii")
    deadline, seen = time.monotonic() + patience_s, dict[int, Process]()
    while time.monotonic() < deadline:
        dead_peer(files, seen)
        if len(seen) == machines:
            return True
        time.sleep(LOOK_S)
    return False


def tidy(folder: Path) -> None:
    """Remove what processes that were killed have left in the private folder, and this one."""
    own = f"launch-{os.environ.get('MASTER_PORT', '')}-rank-"
    for path in (*folder.glob("launch-*"), *folder.glob("secret-*")):
        with contextlib.suppress(OSError, ValueError):
            # A rank of this launch may have written its own meanwhile.
            if not path.name.startswith(own) and _left_over(path):
                path.unlink()


def _left_over(path: Path) -> bool:
    if time.time() - path.stat().st_mtime > OLD_S:
        return True
    found = read(path.read_text(encoding="ascii"))
    if found is None or not found.visible:
        return False
    return not found.alive or found == this_process()


def dead_peer(files: dict[int, Path], seen: dict[int, Process]) -> int | None:
    """The first rank that was seen alive before and is dead now.

    Args:
        files: By rank.
        seen: By rank, those seen alive; added to.
    """
    for rank, path in files.items():
        with contextlib.suppress(OSError, ValueError):
            found = read(path.read_text(encoding="ascii"))
            if found is not None and found.visible and found.alive:
                seen[rank] = found
        if rank in seen and not seen[rank].alive:
            return rank
    return None


def _watch(folder: Path, rank: int, size: int) -> None:
    files = {peer: _file(folder, peer) for peer in range(size) if peer != rank}
    seen: dict[int, Process] = {}
    while not _met.wait(LOOK_S):
        dead = dead_peer(files, seen)
        if dead is not None and not _met.wait(GRACE_S):
            line = f"rank {dead} died before the ranks had met"
            say_last(f"rank {rank} ends: {line}")
            for listener in _listeners:
                listener(f"{line}, on {socket.gethostname()}")
            os._exit(1)
    time.sleep(2 * LOOK_S)  # who is not through yet must see this rank alive
    with contextlib.suppress(OSError):
        _file(folder, rank).unlink()


def _file(folder: Path, rank: int) -> Path:
    return folder / f"launch-{os.environ.get('MASTER_PORT', '')}-rank-{rank}"
