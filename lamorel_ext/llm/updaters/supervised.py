"""Behavioural cloning: cross-entropy over candidates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lamorel_ext.config.bounds import number
from lamorel_ext.llm.updaters.batches import Minibatch, draw_minibatches
from lamorel_ext.llm.updaters.candidates import CandidateUpdater
from lamorel_ext.llm.updaters.requests import DataSpec
from lamorel_ext.llm.updaters.scored import Scored
from lamorel_ext.rl import candidate_log_softmax, chosen_log_probs, entropy


@dataclass(frozen=True)
class SupervisedOptions:
    """Options of ``SupervisedUpdater``; see ``PPOOptions``."""

    lr: float = number(1e-4, at_least=0.0)
    adam_eps: float = number(1e-8, above=0.0)
    epochs: int = number(1, at_least=1)
    minibatch_size: int = number(64, at_least=1)
    gradient_minibatch_size: int = number(0, at_least=0)
    max_grad_norm: float = number(1.0, above=0.0, finite=False)
    seed: int = number(0, at_least=0)


class SupervisedUpdater(CandidateUpdater[SupervisedOptions]):
    """Makes the target candidates likely.

    Data: ``targets`` ``(n,)``, places of candidates. Options: ``SupervisedOptions``. Statistics,
        means over all samples of all steps:
    ``loss``, ``accuracy`` (share of targets that score highest) and ``entropy``.
    """

    name = "supervised"
    options_type = SupervisedOptions
    terms: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "entropy")

    def data_spec(self, options: SupervisedOptions) -> DataSpec:
        """See the class."""
        return DataSpec(("targets",))

    def schedule(self, total: int, options: SupervisedOptions) -> Iterable[Minibatch]:
        """Shuffled minibatches."""
        return draw_minibatches(total, options.minibatch_size, options.epochs, options.seed)

    def loss(
        self, scored: Scored, data: dict[str, Tensor], options: SupervisedOptions
    ) -> dict[str, Tensor]:
        """Minus the normalised log-probability of the target."""
        log_probs = candidate_log_softmax(scored.scores)
        hit = log_probs.argmax(-1) == data["targets"]
        return {
            "loss": -chosen_log_probs(log_probs, data["targets"]),
            "accuracy": hit.to(log_probs.dtype),
            "entropy": entropy(log_probs),
        }
