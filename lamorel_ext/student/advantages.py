"""TD errors, generalised advantages and returns over rollouts of shape ``(num_steps, num_envs)``.

Everywhere ``next_values[t]`` is the value of the state that step ``t`` reached, before any reset: at a truncated step it is the state in which
the episode was cut off, not the first state of the next episode.
"""

from __future__ import annotations

import numpy as np


def td_errors(rewards: np.ndarray, values: np.ndarray, next_values: np.ndarray, terminated: np.ndarray, gamma: float) -> np.ndarray:
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
    return np.asarray(rewards, dtype=np.float64) + gamma * bootstrap - values


def gae(errors: np.ndarray, done: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16).

    Args:
        errors: ``(num_steps, num_envs)``, from ``td_errors``.
        done: ``(num_steps, num_envs)`` bool, True where an episode ended for either reason: nothing flows back over that step.
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


def normalise(values: np.ndarray, eps: float = 1e-8) -> np.ndarray:
    """Shift and scale to mean 0 and standard deviation 1 over the whole array; a constant array becomes zeros."""
    centred = np.asarray(values, dtype=np.float64) - np.mean(values)
    return centred / (np.std(values) + eps)
