"""The LLM as policy without its words: action heads in place of the scores of texts (Carta et al.
2023, GLAM's ablation).
"""

from __future__ import annotations

import numpy as np

from lamorel_ext.agents.llm_policy import VALUE, LlmPolicyAgent
from lamorel_ext.experience import Scene
from lamorel_ext.randomness import log_softmax
from lamorel_ext.types import ScoreRequest, ScoreResult

ACTION_HEADS = "actions"
"""Name of the module function."""


class ActionHeadsAgent(LlmPolicyAgent):
    """A head on the LLM's first predicting state gives a logit per action; trained by the same PPO,
    with the same critic.
    """

    policy_module = ACTION_HEADS

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``; each distinct prompt travels once."""
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(scene.shown))}
        request = ScoreRequest(tuple(row_of), (), (ACTION_HEADS,), score=False)
        probs: np.ndarray = np.exp(log_softmax(self._scores(self._llm.score_batch(request))))
        return probs[[row_of[prompt] for prompt in scene.shown]]

    def _request(self, scene: Scene) -> ScoreRequest:
        return ScoreRequest(scene.shown, (), (ACTION_HEADS, VALUE), score=False)

    def _scores(self, result: ScoreResult) -> np.ndarray:
        logits: np.ndarray = result.modules[ACTION_HEADS].detach().double().numpy()
        return logits
