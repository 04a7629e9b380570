"""One, two and three servers do the same, and fail together."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lamorel_ext.errors import RemoteError, RequestError, UpdateError
from lamorel_ext.llm.serving import Hosted, in_process
from lamorel_ext.llm.updaters import BaseUpdater, PPOUpdater, make_updaters
from lamorel_ext.llm.updaters.batches import draw_minibatches, make_batch
from lamorel_ext.llm.updaters.gradients import LARGE, sum_over_servers
from lamorel_ext.rpc.groups import ThreadGroup
from lamorel_ext.rpc.topology import split_evenly
from lamorel_ext.types import UpdateRequest
from tests.updaters.updater_fakes import (
    FakeHost,
    feedback_data,
    make_request,
    on_servers,
    pair_data,
    ppo_data,
    shard,
)

N = 10


def requests_of(n: int) -> list[UpdateRequest]:
    targets = {"targets": torch.arange(n) % 2}
    return [
        make_request(
            "ppo",
            n,
            ppo_data(n),
            lr=0.02,
            minibatch_size=3,
            epochs=2,
            gradient_minibatch_size=1,
            max_grad_norm=0.2,
        ),
        make_request(
            "feedback", n, feedback_data(n), lr=0.02, entropy_coef=0.1, kl_coef=0.1, loss="clipped"
        ),
        make_request("supervised", n, targets, lr=0.02, minibatch_size=4, epochs=2),
        make_request(
            "ppo",
            n,
            ppo_data(n),
            ragged=False,
            lr=0.02,
            minibatch_size=3,
            epochs=2,
            max_grad_norm=0.2,
            policy_module="actions",
        ),
        make_request(
            "feedback", n, pair_data(n), lr=0.02, posterior=True, minibatch_size=3, epochs=2
        ),
    ]


def train(
    request: UpdateRequest, size: int, repeats: int = 2, dtype: torch.dtype = torch.float32
) -> list[Any]:
    """Weights and statistics of each of ``size`` servers after ``repeats`` updates."""

    def work(group: ThreadGroup) -> Any:
        host, updater = FakeHost(dtype), make_updaters()[request.updater]
        updater.set_llm_module(host)
        updater.set_group(group)
        for _ in range(repeats):
            stats = updater.update(shard(request, group.rank, group.size)).stats
        return host.weights(), stats

    results = on_servers(size, work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("n", [10, 2, 1])
@pytest.mark.parametrize(
    "which",
    [0, 1, 2, 3, 4],
    ids=["ppo", "feedback", "supervised", "ppo of action heads", "feedback of the pair"],
)
def test_weights_and_statistics_do_not_depend_on_the_number_of_servers(n: int, which: int) -> None:
    request = requests_of(n)[which]
    ((alone, alone_stats),) = train(request, 1)
    assert float((alone - FakeHost(torch.float32).weights()).abs().max()) > 0.01
    for size in (2, 3):
        results = train(request, size)
        for weights, stats in results:
            assert torch.equal(weights, results[0][0])
            torch.testing.assert_close(weights, alone, rtol=0, atol=1e-5)
            assert stats == results[0][1]
            # Also the pairs that were scored: none of them on two servers.
            assert stats == pytest.approx(alone_stats, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_minibatch_is_shared_out_by_distinct_pairs_as_evenly_as_can_be(size: int) -> None:
    batch = make_batch([make_request("ppo", 40, ppo_data(40), prompts=31)])
    for minibatch in draw_minibatches(40, 12, epochs=2, seed=5):
        shares = [batch.share(minibatch.places, rank, size) for rank in range(size)]
        assert sorted(torch.cat(shares).tolist()) == sorted(minibatch.places.tolist())
        pairs = [set(batch.pair_ids[share].tolist()) for share in shares]
        assert sum(map(len, pairs)) == len(set.union(*pairs))
        assert max(map(len, pairs)) - min(map(len, pairs)) <= 1


def test_large_tensors_are_summed_where_they_are_and_small_ones_together() -> None:
    shapes = [(3,), (LARGE // 2, 2), (2, 2), (LARGE,), ()]

    def work(group: ThreadGroup) -> Any:
        calls = 0
        tensors = [torch.full(shape, 1.0 + place) for place, shape in enumerate(shapes)]
        tensors[3] = tensors[3].double()  # of another precision than the sum

        class Counting(ThreadGroup):
            def all_reduce_sum(self, *tensors: torch.Tensor) -> None:
                nonlocal calls
                calls += len(tensors)
                super().all_reduce_sum(*tensors)

        counting = Counting(group.rank, group._meeting)
        sums = sum_over_servers(tensors, counting, torch.float32)
        for place, (summed, shape) in enumerate(zip(sums, shapes, strict=True)):
            assert summed.shape == shape and summed.dtype == torch.float32
            assert bool((summed == 3.0 * (1 + place)).all())
        assert sums[1].data_ptr() == tensors[1].data_ptr()
        return calls

    assert on_servers(3, work) == [2, 2, 2]


def test_a_parameter_without_gradient_is_treated_alike_on_one_and_two_servers() -> None:
    # The value head learns in PPO; in an update by one server of which it has no part, its momentum
    # must act as it does on two.
    def work(group: ThreadGroup) -> torch.Tensor:
        host = FakeHost()
        updater = make_updaters()["ppo"]
        updater.set_llm_module(host)
        updater.set_group(group)
        updater.update(shard(requests_of(N)[0], group.rank, group.size))
        updater.modules, updater.loss = (
            (),
            lambda scored, data, options: {name: -scored.scores[:, 0] for name in updater.terms},
        )  # type: ignore
        updater.update(shard(requests_of(N)[0], group.rank, group.size))
        return host.weights()

    (alone,) = on_servers(1, work)
    for weights in on_servers(2, work):
        torch.testing.assert_close(weights, alone, rtol=0, atol=1e-9)


def test_float64_weights_are_summed_in_float64() -> None:
    ((alone, _),) = train(requests_of(N)[1], 1, dtype=torch.float64)
    for weights, _ in train(requests_of(N)[1], 3, dtype=torch.float64):
        torch.testing.assert_close(weights, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["bad data", "missing key", "overlap"])
def test_a_shard_that_is_refused_on_one_server_is_given_up_by_all(name: str) -> None:
    request = make_request("ppo", N, ppo_data(N), lr=0.1)

    def spoil(part: UpdateRequest) -> UpdateRequest:
        if name == "bad data":
            return dataclasses.replace(
                part, data={**part.data, "actions": part.data["actions"] + 99}
            )
        if name == "missing key":
            return dataclasses.replace(
                part, data={key: values for key, values in part.data.items() if key != "values"}
            )
        return dataclasses.replace(part, indices=(part.indices - 1))  # the places of server 0

    def work(group: ThreadGroup) -> Any:
        host, updater = FakeHost(), make_updaters()["ppo"]
        updater.set_llm_module(host)
        updater.set_group(group)
        before = host.weights()
        part = shard(request, group.rank, group.size)
        try:
            updater.update(spoil(part) if group.rank == 1 else part)
        except RequestError as error:
            return str(error), torch.equal(host.weights(), before)
        return None

    results = on_servers(2, work)
    assert [unchanged for _, unchanged in results] == [True, True]
    own = {
        "bad data": "data['actions'][1]",
        "missing key": "'values'",
        "overlap": "0 to 9, each once",
    }[name]
    assert own in results[1][0]
    assert ("another server" if name != "overlap" else own) in results[0][0]


def test_a_server_that_fails_in_the_middle_stops_the_others_and_all_go_on_afterwards() -> None:
    # With as many prompts each server has one in each minibatch.
    request = make_request("ppo", N, ppo_data(N), 11, lr=0.1, minibatch_size=5, epochs=1)

    def work(group: ThreadGroup) -> Any:
        host, updater = FakeHost(), make_updaters()["ppo"]
        updater.set_llm_module(host)
        updater.set_group(group)
        part = shard(request, group.rank, group.size)
        host.fail_at = 1 if group.rank == 2 else -1
        try:
            updater.update(part)
            raised: Exception | None = None
        except (UpdateError, MemoryError) as error:
            raised = error
        first = host.weights(), host.versions
        host.fail_at = -1
        updater.update(part)
        return raised, first, host.weights()

    results = on_servers(3, work)
    raised = [result[0] for result in results]
    assert isinstance(raised[2], MemoryError)
    for error in raised[:2]:
        assert isinstance(
            error, UpdateError
        ) and "another server failed in epoch 0, minibatch 2 of 2" in str(error)
    for _, (weights, versions), after in results:
        assert versions == 1 and torch.equal(weights, results[0][1][0])
        assert torch.equal(after, results[0][2]) and not torch.equal(after, weights)


class ServedHost(FakeHost):
    weights_version = property(lambda self: self.versions)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("name", ["bad number", "bad choice", "failing model"])
def test_a_client_hears_the_reason_from_the_server_that_has_it(name: str, rank: int) -> None:
    hosts = [ServedHost() for _ in range(3)]
    data, place = ppo_data(N), split_evenly(N, 3)[rank].start
    if name == "bad number":
        data["returns"][place] = float("nan")
    elif name == "bad choice":
        data["actions"][place] = 99
    else:
        hosts[rank].fail_at = 0
    own = {
        "bad number": rf"RequestError: ppo: data\['returns'\]\[{place}\] is nan",
        "bad choice": rf"RequestError: ppo: data\['actions'\]\[{place}\] is 99",
        "failing model": "MemoryError: made to fail",
    }[name]
    served = [Hosted(host, {"ppo": PPOUpdater()}) for host in hosts]  # type: ignore[arg-type]
    with (
        in_process(served) as caller,
        pytest.raises(RemoteError, match=rf"rank {rank} \(llm server {rank}\) raised {own}"),
    ):
        caller.update_batch(make_request("ppo", N, data, prompts=11))
    assert [host.versions for host in hosts] == [0, 0, 0]


def test_a_loss_that_is_not_finite_on_one_server_is_refused_on_all() -> None:
    request = make_request("supervised", 4, {"targets": torch.zeros(4, dtype=torch.int64)})

    def work(group: ThreadGroup) -> Any:
        host, updater = FakeHost(), make_updaters()["supervised"]
        updater.set_llm_module(host)
        updater.set_group(group)
        if group.rank == 0:
            host.scale = float("nan")
        before = host.weights()
        with pytest.raises(UpdateError, match="not finite in epoch 0, minibatch 1 of 1"):
            updater.update(shard(request, group.rank, group.size))
        return torch.equal(host.weights(), before)

    assert on_servers(2, work) == [True, True]


def test_average_gradients_is_the_mean_over_servers_also_of_one_that_has_none() -> None:
    class Own(BaseUpdater):
        pass

    def work(group: ThreadGroup) -> Any:
        host, updater = FakeHost(torch.float32), Own()
        updater.set_llm_module(host)
        updater.set_group(group)
        if group.rank < 2:
            host.value.bias.grad = torch.tensor([1.0 + group.rank])
        updater.average_gradients()
        bias, weight = host.value.bias.grad, host.value.weight.grad
        return None if bias is None or weight is None else (bias.item(), weight.abs().sum().item())

    assert on_servers(3, work) == [(1.0, 0.0)] * 3  # (1 + 2 + 0) / 3
