"""PPO of the LLM as policy (Carta et al.

2023, GLAM, arXiv 2302.02662): candidates are actions, a module function is the critic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters.batches import DataSpec, Scored
from lamorel_ext.llm.updaters.candidates import CandidateUpdater, StepReport
from lamorel_ext.methods.ppo.options import PPOOptions
from lamorel_ext.rl import (
    MAX_LOG_RATIO,
    chosen_log_probs,
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy,
)


class PPOUpdater(CandidateUpdater[PPOOptions]):
    """PPO over candidates.

    Data, each ``(n,)``: ``actions`` (places of candidates), ``old_log_probs`` (normalised over the
    candidates, when the actions were taken), ``advantages`` (used as they are), ``returns`` and
    ``values`` (when the actions were taken). Options: ``PPOOptions``.

    Statistics are means over all samples of all steps, except: ``initial_ratio_error`` is the mean
    of ``|ratio - 1|`` in the first minibatch, before any step, and should be near zero;
    ``scored_pairs`` and ``scored_tokens`` are totals; ``grad_norm`` is the mean over steps, before
    clipping.

    Args:
        value_module: Name of the module function that is the critic.
    """

    name = "ppo"
    options_type = PPOOptions
    terms: ClassVar[tuple[str, ...]] = (
        "loss",
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
        "clip_fraction",
        "ratio_error",
    )

    def __init__(self, value_module: str = "value") -> None:
        super().__init__()
        self._value_module = value_module
        self.modules = (value_module,)

    def data_spec(self, options: PPOOptions) -> DataSpec:
        """See the class."""
        return DataSpec(("actions",), ("old_log_probs", "advantages", "returns", "values"))

    def logits_module(self, options: PPOOptions) -> str:
        """As the options say."""
        return options.policy_module

    def uses_old_log_probs(self, options: PPOOptions) -> bool:
        """Always."""
        return True

    def said_log_probs(
        self, scored: Scored, data: dict[str, Tensor], options: PPOOptions
    ) -> Tensor:
        """Of the actions that were taken."""
        return chosen_log_probs(scored.scores.log_softmax(dim=-1), data["actions"])

    def loss(
        self, scored: Scored, data: dict[str, Tensor], options: PPOOptions
    ) -> dict[str, Tensor]:
        """Clipped surrogate, minus the entropy bonus, plus the clipped value loss."""
        values = scored.modules[self._value_module]
        if values.numel() != len(values):
            raise RequestError(
                f"{self.name}: module {self._value_module!r} must give one number per prompt, got"
                f" shape {tuple(values.shape)}"
            )
        log_probs = scored.scores.log_softmax(dim=-1)
        log_p = chosen_log_probs(log_probs, data["actions"])
        policy = clipped_surrogate_loss(
            log_p, data["old_log_probs"], data["advantages"], options.clip_eps
        )
        value = clipped_value_loss(
            values.reshape(-1).to(log_p.dtype), data["values"], data["returns"], options.clip_eps
        )
        spread = entropy(log_probs)
        log_ratio = (log_p.detach() - data["old_log_probs"]).clamp(max=MAX_LOG_RATIO)
        off = (log_ratio.exp() - 1.0).abs()
        return {
            "loss": policy - options.entropy_coef * spread + options.value_loss_coef * value,
            "policy_loss": policy,
            "value_loss": value,
            "entropy": spread,
            "approx_kl": log_ratio.exp() - 1.0 - log_ratio,
            "clip_fraction": (off > options.clip_eps).to(off.dtype),
            "ratio_error": off,
        }

    def summarise(self, reports: Sequence[StepReport]) -> dict[str, float]:
        """See the class."""
        return super().summarise(reports) | {"initial_ratio_error": reports[0].means["ratio_error"]}
