"""Answers in 8 bits are near those in full precision, follow the weights, and never reach a
gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamorel_ext.config import LlmArgs, load_config
from lamorel_ext.errors import ConfigError, ModelLoadError
from lamorel_ext.llm.host import ModelHost
from lamorel_ext.llm.loading import load_host
from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.scoring import int8
from lamorel_ext.llm.scoring.int8 import RoundedWeights
from lamorel_ext.llm.updaters import make_updaters
from lamorel_ext.rpc.groups import ThreadGroup
from lamorel_ext.types import GenerateRequest, UpdateRequest
from tests.llm.tiny_models import (
    ACTIONS,
    PROMPTS,
    VOCAB,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
)
from tests.updaters.updater_fakes import on_servers, shard

KINDS = ["t5", "llama", "opt"]
ASKED = PROMPTS, [ACTIONS] * len(PROMPTS)
N = 12


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights of tiny models are rounded."""
    monkeypatch.setattr(int8, "NARROWEST", 1)
    monkeypatch.setattr(int8, "LEAST", 1)
    yield


def host_of(kind: str = "t5", quantize: str | None = "int8", seed: int = 0) -> ModelHost:
    own: dict[str, Any] = {"dtype": torch.float32, "seed": seed}
    model = make_t5(**own) if kind == "t5" else make_causal(kind, **own)
    return make_host(model, {"value": ValueHead(8)}, quantize=quantize, minibatch_size=7)


def scores(host: ModelHost, require_grad: bool = False) -> Tensor:
    return host.score(*ASKED, require_grad=require_grad).log_probs


