"""The LLM as policy without its words: action heads in place of the scores of texts (Carta et al.
2023, GLAM's ablation).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lamorel_ext.agents.llm_policy import PPO_STATS, VALUE, LlmPolicyAgent, ppo_request
from lamorel_ext.experience import Decision, PendingDecision, Rollout, Said, Scene
from lamorel_ext.prompts import ACTION_NAMES
from lamorel_ext.randomness import Draws, entropies, log_softmax, sample_rows
from lamorel_ext.types import ScoreRequest, ScoreResult

ACTION_HEADS = "actions"
"""Name of the module function."""


class ActionHeadsAgent(LlmPolicyAgent):
    """A head on the LLM's first predicting state gives a logit per action; trained by the same PPO,
    with the same critic.
    """

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        request = _logits_and_values(scene)
        return _decide(request, self._llm.score_batch(request), draws)

    def ask(self, scene: Scene) -> PendingDecision:
        """See ``AskingActor``."""
        request = _logits_and_values(scene)
        pending = self._llm.submit_score(request)
        return lambda draws: _decide(request, pending.result(), draws)

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``; each distinct prompt travels once."""
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(scene.shown))}
        result = self._llm.score_batch(
            ScoreRequest(tuple(row_of), (), (ACTION_HEADS,), score=False)
        )
        probs: np.ndarray = np.exp(_log_policy(result))
        return probs[[row_of[prompt] for prompt in scene.shown]]

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """See ``Agent``."""
        request = ppo_request(rollout, self._args, seed=int(rng.integers(2**31)))
        stats = self._llm.update_batch(
            dataclasses.replace(request, options={**request.options, "policy_module": ACTION_HEADS})
        ).stats
        return {f"ppo_{name}": stats[name] for name in PPO_STATS if name in stats}


def _logits_and_values(scene: Scene) -> ScoreRequest:
    return ScoreRequest(scene.shown, (), (ACTION_HEADS, VALUE), score=False)


def _log_policy(result: ScoreResult) -> np.ndarray:
    """``(n, actions)`` in nats."""
    return log_softmax(result.modules[ACTION_HEADS].detach().double().numpy())


def _decide(request: ScoreRequest, result: ScoreResult, draws: Draws) -> Decision:
    log_probs = _log_policy(result)
    actions = sample_rows(log_probs, draws.actions)
    taken = log_probs[np.arange(len(actions)), actions]
    said = Said(
        request.prompts, (ACTION_NAMES,) * len(actions), actions, taken, entropies(log_probs)
    )
    values = result.modules[VALUE].detach().double().reshape(-1).numpy()
    return Decision(actions, taken, values, said)
