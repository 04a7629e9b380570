"""The LLM as policy: the baseline of Lamorel and GLAM (Carta et al. 2023)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lamorel_ext.agents.llm_teachers import distribution_over, summed_scores
from lamorel_ext.config import PpoArgs
from lamorel_ext.experience import Actor, Decision, Discount, PendingDecision, Rollout, Said, Scene
from lamorel_ext.methods.ppo.options import PPOOptions
from lamorel_ext.options import in_common
from lamorel_ext.randomness import Draws, entropies, log_softmax, sample_rows
from lamorel_ext.rl import normalise
from lamorel_ext.types import LlmClient, Scalar, ScoreRequest, ScoreResult, UpdateRequest

PPO_STATS = (
    "loss",
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "initial_ratio_error",
    "grad_norm",
)
"""Numbers of the servers' PPO update that are recorded."""
VALUE = "value"
"""Name of the module function that is the critic."""


class LlmPolicyAgent:
    """The LLM scores the texts of the actions and is trained by PPO on the servers; a value head
    is the critic.

    Advantages are normalised over the rollout, as in Lamorel's PPO example. Guidance and action
    coincide: x_t = a_t.
    """

    reads_prompts = True
    enumerable = True
    asks = True
    follower: Actor | None = None
    columns: tuple[str, ...] = tuple(f"ppo_{name}" for name in PPO_STATS)
    policy_module = ""

    def __init__(self, llm: LlmClient, args: PpoArgs) -> None:
        self._llm = llm
        self._args = args
        self.discount = Discount(args.gamma, args.lam, args.reward_scale)

    def decide(self, scene: Scene, draws: Draws) -> Decision:
        """See ``Actor``."""
        return self._decide(scene, self._llm.score_batch(self._request(scene)), draws)

    def ask(self, scene: Scene) -> PendingDecision:
        """See ``AskingActor``."""
        pending = self._llm.submit_score(self._request(scene))
        return lambda draws: self._decide(scene, pending.result(), draws)

    def values(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        request = ScoreRequest(scene.shown, (), (VALUE,), score=False)
        values: np.ndarray = (
            self._llm.score_batch(request).modules[VALUE].detach().double().reshape(-1).numpy()
        )
        return values

    def action_probs(self, scene: Scene) -> np.ndarray:
        """See ``Actor``."""
        return distribution_over(self._llm, scene, scene.candidates)

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """See ``Agent``."""
        seed = int(rng.integers(2**31))
        request = ppo_request(rollout, self._args, seed, self.policy_module)
        stats = self._llm.update_batch(request).stats
        return {f"ppo_{name}": stats[name] for name in PPO_STATS if name in stats}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learns lives on the servers."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See ``tensors``."""

    def _request(self, scene: Scene) -> ScoreRequest:
        return ScoreRequest(scene.shown, scene.candidates, (VALUE,))

    def _scores(self, result: ScoreResult) -> np.ndarray:
        """``(n, actions)`` float64; actions are drawn from their softmax."""
        return summed_scores(result)

    def _decide(self, scene: Scene, result: ScoreResult, draws: Draws) -> Decision:
        scores = self._scores(result)
        log_probs = log_softmax(scores)
        actions = sample_rows(log_probs, draws.actions)
        taken = log_probs[np.arange(len(actions)), actions]
        of_texts = None if self.policy_module else scores
        said = Said(scene.shown, scene.candidates, actions, taken, entropies(log_probs), of_texts)
        values = result.modules[VALUE].detach().double().reshape(-1).numpy()
        return Decision(actions, taken, values, said)


def ppo_request(
    rollout: Rollout, args: PpoArgs, seed: int, policy_module: str = ""
) -> UpdateRequest:
    """The servers' PPO update from a rollout of the LLM policy's.

    Args:
        seed: Fixes the minibatches.
        policy_module: See ``PPOOptions``.
    """
    said = [turn.decision.said for turn in rollout.turns if turn.decision.said is not None]
    prompts = tuple(prompt for words in said for prompt in words.prompts)
    options: dict[str, Scalar] = in_common(PPOOptions, args) | {"seed": seed}
    options |= {"policy_module": policy_module} if policy_module else {}
    data = {
        "actions": torch.from_numpy(np.concatenate([words.chosen for words in said])),
        "old_log_probs": torch.from_numpy(np.concatenate([words.log_probs for words in said])),
        "advantages": torch.from_numpy(normalise(rollout.advantages).ravel()),
        "returns": torch.from_numpy(rollout.returns.ravel()),
        "values": torch.from_numpy(rollout.values.ravel()),
    }
    candidates = tuple(texts for words in said for texts in words.candidates)
    return UpdateRequest(
        "ppo", prompts, candidates, torch.arange(len(prompts)), len(prompts), data, options
    )
