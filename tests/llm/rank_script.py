"""One rank of a launch with fake models; what it does is the first argument. Prints one JSON line
per thing that a test waits for.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from typing import Any

import torch

from lamorel_ext.config import DistributedSetupArgs, LamorelArgs, LlmArgs, ParallelismArgs
from lamorel_ext.errors import ModelLoadError, RpcError
from lamorel_ext.llm.serving import Hosted, in_process, serve
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.rpc.distributed import launched_role
from lamorel_ext.rpc.runtime import connect
from lamorel_ext.rpc.topology import Placement
from lamorel_ext.types import ScoreRequest, UpdateRequest
from tests.rpc.rpc_fakes import ACTIONS, FakeHost, SumUpdater


def say(**values: object) -> None:
    """Tell the test."""
    print(json.dumps({"rank": int(os.environ["RANK"]), "pid": os.getpid(), **values}), flush=True)


def build(place: Placement) -> Hosted:
    say(event="building", role=str(place.role), device=place.device)
    if scenario == "broken model":
        raise ModelLoadError("no weights in the folder")
    if scenario == "one model":
        return whole_or_divided(place.model_group)
    return Hosted(FakeHost(), {"sum": SumUpdater()})


def whole_or_divided(group: Any = None) -> Hosted:
    """The embedded model."""
    from lamorel_ext.llm.loading import load_host
    from lamorel_ext.llm.module_functions import ValueHead
    from lamorel_ext.llm.updaters import make_updaters

    args = LlmArgs(dtype="float64")  # Adam makes steps of one size also of what rounding leaves
    host = load_host(args, torch.device("cpu"), {"value": ValueHead(8)}, model_group=group)
    return Hosted(host, make_updaters())


def ask_one_model(caller: Caller) -> None:
    """Ask a divided model and a whole one the same."""
    prompts = ("Goal of the agent: go to the red ball\nYou see a wall", "You see a red ball", "a")
    request = ScoreRequest(prompts, (ACTIONS,) * 3, ("value",))
    data = {"actions": torch.arange(3), "old_log_probs": torch.full((3,), -1.8)}
    data |= {"advantages": torch.tensor([1.0, -1.0, 2.0]), "returns": torch.zeros(3)}
    data["values"] = torch.zeros(3)
    learn = UpdateRequest("ppo", prompts, (ACTIONS,) * 3, torch.arange(3), 3, data, {"lr": 1e-3})
    with in_process([whole_or_divided()]) as alone:
        answers = []
        for each in (caller, alone):
            each.update_batch(learn)
            answers.append(each.score_batch(request))
        told = caller.info()
    off = float((answers[0].log_probs - answers[1].log_probs).abs().max())
    memory = {name: value for name, value in told.items() if name.startswith("memory")}
    say(event="answered", off=off, servers=caller.num_servers, memory=memory)
    try:
        while True:
            caller.update_batch(learn)
    except RpcError as error:
        say(event="asked again", error=type(error).__name__, text=str(error))


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
        (
            "Goal of the agent: go to the red ball\n"
            "Observation: You see a wall 2 steps left, You see a red ball"
        )
        for _ in range(32)
    )
    request = ScoreRequest(prompts, (ACTIONS,) * 32, ("value",))
    if scenario == "whole run":
        caller.score_batch(request)
        seconds = [caller.stats["transport_seconds"]]
        for _ in range(100):
            caller.score_batch(request)
            seconds.append(caller.stats["transport_seconds"])
        least = min(after - before for before, after in itertools.pairwise(seconds))
        say(event="scored", transport_ms=least * 1e3)
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
    elif scenario == "one model":
        ask_one_model(caller)


def main() -> None:
    num_servers = int(os.environ["WORLD_SIZE"]) - 1
    args = LamorelArgs(
        gloo_timeout=60,
        distributed_setup_args=DistributedSetupArgs(1, num_servers),
        llm_args=LlmArgs(parallelism=ParallelismArgs(fsdp=scenario == "one model")),
    )
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
