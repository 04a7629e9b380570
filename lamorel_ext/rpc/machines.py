"""How the machines of a launch find out, before their ranks connect, under which addresses they
reach each other, and that they do.

Each machine tells its address in the launch's store: the one towards the place where the machines
meet. The machine that is this place may know itself as loopback; it takes its address towards
another one. Then each calls at every other: what does not get through is named at once on all
machines, where torch would wait for its timeout.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from lamorel_ext.errors import RpcError
from lamorel_ext.processes.network import address_towards, is_loopback, use_interface
from lamorel_ext.rpc.rendezvous import Store, read_text

CALL_S = 10.0
"""Seconds for a connection between two machines."""


@dataclass(frozen=True)
class Machine:
    """This machine among those of the launch.

    Attributes:
        number: From 0.
        machines: How many there are.
        first: True in the one rank that speaks for the machine.
        meeting_place: ``MASTER_ADDR``.
    """

    number: int
    machines: int
    first: bool
    meeting_place: str

    @property
    def host(self) -> str:
        """Its own name, for people."""
        return socket.gethostname()


def machine_of_environment(num_machines: int, ranks: int) -> Machine:
    """From the variables of torch's launcher.

    Args:
        num_machines: Where the launcher does not say.
        ranks: Of the whole launch.
    """
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK") or 0)
    per_machine = max(1, ranks // num_machines)
    return Machine(
        int(os.environ.get("GROUP_RANK") or rank // per_machine),
        int(os.environ.get("GROUP_WORLD_SIZE") or num_machines),
        local == 0,
        os.environ.get("MASTER_ADDR", "localhost"),
    )


def agree_on_addresses(
    store: Store, me: Machine, timeout_s: float, tell: Callable[[str], None]
) -> str:
    """Address of this machine for the other ones; every rank must call it. Gloo and NCCL use its
    interface from now on.

    Args:
        store: Of the launch.
        me: This machine.
        timeout_s: Seconds for machines that come late.
        tell: Called with a line about what is wrong, for the ranks of the other machines.

    Raises:
        RpcError: Two machines do not reach each other; names both.
    """
    if me.first:
        try:
            own = _own_address(store, me, timeout_s)
            store.set(f"machine {me.number}", f"{own} {me.host}")
            use_interface(own)
            _call_the_others(store, me, own, timeout_s)
        except RpcError as error:
            tell(str(error))
            raise
    own = read_text(store, f"machine {me.number}", timeout_s).split(" ", 1)[0]
    use_interface(own)
    return own


def _own_address(store: Store, me: Machine, timeout_s: float) -> str:
    own = address_towards(me.meeting_place)
    # The store was reached at this place: another machine's loopback leads there only where all
    # share a host.
    if own is not None and (me.number or not is_loopback(own)):
        return own
    theirs, host = me.meeting_place, "the meeting place"
    if me.number == 0:
        theirs, host = read_text(store, "machine 1", timeout_s).split(" ", 1)
        own = address_towards(theirs)
    if own is None:
        raise RpcError(
            f"no address of machine {me.number} ({me.host}) leads to {theirs} ({host}), where"
            f" another of the {me.machines} machines is"
        )
    return own


def _call_the_others(store: Store, me: Machine, own: str, timeout_s: float) -> None:
    others = [number for number in range(me.machines) if number != me.number]
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    with socket.create_server((own, 0), family=family, backlog=2 * me.machines + 16) as door:
        store.set(f"door of machine {me.number}", str(door.getsockname()[1]))
        for number in others:
            port = int(read_text(store, f"door of machine {number}", timeout_s))
            theirs, host = read_text(store, f"machine {number}", timeout_s).split(" ", 1)
            try:
                socket.create_connection(
                    (theirs, port), timeout=CALL_S, source_address=(own, 0)
                ).close()
            except OSError as error:
                raise RpcError(
                    f"machine {me.number} ({me.host}, {own}) does not reach machine {number}"
                    f" ({host}, {theirs}): {error.strerror or error}; the ranks connect on ports"
                    " that the system chooses, so a firewall between them must let these through"
                ) from error
        store.set(f"machine {me.number} reached all", "yes")
        for number in others:
            with suppress(RpcError):  # whoever did not get through says it
                read_text(store, f"machine {number} reached all", 2 * CALL_S)
