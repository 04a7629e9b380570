"""What a call costs outside the model: client, codec, sockets, split and merge."""

from __future__ import annotations

import statistics
from dataclasses import asdict

from experiments.bench.harness import Row, make_row, rounded
from experiments.bench.launching import run_ranks
from experiments.bench.ranks import Report, Spec
from experiments.bench.subjects import PAPER_LEVEL, Subjects
from experiments.bench.workloads import distinct_calls


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
    report = Report(**run_ranks("experiments.bench.ranks", asdict(spec)))
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
    size = len(seconds) // groups
    return [1e6 * statistics.median(seconds[i * size : (i + 1) * size]) for i in range(groups)]
