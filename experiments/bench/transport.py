"""What a call costs outside the model: client, codec, sockets, split and merge."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.bench.harness import Row, make_row, rounded
from experiments.bench.launching import be_rank, run_ranks
from experiments.bench.subjects import PAPER_LEVEL, Subjects
from experiments.bench.workloads import distinct_calls
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.types import ScoreRequest

GREETINGS = 50
"""Requests whose answer costs the server nothing: what is left is the round trip."""


@dataclass(frozen=True)
class Spec:
    """What the ranks do: the model's folder, the prompts of each scoring call, how often all are
    made, and the threads of each process.
    """

    folder: str
    calls: list[list[str]]
    repetitions: int
    num_threads: int


@dataclass(frozen=True)
class Report:
    """What the client saw, one number per call, in seconds."""

    call_seconds: list[float]
    model_seconds: list[float]
    greeting_seconds: list[float]


def transport_share(subjects: Subjects) -> list[Row]:
    """Share of a scoring call spent outside the model, and the round trip of a request that costs
    nothing, both over TCP to a server process.
    """
    setting = subjects.setting
    calls = distinct_calls(
        subjects.make_env(PAPER_LEVEL), setting.distinct_calls, setting.num_envs, template="lamorel"
    )
    spec = Spec(
        str(subjects.folder),
        [list(call) for call in calls],
        setting.repetitions,
        subjects.num_threads,
    )
    report = Report(**run_ranks(__name__, asdict(spec)))
    outside = [
        call - model for call, model in zip(report.call_seconds, report.model_seconds, strict=True)
    ]
    shares = [left / call for left, call in zip(outside, report.call_seconds, strict=True)]
    detail = {
        "prompts_per_call": setting.num_envs,
        "call_ms": rounded(1e3 * statistics.median(report.call_seconds)),
        "outside_ms": rounded(1e3 * statistics.median(outside)),
    }
    return [
        make_row("transport_share", shares, 0.05, "share", better="lower", detail=detail),
        make_row(
            "rpc_round_trip",
            _medians(report.greeting_seconds, setting.repetitions),
            None,
            "microseconds",
            better="lower",
        ),
    ]


def _medians(seconds: list[float], groups: int) -> list[float]:
    """Medians in microseconds of equal parts: single round trips scatter too widely for a spread to
    say something.
    """
    groups = min(groups, len(seconds))
    size = len(seconds) // groups
    return [1e6 * statistics.median(seconds[i * size : (i + 1) * size]) for i in range(groups)]


def main(path: Path) -> None:
    """Be the server or the client, as the environment says."""
    spec = Spec(**json.loads(path.read_text(encoding="utf-8")))
    be_rank(spec.folder, spec.num_threads, 1, lambda caller: asdict(_measure(caller, spec)))


def _measure(caller: Caller, spec: Spec) -> Report:
    requests = [
        ScoreRequest(tuple(call), (ACTION_NAMES,) * len(call), ("value",)) for call in spec.calls
    ]
    caller.score_batch(requests[0])
    calls, models = [], []
    for _ in range(spec.repetitions):
        for request in requests:
            start = time.perf_counter()
            result = caller.score_batch(request)
            calls.append(time.perf_counter() - start)
            models.append(result.stats["seconds"])
    return Report(calls, models, [_greet(caller) for _ in range(GREETINGS)])


def _greet(caller: Caller) -> float:
    start = time.perf_counter()
    caller.info()
    return time.perf_counter() - start
