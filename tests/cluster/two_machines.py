"""Two machines inside the namespaces of ``tests.cluster``: each has its own network, host name and
names of hosts, and a cable between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ADDRESSES = {"m1": "10.0.7.1", "m2": "10.0.7.2"}
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Machine:
    """A host with a network of its own.

    Args:
        name: Its host name.
        folder: For its files.
        hosts: Its ``/etc/hosts``.
    """

    def __init__(self, name: str, folder: Path, hosts: str) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        ready = folder / "ready"
        script = (
            f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && ip link set lo up"
            f" && touch {ready} && exec sleep infinity"
        )
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "sh", "-c", script]
        )
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert time.monotonic() < deadline and self._holder.poll() is None
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of a process that lives there."""
        return self._holder.pid

    def words(self, *words: str) -> list[str]:
        """A command as it runs on this machine."""
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", f"--wd={os.getcwd()}", *words]

    def run(self, *words: str) -> None:
        """A command that must succeed."""
        subprocess.run(self.words(*words), check=True)

    def start(self, words: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
        """A command in the background; its output goes to ``self.log``."""
        own = {**os.environ, "TMPDIR": str(self.folder), **environment}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                self.words(*words), cwd=cwd, env=own, stdout=log, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """What its commands printed."""
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()


@contextmanager
def two_machines(folder: Path, hosts: Mapping[str, str]) -> Iterator[tuple[Machine, Machine]]:
    """Machines without a network between them so far.

    Args:
        hosts: Lines of each machine's ``/etc/hosts``.
    """
    machines = [Machine(name, folder / name, hosts[name]) for name in ADDRESSES]
    try:
        yield machines[0], machines[1]
    finally:
        for machine in machines:
            machine.end()


class Cable:
    """A pair of virtual Ethernet devices; pulling it takes the carrier from both ends."""

    def __init__(self, machines: tuple[Machine, Machine]) -> None:
        self._end = machines[1]
        first, second = (str(machine.pid) for machine in machines)
        ends = ["eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for machine in machines:
            machine.run("ip", "addr", "add", f"{ADDRESSES[machine.name]}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")

    def pull(self) -> None:
        self._end.run("ip", "link", "set", "eth0", "down")

    def plug(self) -> None:
        self._end.run("ip", "link", "set", "eth0", "up")

    def close(self) -> None:
        """It ends with the machines."""


class Line:
    """A slow line: this process carries every packet, ``delay_s`` seconds late, in order. While it
    is pulled, packets vanish without a word, as in a switch that restarts.

    Args:
        only_port: A firewall that lets through TCP from and to this port alone; None has none.
    """

    def __init__(
        self,
        machines: tuple[Machine, Machine],
        delay_s: float = 0.0,
        only_port: int | None = None,
    ) -> None:
        self.delay_s, self._only_port = delay_s, only_port
        self._pulled = False
        self._ends = [self._open(machine) for machine in machines]
        self._open_still = True
        for end, other in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._carry, args=(end, other), daemon=True).start()

    def pull(self) -> None:
        self._pulled = True

    def plug(self) -> None:
        self._pulled = False

    def close(self) -> None:
        self._open_still = False
        time.sleep(0.3)
        for end in self._ends:
            os.close(end)

    @staticmethod
    def _open(machine: Machine) -> int:
        """A packet device of the machine, held by this process."""
        peer = next(each for name, each in ADDRESSES.items() if name != machine.name)
        ours = os.open("/proc/self/ns/net", os.O_RDONLY)
        theirs = os.open(f"/proc/{machine.pid}/ns/net", os.O_RDONLY)
        _setns(theirs)
        try:
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI))
        finally:
            _setns(ours)
            os.close(ours)
            os.close(theirs)
        own = ADDRESSES[machine.name]
        machine.run("ip", "addr", "add", own, "peer", peer, "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "txqueuelen", "10000", "up")
        return end

    def _passes(self, packet: bytes) -> bool:
        if self._only_port is None or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return True
        ports = struct.unpack_from("!HH", packet, 4 * (packet[0] & 15))
        return self._only_port in ports

    def _carry(self, end: int, other: int) -> None:
        waiting: deque[tuple[float, bytes]] = deque()
        while self._open_still:
            now = time.monotonic()
            pause = min(0.2, max(0.0, waiting[0][0] - now)) if waiting else 0.2
            if select.select([end], [], [], pause)[0]:
                packet = os.read(end, 65536)
                if not self._pulled and self._passes(packet):
                    waiting.append((time.monotonic() + self.delay_s, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):
                    os.write(other, waiting.popleft()[1])


def _setns(file: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, 0):
        raise OSError(ctypes.get_errno(), "setns")


def end_all(started: list[subprocess.Popen[str]]) -> None:
    """End what is left of the commands, with everything they started."""
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.wait()
