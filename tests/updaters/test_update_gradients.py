"""Deduplication, chunks and clipping against plain loops over samples."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters import BaseUpdater, FeedbackUpdater, PPOUpdater, SupervisedUpdater
from lamorel_ext.llm.updaters.gradients import MOMENTS, _Adam
from lamorel_ext.types import UpdateRequest
from tests.updaters.updater_fakes import FakeHost, feedback_data, make_request, ppo_data

NO_CLIP = float("inf")
PPO: dict[str, Any] = {
    "lr": 1.0,
    "adam_eps": 1.0,
    "epochs": 1,
    "minibatch_size": 99,
    "max_grad_norm": NO_CLIP,
    "clip_eps": 0.2,
}
FEEDBACK: dict[str, Any] = {"lr": 1.0, "adam_eps": 1.0, "max_grad_norm": NO_CLIP}


def updated(updater: BaseUpdater, host: FakeHost, request: UpdateRequest) -> dict[str, float]:
    updater.set_llm_module(host)
    return updater.update(request).stats


def gradient_seen(updater: BaseUpdater, host: FakeHost, request: UpdateRequest) -> Tensor:
    """The gradient that Adam was given, from the weights' change.

    Adam's first step with step size 1 and epsilon 1 is d = g / (|g| + 1), so g = d / (1 - |d|).
    """
    before = host.weights()
    updated(updater, host, request)
    d = before - host.weights()
    return d / (1.0 - d.abs())


def plain_gradient(
    host: FakeHost, request: UpdateRequest, sample_loss: Any, logits: str = ""
) -> Tensor:
    """Mean loss over samples, each sample scored by itself, one after the other; ``logits`` names
    the head that stands in for the scores.
    """
    host = copy.deepcopy(host)
    losses = []
    for i, (prompt, candidates) in enumerate(zip(request.prompts, request.candidates, strict=True)):
        result = host.score([prompt], [candidates], modules=("value", "actions"), require_grad=True)
        scores = result.modules[logits][0] if logits else result.log_probs
        reference = host.score_reference([prompt], [candidates]).log_probs
        row = {key: values[i] for key, values in request.data.items()}
        losses.append(sample_loss(scores, result.modules["value"][0, 0], reference, row))
    torch.stack(losses).mean().backward()
    return torch.cat(
        [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
            for p in host.parameters()
        ]
    )


def kept(ratio: Tensor, advantage: Tensor) -> Tensor:
    """The ratio, or the clip's bound where the ratio has gone beyond it the way the advantage
    wants.
    """
    if advantage > 0 and ratio > 1.2:
        return torch.tensor(1.2, dtype=ratio.dtype)
    return torch.tensor(0.8, dtype=ratio.dtype) if advantage < 0 and ratio < 0.8 else ratio


def ppo_sample_loss(
    scores: Tensor, value: Tensor, reference: Tensor, row: dict[str, Tensor]
) -> Tensor:
    p = scores.softmax(-1)
    ratio = p[row["actions"]] / row["old_log_probs"].exp()
    policy = -row["advantages"] * kept(ratio, row["advantages"])
    step = (value - row["values"]).item()
    near = value if abs(step) < 0.2 else row["values"] + math.copysign(0.2, step)
    error = torch.max((value - row["returns"]) ** 2, (near - row["returns"]) ** 2)
    return policy + 0.01 * (p * p.log()).sum() + 0.5 * error


def feedback_sample_loss(form: str, entropy_coef: float, kl_coef: float) -> Any:
    def loss(scores: Tensor, value: Tensor, reference: Tensor, row: dict[str, Tensor]) -> Tensor:
        p, q, f = scores.softmax(-1), reference.softmax(-1), row["signals"]
        p_c = p[row["chosen"]]
        if form == "reinforce":
            pull = -f * p_c.log()
        elif form == "unlikelihood":
            pull = -p_c.log() if f > 0 else -(1 - p_c).log() if f < 0 else 0.0 * p_c
        else:
            ratio = p_c / row["old_log_probs"].exp()
            pull = -f * kept(ratio, f)
        return pull + entropy_coef * (p * p.log()).sum() + kl_coef * (p * (p / q).log()).sum()

    return loss


@pytest.mark.parametrize("chunk", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_ppo_gradient_is_that_of_a_plain_loop_over_samples(
    chunk: int, dtype: torch.dtype, tolerance: float
) -> None:
    host, request = (
        FakeHost(dtype),
        make_request("ppo", 11, ppo_data(11), gradient_minibatch_size=chunk, **PPO),
    )
    exact = UpdateRequest(
        **{
            **vars(request),
            "data": {
                k: v.to(dtype) if v.is_floating_point() else v for k, v in request.data.items()
            },
        }
    )
    expected = plain_gradient(host, exact, ppo_sample_loss)
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(
        gradient_seen(PPOUpdater(), host, request), expected, rtol=0, atol=tolerance
    )
    distinct = len(set(zip(request.prompts, request.candidates, strict=True)))
    assert distinct < 11 and sum(host.scored) == distinct
    assert max(host.scored) == (chunk or distinct)


def test_ppo_of_action_heads_has_the_gradient_of_a_plain_loop_and_scores_no_text() -> None:
    host, data = FakeHost(), ppo_data(11)
    request = make_request(
        "ppo", 11, data, ragged=False, policy_module="actions", gradient_minibatch_size=2, **PPO
    )
    exact = UpdateRequest(
        **{
            **vars(request),
            "data": {k: v.double() if v.is_floating_point() else v for k, v in data.items()},
        }
    )
    expected = plain_gradient(host, exact, ppo_sample_loss, logits="actions")
    seen = gradient_seen(PPOUpdater(), host, request)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-9)
    places = dict(
        zip(
            [name for name, _ in host.named_parameters()],
            [p.numel() for p in host.parameters()],
            strict=True,
        )
    )
    by_name = dict(zip(places, seen.split(list(places.values())), strict=True))
    assert (
        by_name["actions.weight"].norm() > 0.01
        and by_name["read.weight"].norm() > 0.01
        and by_name["speak.weight"].norm() == 0
    )


def test_a_head_that_has_not_one_logit_per_candidate_is_refused() -> None:
    updater, host = PPOUpdater(), FakeHost()
    updater.set_llm_module(host)
    before = host.weights()
    with pytest.raises(
        RequestError,
        match=(
            r"module 'actions' must give one logit per candidate, "
            r"got shape \(2, 4\) for 2 to 4 candidates"
        ),
    ):
        updater.update(make_request("ppo", 11, ppo_data(11), policy_module="actions"))
    with pytest.raises(
        RequestError, match=r"module 'value' must give one logit per candidate, got shape \(2, 1\)"
    ):
        updater.update(make_request("ppo", 11, ppo_data(11), ragged=False, policy_module="value"))
    assert torch.equal(host.weights(), before)


@pytest.mark.parametrize("form", ["reinforce", "unlikelihood", "clipped"])
@pytest.mark.parametrize(("entropy_coef", "kl_coef"), [(0.0, 0.0), (0.3, 0.7)])
def test_feedback_gradient_is_that_of_a_plain_loop_over_samples(
    form: str, entropy_coef: float, kl_coef: float
) -> None:
    host, data = FakeHost(), feedback_data(9)
    with torch.no_grad():  # away from the initial teacher, or the KL penalty has no gradient
        host.read.weight += 0.3
    request = make_request(
        "feedback",
        9,
        data,
        loss=form,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        gradient_minibatch_size=2,
        **FEEDBACK,
    )
    exact = UpdateRequest(
        **{
            **vars(request),
            "data": {k: v.double() if v.is_floating_point() else v for k, v in data.items()},
        }
    )
    expected = plain_gradient(host, exact, feedback_sample_loss(form, entropy_coef, kl_coef))
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(
        gradient_seen(FeedbackUpdater(), host, request), expected, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("form", ["reinforce", "unlikelihood"])
def test_free_guidance_scores_only_what_was_said_and_needs_no_other_candidate(form: str) -> None:
    def loss(scores: Tensor, value: Tensor, reference: Tensor, row: dict[str, Tensor]) -> Tensor:
        log_p, f = scores[row["chosen"]], row["signals"]
        return -f * log_p if form == "reinforce" or f >= 0 else -(1 - log_p.exp()).log()

    host, data = FakeHost(), feedback_data(9)
    request = make_request("feedback", 9, data, normalise=False, loss=form, **FEEDBACK)
    exact = UpdateRequest(
        **{
            **vars(request),
            "data": {k: v.double() if v.is_floating_point() else v for k, v in data.items()},
        }
    )
    expected = plain_gradient(host, exact, loss)
    said = {
        (p, c[i])
        for p, c, i in zip(
            request.prompts, request.candidates, data["chosen"].tolist(), strict=True
        )
    }
    torch.testing.assert_close(
        gradient_seen(FeedbackUpdater(), host, request), expected, rtol=0, atol=1e-9
    )
    assert host.scored == [len(said)]


def test_supervised_gradient_is_cross_entropy() -> None:
    targets = torch.tensor([0, 1, 1, 0, 1])
    host, request = (
        FakeHost(),
        make_request("supervised", 5, {"targets": targets}, minibatch_size=5, **FEEDBACK),
    )
    expected = plain_gradient(
        host,
        request,
        lambda scores, v, r, row: torch.nn.functional.cross_entropy(scores, row["targets"]),
    )
    torch.testing.assert_close(
        gradient_seen(SupervisedUpdater(), host, request), expected, rtol=0, atol=1e-9
    )


def test_gradients_are_clipped_and_the_norm_before_is_reported() -> None:
    # A generator of parameters that Adam has consumed leaves nothing to clip: the step then has the
    # full gradient.
    full = gradient_seen(PPOUpdater(), FakeHost(), make_request("ppo", 11, ppo_data(11), **PPO))
    host, updater = FakeHost(), PPOUpdater()
    before = host.weights()
    stats = updated(
        updater, host, make_request("ppo", 11, ppo_data(11), **{**PPO, "max_grad_norm": 0.01})
    )
    d = before - host.weights()
    clipped = d / (1.0 - d.abs())
    assert stats["grad_norm"] == pytest.approx(float(full.norm()), rel=1e-9)
    assert float(full.norm()) > 0.1
    torch.testing.assert_close(
        clipped, full * 0.01 / full.norm(), rtol=1e-3, atol=0
    )  # torch adds 1e-6 to the norm
    assert float(clipped.norm()) == pytest.approx(0.01, rel=1e-4)


def test_clipping_still_works_in_a_later_update() -> None:
    host, updater = FakeHost(), PPOUpdater()
    options = {**PPO, "lr": 0.0, "max_grad_norm": 0.01}
    norms = [
        updated(updater, host, make_request("ppo", 11, ppo_data(11), **options))["grad_norm"]
        for _ in range(3)
    ]
    seen = [p.clone() for p in host.weights()]
    assert norms[0] == norms[1] == norms[2] > 0.1
    updated(updater, host, make_request("ppo", 11, ppo_data(11), **{**options, "lr": 1.0}))
    d = torch.stack(seen) - host.weights()
    # Four times the same clipped gradient: Adam's bias-corrected mean and root mean square are that
    # gradient again.
    assert float((d / (1.0 - d.abs())).norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(("minibatch", "chunk"), [(7, 2), (4, 3), (5, 5), (100, 3), (1, 1)])
def test_minibatches_that_are_no_multiple_of_anything_use_every_sample_once(
    minibatch: int, chunk: int
) -> None:
    hosts = []
    for size in (chunk, 0):
        host = FakeHost()
        options = {
            **PPO,
            "lr": 1e-3,
            "minibatch_size": minibatch,
            "gradient_minibatch_size": size,
            "epochs": 2,
        }
        stats = updated(
            PPOUpdater(), host, make_request("ppo", 10, ppo_data(10), prompts=5, **options)
        )
        assert stats["steps"] == 2 * math.ceil(10 / minibatch) == host.versions
        assert size == 0 or max(host.scored) <= size
        hosts.append(host)
    torch.testing.assert_close(hosts[0].weights(), hosts[1].weights(), rtol=0, atol=1e-9)


def test_several_epochs_of_ppo_equal_a_plain_implementation() -> None:
    n, data = 10, ppo_data(10)
    options: dict[str, Any] = {
        "lr": 1e-2,
        "adam_eps": 1e-5,
        "epochs": 3,
        "minibatch_size": 4,
        "max_grad_norm": 0.3,
        "seed": 5,
        "clip_eps": 0.2,
    }
    request = make_request("ppo", n, data, prompts=4, **options)
    host, plain = FakeHost(), FakeHost()
    updated(PPOUpdater(), host, request)
    adam = torch.optim.Adam(list(plain.parameters()), lr=1e-2, eps=1e-5, foreach=False, fused=False)
    shuffle = torch.Generator().manual_seed(5)
    for _ in range(3):
        for rows in torch.randperm(n, generator=shuffle).split(4):
            part = UpdateRequest(
                "ppo",
                tuple(request.prompts[i] for i in rows),
                tuple(request.candidates[i] for i in rows),
                rows,
                n,
                {
                    key: values[rows].double() if values.is_floating_point() else values[rows]
                    for key, values in data.items()
                },
            )
            flat = plain_gradient(plain, part, ppo_sample_loss)
            flat *= min(1.0, 0.3 / (float(flat.norm()) + 1e-6))
            for p, g in zip(
                plain.parameters(), flat.split([p.numel() for p in plain.parameters()]), strict=True
            ):
                p.grad = g.view_as(p)
            adam.step()
    assert float((host.weights() - FakeHost().weights()).abs().max()) > 0.01
    torch.testing.assert_close(host.weights(), plain.weights(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("fused", [True, False])
def test_adam_steps_as_pytorchs_class_to_the_bit(fused: bool) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(4, 3), torch.randn(5), torch.randn(2, 2, dtype=torch.float64)]
    theirs = [each.clone() for each in ours]
    adam = _Adam(ours, fused)
    reference = torch.optim.Adam(theirs, fused=fused, foreach=not fused)
    for lr, eps in ((1e-2, 1e-8), (3e-3, 1e-5), (1e-3, 1e-5)):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        adam.step(lr, eps)
        reference.param_groups[0].update(lr=lr, eps=eps)
        reference.step()
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(mine, other)
        for kind in MOMENTS:
            assert torch.equal(adam.moments[kind][place], reference.state[other][kind]), kind
