"""Two machines without Slurm: names that lead to loopback, cuts, delay, and what is said where they
do not reach each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamorel_ext.config import load_config
from launchers.command import machine_commands
from tests.cluster.conftest import ROOT, SMALL, curve, launch_words
from tests.cluster.slurm_cluster import PATIENCE_S
from tests.cluster.two_machines import Cable, Line, Machine, end_all, two_machines

PLAIN = "10.0.7.1 m1\n10.0.7.2 m2\n"
DEBIAN = {"m1": "127.0.1.1 m1\n10.0.7.2 m2\n", "m2": "127.0.1.1 m2\n10.0.7.1 m1\n"}
"""Each machine knows itself as loopback."""
PORT = 29507


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    commands: list[subprocess.Popen[str]] = []
    yield commands
    end_all(commands)


def start(
    machines: tuple[Machine, Machine], started: list[subprocess.Popen[str]], run: Path,
    *own: str, places: tuple[str, str] = ("m1", "m1"),
) -> list[subprocess.Popen[str]]:  # fmt: skip
    """Start both machines' halves of a run."""
    token = os.urandom(16).hex()
    for number, machine in enumerate(machines):
        words = launch_words(
            "train", *arguments(run, *own, place=places[number]),
            f"lamorel_args.accelerate_args.machine_rank={number}",
        )  # fmt: skip
        started.append(machine.start(words, ROOT, LAMOREL_EXT_TOKEN=token))
    return started


def arguments(run: Path, *own: str, place: str = "m1") -> list[str]:
    """Of a run on both machines."""
    return [
        *SMALL, f"run.output_dir={run}", *own, "lamorel_args.accelerate_args.num_machines=2",
        f"lamorel_args.accelerate_args.main_process_ip={place}",
        f"lamorel_args.accelerate_args.main_process_port={PORT}",
    ]  # fmt: skip


def wait(started: list[subprocess.Popen[str]]) -> tuple[list[int | None], float]:
    """Exit statuses, None for who is still there, and the seconds it took."""
    begun = time.monotonic()
    while time.monotonic() < begun + PATIENCE_S and any(each.poll() is None for each in started):
        time.sleep(0.2)
    return [each.poll() for each in started], time.monotonic() - begun


def logs(machines: tuple[Machine, Machine]) -> str:
    return "\n".join(f"--- {machine.name}\n{machine.log}" for machine in machines)


