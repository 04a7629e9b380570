"""How much memory this process holds, and whether it keeps what it frees."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Mapping
from pathlib import Path

_STATM = Path("/proc/self/statm")
MIB = 1024.0 * 1024.0
MEMORY = "memory_mib"
"""What a server's process says about itself, beside what its host says of the model."""
MEMORY_OF_SERVER, MEMORY_OF_RANK = f"{MEMORY}_server_", f"{MEMORY}_rank_"
"""Before the number, where several are told together."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's ``malloc.h``."""
_KEPT = (
    (_M_ARENA_MAX, 1),  # what one thread frees another one takes
    (_M_MMAP_THRESHOLD, 2**25),  # the most that glibc allows
    (_M_TRIM_THRESHOLD, -1),
)
_ASKED_FOR = ("MALLOC_", "glibc.malloc.")
"""What the names of variables, and of tunables in ``GLIBC_TUNABLES``, begin with."""
_keeps = False


def resident_mib() -> float:
    """Resident memory of this process in MiB; where the system tells only the most that it ever
    was, that.
    """
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep what it frees, for what it takes next, until ``return_freed_memory``.

    An update takes and frees the same tensors over and over, a rollout the same messages. glibc
    returns a part of them each time, which part as the moment has it, and the system has to find
    and clear every page again: 7 to 10 % of the update's time, and memory that goes up and down.
    Tensors of more than 32 MiB are returned at once all the same. Left to itself, glibc also gives
    each connection's thread room of its own.

    Args:
        environment: Where it says how ``malloc`` is to work, nothing is done.

    Returns:
        Whether it was done; only glibc can.
    """
    global _keeps
    tunables = environment.get("GLIBC_TUNABLES", "").split(":")
    if any(name.startswith(_ASKED_FOR) for name in (*environment, *tunables)):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    _keeps = mallopt is not None and all(mallopt(name, value) for name, value in _KEPT)
    return _keeps


def return_freed_memory() -> None:
    """Return to the system what this process has freed, where ``keep_freed_memory`` let it keep
    that.
    """
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)
