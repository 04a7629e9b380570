"""The processor: what the system says of it, and how many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""What Linux says of the processor."""
_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def said_of_cpu(key: str, cpuinfo: Path = CPUINFO) -> str:
    """Of the first processor by a key, such as ``flags``; empty where nothing is said."""
    if not cpuinfo.is_file():
        return ""
    first = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def usable_cores(cpus: Path = _CPUS, quota: Path = _QUOTA) -> int:
    """At least one: a job is often confined to some cores of its machine, a container to a share of
    its time, and two threads of one core compute no faster than one.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len({_siblings(cpus, number) for number in os.sched_getaffinity(0)})
    words = _read(quota).split()  # microseconds of computing in as many of the clock, or "max"
    if len(words) == 2 and all(map(str.isdecimal, words)):
        cores = min(cores, int(words[0]) // int(words[1]))
    return max(1, cores)


def _siblings(cpus: Path, number: int) -> str:
    """What names the core that a hardware thread is of."""
    return _read(cpus / f"cpu{number}" / "topology" / "thread_siblings_list") or str(number)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
