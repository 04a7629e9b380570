"""PPO of the student's network (Schulman et al. 2017), on unscaled rewards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lamorel_ext.agents.network import StudentNetwork
from lamorel_ext.agents.optimizer import FlatAdam
from lamorel_ext.config import StudentArgs
from lamorel_ext.rl import ROUNDING

STATS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "kl",
    "clip_fraction",
    "grad_norm",
    "explained_variance",
)
"""Names of the numbers that an update gives."""

LossTerm = Callable[[Tensor, Tensor], Tensor]
"""What is added to a student's loss on a minibatch: from the rows of the flattened rollout,
``(n,)`` int64, and the log-probabilities of the actions there, ``(n, actions)`` in nats with
gradient, to a mean, ``()``. Row ``t * num_envs + e`` is step ``t`` of environment ``e``.
"""


@dataclass(frozen=True)
class StudentBatch:
    """Transitions of a rollout, flattened.

    Attributes:
        features: ``(n, feature_size)`` float32.
        codes: ``(n, guidance_codes)`` float32.
        hints: ``(n,)`` int64.
        actions: ``(n,)`` int64.
        old_log_probs: ``(n,)`` float32, of the actions when they were taken.
        advantages: ``(n,)`` float32, not normalised.
        returns: ``(n,)`` float32, advantages plus values.
        offered: ``(n, actions, ACTION_SIZE)`` float32, where each state lists its own actions; else
            None.
    """

    features: Tensor
    codes: Tensor
    hints: Tensor
    actions: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    offered: Tensor | None = None

    def take(self, indices: Tensor) -> StudentBatch:
        """The transitions at ``indices``."""
        rows: Any = {
            name: None if own is None else own[indices] for name, own in vars(self).items()
        }
        return StudentBatch(**rows)


@dataclass(frozen=True)
class Losses:
    """What one minibatch gives. All are means over it; ``total`` carries the gradient."""

    total: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor


def ppo_losses(
    network: StudentNetwork,
    batch: StudentBatch,
    args: StudentArgs,
    term: Callable[[Tensor], Tensor] | None = None,
) -> Losses:
    """Clipped surrogate, squared value error and entropy; advantages are normalised over the
    minibatch.

    Args:
        term: What a method adds to the loss, from the actions' log-probabilities.
    """
    log_probs = network.policy(batch.features, batch.codes, batch.hints, batch.offered)
    log_ratio = log_probs.gather(1, batch.actions[:, None]).squeeze(1) - batch.old_log_probs
    ratio = log_ratio.exp()
    spread = batch.advantages.std(unbiased=False)
    advantages = (batch.advantages - batch.advantages.mean()) / (spread + 1e-8)
    # Equal ones are not told apart, whatever rounding makes of their mean.
    advantages = advantages * (spread > ROUNDING * batch.advantages.abs().max())
    clipped = ratio.clamp(1 - args.clip_eps, 1 + args.clip_eps)
    policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
    value_loss = F.mse_loss(network.value(batch.features), batch.returns)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
    total = policy_loss + args.value_loss_coef * value_loss - args.entropy_coef * entropy
    if term is not None:
        total = total + term(log_probs)
    with torch.no_grad():
        # A non-negative estimate of KL(old || new), Schulman 2020.
        kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > args.clip_eps).float().mean()
    return Losses(total, policy_loss, value_loss, entropy, kl, clip_fraction)


def num_minibatches(samples: int, args: StudentArgs) -> int:
    """Of a pass over so many samples. Alone in its minibatch an advantage is its own mean, and says
    nothing.
    """
    return min(args.num_minibatches, max(1, samples // 2))


def update_student(
    network: StudentNetwork,
    optimizer: FlatAdam,
    batch: StudentBatch,
    args: StudentArgs,
    rng: np.random.Generator,
    trust: FlatAdam | None = None,
    term: LossTerm | None = None,
) -> dict[str, float]:
    """Run ``args.epochs`` passes over a rollout.

    Args:
        rng: Draws the minibatches.
        trust: Optimiser of ``network.trust`` where that is learnt, with a step size of its own.
        term: What a method adds to the loss.

    Returns:
        Means over all minibatches, by ``STATS``; ``explained_variance`` is of the values before the
        update, ``grad_norm`` before clipping.
    """
    seen = []
    for _ in range(args.epochs):
        order = torch.from_numpy(rng.permutation(len(batch.actions)))
        for indices in torch.tensor_split(order, num_minibatches(len(order), args)):
            added = None if term is None else functools.partial(term, indices)
            losses = ppo_losses(network, batch.take(indices), args, added)
            if trust is not None:
                trust.zero_grad()
            norm = optimizer.minimise(losses.total, args.lr, args.max_grad_norm)
            if trust is not None:
                trust.step(args.kappa_lr, args.max_grad_norm)
            policy, value = losses.policy_loss, losses.value_loss
            seen.append((policy, value, losses.entropy, losses.kl, losses.clip_fraction, norm))
    means = torch.stack([torch.stack(row).detach() for row in seen]).mean(dim=0).tolist()
    return dict(zip(STATS, [*means, explained_variance(batch)], strict=True))


def explained_variance(batch: StudentBatch) -> float:
    """1 - Var(advantage) / Var(return): 1 for a perfect critic, 0 for a constant one. 0 where the
    returns do not vary.
    """
    variance = float(batch.returns.var(unbiased=False))
    return 1.0 - float(batch.advantages.var(unbiased=False)) / variance if variance > 0 else 0.0
