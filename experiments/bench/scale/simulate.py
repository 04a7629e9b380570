"""Predicted throughput for 1 to 1,024 servers and 1 to 256 clients, from costs that the same
command measures in launches of one, two and four servers; the launches check the model too.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch

from experiments.bench.harness import Detail, Row, make_row, rounded
from experiments.bench.scale.measure import Report, Spec, launch
from experiments.bench.scale.model import (
    Costs,
    Work,
    predict,
    rings,
    score_seconds,
    throughput,
    update_seconds,
)
from experiments.bench.subjects import LOCAL_LEVEL, Subjects
from experiments.bench.updates import Transitions
from experiments.bench.workloads import distinct_calls, ppo_data, walk
from lamorel_ext.llm.updaters.batches import make_batch
from lamorel_ext.rpc.clients import make_thread_clients
from lamorel_ext.rpc.requests import PromptPlaces, put_back, take_score
from lamorel_ext.rpc.topology import split_evenly
from lamorel_ext.types import ScoreRequest, ScoreResult

BAR = 0.15
SERVERS = tuple(2**power for power in range(11))
CLIENTS = (1, 4, 16, 64, 256)
WORK = Work()
WARM_STEPS, TIMED_STEPS = 5, 100

Tokens = Callable[[str, int, int], int]
"""Tokens at the busiest server, of ``score`` or ``update``, prompts and servers."""


def simulate(subjects: Subjects) -> list[Row]:
    """Measure, check, predict."""
    large = subjects.setting.num_envs
    small, middle = large // 8 or 1, large * 5 // 8
    sizes = {1: [small, middle, large], 2: [2 * small, middle]}
    env = subjects.make_env(LOCAL_LEVEL)
    prompts = [text for call in distinct_calls(env, 1, large) for text in call]
    ids = subjects.tokenizer(prompts, add_special_tokens=False)["input_ids"]
    tokens = partial(busiest_tokens, prompts, [len(own) for own in ids])
    reports = {}
    for servers in subjects.setting.check_servers:
        spec = Spec(
            str(subjects.folder),
            prompts,
            servers,
            sizes.get(servers, [middle]),
            subjects.setting.repetitions,
        )
        reports[servers] = launch(spec)
    costs = fit(reports, tokens, small, large, env_step_seconds(subjects), merge_seconds(prompts))
    curve = _curve(costs)
    print(table(curve), file=sys.stderr)
    return [_costs_row(costs), _check_row(costs, reports, tokens, middle), *curve_rows(curve)]


def busiest_tokens(
    prompts: Sequence[str], lengths: Sequence[int], kind: str, size: int, servers: int
) -> int:
    """Tokens at the server that has most of the first ``size`` prompts, shared out as a call is.

    Args:
        prompts: Distinct ones.
        lengths: Tokens of each.
        kind: ``score``, whose prompts are shared out in their order, or ``update``.
        size: Prompts of the call.
        servers: How many share it.
    """
    shares: list[Sequence[int]] = [*split_evenly(size, servers)]
    if kind == "update":
        samples = Transitions(tuple(prompts[:size]), ppo_data(size, seed=0))
        batch, places = make_batch([samples.request(size)]), torch.arange(size)
        shares = [batch.share(places, rank, servers).tolist() for rank in range(servers)]
    return max(sum(lengths[place] for place in share) for share in shares)


def fit(
    reports: Mapping[int, Report],
    tokens: Tokens,
    small: int,
    large: int,
    env_step: float,
    merge_prompt: float,
) -> Costs:
    """Costs from calls of two sizes to one server, and from an update of two servers with the
    smaller size at each: the less they compute, the better the sum between them is seen.
    """
    one, two = reports[1], reports[2]
    read = {n: tokens("score", n, 1) for n in (small, large)}
    server_token, server_call = _line({at: one.scores[n].server for n, at in read.items()})
    client_prompt, client_call = _line({n: one.scores[n].client for n in read})
    update_token, update_step = _line({at: one.updates[n].server for n, at in read.items()})
    client_sample, _ = _line({n: one.updates[n].client for n in read})
    alone = update_step + tokens("update", 2 * small, 2) * update_token
    ring_share = max(0.0, two.updates[2 * small].server - alone) / rings(2)
    return Costs(
        env_step=env_step,
        client_call=client_call,
        client_prompt=client_prompt,
        client_sample=client_sample,
        merge_prompt=merge_prompt,
        prompt_tokens=read[large] / large,
        server_call=server_call,
        server_token=server_token,
        update_step=update_step,
        update_token=update_token,
        ring_share=ring_share,
        parameters=one.parameters,
        latency=one.latency,
    )


def env_step_seconds(subjects: Subjects) -> float:
    """CPU seconds of a step of one copy, with its prompt."""
    env = subjects.make_env(LOCAL_LEVEL)
    steps = walk(env, "glam", 1)
    for _ in range(WARM_STEPS):
        next(steps)

    def run() -> None:
        for _ in itertools.islice(steps, TIMED_STEPS):
            pass

    return _cpu(run) / (TIMED_STEPS * env.num_envs)


def merge_seconds(prompts: list[str]) -> float:
    """CPU seconds at each client for a prompt of the whole batch: cut, put back, exchanged."""
    request = ScoreRequest(tuple(prompts), (("a",) * 6,) * len(prompts))
    clients = make_thread_clients(2)
    own = torch.zeros(len(prompts) // 2, 6)

    def cut_and_put_back() -> None:
        rows = [part for part in PromptPlaces(2).cut(request) if part]
        parts = [take_score(request, part) for part in rows]
        answers = [
            ScoreResult(torch.zeros(6 * len(p.prompts)), (6,) * len(p.prompts)) for p in parts
        ]
        put_back(answers, rows, request)

    def exchange() -> None:
        mine = {"texts": prompts[: len(prompts) // 2], "scores": own}
        threads = [
            threading.Thread(target=client.share, args=(lambda: mine,)) for client in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return (_cpu(cut_and_put_back) + _cpu(exchange) / len(clients)) / len(prompts)


def _check_row(costs: Costs, reports: Mapping[int, Report], tokens: Tokens, size: int) -> Row:
    """How far the model is off the busiest server's CPU seconds, in calls it was not fitted to."""
    off, detail = dict[str, float](), dict[str, Detail]({"prompts": size, "samples": size})
    for servers, report in reports.items():
        found = {"score": report.scores[size], "update": report.updates[size]}
        read = {name: tokens(name, size, servers) for name in found}
        said = {
            "score": score_seconds(costs, read["score"]),
            "update": sum(update_seconds(costs, read["update"], servers)),
        }
        for name, real in found.items():
            off[f"{name}_{servers}"] = abs(said[name] / real.server - 1)
            detail[f"{name}_{servers}"] = (
                f"{said[name]:.4g} for {real.server:.4g} s (spread {real.spread:.2g})"
            )
        detail[f"clock_update_{servers}"] = rounded(report.updates[size].clock)
    detail["cores"], detail["load"] = os.cpu_count() or 1, rounded(os.getloadavg()[0])
    worst = max(off, key=lambda name: off[name])
    in_the_way = (
        f"{worst} is furthest off, {detail[worst]}, where up to {1 + max(reports)} processes share"
        f" {detail['cores']} cores"
    )
    return make_row("simulate_check", [off[worst]], BAR, "off", "lower", detail, in_the_way)


