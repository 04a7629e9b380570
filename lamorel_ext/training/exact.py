"""Exact evaluation by enumeration: a memoryless policy of GoToRedBallNoDists over all of its states
and steps, without sampling noise.
"""

from __future__ import annotations

import numpy as np

from lamorel_ext.config import EnvArgs
from lamorel_ext.envs.babyai.enumeration import MISSION, evaluate_policy, state_table
from lamorel_ext.experience import Actor, AllStates
from lamorel_ext.prompts import PromptHistory
from lamorel_ext.randomness import check_distributions
from lamorel_ext.types import ObservationBatch


class ExactEvaluator:
    """Asks an actor once about each distinct thing that it can be shown, and solves the level for
    its answers.

    Args:
        args: The level's prompts and language.
        with_experts: True shows the expert's action too, which views do not determine.

    Attributes:
        scene: The distinct things to be shown: symbolic views, which determine the texts, and the
            expert's actions if asked for.
    """

    def __init__(self, args: EnvArgs, with_experts: bool = False) -> None:
        table = state_table()
        told = table.expert if with_experts else np.zeros_like(table.expert)
        shown, self._classes = np.unique(
            np.stack([table.views, told], axis=1), axis=0, return_inverse=True
        )
        views, experts = shown[:, 0], shown[:, 1]
        sentences = table.sentences(args.language)
        observations = ObservationBatch(
            missions=(MISSION,) * len(views),
            descriptions=tuple(sentences[text] for text in table.view_texts[views]),
            images=table.images[views],
            directions=table.directions[views],
        )
        prompts = PromptHistory(args.prompt, args.history, args.language).reset(observations)
        self.scene = AllStates(observations, prompts, experts if with_experts else None)

    def policy(self, actor: Actor) -> np.ndarray:
        """Probability of each action in each state, ``(5040, 6)``, of an ``enumerable`` actor.

        Raises:
            UpdateError: It is not finite.
        """
        probs = actor.action_probs(self.scene)
        check_distributions(probs.sum(axis=1), probs)
        table: np.ndarray = probs[self._classes.reshape(-1)]
        return table

    def evaluate(self, actor: Actor) -> tuple[float, float]:
        """Probability of success and expected unscaled return of an episode."""
        value = evaluate_policy(self.policy(actor))
        return value.success, value.mean_return
