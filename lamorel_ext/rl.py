"""Losses over candidates as pure functions: PPO, the three forms of feedback, cross-entropy.

Every function gives one value per sample, in nats where it is a log-probability, and leaves the
mean to its caller: a sum over samples that is divided by the size of the whole batch can be split
over chunks and servers without changing the gradient.

Candidates are ragged. A score or log-probability of minus infinity means "no such candidate"; no
gradient flows there and none comes back as NaN.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

MAX_LOG_RATIO = 80.0
"""exp(80) is still a float32; above, the unused branch of PPO's minimum would turn the gradient
into NaN.
"""


# --- distributions over candidates ----------------------------------------------------------------


def chosen_log_probs(log_probs: Tensor, chosen: Tensor) -> Tensor:
    """The log-probability of the candidate that was taken.

    Args:
        log_probs: ``(n, k)``.
        chosen: ``(n,)`` int64, places of candidates.

    Returns:
        ``(n,)``.
    """
    return log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each row.

    Args:
        log_probs: ``(n, k)``, normalised; minus infinity where there is no candidate.

    Returns:
        ``(n,)``, between 0 and the logarithm of the number of candidates.
    """
    finite = log_probs.masked_fill(torch.isneginf(log_probs), 0.0)
    return -(log_probs.exp() * finite).sum(-1)


