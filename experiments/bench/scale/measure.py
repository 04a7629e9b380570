"""CPU seconds of the client and of each server in a real launch, call by call.

CPU seconds and not the clock's: they mean the same with fewer cores than processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from experiments.bench.launching import be_rank, run_ranks
from experiments.bench.updates import Transitions
from experiments.bench.workloads import ppo_data
from lamorel_ext.processes.ranks import rank_and_size
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.types import ScoreRequest

ROUND_TRIPS = 50


@dataclass(frozen=True)
class Spec:
    """What a launch does.

    Attributes:
        folder: Of the model.
        prompts: Distinct ones, enough for every size.
        servers: How many.
        sizes: Prompts of a scoring call and samples of an optimiser step.
        repetitions: Turns in which every call is made once; medians count.
    """

    folder: str
    prompts: list[str]
    servers: int
    sizes: list[int]
    repetitions: int


@dataclass(frozen=True)
class Spent:
    """CPU seconds of one call.

    Attributes:
        client: At the client.
        server: At the busiest server.
        clock: Seconds that passed.
        spread: The highest of ``server`` minus the lowest in all turns, where it is their median.
    """

    client: float
    server: float
    clock: float
    spread: float = 0.0


@dataclass(frozen=True)
class Report:
    """What came of it: by size; the shortest way there and back, in seconds; weights trained."""

    scores: dict[int, Spent]
    updates: dict[int, Spent]
    latency: float
    parameters: int


def launch(spec: Spec) -> Report:
    """Start the ranks and measure.

    Raises:
        RuntimeError: A rank failed.
    """
    told = run_ranks(__name__, asdict(spec), spec.servers)
    scores, updates = (
        {int(size): Spent(**spent) for size, spent in told[kind].items()}
        for kind in ("scores", "updates")
    )
    return Report(scores, updates, told["latency"], told["parameters"])


def by_turns(turns: Sequence[Sequence[float]]) -> Spent:
    """A call by its turns, each the seconds of the client, of each server and on the clock.

    The busiest server is the one with the highest median: the highest figure of each turn would
    mostly be that of the server that was disturbed.
    """
    client, *servers, clock = zip(*turns, strict=True)
    busiest = max(servers, key=median)
    return Spent(median(client), median(busiest), median(clock), max(busiest) - min(busiest))


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process so far, also of those that have ended; to the nanosecond, where
    ``times`` counts hundredths.
    """
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) names its clock


def main(path: Path) -> None:
    """Be a server or the client, as the environment says."""
    spec = Spec(**json.loads(path.read_text(encoding="utf-8")))
    found = rank_and_size()
    if found is not None:
        path.with_name(f"rank {found[0]}").write_text(str(os.getpid()))

    def measure(caller: Caller) -> dict[str, object]:
        caller.info()  # every server is there, and has said who it is
        pids = [int(path.with_name(f"rank {1 + each}").read_text()) for each in range(spec.servers)]
        return asdict(_measure(caller, spec, pids))

    be_rank(spec.folder, 1, spec.servers, measure)


def _measure(caller: Caller, spec: Spec, pids: list[int]) -> Report:
    def seconds(call: Callable[[], object]) -> list[float]:
        caller.forget()  # or a prompt would go to the server that had it in a call of another size
        before, begun = [cpu_seconds(pid) for pid in (os.getpid(), *pids)], time.perf_counter()
        call()
        clock = time.perf_counter() - begun
        after = [cpu_seconds(pid) for pid in (os.getpid(), *pids)]
        return [end - start for start, end in zip(before, after, strict=True)] + [clock]

    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for size in spec.sizes:
        batch = Transitions(tuple(spec.prompts[:size]), ppo_data(size, seed=0))
        scored, update = ScoreRequest(batch.prompts, batch.candidates), batch.request(size)
        calls["score", size] = partial(caller.score_batch, scored)
        calls["update", size] = partial(caller.update_batch, update)
    for kind in ("score", "update"):
        calls[kind, max(spec.sizes)]()  # it reads every text, and makes the optimiser's moments
    # In turns, so that what else the machine does falls on every size alike.
    turns = [{key: seconds(call) for key, call in calls.items()} for _ in range(spec.repetitions)]
    scores, updates = (
        {size: by_turns([turn[kind, size] for turn in turns]) for size in spec.sizes}
        for kind in ("score", "update")
    )
    ways = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        caller.forget()
        ways.append(time.perf_counter() - begun)
    parameters = caller.info()["trainable_parameters"]
    return Report(scores, updates, min(ways), int(parameters))
