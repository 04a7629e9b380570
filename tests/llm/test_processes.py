"""Launches of real processes: how they work, and how they end when one of them does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests import warm

SCRIPT = Path(__file__).with_name("rank_script.py")
ROOT = Path(__file__).resolve().parents[2]
START_S, HANGS_S = 240.0, 300.0
"""A rank has imported torch by then, also on a busy machine, and a test has ended."""


class Rank:
    """One process of a launch."""

    def __init__(self, rank: int, world_size: int, port: int, scenario: str) -> None:
        self.rank = rank
        environment = {
            "RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": 0,
        }
        self.process = subprocess.Popen(
            [warm.interpreter(PYTHONPATH=str(ROOT)), str(SCRIPT), scenario],
            env=environment_with({**environment, "MASTER_ADDR": "127.0.0.1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next line that tells of ``event``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                return told
        raise AssertionError(
            f"rank {self.rank} ended without {event!r}: {self.process.communicate()[1]}"
        )

    def end(self, timeout_s: float) -> tuple[int, str]:
        """Exit status and standard error."""
        _, errors = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, errors


def environment_with(values: dict[str, object]) -> dict[str, str]:
    """This process's environment, without a launch it may be part of."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in values.items()},
    }


@contextmanager
def ranks(world_size: int, scenario: str) -> Iterator[list[Rank]]:
    """Start the ranks; whoever is still there at the end is killed."""
    # Held here, as PyTorch's agent does: a port that is free now may be another's in a second.
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    started = [Rank(rank, world_size, store.port, scenario) for rank in range(world_size)]
    # A rank that hangs must not make the test hang.
    watchdog = threading.Timer(HANGS_S, kill, (started,))
    watchdog.start()
    try:
        yield started
    finally:
        watchdog.cancel()
        kill(started)
        for rank in started:
            rank.process.communicate()


def kill(started: list[Rank]) -> None:
    """End whoever is still there."""
    for rank in started:
        rank.process.kill()


def test_servers_fail_together_live_on_and_end_when_one_is_killed() -> None:
    with ranks(3, "servers fail") as (client, first, second):
        before = client.wait_for("before")
        assert (
            before["error"] == "RemoteError"
            and "rank 2 (llm server 1) raised ArithmeticError: server 1 was asked to fail"
            in before["text"]
        )
        assert "rpc_fakes.py" in before["text"]
        assert client.wait_for("after")["weights"] == [6.0, 6.0]
        client.wait_for("summing")
        time.sleep(0.3)
        killed_at = time.time()
        # The first server is inside a sum over both by now.
        second.process.send_signal(signal.SIGKILL)
        died = client.wait_for("killed")
        assert died["error"] == "PeerDiedError" and "rank 2 (llm server 1) died" in died["text"]
        assert died["at"] - killed_at < 15.0
        status, errors = first.end(START_S)
        assert status == 1 and "rank 1 (llm server 0) ends: rank 2 (llm server 1) died" in errors


def test_a_client_that_is_killed_ends_a_busy_server_within_seconds() -> None:
    with ranks(2, "client dies") as (client, server):
        client.wait_for("asking")
        time.sleep(0.3)
        client.process.send_signal(signal.SIGKILL)
        status, errors = server.end(25)
        assert (
            status == 1
            and errors.splitlines()[-1]
            == "rank 1 (llm server 0) ends: rank 0 (rl client 0) died: its connection was closed"
        )


def test_a_model_that_cannot_be_loaded_is_raised_at_the_client_with_the_servers_traceback() -> None:
    with ranks(2, "broken model") as (client, server):
        status, errors = client.end(START_S)
        assert (
            status == 1
            and "RemoteError: rank 1 (llm server 0) raised ModelLoadError: no weights in the folder"
            in errors
        )
        assert "rank_script.py" in errors[errors.index("--- traceback of rank 1 ---") :]
        status, errors = server.end(START_S)
        assert status == 1 and "ModelLoadError: no weights in the folder" in errors


def test_an_exception_of_the_client_ends_the_server_with_one_line_that_tells_it() -> None:
    with ranks(2, "client raises") as (client, server):
        status, errors = client.end(START_S)
        assert status == 1 and errors.splitlines()[-1].endswith("LookupError: no such level")
        status, errors = server.end(START_S)
        assert (
            status == 1
            and errors.splitlines()[-1]
            == "rank 1 (llm server 0) ends: rank 0 (rl client 0) raised LookupError: no such level"
        )


def test_a_whole_run_under_accelerate_launch_ends_well_also_without_close() -> None:
    command = [
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--num_machines",
            "1",
        ),
        *(
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
            "--num_cpu_threads_per_process",
            "1",
        ),
        *(str(SCRIPT), "whole run"),
    ]
    run = subprocess.run(
        command,
        env=environment_with({"ACCELERATE_USE_CPU": "true"}),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = {line["event"]: line for line in map(json.loads, run.stdout.splitlines())}
    assert (
        told["building"]["role"] == "llm server 0"
        and told["updated"]["weights"] == [6.0]
        and told["served"]["rank"] == 1
    )
    # Of the fastest; below a millisecond on an idle machine. The bound only tells a round trip from
    # one that waits for some timer.
    assert told["scored"]["transport_ms"] < 20
