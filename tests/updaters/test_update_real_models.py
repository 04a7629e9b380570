"""The updaters on the real host, with tiny random models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.updaters import BaseUpdater, FeedbackUpdater, PPOUpdater, make_updaters
from lamorel_ext.methods.pairs.updater import PairUpdater
from lamorel_ext.rpc.groups import ThreadGroup
from lamorel_ext.types import UpdateRequest
from tests.llm.tiny_models import ACTIONS, PROMPTS, make_causal, make_host, make_t5, plain_scores
from tests.updaters.updater_fakes import on_servers, shard

N = 10


def host_of(kind: str, dtype: torch.dtype = torch.float64) -> ModelHost:
    model = (
        make_causal(dtype=dtype)
        if kind == "causal"
        else make_t5(own_head=kind == "t5", dtype=dtype)
    )
    return make_host(model, {"value": ValueHead(8)}, minibatch_size=7)


def ready(updater: BaseUpdater, host: ModelHost) -> BaseUpdater:
    updater.set_llm_module(host)
    return updater


def weights(host: ModelHost) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for _, p in host.named_trainable_parameters()]).clone()


def request(host: ModelHost, updater: str, **options: Any) -> UpdateRequest:
    """Samples over four prompts with two to six candidates; old log-probabilities a little off."""
    g = torch.Generator().manual_seed(0)
    picks = [int(i) for i in torch.randint(0, 4, (N,), generator=g)]
    prompts, candidates = tuple(PROMPTS[i] for i in picks), tuple(ACTIONS[: 2 + i] for i in picks)
    result = host.score(prompts, candidates, ("value",))
    choice = torch.randint(0, 2, (N,), generator=g)
    old = torch.stack(
        [row.log_softmax(-1)[i] for row, i in zip(result.split(), choice, strict=True)]
    )
    old = old + 0.3 * torch.randn(N, generator=g)
    signals = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0])
    data = {
        "ppo": {
            "actions": choice, "old_log_probs": old, "advantages": torch.randn(N, generator=g),
            "returns": torch.randn(N, generator=g), "values": result.modules["value"][:, 0] + 0.1,
        },
        "feedback": {"chosen": choice, "signals": signals, "old_log_probs": old},
        "supervised": {"targets": choice},
    }[updater]  # fmt: skip
    return UpdateRequest(updater, prompts, candidates, torch.arange(N), N, data, options)


@pytest.mark.parametrize("kind", ["t5", "tied t5", "causal"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_feedback_gradient_is_that_of_plain_transformers(kind: str, chunk: int) -> None:
    host = host_of(kind)
    wanted = request(
        host,
        "feedback",
        lr=1.0,
        adam_eps=1.0,
        max_grad_norm=float("inf"),
        gradient_minibatch_size=chunk,
    )
    twin = copy.deepcopy(host)
    losses = []
    for prompt, candidates, i, f in zip(
        wanted.prompts,
        wanted.candidates,
        wanted.data["chosen"],
        wanted.data["signals"],
        strict=True,
    ):
        scores = plain_scores(twin.model, twin.tokenizer, [prompt], [candidates])
        losses.append(-f * (scores.exp()[i] / scores.exp().sum()).log())
    torch.stack(losses).mean().backward()
    expected = torch.cat(
        [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
            for _, p in twin.named_trainable_parameters()
        ]
    )
    before = weights(host)
    ready(FeedbackUpdater(), host).update(wanted)
    d = before - weights(host)
    # Adam's first step with step size and epsilon 1 is d = g / (|g| + 1).
    assert float(expected.norm()) > 0.1
    # Transformers' norms take their variance in float32, in a float64 model too: gradients agree to
    # that precision.
    torch.testing.assert_close(d / (1 - d.abs()), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "causal"])
@pytest.mark.parametrize("updater", ["ppo", "feedback", "supervised"])
def test_servers_and_chunks_do_not_change_the_result(kind: str, updater: str) -> None:
    # Adam divides a gradient by its own size, so rounding in a tiny one could move a weight by the
    # whole step size; epsilon prevents it.
    options: dict[str, Any] = {"lr": 1e-3, "adam_eps": 1e-4}
    options |= {} if updater == "feedback" else {"minibatch_size": 4, "epochs": 2}
    start = host_of(kind, torch.float32)
    wanted = request(start, updater, **options)

    def work(group: ThreadGroup) -> tuple[Tensor, dict[str, float]]:
        host = copy.deepcopy(start)
        own = ready(make_updaters()[updater], host)
        own.set_group(group)
        stats = own.update(shard(wanted, group.rank, group.size)).stats
        return weights(host), stats

    ((alone, stats),) = on_servers(1, work)
    assert float((alone - weights(start)).abs().max()) > 5e-4
    chunked = copy.deepcopy(start)
    ready(make_updaters()[updater], chunked).update(
        request(chunked, updater, gradient_minibatch_size=1, **options)
    )
    torch.testing.assert_close(weights(chunked), alone, rtol=0, atol=1e-5)
    for size in (2, 3):
        for other, other_stats in on_servers(size, work):
            torch.testing.assert_close(other, alone, rtol=0, atol=1e-5)
            assert other_stats["loss"] == pytest.approx(stats["loss"], abs=1e-5)


def test_the_first_ratio_is_one_when_the_old_log_probabilities_came_from_the_host() -> None:
    host = host_of("t5", torch.float32)
    wanted = request(host, "ppo", lr=1e-3, minibatch_size=5)
    rows = host.score(wanted.prompts, wanted.candidates).split()
    wanted.data["old_log_probs"] = torch.stack(
        [row.log_softmax(-1)[i] for row, i in zip(rows, wanted.data["actions"], strict=True)]
    )
    stats = ready(PPOUpdater(), host).update(wanted).stats
    assert stats["initial_ratio_error"] < 1e-5
    assert stats["scored_tokens"] > 0


def test_what_the_host_remembered_is_forgotten_after_a_step() -> None:
    host = host_of("t5")
    wanted = request(host, "feedback", lr=1e-2)
    before = host.score(wanted.prompts, wanted.candidates).log_probs
    stats = ready(FeedbackUpdater(), host).update(wanted).stats
    after = host.score(wanted.prompts, wanted.candidates).log_probs
    assert stats["kl"] == pytest.approx(0.0, abs=1e-12)
    assert float((after - before).abs().max()) > 1e-3
    assert ready(FeedbackUpdater(), host).update(wanted).stats["kl"] > 1e-5


@pytest.mark.parametrize(
    "updater, options, reference",
    [
        ("ppo", {}, 0),
        ("feedback", {}, 0),
        ("feedback", {"kl_coef": 0.1}, 1),
        ("feedback", {"kl_coef": 0.1, "epochs": 2}, 1),
    ],
)
def test_what_the_loss_asks_the_initial_weights_is_a_cost_and_a_statistic_is_none(
    updater: str, options: dict[str, Any], reference: int
) -> None:
    host = host_of("t5")
    wanted = request(host, updater, lr=0.0, **options)
    stats = ready(make_updaters()[updater], host).update(wanted).stats
    fresh = host_of("t5")
    once = fresh.score(wanted.prompts, wanted.candidates, require_grad=True).stats["tokens"]
    initial = fresh.score_reference(wanted.prompts, wanted.candidates).stats["tokens"]
    epochs = stats["scored_pairs"] / len(set(zip(wanted.prompts, wanted.candidates, strict=True)))
    assert stats["scored_tokens"] == once * epochs + initial * reference > 0


@pytest.mark.parametrize("loss, reference", [("dpo", 1), ("filtered", 0)])
def test_a_loss_over_pairs_counts_the_initial_weights_where_it_depends_on_them(
    loss: str, reference: int
) -> None:
    host = host_of("t5")
    pairs = tuple((ACTIONS[i], ACTIONS[i + 1]) for i in range(len(PROMPTS)))
    places = torch.arange(len(PROMPTS))
    options = {"epochs": 1, "loss": loss}
    wanted = UpdateRequest("preferences", PROMPTS, pairs, places, len(PROMPTS), {}, options)
    stats = ready(PairUpdater(), host).update(wanted).stats
    once = host.score(PROMPTS, pairs, require_grad=True).stats["tokens"]
    initial = host_of("t5").score_reference(PROMPTS, pairs).stats["tokens"]
    assert stats["scored_tokens"] == once + initial * reference > 0


def test_guidance_without_words_pulls_nowhere() -> None:
    host = host_of("t5")
    before = weights(host)
    data = {"chosen": torch.tensor([0]), "signals": torch.tensor([1.0])}
    wanted = UpdateRequest(
        "feedback", (PROMPTS[0],), (("",),), torch.tensor([0]), 1, data, {"normalise": False}
    )
    stats = ready(FeedbackUpdater(), host).update(wanted).stats
    assert stats["steps"] == 0 and stats["log_prob"] == 0.0 and torch.equal(weights(host), before)


@pytest.mark.parametrize("updater", ["ppo", "feedback"])
def test_training_goes_on_bitwise_after_save_and_load(tmp_path: Path, updater: str) -> None:
    host, other = host_of("t5", torch.float32), host_of("t5", torch.float32)
    own, again = ready(make_updaters()[updater], host), ready(make_updaters()[updater], other)
    wanted = request(host, updater, lr=1e-2)
    own.update(wanted)
    host.save(tmp_path / "model")
    own.save(tmp_path / "model")
    own.update(wanted)
    other.load(tmp_path / "model")
    again.load(tmp_path / "model")
    again.update(wanted)
    assert torch.equal(weights(other), weights(host))


def test_after_a_reset_training_repeats_itself() -> None:
    host = host_of("t5", torch.float32)
    updater = ready(PPOUpdater(), host)
    host.reset(3)
    wanted = request(host, "ppo", lr=1e-2)
    results = []
    for _ in range(2):
        host.reset(3)
        updater.reset(3)
        updater.update(wanted)
        results.append(weights(host))
    assert torch.equal(*results)
