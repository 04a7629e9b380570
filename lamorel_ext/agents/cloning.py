"""Behavioural cloning: the expert acts, and the LLM learns to say what it does (a comparison of
Carta et al. 2023, GLAM).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.actors import ExpertActor
from lamorel_ext.agents.llm_teachers import candidate_table, distribution_over
from lamorel_ext.config import CloningArgs
from lamorel_ext.experience import Actor, Decision, Discount, Rollout, Scene
from lamorel_ext.methods.cloning.options import SupervisedOptions
from lamorel_ext.options import in_common
from lamorel_ext.randomness import Draws, sample_rows
from lamorel_ext.types import LlmClient, Scalar, UpdateRequest

CLONING_STATS = ("loss", "accuracy", "entropy", "grad_norm")
"""Numbers of the servers' supervised update that are recorded."""


class CloningAgent:
    """The LLM as policy, taught by cross-entropy to choose the expert's action.

    Where a scene shows the expert's actions, as those of training do, it takes them; elsewhere, as
    in evaluations, the LLM acts alone.
    """

    reads_prompts = True
    enumerable = True
    discount = Discount(1.0, 1.0)
    follower: Actor | None = None
    columns: tuple[str, ...] = tuple(f"cloning_{name}" for name in CLONING_STATS)

    def __init__(self, llm: LlmClient, args: CloningArgs) -> None:
        self._llm = llm
        self._args = args
        self._expert = ExpertActor()

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        if scene.experts is not None:
            return self._expert.decide(scene, draws)
        log_probs = candidate_table(self._llm, scene.shown, scene.candidates)
        actions = sample_rows(log_probs, draws.actions)
        return Decision(actions, log_probs[np.arange(len(actions)), actions], self.values(scene))

    def values(self, scene: Scene) -> np.ndarray:
        """There is no critic."""
        return np.zeros(len(scene))

    def action_probs(self, scene: Scene) -> np.ndarray:
        """The LLM's, see ``Actor``."""
        return distribution_over(self._llm, scene, scene.candidates)

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """See ``Agent``."""
        stats = self._llm.update_batch(
            cloning_request(rollout, self._args, seed=int(rng.integers(2**31)))
        ).stats
        return {f"cloning_{name}": stats[name] for name in CLONING_STATS if name in stats}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learns lives on the servers."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See ``tensors``."""


def cloning_request(rollout: Rollout, args: CloningArgs, seed: int) -> UpdateRequest:
    """The servers' supervised update from a rollout of the expert's.

    Args:
        seed: Fixes the minibatches.
    """
    prompts = tuple(prompt for turn in rollout.turns for prompt in turn.prompts)
    actions = np.concatenate([turn.decision.actions for turn in rollout.turns])
    data = {"targets": torch.from_numpy(actions)}
    options: dict[str, Scalar] = in_common(SupervisedOptions, args) | {"seed": seed}
    candidates = tuple(texts for turn in rollout.turns for texts in turn.candidates)
    rows = torch.arange(len(prompts))
    return UpdateRequest("supervised", prompts, candidates, rows, len(prompts), data, options)
