"""The options of the feedback edge (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lamorel_ext.options import number

Signal = Literal["previous", "td", "gae", "state", "weighted", "constant", "none"]
ONLINE_SIGNALS = ("previous", "td", "state", "constant", "none")
"""Signals that need nothing later than the step itself: the ones that ``feedback.every: 1`` can
have.
"""
Sign = Literal["own", "random", "shuffled", "inverted", "positive"]
Credit = Literal["chosen", "followed", "ratio", "posterior", "rival"]
CREDITS_OF_CANDIDATES = ("ratio", "posterior", "rival")
"""Credits that need everything that could have been said, and how likely the action was after it.
"""


@dataclass(frozen=True)
class FeedbackLoss:
    """What the client's configuration and the servers' updater both read.

    Attributes:
        loss: Form of the loss.
        lr: Step size of Adam for one update per rollout.
        epochs: Passes over the same feedback. In the first step ``clipped`` is ``reinforce``, as
            nothing has moved yet that could be clipped.
        minibatch_size: Samples of an optimiser step, over all servers; 0 means all that were sent.
        kl_coef: Weight of KL(current || initial teacher).
        clip_eps: Of ``clipped`` alone.
        gradient_minibatch_size: Distinct prompts whose activations are held at a time; 0 means all.
    """

    loss: Literal["reinforce", "unlikelihood", "clipped"] = "reinforce"
    lr: float = number(1e-4, at_least=0)
    epochs: int = number(1, at_least=1)
    minibatch_size: int = number(0, at_least=0)
    entropy_coef: float = number(0.0, at_least=0)
    kl_coef: float = number(0.0, at_least=0)
    clip_eps: float = number(0.2, above=0)
    max_grad_norm: float = number(1.0, above=0, finite=False)
    gradient_minibatch_size: int = number(0, at_least=0)


@dataclass(frozen=True)
class FeedbackArgs(FeedbackLoss):
    """The feedback edge (docs/method.md).

    Attributes:
        signal: What f_t is; ``none`` cuts the edge, ``constant`` is always 1, without information.
        sign: What is done to f_t before it is sent: nothing, or a control that keeps magnitudes and
            mechanism and takes the meaning. ``random``: a fair coin for the sign; ``shuffled``:
            permuted over the rollout, or over the environments of a step where f_t is needed at
            once; ``inverted``: -f_t; ``positive``: its magnitude.
        credit: What f_t counts for: the guidance that was ``chosen``; the same only where the
            student ``followed`` it; weighted by the ``ratio`` of the action's probability after it
            and on average; every guidance by its ``posterior`` given the action; or the better one
            of the chosen guidance and a ``rival`` drawn in the same state.
        channel: Whether f_t changes the weights, is said in the next prompt, or both.
        every: Steps of each environment between two teacher updates, or ``rollout``; what is left
            at the end of a rollout is sent there. 1 is Algorithm 1 as written.
        ties: What the sign of an exact tie is, for ``previous``.
        warmup_steps: Environment steps, over all environments, before the first feedback: the
            student's critic learns meanwhile.
        lr_online: ``lr`` where ``every`` is a number of steps: many small, noisy updates want a
            smaller one.
        baseline: Whether the mean of an update's f is subtracted from those that are not 0.
    """

    signal: Signal = "gae"
    sign: Sign = "own"
    credit: Credit = "chosen"
    channel: Literal["loss", "prompt", "both"] = "loss"
    every: int | Literal["rollout"] = number("rollout", at_least=1)
    ties: Literal["positive", "zero"] = "positive"
    warmup_steps: int = number(0, at_least=0)
    lr_online: float = number(1e-5, at_least=0)
    baseline: bool = False


@dataclass(frozen=True)
class FeedbackOptions(FeedbackLoss):
    """What a request says besides.

    Attributes:
        seed: Fixes the shuffling into minibatches.
        posterior: True: p is the probability of the student's action under teacher and student
            together (``pair_log_probs``), in place of the teacher's probability of what it said.
        normalise: True: p is normalised over the candidates. False, for generated guidance: p is
            the product over the text's tokens.
    """

    adam_eps: float = number(1e-8, above=0)
    seed: int = number(0, at_least=0)
    normalise: bool = True
    posterior: bool = False
