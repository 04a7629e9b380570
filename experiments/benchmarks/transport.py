"""What a call costs outside the model: client, codec, sockets, split and merge."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from experiments.benchmarks.harness import Row, make_row, rounded
from experiments.benchmarks.ranks import Report, Spec
from experiments.benchmarks.subjects import PAPER_LEVEL, Subjects
from experiments.benchmarks.workloads import distinct_calls

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0


def transport_share(subjects: Subjects) -> list[Row]:
    """Share of a scoring call spent outside the model, and the round trip of a request that costs nothing, both over TCP to a server process."""
    setting = subjects.setting
    calls = distinct_calls(subjects.make_env(PAPER_LEVEL), setting.distinct_calls, setting.num_envs, template="lamorel")
    report = _run(Spec(str(subjects.folder), [list(call) for call in calls], setting.repetitions, subjects.num_threads))
    outside = [call - model for call, model in zip(report.call_seconds, report.model_seconds, strict=True)]
    shares = [left / call for left, call in zip(outside, report.call_seconds, strict=True)]
    detail = {
        "prompts_per_call": setting.num_envs, "call_ms": rounded(1e3 * statistics.median(report.call_seconds)),
        "outside_ms": rounded(1e3 * statistics.median(outside)),
    }  # fmt: skip
    return [
        make_row("transport_share", shares, 0.05, "share", better="lower", detail=detail),
        make_row("rpc_round_trip", _medians(report.greeting_seconds, setting.repetitions), None, "microseconds", better="lower"),
    ]


def _medians(seconds: list[float], groups: int) -> list[float]:
    """Medians in microseconds of equal parts: single round trips scatter too widely for a spread to say something."""
    size = len(seconds) // groups
    return [1e6 * statistics.median(seconds[i * size : (i + 1) * size]) for i in range(groups)]


def _run(spec: Spec) -> Report:
    """Start both ranks; gives what the client printed.

    Raises:
        RuntimeError: One of them failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "spec.json"
        path.write_text(json.dumps(asdict(spec)), encoding="utf-8")
        port = _free_port()
        ranks = [_start(rank, port, path) for rank in (0, 1)]
        try:
            printed, complaints = ranks[0].communicate(timeout=TIMEOUT_S)
            _, more = ranks[1].communicate(timeout=TIMEOUT_S)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError(f"a rank failed:\n{complaints}\n{more}")
    return Report(**json.loads(printed.splitlines()[-1]))


def _start(rank: int, port: int, spec: Path) -> subprocess.Popen[str]:
    launch = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "experiments.benchmarks.ranks", str(spec)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | launch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