def test_a_product_is_off_by_no_more_than_its_roundings() -> None:
    x, layer = torch.randn(3, 40, 96), nn.Linear(96, 72)
    x[1, 5] = 0.0
    layer.requires_grad_(False)
    found = RoundedWeights(VOCAB).multiply(x, layer.weight, layer.bias)
    # Half a step of each number, times the sum of what it is multiplied by.
    step = x.abs().amax(-1, keepdim=True) / 127, layer.weight.abs().amax(-1) / 127
    most = (
        step[0] / 2 * layer.weight.abs().sum(-1)
        + step[1] / 2 * x.abs().sum(-1, keepdim=True)
        + step[0] * step[1] * 96 / 4
    )
    error = (found - layer(x)).abs()
    assert bool((error <= most + 1e-5).all()) and float(error.max()) > 0
    assert torch.equal(found[1, 5], layer.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_near_and_gradients_are_exact(kind: str) -> None:
    host, exact = host_of(kind), host_of(kind, None)
    near, right = scores(host), scores(exact)
    assert 0 < float((near - right).abs().mean()) < 0.3
    ours, theirs = scores(host, True), scores(exact, True)
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    named = dict(exact.model.named_parameters())
    assert all(torch.equal(p.grad, named[n].grad) for n, p in host.model.named_parameters())


def test_what_a_product_is_of_is_rounded_anew_when_it_changed() -> None:
    weights, layer = RoundedWeights(VOCAB), nn.Linear(64, 64, bias=False)
    x = torch.randn(5, 64)
    with torch.no_grad(), weights.used():
        first = weights.multiply(x, layer.weight)
        assert torch.equal(weights.multiply(x, layer.weight), first)
        x.mul_(2.0)
        torch.testing.assert_close(weights.multiply(x, layer.weight), 2 * first)


def test_weights_that_are_made_for_one_product_and_the_head_keep_their_precision() -> None:
    weights, layer, x = RoundedWeights(VOCAB), nn.Linear(64, 64), torch.randn(5, 64)
    assert weights.suits(x, layer.weight)
    assert not weights.suits(x, layer.weight * 2.0)  # another one may have its id next
    assert not weights.suits(x, nn.Linear(64, VOCAB).weight)
    assert not weights.suits(x.double(), layer.double().weight)


@pytest.mark.parametrize("counted", [True, False], ids=["in place", "through .data"])
def test_scores_follow_the_weights(counted: bool) -> None:
    host, other = host_of(), host_of(seed=1)
    before = scores(host)
    with torch.no_grad():
        for own, new in zip(host.model.parameters(), other.model.parameters(), strict=True):
            (own if counted else own.data).copy_(new)
    if not counted:
        assert torch.equal(scores(host), before)  # PyTorch counts no such change
        host.weights_changed()
    assert torch.equal(scores(host), scores(other)) and not torch.equal(scores(host), before)


def test_references_and_generated_texts_are_exact() -> None:
    host, exact = host_of(), host_of(quantize=None)
    scores(host)
    initial = [each.score_reference(*ASKED).log_probs for each in (host, exact)]
    assert torch.equal(*initial)
    asked = GenerateRequest(PROMPTS[:2], {"max_new_tokens": 3, "do_sample": False})
    said = [each.generate(asked) for each in (host, exact)]
    assert said[0].texts == said[1].texts
    assert torch.equal(said[0].token_log_probs, said[1].token_log_probs)


def test_the_log_tells_the_error_once(caplog: pytest.LogCaptureFixture) -> None:
    host, exact = host_of(), host_of(quantize=None)
    with caplog.at_level(logging.INFO, logger="lamorel_ext"):
        off = (scores(host) - scores(exact)).abs()
        host.forget()
        scores(host)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "quantize: int8" in line and f"{len(off)} scores" in line
    assert f"{off.mean():.3f} nats on average" in line and f"{off.max():.3f} at most" in line
    assert host.info()["quantize"] == "int8" and exact.info()["quantize"] == ""


def request(host: ModelHost, updater: str, **options: Any) -> UpdateRequest:
    """What a rollout brings home: its log-probabilities are the host's, in 8 bits."""
    generator = torch.Generator().manual_seed(0)
    picks = [i % 4 for i in range(N)]
    prompts, candidates = tuple(PROMPTS[i] for i in picks), tuple(ACTIONS[: 3 + i] for i in picks)
    result = host.score(prompts, candidates, ("value",))
    choice = torch.randint(0, 3, (N,), generator=generator)
    rows = [row.log_softmax(-1) for row in result.split()]
    old = torch.stack([row[i] for row, i in zip(rows, choice, strict=True)])
    f = torch.randn(N, generator=generator)
    data = {
        "actions": choice,
        "advantages": f,
        "returns": f,
        "values": result.modules["value"][:, 0],
    }
    if updater == "feedback":
        data = {"chosen": choice, "signals": f}
        if options.get("posterior"):
            data["likelihoods"] = torch.rand(N, 6, generator=generator).log()
            old = torch.stack(
                [
                    (row + own[: len(row)]).logsumexp(-1)
                    for row, own in zip(rows, data["likelihoods"], strict=True)
                ]
            )
        if not options.get("normalise", True):
            old = torch.stack([row[i] for row, i in zip(result.split(), choice, strict=True)])
    return UpdateRequest(
        updater, prompts, candidates, torch.arange(N), N, data | {"old_log_probs": old}, options
    )


UPDATES: list[tuple[str, dict[str, Any]]] = [
    ("ppo", {}),
    ("feedback", {"loss": "clipped"}),
    ("feedback", {"loss": "clipped", "posterior": True}),
    ("feedback", {"loss": "clipped", "normalise": False}),
]


@pytest.mark.parametrize("updater, more", UPDATES)
@pytest.mark.parametrize("servers", [1, 2])
def test_an_update_is_that_of_rollouts_in_full_precision(
    updater: str, more: dict[str, Any], servers: int
) -> None:
    options = {"lr": 1e-3, "epochs": 2, "minibatch_size": 5, "gradient_minibatch_size": 2} | more

    def train(quantize: str | None, wanted: UpdateRequest) -> list[Any]:
        hosts = [host_of(quantize=quantize) for _ in range(servers)]  # threads share a generator

        def work(group: ThreadGroup) -> Any:
            host, own = hosts[group.rank], make_updaters()[updater]
            own.set_llm_module(host)
            own.set_group(group)
            stats = own.update(shard(wanted, group.rank, group.size)).stats
            return torch.cat([p.detach().reshape(-1) for p in host.model.parameters()]), stats

        results = on_servers(servers, work)
        assert not [each for each in results if isinstance(each, Exception)], results
        return results

    exact = request(host_of(quantize=None), updater, **options)
    rounded = request(host_of(), updater, **options)
    off = (exact.data["old_log_probs"] - rounded.data["old_log_probs"]).abs()
    assert float(off.max()) > 1e-3
    if "values" in rounded.data:  # a value is an answer like others, and stays what it was
        rounded.data["values"] = exact.data["values"]
    said = set(rounded.prompts)
    if not more.get("normalise", True):
        choice = rounded.data["chosen"].tolist()
        said = {*zip(rounded.prompts, choice, strict=True)}
    (right, stats), *_ = train(None, exact)
    for weights, own in train("int8", rounded):
        torch.testing.assert_close(weights, right, rtol=0, atol=2e-5)
        assert own["scored_pairs"] - stats["scored_pairs"] == len(said)  # once more, for the ratio
        if updater == "ppo":
            assert own["initial_ratio_error"] < 1e-5
    wrong = train(None, rounded)[0][0]
    assert float((wrong - right).abs().max()) > 1e-4


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_scoring_the_old_policy_costs_one_pass_whatever_else_the_loss_needs(kl_coef: float) -> None:
    wanted = request(host_of(), "feedback", lr=1e-3, loss="clipped", kl_coef=kl_coef)
    tokens = []
    for quantize in ("int8", None):
        host, own = host_of(quantize=quantize), make_updaters()["feedback"]
        own.set_llm_module(host)
        tokens.append(own.update(wanted).stats["scored_tokens"])
    pairs = sorted({*zip(wanted.prompts, wanted.candidates, strict=True)})
    once = host_of().score(*zip(*pairs, strict=True)).stats["tokens"]
    assert tokens[0] - tokens[1] == once


def test_all_servers_give_up_where_one_cannot_score_before_the_first_step() -> None:
    wanted = request(host_of(), "ppo", lr=1e-3)
    hosts = [host_of(), host_of()]

    def work(group: ThreadGroup) -> Any:
        host, own = hosts[group.rank], make_updaters()["ppo"]
        own.set_llm_module(host)
        own.set_group(group)
        before = torch.cat([p.detach().reshape(-1) for p in host.model.parameters()])
        if group.rank == 1:

            def fail(*args: Any, **kwargs: Any) -> Any:
                raise MemoryError("made to fail")

            host.score = fail  # type: ignore[method-assign]
        try:
            own.update(shard(wanted, group.rank, group.size))
        except Exception as error:
            after = torch.cat([p.detach().reshape(-1) for p in host.model.parameters()])
            return str(error), torch.equal(before, after)

    assert on_servers(2, work) == [
        ("ppo: another server failed; no step was taken", True),
        ("made to fail", True),
    ]


@pytest.mark.parametrize(
    "given, key",
    [
        ("dtype=bfloat16", "dtype"),
        ("parallelism.use_gpu=true", "parallelism.use_gpu"),
        ("parallelism.fsdp=true", "parallelism.fsdp"),
    ],
)
def test_it_is_for_one_cpu_and_float32(given: str, key: str) -> None:
    where = "lamorel_args.llm_args"
    with pytest.raises(ConfigError, match=f"{where}.{key}: must be .* where quantize is int8"):
        load_config([f"{where}.quantize=int8", f"{where}.{given}"])


def test_a_model_without_an_engine_of_its_own_is_refused(tmp_path: Path) -> None:
    make_causal("bloom").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    args = LlmArgs(model_path=str(tmp_path), quantize="int8")
    with pytest.raises(ModelLoadError, match="quantize: int8 is not for a bloom"):
        load_host(args, torch.device("cpu"))


def test_a_host_of_the_embedded_model_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    args = LlmArgs(value_head_hidden=8)
    prompts = [f"Goal of the agent: go to the red ball\nStep {i}" for i in range(20)]
    found = [
        load_host(own, torch.device("cpu")).score(prompts, [ACTIONS] * 20).log_probs
        for own in (args, replace(args, quantize="int8"))
    ]
    assert 0 < float((found[0] - found[1]).abs().mean()) < 0.2
