"""What more servers give. A second one of one thread: distinct prompts scored, a PPO epoch, and a
rollout of many copies, by a launch of one server and one of two that take turns. Several: how
evenly an epoch is shared out.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.bench.harness import (
    Contender,
    Detail,
    Row,
    Seconds,
    make_row,
    rates,
    ratios,
    rounded,
    seconds_of,
    take_turns,
    warm,
)
from experiments.bench.launching import be_rank, launched
from experiments.bench.pipeline import Collector
from experiments.bench.subjects import LOCAL_LEVEL, Subjects
from experiments.bench.updates import Transitions, rollout_prompts
from experiments.bench.workloads import distinct_calls, ppo_data
from lamorel_ext.config import load_config
from lamorel_ext.llm.updaters.batches import draw_minibatches, make_batch
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.types import ScoreRequest

BAR = 1.7
MINIBATCH = 64
NOT_SHARED = {
    "score": "the client's work, and the way there and back",
    "update": "each server sums all gradients and steps every weight",
}
"""What a second server cannot halve, by the work."""
SHARES = {2: 1.9, 4: 3.6, 8: 6.5}
"""Servers, and by how much they are to divide an epoch's tokens."""


@dataclass(frozen=True)
class Spec:
    """What a launch does: the model's folder, distinct prompts, servers and their threads, copies
    and steps of a rollout.
    """

    folder: str
    prompts: list[str]
    num_servers: int
    num_threads: int
    num_envs: int
    num_steps: int


def update_shares(subjects: Subjects) -> list[Row]:
    """How many times fewer tokens of prompts the busiest of several servers reads in a PPO epoch
    over a rollout than one alone: counted, not timed.
    """
    prompts = rollout_prompts(subjects)
    transitions = Transitions(tuple(prompts), ppo_data(len(prompts), seed=0))
    batch = make_batch([transitions.request(MINIBATCH)])
    tokens = torch.tensor([len(subjects.tokenizer(each)["input_ids"]) for each in batch.prompts])
    busiest = dict.fromkeys((1, *SHARES), 0)
    for minibatch in draw_minibatches(len(prompts), MINIBATCH, epochs=1, seed=0):
        for servers in busiest:
            shares = [batch.share(minibatch.places, rank, servers) for rank in range(servers)]
            pairs = [batch.pair_ids[share].unique() for share in shares]
            busiest[servers] += max(int(tokens[own].sum()) for own in pairs)
    detail: dict[str, Detail] = {"transitions": len(prompts), "minibatch_size": MINIBATCH}
    return [
        make_row(
            f"update_shares_{servers}", [busiest[1] / busiest[servers]], bar, "x", detail=detail
        )
        for servers, bar in SHARES.items()
    ]


def two_servers(subjects: Subjects) -> list[Row]:
    """How many times one server's distinct prompts two servers answer in the same time, how many
    times faster they update, and how many times faster a rollout of PPO with many copies of
    GoToLocal is; a thread each.
    """
    setting = subjects.setting
    env = subjects.make_env(LOCAL_LEVEL)
    calls = distinct_calls(env, setting.distinct_calls, setting.num_envs)
    prompts = [prompt for call in calls for prompt in call]
    copies, steps = setting.large_batch, setting.rollout_steps
    with ExitStack() as launches:
        asks = {}
        for number in (1, 2):
            spec = Spec(str(subjects.folder), prompts, number, subjects.num_threads, copies, steps)
            asks[number] = launches.enter_context(launched(__name__, asdict(spec), number))
        one, two = (ask("ready") for ask in asks.values())
        contenders = {
            f"{work}_{number}": Contender(partial(_seconds, ask, work), warm_up=warm)
            for work in (*NOT_SHARED, "rollout")
            for number, ask in asks.items()
        }
        seconds = take_turns(contenders, setting.repetitions)
    shared: dict[str, Detail] = {"prompts": len(prompts), "minibatch_size": MINIBATCH}
    shared["mean_difference_nats"] = rounded(abs(two - one) / (6 * len(prompts)))
    rows = []
    for work, reason in NOT_SHARED.items():
        turns = {f"servers_{number}": seconds[f"{work}_{number}"] for number in asks}
        values = ratios(turns["servers_1"], turns["servers_2"])
        left = statistics.median(2 / value - 1 for value in values)
        detail = shared | rates(len(prompts), "prompts", turns) | {"not_shared": rounded(left)}
        in_the_way = f"{left:.0%} of one server's time a second one does not halve: {reason}"
        rows.append(make_row(f"two_servers_{work}", values, BAR, "x", "higher", detail, in_the_way))
    turns = {f"servers_{number}": seconds[f"rollout_{number}"] for number in asks}
    detail = {"num_envs": copies, "num_steps": steps} | rates(copies * steps, "env_steps", turns)
    values = ratios(turns["servers_1"], turns["servers_2"])
    return [*rows, make_row("rollout_256", values, None, "x", detail=detail)]


def _seconds(ask: Callable[[str], Any], work: str) -> Seconds:
    return Seconds(ask(work))


def main(path: Path) -> None:
    """Be a server or the client, as the environment says."""
    spec = Spec(**json.loads(path.read_text(encoding="utf-8")))
    be_rank(spec.folder, spec.num_threads, spec.num_servers, partial(_answer, spec))


def _answer(spec: Spec, caller: Caller) -> None:
    """Do what each line of standard input names, and print how many seconds it took.

    ``ready`` scores and updates once untimed, for buffers and the optimiser's moments, and prints
    the sum of the scores, to compare.
    """
    transitions = Transitions(tuple(spec.prompts), ppo_data(len(spec.prompts), seed=0))
    scores = ScoreRequest(transitions.prompts, transitions.candidates)
    minibatch = min(MINIBATCH, len(spec.prompts))
    overrides = [f"env.level={LOCAL_LEVEL}", f"env.num_envs={spec.num_envs}"]
    config = load_config(["arm=llm_policy", f"student.num_steps={spec.num_steps}", *overrides])
    works: dict[str, Callable[[], object]] = {
        "score": partial(caller.score_batch, scores),
        "update": partial(caller.update_batch, transitions.request(minibatch)),
        "rollout": Collector(config, caller, False).collect,
    }
    for line in sys.stdin:
        if (asked := line.strip()) == "ready":
            told = float(caller.score_batch(scores).log_probs.double().sum())
            caller.update_batch(transitions.sample(minibatch).request(minibatch))
        else:
            told = seconds_of(works[asked])
        print(json.dumps(told), flush=True)
