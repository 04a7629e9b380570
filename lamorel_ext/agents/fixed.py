"""Agents that learn nothing, in the place of one that learns: uniformly random actions, and the
expert.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lamorel_ext.experience import Actor, Decision, Rollout, Scene
from lamorel_ext.randomness import Draws


class FixedAgent:
    """Acts as an actor does, whatever comes of it.

    Args:
        actor: Acts.
    """

    columns: tuple[str, ...] = ()
    follower: Actor | None = None

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.discount = actor.discount
        self.reads_prompts = actor.reads_prompts
        self.enumerable = actor.enumerable

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        return self._actor.decide(scene, draws)

    def values(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        return self._actor.values(scene)

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        return self._actor.action_probs(scene)

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """There is nothing to learn."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """There is nothing to save."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See ``tensors``."""