def kl_divergence(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL(current || reference), exact over the candidates.

    Args:
        log_probs: ``(n, k)``, normalised, with gradient; minus infinity where there is no
            candidate.
        reference: ``(n, k)``, normalised, of the same candidates.

    Returns:
        ``(n,)``, not negative.
    """
    absent = torch.isneginf(log_probs)
    difference = log_probs.masked_fill(absent, 0.0) - reference.masked_fill(absent, 0.0)
    return (log_probs.exp() * difference).sum(-1)


# --- PPO ------------------------------------------------------------------------------------------


def clipped_surrogate_loss(
    log_p: Tensor, old_log_p: Tensor, advantages: Tensor, clip_eps: float
) -> Tensor:
    """PPO's clipped surrogate objective, negated (Schulman et al. 2017, arXiv 1707.06347, equation
    7).

    Args:
        log_p: ``(n,)``, log-probability of the action under the current policy.
        old_log_p: ``(n,)``, the same when the action was taken.
        advantages: ``(n,)``, used as they are.
        clip_eps: The ratio counts between ``1 - clip_eps`` and ``1 + clip_eps``.

    Returns:
        ``(n,)``.
    """
    ratio = (log_p - old_log_p).clamp(max=MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip_eps, 1.0 + clip_eps)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_eps: float
) -> Tensor:
    """The larger of two squared errors: of the value, and of the value kept near its old one
    (GLAM's form, without a factor of one half).

    Args:
        values: ``(n,)``, current values.
        old_values: ``(n,)``, values when the actions were taken.
        returns: ``(n,)``, what the values should be.
        clip_eps: How far a clipped value may be from its old one, in units of the return.

    Returns:
        ``(n,)``, not negative.
    """
    near_old = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return torch.maximum((values - returns).square(), (near_old - returns).square())


def pair_log_probs(log_probs: Tensor, likelihoods: Tensor) -> Tensor:
    """``log sum_x M(x | s) P(a | x, s)``: how likely teacher and student together make the action.

    Its gradient gives each candidate its share, ``M(x | s) P(a | x, s)`` over their sum, of the
    gradient of ``log M(x | s)`` (docs/method.md).

    Args:
        log_probs: ``(n, k)``, ``log M(x | s)``, normalised; minus infinity where there is no
            candidate.
        likelihoods: ``(n, at least k)``, ``log P(a | x, s)`` of the action that was taken, finite.

    Returns:
        ``(n,)``, at most 0.
    """
    return (log_probs + likelihoods[:, : log_probs.shape[1]]).logsumexp(-1)


# --- feedback -------------------------------------------------------------------------------------


def unlikelihood_loss(log_p: Tensor, log_not_p: Tensor, signals: Tensor) -> Tensor:
    """``-log p`` where f is positive, ``-log(1 - p)`` where it is negative, 0 where it is zero
    (Welleck et al. 2019, arXiv 1908.04319).

    Unlike ``reinforce`` its pull on what was called worse fades as p goes to zero, so it has a
    minimum.

    Args:
        log_p: ``(n,)``, log-probability of what was said.
        log_not_p: ``(n,)``, logarithm of one minus that probability: ``log_complement`` or
            ``log1mexp``.
        signals: ``(n,)``, f; only its sign counts.

    Returns:
        ``(n,)``.
    """
    zero = torch.zeros_like(log_p)
    return torch.where(signals > 0, -log_p, torch.where(signals < 0, -log_not_p, zero))


def log_complement(log_probs: Tensor, chosen: Tensor) -> Tensor:
    """``log(1 - p)`` of the chosen candidate, as the log-sum-exp of the others: exact even where p
    rounds to one.

    Args:
        log_probs: ``(n, k)``, normalised; minus infinity where there is no candidate.
        chosen: ``(n,)`` int64.

    Returns:
        ``(n,)``; minus infinity, without gradient, where there is no other candidate.
    """
    others = log_probs.scatter(-1, chosen.unsqueeze(-1), float("-inf"))
    alone = torch.isneginf(others).all(-1)
    summed = others.masked_fill(alone.unsqueeze(-1), 0.0).logsumexp(-1)
    return summed.masked_fill(alone, float("-inf"))


def log1mexp(log_p: Tensor) -> Tensor:
    """``log(1 - exp(log_p))`` without cancellation (Maechler 2012, ``log1mexp``).

    Where p rounds to one, one minus p is taken as the precision of the number format. The gradient
    there is the one at that point, not zero, so that a text that is certain can still be unlearnt.

    Args:
        log_p: ``(n,)``, at most 0.

    Returns:
        ``(n,)``, finite.
    """
    limit = -torch.finfo(log_p.dtype).eps
    held = torch.where(log_p > limit, log_p - log_p.detach() + limit, log_p)
    near_one = held > -math.log(2.0)
    # Each branch sees harmless numbers where the other one is taken, or its infinite derivative
    # times zero would be NaN.
    by_expm1 = torch.log(-torch.expm1(torch.where(near_one, held, -torch.ones_like(held))))
    by_log1p = torch.log1p(-torch.exp(torch.where(near_one, -torch.ones_like(held), held)))
    return torch.where(near_one, by_expm1, by_log1p)


# --- advantages over rollouts of shape (num_steps, num_envs) --------------------------------------


def td_errors(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """One-step TD errors, ``r + gamma V(reached) (1 - terminated) - V``.

    Args:
        rewards: ``(..., num_envs)``.
        values: ``(..., num_envs)``, V of the states acted in.
        next_values: ``(..., num_envs)``, V of the states reached, before any reset.
        terminated: ``(..., num_envs)`` bool, True masks the bootstrap. Truncation does not.
        gamma: Discount.

    Returns:
        ``(..., num_envs)`` float64.
    """
    bootstrap = np.where(terminated, 0.0, next_values)
    errors: np.ndarray = np.asarray(rewards, dtype=np.float64) + gamma * bootstrap - values
    return errors


def gae(errors: np.ndarray, done: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16).

    Args:
        errors: ``(num_steps, num_envs)``, from ``td_errors``.
        done: ``(num_steps, num_envs)`` bool, True where an episode ended for either reason: nothing
            flows back over that step.
        gamma: Discount.
        lam: Decay of the mixture; 0 gives the TD errors back.

    Returns:
        ``(num_steps, num_envs)`` float64.
    """
    advantages = np.array(errors, dtype=np.float64)
    decay = gamma * lam * np.logical_not(done)
    for t in range(len(advantages) - 2, -1, -1):
        advantages[t] += decay[t] * advantages[t + 1]
    return advantages


ROUNDING = 1e-6
"""Share of the largest magnitude up to which numbers of float32 networks may differ by rounding
alone.
"""


def normalise(values: np.ndarray, eps: float = 1e-8) -> np.ndarray:
    """Shift and scale to mean 0 and standard deviation 1 over the whole array; a constant array
    becomes zeros, also where its numbers differ by rounding.
    """
    centred = np.asarray(values, dtype=np.float64) - np.mean(values)
    spread = np.std(values)
    if spread <= ROUNDING * np.max(np.abs(values), initial=0.0):
        return np.zeros_like(centred)
    normalised: np.ndarray = centred / (spread + eps)
    return normalised