def wait_for_training(run: Path, started: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list((run / "checkpoints").glob("*")):
        assert time.monotonic() < deadline and all(each.poll() is None for each in started)
        time.sleep(0.1)


def test_names_that_lead_to_loopback_give_the_curve_of_one_machine(
    tmp_path: Path, started: list[subprocess.Popen[str]], expected: list[dict[str, str]]
) -> None:
    with two_machines(tmp_path, DEBIAN) as machines:
        Cable(machines)
        assert wait(start(machines, started, tmp_path / "run"))[0] == [0, 0], logs(machines)
    assert curve(tmp_path / "run") == expected


def test_accelerates_own_launcher_does_as_well(
    tmp_path: Path, started: list[subprocess.Popen[str]], expected: list[dict[str, str]]
) -> None:
    """The lines that a dry run prints for each machine."""
    words = arguments(tmp_path / "run")
    commands = machine_commands(load_config(words[2:], words[1]), "train", words)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with two_machines(tmp_path, DEBIAN) as machines:
        Cable(machines)
        for machine, command in zip(machines, commands, strict=True):
            own = {**command.environment, "LAMOREL_EXT_TOKEN": "f" * 32, "PATH": path}
            started.append(machine.start(list(command.argv), ROOT, **own))
        assert wait(started)[0] == [0, 0], logs(machines)
    assert curve(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("kind", "cut_s"), [(Cable, 10), (Line, 60)], ids=["cable, 10 s", "switch, 60 s"]
)
def test_a_cut_is_survived_with_no_request_lost_or_done_twice(
    tmp_path: Path, started: list[subprocess.Popen[str]], expected: list[dict[str, str]],
    kind: type[Cable] | type[Line], cut_s: int,
) -> None:  # fmt: skip
    with two_machines(tmp_path, {"m1": PLAIN, "m2": PLAIN}) as machines:
        network = kind(machines)
        start(machines, started, tmp_path / "run")
        wait_for_training(tmp_path / "run", started)
        network.pull()
        time.sleep(cut_s)
        network.plug()
        assert wait(started)[0] == [0, 0], logs(machines)
        network.close()
    assert curve(tmp_path / "run") == expected


def test_a_cut_longer_than_the_patience_ends_both_machines(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    with two_machines(tmp_path, {"m1": PLAIN, "m2": PLAIN}) as machines:
        network = Line(machines)
        start(
            machines, started, tmp_path / "run", "lamorel_args.peer_timeout=10",
            "run.total_steps=200000",
        )  # fmt: skip
        wait_for_training(tmp_path / "run", started)
        network.pull()
        statuses, took_s = wait(started)
        assert None not in statuses and 0 not in statuses, logs(machines)
        assert took_s < 100 and "peer_timeout" in logs(machines)
        network.close()


def test_a_delay_of_100_ms_changes_nothing_but_the_time(
    tmp_path: Path, started: list[subprocess.Popen[str]], expected: list[dict[str, str]]
) -> None:
    with two_machines(tmp_path, {"m1": PLAIN, "m2": PLAIN}) as machines:
        network = Line(machines, delay_s=0.1)
        assert wait(start(machines, started, tmp_path / "run"))[0] == [0, 0], logs(machines)
        network.close()
    assert curve(tmp_path / "run") == expected


# --- machines that do not reach each other --------------------------------------------------------


@pytest.mark.parametrize("place", ["127.0.0.1", "localhost"])
def test_a_meeting_place_that_is_loopback_is_said_on_both_machines(
    tmp_path: Path, started: list[subprocess.Popen[str]], place: str
) -> None:
    with two_machines(tmp_path, {"m1": PLAIN, "m2": PLAIN}) as machines:
        Cable(machines)
        statuses, _ = wait(start(machines, started, tmp_path / "run", places=(place, place)))
        assert statuses == [2, 2], logs(machines)
        for machine in machines:
            assert f"main_process_ip: {place} is 127.0.0.1 on {machine.name}" in machine.log


@pytest.mark.parametrize(
    ("hosts", "places", "wrong", "statuses", "waits"),
    [
        (
            {"m1": PLAIN, "m2": "127.0.1.1 m1 m2\n"}, ("m1", "m1"), 1, [1, 2],
            f"machine 0 (m1) waits at m1:{PORT} for the other one of 2 machines; there"
            " main_process_ip must lead here: 10.0.7.1",
        ),
        (
            {"m1": PLAIN, "m2": PLAIN}, ("localhost", "m1"), 0, [2, 1],
            f"machine 1 (m2) waits for machine 0 to listen at m1:{PORT}: ",
        ),
    ],
    ids=["machine 1", "machine 0"],
)  # fmt: skip
def test_where_one_machine_has_a_wrong_name_the_other_says_for_whom_it_waits_and_gives_up(
    tmp_path: Path, started: list[subprocess.Popen[str]], hosts: dict[str, str],
    places: tuple[str, str], wrong: int, statuses: list[int], waits: str,
) -> None:  # fmt: skip
    with two_machines(tmp_path, hosts) as machines:
        Cable(machines)
        patience = "lamorel_args.peer_timeout=10"
        started = start(machines, started, tmp_path / "run", patience, places=places)
        assert wait(started)[0] == statuses, logs(machines)
        assert f"main_process_ip: {places[wrong]} is 127.0." in machines[wrong].log
        assert waits in machines[1 - wrong].log, logs(machines)


def test_a_firewall_between_the_ranks_is_said_on_both_machines_with_both_names(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    with two_machines(tmp_path, {"m1": PLAIN, "m2": PLAIN}) as machines:
        network = Line(machines, only_port=PORT)
        statuses, _ = wait(start(machines, started, tmp_path / "run"))
        assert None not in statuses and 0 not in statuses, logs(machines)
        for machine in machines:
            assert "does not reach machine" in machine.log, logs(machines)
            assert "(m1, 10.0.7.1)" in machine.log and "(m2, 10.0.7.2)" in machine.log
        network.close()
