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

import torch

from lamorel_ext.config import LamorelArgs, LlmArgs
from lamorel_ext.llm.loading import load_host
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.serving import Hosted, serve
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import launched_role
from lamorel_ext.rpc.runtime import connect
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
    torch.set_num_threads(spec.num_threads)
    # Without memory every call is computed; with it, there would be nothing to compare transport
    # with.
    args = LamorelArgs(
        llm_args=LlmArgs(model_path=spec.folder, cache_size=0, num_threads=spec.num_threads)
    )
    role = launched_role(args)
    if role is not None and role.is_server:
        serve(
            args,
            lambda _: Hosted(
                load_host(args.llm_args, torch.device("cpu"), {"value": ValueHead()}),
                make_updaters(),
            ),
        )
    else:
        with connect(args) as caller:
            print(json.dumps(asdict(_measure(caller, spec))))


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