def _costs_row(costs: Costs) -> Row:
    detail: dict[str, Detail] = {name: rounded(value) for name, value in asdict(costs).items()}
    return make_row(
        "simulate_costs",
        [score_seconds(costs, costs.prompt_tokens)],
        None,
        "CPU s/prompt",
        "lower",
        detail,
    )


Curve = dict[tuple[int, int], tuple[float, str]]
"""Environment steps a second and the bottleneck, by clients and servers."""


def _curve(costs: Costs) -> Curve:
    found: Curve = {}
    for clients, servers in itertools.product(CLIENTS, SERVERS):
        parts = predict(costs, WORK, servers, clients)
        found[clients, servers] = (throughput(parts, WORK, clients), parts.bottleneck)
    return found


def curve_rows(curve: Curve) -> list[Row]:
    """One row for each number of clients: the best of it, and every number of servers."""
    rows = []
    for clients in CLIENTS:
        own = {servers: curve[clients, servers] for servers in SERVERS}
        detail: dict[str, Detail] = {
            f"servers_{servers}": f"{speed:.4g} {bottleneck}"
            for servers, (speed, bottleneck) in own.items()
        }
        best = max(speed for speed, _ in own.values())
        rows.append(make_row(f"simulate_{clients}", [best], None, "steps/s", detail=detail))
    return rows


def table(curve: Curve) -> str:
    """The curve as a page shows it."""
    lines = ["| servers | " + " | ".join(f"clients: {n}" for n in CLIENTS) + " |"]
    lines.append("|---|" + "---|" * len(CLIENTS))
    for servers in SERVERS:
        cells = [curve[clients, servers] for clients in CLIENTS]
        told = " | ".join(f"{speed:,.0f} {bottleneck}" for speed, bottleneck in cells)
        lines.append(f"| {servers} | {told} |")
    return "\n".join(lines)


def _line(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Slope and start of the line through two sizes, in ascending order; neither is negative."""
    (small, least), (large, most) = seconds.items()
    slope = max(0.0, (most - least) / (large - small))
    return slope, max(0.0, least - small * slope)


def _cpu(work: Callable[[], object]) -> float:
    """The least CPU time of three."""
    found = []
    for _ in range(3):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)
