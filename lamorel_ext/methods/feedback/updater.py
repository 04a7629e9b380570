"""The feedback edge: the student's signals f_t change how likely the teacher is to say the same
again (docs/method.md).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters.batches import DataSpec, Scored
from lamorel_ext.llm.updaters.candidates import CandidateUpdater
from lamorel_ext.methods.feedback.options import FeedbackOptions
from lamorel_ext.rl import (
    chosen_log_probs,
    clipped_surrogate_loss,
    entropy,
    kl_divergence,
    log1mexp,
    log_complement,
    pair_log_probs,
    unlikelihood_loss,
)
from lamorel_ext.types import UpdateRequest


class FeedbackUpdater(CandidateUpdater[FeedbackOptions]):
    """Optimiser steps on the mean feedback loss of a batch or of its minibatches.

    Data, each ``(n,)``: ``chosen`` (places of candidates), ``signals`` (f), ``old_log_probs`` (log
    p when it was said; only ``clipped`` needs it); with ``posterior`` also ``likelihoods``, ``(n,
    k)``: the student's log-probability of its action after each candidate. Options:
    ``FeedbackOptions``. Samples with f = 0 count in the mean and pull nowhere; where no sample
    pulls, no step is taken.

    Statistics, means over the steps, before each: ``loss``, ``log_prob`` (of what was said),
    ``entropy`` and ``kl`` (from the initial teacher), exact over the candidates. Without
    ``normalise`` those two are one-sample estimates, ``-log p`` and ``log p - log p_initial`` of
    what was said.
    """

    name = "feedback"
    options_type = FeedbackOptions
    uses_reference = True
    terms: ClassVar[tuple[str, ...]] = ("loss", "log_prob", "entropy", "kl")

    def data_spec(self, options: FeedbackOptions) -> DataSpec:
        """See the class."""
        optional = () if self.uses_old_log_probs(options) else ("old_log_probs",)
        tables = ("likelihoods",) if options.posterior else ()
        return DataSpec(("chosen",), ("signals", "old_log_probs"), tables, optional)

    def check(
        self, request: UpdateRequest, data: dict[str, Tensor], options: FeedbackOptions
    ) -> None:
        """Combinations that mean nothing."""
        for key in ("kl_coef", "entropy_coef"):
            if not options.normalise and getattr(options, key) != 0.0:
                raise RequestError(
                    f"{self.name}: options[{key!r}] must be 0 without normalise: there is no"
                    " distribution over candidates"
                )
        if options.posterior and not options.normalise:
            raise RequestError(
                f"{self.name}: options['posterior'] needs normalise: it is about candidates"
            )
        if options.loss != "unlikelihood":
            return
        signals = data["signals"]
        if not bool(torch.isin(signals, torch.tensor([-1.0, 0.0, 1.0], dtype=signals.dtype)).all()):
            raise RequestError(
                f"{self.name}: data['signals'] must be -1, 0 or 1 where options['loss'] is"
                " 'unlikelihood', which knows signs only"
            )
        alone = torch.tensor(
            [len(candidates) == 1 for candidates in request.candidates], dtype=torch.bool
        )
        if options.normalise and not options.posterior and bool((alone & (signals < 0)).any()):
            raise RequestError(
                f"{self.name}: candidates: an only candidate has probability 1 and cannot be made"
                " less likely"
            )

    def scored_candidates(
        self, request: UpdateRequest, data: dict[str, Tensor], options: FeedbackOptions
    ) -> tuple[tuple[str, ...], ...]:
        """Without normalisation what was said, alone: the one column of the scores."""
        if options.normalise:
            return request.candidates
        return tuple(
            (candidates[i],)
            for candidates, i in zip(request.candidates, data["chosen"].tolist(), strict=True)
        )

    def reference_counts(self, options: FeedbackOptions) -> bool:
        """Without the KL penalty only the statistic ``kl`` needs the initial teacher."""
        return options.kl_coef != 0.0

    def uses_old_log_probs(self, options: FeedbackOptions) -> bool:
        """By the loss."""
        return options.loss == "clipped"

    def said_log_probs(
        self, scored: Scored, data: dict[str, Tensor], options: FeedbackOptions
    ) -> Tensor:
        """Of what is taught."""
        if not options.normalise:
            return scored.scores[:, 0]
        log_probs = scored.scores.log_softmax(dim=-1)
        if options.posterior:
            return pair_log_probs(log_probs, data["likelihoods"])
        return chosen_log_probs(log_probs, data["chosen"])

    def loss(
        self, scored: Scored, data: dict[str, Tensor], options: FeedbackOptions
    ) -> dict[str, Tensor]:
        """The chosen form, minus the entropy bonus, plus the KL penalty."""
        if scored.reference is None:
            raise TypeError("the loss needs the reference scores")
        if not options.normalise:
            log_p, reference = scored.scores[:, 0], scored.reference[:, 0]
            pull = _feedback_loss(log_p, None, data, options)
            return {"loss": pull, "log_prob": log_p, "entropy": -log_p, "kl": log_p - reference}
        log_probs = scored.scores.log_softmax(dim=-1)
        log_p = chosen_log_probs(log_probs, data["chosen"])
        if options.posterior:
            pull = _feedback_loss(
                pair_log_probs(log_probs, data["likelihoods"]), None, data, options
            )
        else:
            pull = _feedback_loss(log_p, log_probs, data, options)
        spread = entropy(log_probs)
        distance = kl_divergence(log_probs, scored.reference.log_softmax(dim=-1))
        loss = pull - options.entropy_coef * spread + options.kl_coef * distance
        return {"loss": loss, "log_prob": log_p, "entropy": spread, "kl": distance}


def _feedback_loss(
    log_p: Tensor, log_probs: Tensor | None, data: dict[str, Tensor], options: FeedbackOptions
) -> Tensor:
    signals = data["signals"]
    if options.loss == "reinforce":
        return -signals * log_p
    if options.loss == "clipped":
        return clipped_surrogate_loss(log_p, data["old_log_probs"], signals, options.clip_eps)
    log_not_p = log1mexp(log_p) if log_probs is None else log_complement(log_probs, data["chosen"])
    return unlikelihood_loss(log_p, log_not_p, signals)
