"""Addresses and interfaces of this machine, as the way to another one shows them.

A host's own name is no help: Debian writes it down as 127.0.1.1.
"""

from __future__ import annotations

import array
import ipaddress
import os
import socket
import struct
import sys
from pathlib import Path

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where torch's backends read which interface to use."""
_SIOCGIFCONF, _ENTRY_BYTES, _MAX_ENTRIES = 0x8912, 40, 256


def address_towards(target: str) -> str | None:
    """The address of this machine from which packets to ``target`` leave; None where there is no
    way, or nobody knows the name. Sends nothing.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return None


def is_loopback(address: str | None) -> bool:
    """True for 127.0.0.0/8 and ::1."""
    return address is not None and ipaddress.ip_address(address).is_loopback


def is_here(target: str) -> bool:
    """True for a name or address that leads to this host over loopback."""
    return is_loopback(address_towards(target))


def interface_of(address: str) -> str | None:
    """The name of the interface that has this address; None where it cannot be found."""
    try:
        wanted = ipaddress.ip_address(address.partition("%")[0])
        found = _ipv6_interfaces() if wanted.version == 6 else _ipv4_interfaces()
    except (OSError, ValueError):
        return None
    return next((name for name, each in found if each == wanted), None)


def own_addresses() -> list[str]:
    """Those of this machine that others may reach it by, of its IPv4 interfaces."""
    try:
        return [str(each) for _, each in _ipv4_interfaces() if not each.is_loopback]
    except OSError:
        return []


def use_interface(address: str) -> None:
    """Have gloo and NCCL use the interface that has this address, unless the user has named one."""
    name = interface_of(address)
    for variable in INTERFACE_VARIABLES if name else ():
        os.environ.setdefault(variable, str(name))


def why_nobody_meets_there(machine: int, address: str) -> str:
    """What is wrong with the address where several machines are to meet, as far as this one can
    see; empty where nothing is.

    Args:
        machine: Number of this machine; the others come to machine 0.
        address: Name or number.
    """
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for 10.0.0..1 and the like
        reason = getattr(error, "strerror", None) or error
        return f"cannot be looked up on {socket.gethostname()}: {reason}"
    numbers = sorted({str(entry[4][0]) for entry in found})
    literal = address == "localhost" or _is_number(address)
    # Machine 0 may know itself as 127.0.1.1: it learns its address from the others.
    if all(is_loopback(number) for number in numbers) and (machine or literal):
        return (
            f"is {numbers[0]} on {socket.gethostname()}, which is this machine alone; expected the"
            " name or address under which all machines reach machine 0"
        )
    return ""


def _is_number(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _ipv4_interfaces() -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    if sys.platform != "linux":
        return []
    import fcntl

    entries = array.array("B", bytes(_ENTRY_BYTES * _MAX_ENTRIES))
    asked = struct.pack("iL", len(entries), entries.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        used = struct.unpack("iL", fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, asked))[0]
    found = []
    for start in range(0, used, _ENTRY_BYTES):
        entry = entries[start : start + _ENTRY_BYTES].tobytes()
        # An address beside the first one of an interface has a label, such as eth0:1.
        name = entry[:16].split(b"\0")[0].decode().partition(":")[0]
        found.append((name, ipaddress.ip_address(entry[20:24])))
    return found


def _ipv6_interfaces() -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    words = [line.split() for line in lines]
    return [(each[5], ipaddress.ip_address(bytes.fromhex(each[0]))) for each in words]
