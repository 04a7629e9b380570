"""The model of a launch: parts by hand, what it must not depend on, and what it is fitted to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.bench.scale.measure import Report, Spent, by_turns
from experiments.bench.scale.model import Costs, Machines, Work, predict, rings, throughput
from experiments.bench.scale.simulate import (
    SERVERS,
    Curve,
    busiest_tokens,
    curve_rows,
    fit,
    table,
)

COSTS = Costs(
    env_step=0.001,
    client_call=0.002,
    client_prompt=0.0001,
    client_sample=0.0001,
    merge_prompt=0.00005,
    prompt_tokens=10,
    server_call=0.003,
    server_token=0.001,
    update_step=0.5,
    update_token=0.004,
    ring_share=0.3,
    parameters=1e6,
    latency=0.0005,
)
WORK = Work(copies=8, steps=4, optimiser_steps=2)


def test_one_client_and_one_server_cost_what_a_hand_adds_up() -> None:
    parts = predict(COSTS, WORK, servers=1, clients=1)
    assert parts.environment == pytest.approx(4 * 8 * 0.001)
    asking = 0.002 + 8 * 0.0001 + 0.0005
    assert parts.client == pytest.approx(4 * asking + 0.002 + 32 * 0.0001)
    assert parts.score == pytest.approx(4 * (0.003 + 8 * 0.01))
    assert parts.gradient == pytest.approx(2 * 16 * 0.04)
    assert parts.step == pytest.approx(2 * 0.5)
    assert parts.merge == parts.sum == 0
    assert parts.bottleneck == "gradient"
    assert throughput(parts, WORK, 1) == pytest.approx(32 / parts.seconds)


def test_servers_share_prompts_and_samples_and_pay_for_the_sum() -> None:
    one, four = (predict(COSTS, WORK, servers, clients=1) for servers in (1, 4))
    assert four.score == pytest.approx(4 * (0.003 + 2 * 0.01))
    assert four.gradient == pytest.approx(one.gradient / 4)
    assert four.step == one.step and four.environment == one.environment
    assert four.sum == pytest.approx(2 * (0.3 * 1.5 + 6 * 0.0005))
    assert rings(1) == 0 and rings(2) == 1


def test_a_slow_network_is_waited_for_in_the_sum_alone() -> None:
    fast = predict(COSTS, WORK, 4, 1)
    slow = predict(COSTS, WORK, 4, 1, Machines(bytes_per_s=1e6))
    assert slow.sum == pytest.approx(2 * (1.5 * 4 + 6 * 0.0005))
    assert replace(slow, sum=fast.sum) == fast


def test_more_processes_than_cores_take_turns() -> None:
    wide, narrow = (predict(COSTS, WORK, 4, 2, Machines(cores=cores)) for cores in (0, 2))
    assert narrow.score == pytest.approx(2 * wide.score)
    assert narrow.environment == wide.environment  # two clients have two cores


def test_with_more_servers_than_prompts_the_others_have_nothing_to_read() -> None:
    assert predict(COSTS, WORK, 8, 1).score == predict(COSTS, WORK, 64, 1).score


def test_costs_are_found_again_from_the_calls_that_they_make() -> None:
    def tokens(_kind: str, size: int, servers: int) -> int:
        return size**2 // servers  # later prompts are longer

    def spent(server: float, client: float) -> Spent:
        return Spent(client, server, 1.0)

    def report(servers: int) -> Report:
        read = {n: tokens("", n, servers) for n in (4, 8, 32)}
        shared = COSTS.ring_share * rings(servers)
        return Report(
            {n: spent(0.003 + at * 0.001, 0.002 + n * 0.0001) for n, at in read.items()},
            {n: spent(0.5 + at * 0.004 + shared, n * 0.0001) for n, at in read.items()},
            COSTS.latency,
            1000,
        )

    found = fit({1: report(1), 2: report(2)}, tokens, 4, 32, COSTS.env_step, COSTS.merge_prompt)
    wanted = replace(COSTS, parameters=1000, prompt_tokens=32)
    assert vars(found) == pytest.approx(vars(wanted))


def test_scores_are_shared_out_in_their_order_and_samples_by_length() -> None:
    lengths = [10, 1, 2, 20, 30, 3]
    prompts = ["x" * length for length in lengths]
    assert busiest_tokens(prompts, lengths, "score", 6, 2) == 20 + 30 + 3
    assert busiest_tokens(prompts, lengths, "update", 6, 2) == 2 + 10 + 30
    assert busiest_tokens(prompts, lengths, "score", 3, 1) == 10 + 1 + 2
    assert busiest_tokens(prompts, lengths, "update", 3, 4) == 10  # of four one has nothing


def test_a_server_that_is_disturbed_once_is_not_the_busiest() -> None:
    turns = [(1.0, 5.0, 4.0, 9.0), (3.0, 6.0, 12.0, 7.0), (2.0, 5.5, 4.5, 8.0)]
    assert by_turns(turns) == Spent(2.0, 5.5, 8.0, spread=1.0)


def test_the_curve_has_a_row_for_each_number_of_clients_and_a_line_for_each_of_servers() -> None:
    curve: Curve = {
        (clients, servers): (float(clients * servers), "score")
        for clients in (1, 4, 16, 64, 256)
        for servers in SERVERS
    }
    rows = curve_rows(curve)
    assert [row.name for row in rows] == [f"simulate_{n}" for n in (1, 4, 16, 64, 256)]
    assert rows[1].value == 4096 and rows[1].detail["servers_2"] == "8 score"
    lines = table(curve).splitlines()
    assert len(lines) == 2 + len(SERVERS) and lines[-1].startswith("| 1024 | 1,024 score | ")
