"""One rank of a launch with fake models; what it does is the first argument. Prints one JSON line
per thing that a test waits for.
"""

from __future__ import annotations

import json
import os
import sys
import time

from lamorel_ext.config import DistributedSetupArgs, LamorelArgs
from lamorel_ext.errors import ModelLoadError, RpcError
from lamorel_ext.llm.serving import Hosted, serve
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import launched_role
from lamorel_ext.rpc.runtime import connect
from lamorel_ext.rpc.topology import Placement
from lamorel_ext.types import ScoreRequest
from tests.rpc.rpc_fakes import ACTIONS, FakeHost, SumUpdater


def say(**values: object) -> None:
    """Tell the test."""
    print(json.dumps({"rank": int(os.environ["RANK"]), "pid": os.getpid(), **values}), flush=True)


def build(place: Placement) -> Hosted:
    say(event="building", role=str(place.role), device=place.device)
    if scenario == "broken model":
        raise ModelLoadError("no weights in the folder")
    return Hosted(FakeHost(), {"sum": SumUpdater()})


def update(caller: Caller, **options: float) -> list[float]:
    results = caller.update(
        ["a", "b", "c"], [ACTIONS] * 3, signals=[1.0, 2.0, 3.0], steps=2, **options
    )
    return [stats["weight"] for stats in results]


def attempt(caller: Caller, event: str, **options: float) -> None:
    """Update, and tell what came of it and when."""
    try:
        say(event=event, weights=update(caller, **options))
    except RpcError as error:
        say(event=event, error=type(error).__name__, text=str(error), at=time.time())


def work(caller: Caller) -> None:
    """The client's part."""
    prompts = tuple(
        "Goal of the agent: go to the red ball\nObservation: You see a wall 2 steps left, You see a red ball"
        for _ in range(32)
    )
    request = ScoreRequest(prompts, (ACTIONS,) * 32, ("value",))
    if scenario == "whole run":
        caller.score_batch(request)
        calls = 100
        started = time.perf_counter()
        for _ in range(calls):
            caller.score_batch(request)
        say(
            event="scored",
            ms=(time.perf_counter() - started) / calls * 1e3,
            transport_ms=caller.stats["transport_seconds"] / (calls + 1) * 1e3,
        )
        say(event="updated", weights=update(caller))
        # The process ends without close(): leaving well is not an accident.
    elif scenario == "servers fail":
        attempt(caller, "before", fail_rank=1, fail_step=1)
        attempt(caller, "after")
        say(event="summing")
        attempt(caller, "killed", sleep_rank=1, sleep=30.0)
    elif scenario == "broken model":
        caller.score_batch(request)
    elif scenario == "client dies":
        say(event="asking")
        caller.score(["sleep 30"], [["a"]])
    elif scenario == "client raises":
        raise LookupError("no such level")


def main() -> None:
    num_servers = int(os.environ["WORLD_SIZE"]) - 1
    args = LamorelArgs(gloo_timeout=60, distributed_setup_args=DistributedSetupArgs(1, num_servers))
    role = launched_role(args)
    assert role is not None
    if role.is_server:
        serve(args, build)
        say(event="served")
    else:
        work(connect(args))


if __name__ == "__main__":
    scenario = sys.argv[1]
    main()
