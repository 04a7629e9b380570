"""Behavioural cloning: cross-entropy over candidates."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lamorel_ext.llm.updaters.batches import DataSpec, Scored
from lamorel_ext.llm.updaters.candidates import CandidateUpdater
from lamorel_ext.methods.cloning.options import SupervisedOptions
from lamorel_ext.rl import chosen_log_probs, entropy


class SupervisedUpdater(CandidateUpdater[SupervisedOptions]):
    """Makes the target candidates likely.

    Data: ``targets`` ``(n,)``, places of candidates. Options: ``SupervisedOptions``. Statistics,
    means over all samples of all steps: ``loss``, ``accuracy`` (share of targets that score
    highest) and ``entropy``.
    """

    name = "supervised"
    options_type = SupervisedOptions
    terms: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "entropy")

    def data_spec(self, options: SupervisedOptions) -> DataSpec:
        """See the class."""
        return DataSpec(("targets",))

    def loss(
        self, scored: Scored, data: dict[str, Tensor], options: SupervisedOptions
    ) -> dict[str, Tensor]:
        """Minus the normalised log-probability of the target."""
        log_probs = scored.scores.log_softmax(dim=-1)
        hit = log_probs.argmax(-1) == data["targets"]
        return {
            "loss": -chosen_log_probs(log_probs, data["targets"]),
            "accuracy": hit.to(log_probs.dtype),
            "entropy": entropy(log_probs),
        }
