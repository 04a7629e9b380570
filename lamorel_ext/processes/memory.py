"""How much memory this process holds."""

from __future__ import annotations

import os
import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")
MIB = 1024.0 * 1024.0
MEMORY = "memory_mib"
"""What a server's process says about itself, beside what its host says of the model."""
MEMORY_OF_SERVER, MEMORY_OF_RANK = f"{MEMORY}_server_", f"{MEMORY}_rank_"
"""Before the number, where several are told together."""


def resident_mib() -> float:
    """Resident memory of this process in MiB; where the system tells only the most that it ever
    was, that.
    """
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
