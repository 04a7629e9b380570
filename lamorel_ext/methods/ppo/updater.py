"""PPO of the LLM as policy (Carta et al.

2023, GLAM, arXiv 2302.02662): candidates are actions, a module function is the critic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lamorel_ext.config.bounds import number
from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters.batches import Minibatch, draw_minibatches
from lamorel_ext.llm.updaters.candidates import CandidateUpdater, StepReport
from lamorel_ext.llm.updaters.requests import DataSpec
from lamorel_ext.llm.updaters.scored import Scored
from lamorel_ext.rl import (
    MAX_LOG_RATIO,
    candidate_log_softmax,
    chosen_log_probs,
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy,
)


@dataclass(frozen=True)
class PPOOptions:
    """Options of ``PPOUpdater``; the defaults are GLAM's.

    Attributes:
        lr: Adam's step size.
        epochs: Passes over the batch.
        minibatch_size: Samples of an optimiser step, over all servers.
        gradient_minibatch_size: Distinct prompts whose activations are held at a time; 0 means the
            whole minibatch.
        seed: Fixes the shuffling.
        policy_module: Module function that gives a logit per candidate, in the candidates' order;
            empty takes the scores of their texts.
    """

    lr: float = number(1e-6, at_least=0.0)
    adam_eps: float = number(1e-5, above=0.0)
    epochs: int = number(4, at_least=1)
    minibatch_size: int = number(64, at_least=1)
    gradient_minibatch_size: int = number(0, at_least=0)
    clip_eps: float = number(0.2, above=0.0)
    entropy_coef: float = number(0.01)
    value_loss_coef: float = number(0.5, at_least=0.0)
    max_grad_norm: float = number(0.5, above=0.0, finite=False)
    seed: int = number(0, at_least=0)
    policy_module: str = ""


class PPOUpdater(CandidateUpdater[PPOOptions]):
    """PPO over candidates.

    Data, each ``(n,)``: ``actions`` (places of candidates), ``old_log_probs`` (normalised over the
    candidates, when the actions were taken), ``advantages`` (used as they are), ``returns`` and
    ``values`` (when the actions were taken). Options: ``PPOOptions``.

    Statistics are means over all samples of all steps, except: ``initial_ratio_error`` is the mean
        of ``|ratio - 1|`` in the first
    minibatch, before any step, and should be near zero; ``scored_pairs`` and ``scored_tokens`` are
    totals; ``grad_norm`` is the mean over steps, before clipping.

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

    def schedule(self, total: int, options: PPOOptions) -> Iterable[Minibatch]:
        """Shuffled minibatches."""
        return draw_minibatches(total, options.minibatch_size, options.epochs, options.seed)

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
        log_probs = candidate_log_softmax(scored.scores)
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
