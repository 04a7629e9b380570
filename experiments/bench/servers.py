"""What more servers give. A second one of one thread: distinct prompts scored, and a PPO epoch, by
launches of one server and of two that take turns. Several: how evenly an epoch is shared out.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.bench.harness import Detail, Row, make_row, rates, ratios, rounded
from experiments.bench.launching import be_rank, run_ranks
from experiments.bench.subjects import LOCAL_LEVEL, Subjects
from experiments.bench.updates import Transitions, rollout_prompts
from experiments.bench.workloads import distinct_calls, ppo_data
from lamorel_ext.llm.updaters.batches import draw_minibatches, make_batch
from lamorel_ext.rpc.caller import Caller
from lamorel_ext.types import ScoreRequest

BAR = 1.7
MINIBATCH = 64
WORK = ("score", "update")
SHARES = {2: 1.9, 4: 3.6, 8: 6.5}
"""Servers, and by how much they are to divide an epoch's tokens."""


@dataclass(frozen=True)
class Spec:
    """What a launch does: the model's folder, distinct prompts, servers and their threads."""

    folder: str
    prompts: list[str]
    num_servers: int
    num_threads: int


@dataclass(frozen=True)
class Report:
    """Seconds of one call for all scores and of one PPO epoch; the scores' sum, to compare."""

    score: float
    update: float
    total: float


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
    """How many times one server's distinct prompts two servers answer in the same time, and how
    many times faster they update; a thread each.
    """
    setting = subjects.setting
    env = subjects.make_env(LOCAL_LEVEL)
    calls = distinct_calls(env, setting.distinct_calls, setting.num_envs)
    prompts = [prompt for call in calls for prompt in call]
    reports: dict[int, list[Report]] = {1: [], 2: []}
    for _ in range(setting.repetitions):
        for number, own in reports.items():
            spec = Spec(str(subjects.folder), prompts, number, subjects.num_threads)
            told = run_ranks(__name__, asdict(spec), number)
            own.append(Report(**told))
    off = max(abs(two.total - one.total) for one in reports[1] for two in reports[2])
    shared: dict[str, Detail] = {"prompts": len(prompts), "minibatch_size": MINIBATCH}
    shared["mean_difference_nats"] = rounded(off / (6 * len(prompts)))
    rows = []
    for name in WORK:
        seconds = {
            f"servers_{number}": [getattr(report, name) for report in own]
            for number, own in reports.items()
        }
        detail = shared | rates(len(prompts), "prompts", seconds)
        values = ratios(seconds["servers_1"], seconds["servers_2"])
        rows.append(make_row(f"two_servers_{name}", values, BAR, "x", detail=detail))
    return rows


def main(path: Path) -> None:
    """Be a server or the client, as the environment says."""
    spec = Spec(**json.loads(path.read_text(encoding="utf-8")))
    be_rank(
        spec.folder,
        spec.num_threads,
        spec.num_servers,
        lambda caller: asdict(_measure(caller, spec.prompts)),
    )


def _measure(caller: Caller, prompts: list[str]) -> Report:
    transitions = Transitions(tuple(prompts), ppo_data(len(prompts), seed=0))
    scores = ScoreRequest(transitions.prompts, transitions.candidates)
    update = transitions.request(min(MINIBATCH, len(prompts)))
    # Each once untimed: buffers, and the optimiser's moments.
    first = caller.score_batch(scores)
    caller.update_batch(update)
    start = time.perf_counter()
    caller.score_batch(scores)
    middle = time.perf_counter()
    caller.update_batch(update)
    end = time.perf_counter()
    return Report(middle - start, end - middle, float(first.log_probs.double().sum()))
