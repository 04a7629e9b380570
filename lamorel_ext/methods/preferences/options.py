"""Options of learning from preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lamorel_ext.methods.pairs.options import PairLoss
from lamorel_ext.options import number

USED_BY = {
    "loss": ("pairs",),
    "beta": ("pairs",),
    "temperature": ("returns",),
    "kl_coef": ("returns", "reward_model"),
    "clip_eps": ("reward_model",),
    "model_lr": ("reward_model",),
    "model_epochs": ("reward_model",),
    "model_size": ("reward_model",),
}
"""By option the values of ``learn`` that look at it, where that is not all of them."""


@dataclass(frozen=True)
class PreferencesOptions(PairLoss):
    """Options of ``Preferences``.

    Attributes:
        learn: ``pairs``: from the best and the worst guidance for a state, by ``loss``.
            ``returns``: all guidance becomes likelier, weighted by the exponential of the advantage
            after it (reward-weighted regression, Peters & Schaal 2007). ``reward_model``: a model
            of the ranks pays the guidance, which the LLM learns by the clipped surrogate of PPO,
            from the first rollout on with which anything has been ranked.
        of: What is ranked for a reward model: single ``guidances``, or ``episodes``, by the return
            of each, the model's payments summed over it (Christiano et al. 2017, arXiv 1706.03741).
        ranks: Who says which of two is better: the student, or a fair ``coin``, as a control. With
            ``returns`` it shuffles the advantages.
        rankings: A file of rankings in place of the run's own, a line of JSON each: ``prompt``,
            ``better``, ``worse``; empty for none.
        traces: Folder of a run whose recorded rollouts are learnt from in place of this run's own;
            empty for none.
        temperature: Of ``returns``, in standard deviations of the advantages.
        clip_eps: Of ``reward_model``, as in PPO.
        kl_coef: Of ``returns`` and ``reward_model``: weight of KL(current || initial teacher).
        model_lr: Adam's step size of the reward model.
        model_epochs: Its passes over the pairs of a rollout.
        model_size: Width of its hidden layer.
    """

    learn: Literal["pairs", "returns", "reward_model"] = "pairs"
    of: Literal["guidances", "episodes"] = "guidances"
    ranks: Literal["student", "coin"] = "student"
    rankings: str = ""
    traces: str = ""
    temperature: float = number(1.0, above=0)
    clip_eps: float = number(0.2, above=0)
    kl_coef: float = number(0.0, at_least=0)
    model_lr: float = number(1e-3, at_least=0)
    model_epochs: int = number(4, at_least=1)
    model_size: int = number(64, at_least=1)
