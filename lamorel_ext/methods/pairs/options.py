"""Options of learning from pairs, on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lamorel_ext.options import number


@dataclass(frozen=True)
class PairLoss:
    """What the client's configuration and the servers' updater both read.

    Attributes:
        loss: ``dpo``: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).
            ``filtered``: the likelihood of the better text alone.
        beta: Of ``dpo``, per nat: the larger, the closer the model stays to its start.
        lr: Adam's step size.
        epochs: Passes over the pairs.
        minibatch_size: Pairs of an optimiser step, over all servers; 0 means all.
        gradient_minibatch_size: Distinct prompts whose activations are held at a time; 0 means all.
    """

    loss: Literal["dpo", "filtered"] = "dpo"
    beta: float = number(0.5, above=0)
    lr: float = number(1e-4, at_least=0)
    epochs: int = number(1, at_least=1)
    minibatch_size: int = number(0, at_least=0)
    gradient_minibatch_size: int = number(0, at_least=0)
    max_grad_norm: float = number(1.0, above=0, finite=False)


@dataclass(frozen=True)
class PairOptions(PairLoss):
    """What a request says besides.

    Attributes:
        seed: Fixes the shuffling into minibatches.
    """

    adam_eps: float = number(1e-8, above=0)
    seed: int = number(0, at_least=0)
