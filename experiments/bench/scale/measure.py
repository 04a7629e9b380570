"""CPU seconds of the client and of each server in a real launch, call by call.

CPU seconds and not the clock's: they mean the same with fewer cores than processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.bench.launching import be_rank, run_ranks
from experiments.bench.updates import Transitions
from experiments.bench.workloads import ppo_data, same_candidates
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
        repetitions: Of each; the least CPU time counts.
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
    """

    client: float
    server: float
    clock: float


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
    def spent(call: Callable[[], object]) -> Spent:
        found = []
        call()
        for _ in range(spec.repetitions):
            before, begun = [cpu_seconds(pid) for pid in (os.getpid(), *pids)], time.perf_counter()
            call()
            clock = time.perf_counter() - begun
            after = [cpu_seconds(pid) for pid in (os.getpid(), *pids)]
            client, *servers = (end - start for start, end in zip(before, after, strict=True))
            found.append(Spent(client, max(servers), clock))
        return min(found, key=lambda each: each.server)

    def score(size: int) -> Callable[[], object]:
        prompts = tuple(spec.prompts[:size])
        return lambda: caller.score_batch(ScoreRequest(prompts, same_candidates(prompts)))

    def update(size: int) -> Callable[[], object]:
        transitions = Transitions(tuple(spec.prompts[:size]), ppo_data(size, seed=0))
        return lambda: caller.update_batch(transitions.request(size))

    scores = {size: spent(score(size)) for size in spec.sizes}
    updates = {size: spent(update(size)) for size in spec.sizes}
    ways = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        caller.forget()
        ways.append(time.perf_counter() - begun)
    parameters = caller.info()["trainable_parameters"]
    return Report(scores, updates, min(ways), int(parameters))
