"""How machines find their addresses, and what they say where they do not reach each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from lamorel_ext.errors import RpcError
from lamorel_ext.processes import network, presence, secret
from lamorel_ext.rpc import distributed, machines
from lamorel_ext.rpc.machines import Machine, agree_on_addresses, machine_of_environment


def agree(
    number: int, store: dist.Store, told: list[str], count: int = 2, place: str = "head"
) -> str:
    return agree_on_addresses(store, Machine(number, count, True, place), 5.0, told.append)


def ways(monkeypatch: pytest.MonkeyPatch, found: Mapping[str, str]) -> None:
    """What ``address_towards`` finds; 127.0.0.0/24 stands for a network."""
    monkeypatch.setattr(machines, "address_towards", found.get)
    monkeypatch.setattr(machines, "is_loopback", lambda address: address.startswith("127.0.1."))
    monkeypatch.setattr(machines, "use_interface", lambda address: None)


@pytest.mark.parametrize("count", [2, 3])
def test_machines_take_the_address_towards_the_meeting_place(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    ways(monkeypatch, {"head": "127.0.0.5"})
    store, told = dist.HashStore(), list[str]()
    with ThreadPoolExecutor() as threads:
        own = list(threads.map(lambda number: agree(number, store, told, count), range(count)))
    assert own == ["127.0.0.5"] * count and not told


def test_a_machine_that_knows_itself_as_loopback_takes_the_address_towards_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways(monkeypatch, {"head": "127.0.1.1", "127.0.0.6": "127.0.0.7", "outside": "127.0.0.6"})
    store, told = dist.HashStore(), list[str]()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(agree, 0, store, told)
        second = threads.submit(agree, 1, store, told, place="outside")
        assert (first.result(), second.result()) == ("127.0.0.7", "127.0.0.6")
    assert not told


@pytest.mark.parametrize("machine", [0, 1])
def test_no_way_to_the_other_machine_is_said_with_both(
    monkeypatch: pytest.MonkeyPatch, machine: int
) -> None:
    ways(monkeypatch, {})
    store, told = dist.HashStore(), list[str]()
    store.set("machine 1", "10.9.9.9 far")
    with pytest.raises(RpcError, match=f"no address of machine {machine} .* leads to"):
        agree(machine, store, told)
    assert len(told) == 1 and ("10.9.9.9 (far)" if machine == 0 else "head") in told[0]


def test_a_machine_that_cannot_be_called_is_said_with_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways(monkeypatch, {"head": "127.0.0.5"})
    store, told = dist.HashStore(), list[str]()
    with socket.create_server(("127.0.0.6", 0)) as gone:
        port = gone.getsockname()[1]
    store.set("machine 1", "127.0.0.6 other")
    store.set("door of machine 1", str(port))
    expected = (
        rf"machine 0 \({socket.gethostname()}, 127.0.0.5\) does not reach machine 1"
        r" \(other, 127.0.0.6\): Connection refused"
    )
    with pytest.raises(RpcError, match=expected):
        agree(0, store, told)
    assert len(told) == 1


def test_ranks_that_do_not_speak_for_their_machine_take_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[str] = []
    monkeypatch.setattr(machines, "use_interface", used.append)
    store = dist.HashStore()
    store.set("machine 1", "127.0.0.9 here")
    assert agree_on_addresses(store, Machine(1, 2, False, "head"), 1.0, print) == "127.0.0.9"
    assert used == ["127.0.0.9"]


def test_the_launcher_says_which_machine_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GROUP_RANK", "GROUP_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "5")
    assert machine_of_environment(3, 6) == Machine(2, 3, True, "localhost")
    for name, value in {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "LOCAL_RANK": "4"}.items():
        monkeypatch.setenv(name, value)
    assert machine_of_environment(3, 6) == Machine(1, 2, False, "localhost")


# --- addresses and interfaces ---------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_interface_is_found_by_its_address(address: str) -> None:
    assert network.interface_of(address) in ("lo", None if ":" in address else "lo")


def test_an_address_of_nobody_has_no_interface() -> None:
    assert network.interface_of("192.0.2.77") is None
    assert network.interface_of("no address") is None


def test_the_interface_is_named_to_torch_unless_the_user_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "interface_of", {"10.0.0.1": "eth7"}.get)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    network.use_interface("10.0.0.1")
    network.use_interface("10.0.0.2")
    assert os.environ.pop("NCCL_SOCKET_IFNAME") == "eth7"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


@pytest.mark.parametrize(
    ("machine", "address", "problem"),
    [
        (0, "127.0.0.1", "is 127.0.0.1 on"),
        (0, "localhost", "this machine alone"),
        (1, "127.0.1.1", "is 127.0.1.1 on"),
        (1, "head", "is 127.0.1.1 on"),
        (0, "head", ""),  # Debian's name of the own host
        (1, "192.0.2.1", ""),
        (1, "nobody", "cannot be looked up on"),
        (1, "10.0.0..1", "cannot be looked up on"),  # no name at all, says Python's own exception
    ],
)
def test_a_meeting_place_that_is_one_machine_alone_is_told(
    monkeypatch: pytest.MonkeyPatch, machine: int, address: str, problem: str
) -> None:
    look_up = socket.getaddrinfo

    def looked_up(name: str, *args: object, **keys: object) -> object:
        if name == "nobody":
            raise socket.gaierror(-2, "Name or service not known")
        return look_up("127.0.1.1" if name == "head" else name, *args, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    found = network.why_nobody_meets_there(machine, address)
    assert problem in found and bool(found) == bool(problem)
    assert address != "10.0.0..1" or not network.is_here(address)


def test_a_script_shows_that_it_lives_before_it_waits_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    for each in ("announce", "_show_life", "_default_store"):
        monkeypatch.setattr(distributed, each, lambda *_, name=each: begun.append(name))
    launch = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "head", "MASTER_PORT": "1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    distributed.meet()
    assert begun == ["announce", "_show_life", "_default_store"]
    monkeypatch.setenv("WORLD_SIZE", "1")  # as containers have it: no launch
    monkeypatch.delenv("MASTER_ADDR")
    distributed.meet()
    assert len(begun) == 3


def test_launchers_of_a_trial_on_one_host_see_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert not presence.share_a_host("5", 0, 2, 0.1)
    (secret.private_folder() / "launch-6-machine-1").write_text(presence.this_process().text)
    assert presence.share_a_host("6", 0, 2, 5.0)
