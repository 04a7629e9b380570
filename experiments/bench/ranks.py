"""One client and one server as processes of their own, over the real transport: run by
``transport.py``, once per rank.

``python -m experiments.bench.ranks SPEC`` with torchrun's variables in the environment; SPEC is a
JSON file. The client prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.bench.launching import be_rank
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
