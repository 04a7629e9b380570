"""The half on the servers: of two texts the first is to become likelier than the second."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.updaters.batches import DataSpec, Scored
from lamorel_ext.llm.updaters.candidates import CandidateUpdater
from lamorel_ext.methods.pairs.options import PairOptions
from lamorel_ext.types import UpdateRequest


class PairUpdater(CandidateUpdater[PairOptions]):
    """Optimiser steps on pairs: each prompt has two candidates, the better one first. No data.

    Statistics, means over all pairs of all steps, before each: ``loss``; ``margin``, in nats: how
    much likelier the better text has become against the worse one since the start; ``accuracy``,
    the share of pairs in which it has.
    """

    name = "preferences"
    options_type = PairOptions
    uses_reference = True
    terms: ClassVar[tuple[str, ...]] = ("loss", "margin", "accuracy")

    def data_spec(self, options: PairOptions) -> DataSpec:
        """See the class."""
        return DataSpec()

    def check(self, request: UpdateRequest, data: dict[str, Tensor], options: PairOptions) -> None:
        """Every prompt has two candidates."""
        for place, texts in enumerate(request.candidates):
            if len(texts) != 2 or texts[0] == texts[1]:
                row = int(request.indices[place])
                raise RequestError(
                    f"{self.name}: candidates[{row}]: expected two different texts, the better one"
                    f" first, got {texts}"
                )

    def reference_counts(self, options: PairOptions) -> bool:
        """In ``filtered`` only the statistics need the initial weights."""
        return options.loss == "dpo"

    def loss(
        self, scored: Scored, data: dict[str, Tensor], options: PairOptions
    ) -> dict[str, Tensor]:
        """-log sigmoid(beta * margin), or minus the better text's log-probability."""
        if scored.reference is None:
            raise TypeError("the loss needs the reference scores")
        ahead = scored.scores[:, 0] - scored.scores[:, 1]
        margin = ahead - (scored.reference[:, 0] - scored.reference[:, 1])
        if options.loss == "dpo":
            loss = F.softplus(-options.beta * margin)
        else:
            loss = -scored.scores[:, 0]
        return {"loss": loss, "margin": margin, "accuracy": (margin > 0).to(margin.dtype)}
