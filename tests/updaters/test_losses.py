"""Each loss against its derivative worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lamorel_ext import rl as losses

SCORES = [[-1.0, -2.5, -0.3], [-4.0, -3.0, float("-inf")], [0.0, 0.0, 0.0]]
CHOSEN = torch.tensor([1, 0, 2])
DELTA = torch.nn.functional.one_hot(CHOSEN, 3).double()


def leaf() -> Tensor:
    return torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)


def probabilities(scores: Tensor) -> Tensor:
    """The slow way: exponentials over their sum, row by row."""
    rows = []
    for row in scores.detach().tolist():
        weights = [math.exp(score) for score in row]
        rows.append([weight / sum(weights) for weight in weights])
    return torch.tensor(rows, dtype=torch.float64)


def gradient(loss: Tensor, scores: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss.sum(), scores)
    assert not result.isnan().any()
    return result


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_entropy_and_its_gradient() -> None:
    # H = -sum p log p. dH/dz_k = -p_k (log p_k + H), since dp_j/dz_k = p_j (delta_jk - p_k) and
    # sum_j dp_j = 0. Absent candidates: p = 0.
    scores = leaf()
    p = probabilities(scores)
    h = torch.tensor(
        [-sum(q * math.log(q) for q in row if q > 0) for row in p.tolist()], dtype=torch.float64
    )
    log_p = torch.where(p > 0, p.clamp(min=1e-300).log(), 0.0)
    result = losses.entropy(scores.log_softmax(dim=-1))
    close(result, h)
    assert result[2].item() == pytest.approx(math.log(3), abs=1e-12)
    close(gradient(result, scores), -p * (log_p + h[:, None]))


def test_kl_and_its_gradient() -> None:
    # KL = sum p (log p - log q). dKL/dz_k = p_k (log p_k - log q_k - KL), by the same dp_j/dz_k.
    scores = leaf()
    other = torch.tensor(
        [[-2.0, -1.0, -1.5], [-1.0, -2.0, float("-inf")], [0.0, 0.0, 0.0]], dtype=torch.float64
    )
    p, q = probabilities(scores), probabilities(other)
    difference = torch.where(p > 0, (p / q.clamp(min=1e-300)).clamp(min=1e-300).log(), 0.0)
    kl = (p * difference).sum(-1)
    result = losses.kl_divergence(scores.log_softmax(dim=-1), other.log_softmax(dim=-1))
    close(result, kl)
    assert result[0].item() > 0.1 and result[2].item() == 0.0
    close(gradient(result, scores), p * (difference - kl[:, None]))


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_unlikelihood_gradient(sign: float) -> None:
    # f = +1: L = -log p_c, dL/dz_k = -(delta_ck - p_k). f = -1: L = -log(1 - p_c), dL/dp_c = 1 / (1
    # - p_c), dp_c/dz_k = p_c (delta_ck - p_k), so dL/dz_k = p_c / (1 - p_c) (delta_ck - p_k). f =
    # 0: nothing.
    scores, f = leaf(), torch.full((3,), sign, dtype=torch.float64)
    p = probabilities(scores)
    p_c = (p * DELTA).sum(-1)
    log_probs = scores.log_softmax(dim=-1)
    log_p = losses.chosen_log_probs(log_probs, CHOSEN)
    value = {1.0: -p_c.log(), -1.0: -(1 - p_c).log(), 0.0: torch.zeros(3, dtype=torch.float64)}[
        sign
    ]
    factor = {
        1.0: -torch.ones(3, dtype=torch.float64),
        -1.0: p_c / (1 - p_c),
        0.0: torch.zeros(3, dtype=torch.float64),
    }[sign]
    for log_not_p in (losses.log_complement(log_probs, CHOSEN), losses.log1mexp(log_p)):
        loss = losses.unlikelihood_loss(log_p, log_not_p, f)
        close(loss, value)
        (slope,) = torch.autograd.grad(loss.sum(), scores, retain_graph=True)
        close(slope, factor[:, None] * (DELTA - p))


def test_unlikelihood_still_pulls_where_p_rounds_to_one() -> None:
    # p_c = 1 - 2e-13 rounds to 1 in float32. With q_k = p_k / (1 - p_c) = 1/2 for both others,
    # dL/dz = (p_c, -p_c/2, -p_c/2).
    scores = torch.tensor([[30.0, 0.0, 0.0]], requires_grad=True)
    chosen = torch.tensor([0])
    log_probs = scores.log_softmax(dim=-1)
    loss = losses.unlikelihood_loss(
        losses.chosen_log_probs(log_probs, chosen),
        losses.log_complement(log_probs, chosen),
        torch.tensor([-1.0]),
    )
    assert loss.item() == pytest.approx(30.0 - math.log(2.0), rel=1e-6)
    torch.testing.assert_close(
        gradient(loss, scores), torch.tensor([[1.0, -0.5, -0.5]]), rtol=1e-6, atol=0
    )


def test_only_candidate_has_no_complement_and_harms_nobody_else() -> None:
    scores = torch.tensor(
        [[-1.0, float("-inf")], [-1.0, -2.0]], dtype=torch.float64, requires_grad=True
    )
    log_probs = scores.log_softmax(dim=-1)
    result = losses.log_complement(log_probs, torch.tensor([0, 0]))
    assert torch.isneginf(result[0])
    loss = losses.unlikelihood_loss(
        log_probs[:, 0], result, torch.tensor([1.0, -1.0], dtype=torch.float64)
    )
    assert torch.isfinite(gradient(loss, scores)).all()


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -0.1, -math.log(2.0), -0.7, -5.0, -50.0])
def test_log1mexp_value_and_gradient(x: float) -> None:
    # d log(1 - e^x) / dx = -e^x / (1 - e^x) = 1 / expm1(-x) with the sign turned: -1 / (e^-x - 1).
    at = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    result = losses.log1mexp(at)
    assert result.item() == pytest.approx(
        math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x)), rel=1e-12
    )
    assert float(gradient(result, at)) == pytest.approx(-1.0 / math.expm1(-x), rel=1e-12)


def test_log1mexp_of_certainty_is_finite_and_keeps_pulling() -> None:
    # At p = 1 the value is log(eps), and the slope that of -eps: -1 / (e^eps - 1), about -1 / eps.
    at = torch.tensor([0.0, -1e-9], requires_grad=True)
    result = losses.log1mexp(at)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(result, torch.full((2,), math.log(eps)), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        gradient(result, at), torch.full((2,), -1.0 / eps), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "active"),
    [
        (1.0, 1.0, True),
        (1.3, 1.0, False),
        (0.7, 1.0, True),
        (1.3, -1.0, True),
        (0.7, -1.0, False),
        (1.1, -0.5, True),
        (1.1, 0.0, True),
    ],
)
def test_clipped_surrogate_gradient(ratio: float, advantage: float, active: bool) -> None:
    # L = -min(r A, clip(r) A) with r = p_c / p_old, dr/dz_k = r (delta_ck - p_k). Where the ratio
    # has gone the way A wants beyond the clip, the minimum is the constant one: no gradient. Else
    # dL/dz_k = -A r (delta_ck - p_k).
    scores = leaf()
    log_p = losses.chosen_log_probs(scores.log_softmax(dim=-1), CHOSEN)
    old = (log_p - math.log(ratio)).detach()
    advantages = torch.full((3,), advantage, dtype=torch.float64)
    loss = losses.clipped_surrogate_loss(log_p, old, advantages, 0.2)
    bound = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    close(loss, torch.full((3,), -bound, dtype=torch.float64))
    expected = (
        -advantage * ratio * (DELTA - probabilities(scores))
        if active
        else torch.zeros(3, 3, dtype=torch.float64)
    )
    close(gradient(loss, scores), expected)


def test_clipped_surrogate_survives_a_ratio_beyond_the_number_format() -> None:
    log_p = torch.tensor([0.0], requires_grad=True)
    loss = losses.clipped_surrogate_loss(log_p, torch.tensor([-1000.0]), torch.tensor([1.0]), 0.2)
    assert loss.item() == pytest.approx(-1.2, rel=1e-6)
    assert float(gradient(loss, log_p)) == 0.0


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        # Old value 0, return 1, clip 0.2. L = max((v - 1)^2, (clip(v) - 1)^2).
        (0.1, 0.81, -1.8),  # inside: both are (0.1 - 1)^2, slope 2 (0.1 - 1)
        (
            0.5,
            0.64,
            0.0,
        ),  # moved past the clip towards the return: (0.2 - 1)^2 is larger and constant
        (-0.5, 2.25, -3.0),  # moved away: (-0.5 - 1)^2 against (-0.2 - 1)^2, slope 2 (-1.5)
        (3.0, 4.0, 4.0),  # far beyond the return: (3 - 1)^2, slope 2 * 2
    ],
)
def test_clipped_value_loss_by_hand(value: float, loss: float, slope: float) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    result = losses.clipped_value_loss(values, zero, one, 0.2)
    assert result.item() == pytest.approx(loss, rel=1e-12)
    assert float(gradient(result, values)) == pytest.approx(slope, abs=1e-12)
