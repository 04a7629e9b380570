"""Options of PPO of the LLM as policy; the defaults are GLAM's (Carta et al. 2023, appendix)."""

from __future__ import annotations

from dataclasses import dataclass

from lamorel_ext.options import number


@dataclass(frozen=True)
class PpoLoss:
    """What the client's configuration and the servers' updater both read.

    Attributes:
        lr: Adam's step size.
        epochs: Passes over the batch.
        minibatch_size: Samples of an optimiser step, over all servers.
        gradient_minibatch_size: Distinct prompts whose activations are held at a time; 0 means the
            whole minibatch.
    """

    epochs: int = number(4, at_least=1)
    minibatch_size: int = number(64, at_least=1)
    gradient_minibatch_size: int = number(0, at_least=0)
    lr: float = number(1e-6, at_least=0)
    adam_eps: float = number(1e-5, above=0)
    clip_eps: float = number(0.2, above=0)
    entropy_coef: float = number(0.01, at_least=0)
    value_loss_coef: float = number(0.5, at_least=0)
    max_grad_norm: float = number(0.5, above=0, finite=False)


@dataclass(frozen=True)
class PpoArgs(PpoLoss):
    """PPO of the LLM policy; rewards times 20.

    Attributes:
        num_steps: Steps of each environment between two updates.
    """

    num_steps: int = number(40, at_least=1)
    gamma: float = number(0.99, at_least=0, at_most=1)
    lam: float = number(0.99, at_least=0, at_most=1)
    reward_scale: float = number(20.0, above=0)


@dataclass(frozen=True)
class PPOOptions(PpoLoss):
    """What a request says besides.

    Attributes:
        seed: Fixes the shuffling.
        policy_module: Module function that gives a logit per candidate, in the candidates' order;
            empty takes the scores of their texts.
    """

    seed: int = number(0, at_least=0)
    policy_module: str = ""
