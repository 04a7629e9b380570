"""Actors that do not learn, to compare with: uniformly random actions, and the expert."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lamorel_ext.errors import ConfigError
from lamorel_ext.experience import Actor, Decision, Discount, Rollout, Scene
from lamorel_ext.randomness import Draws, sample_rows, uniform


class _UnlearntActor(Actor):
    """Draws its actions from ``action_probs``, which a subclass has."""

    reads_prompts = False
    enumerable = True
    discount = Discount(1.0, 1.0)

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        with np.errstate(divide="ignore"):
            log_probs = np.log(self.action_probs(scene))
        actions = sample_rows(log_probs, draws.actions)
        taken = log_probs[np.arange(len(actions)), actions]
        return Decision(actions, taken, self.values(scene))

    def values(self, scene: Scene) -> np.ndarray:
        """There is no critic."""
        return np.zeros(len(scene))


class UniformActor(_UnlearntActor):
    """Takes every action alike.

    Args:
        actions: Ids of the actions to choose from; None means all that a state offers.
    """

    def __init__(self, actions: tuple[int, ...] | None = None) -> None:
        self._actions = actions

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        probs = uniform(scene.candidates)
        if self._actions is not None:
            fewest = min(scene.candidates, key=len)
            if not all(0 <= action < len(fewest) for action in self._actions):
                raise ConfigError(
                    f"agent: expected actions from 0 to {len(fewest) - 1}, got"
                    f" {list(self._actions)}; this state offers {', '.join(fewest)}"
                )
            probs[:] = 0.0
            probs[:, list(self._actions)] = 1.0 / len(self._actions)
        return probs


class ExpertActor(_UnlearntActor):
    """Does what the environment's expert does; its scenes need expert actions."""

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        size = max(len(texts) for texts in scene.candidates)
        probs: np.ndarray = np.eye(size)[expert_actions(scene)]
        return probs


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


def expert_actions(scene: Scene) -> np.ndarray:
    """What the environment's expert would do in each state, ``(n,)`` int64."""
    if scene.experts is None:
        raise ValueError("this scene has no expert actions: PromptedEnv needs with_experts=True")
    return scene.experts
