"""The options of behavioural cloning."""

from __future__ import annotations

from dataclasses import dataclass

from lamorel_ext.options import number


@dataclass(frozen=True)
class CloningLoss:
    """What the client's configuration and the servers' updater both read.

    Attributes:
        lr: Adam's step size.
        epochs: Passes over the batch.
        minibatch_size: Samples of an optimiser step, over all servers.
        gradient_minibatch_size: Distinct prompts whose activations are held at a time; 0 means the
            whole minibatch.
    """

    lr: float = number(1e-4, at_least=0)
    epochs: int = number(1, at_least=1)
    minibatch_size: int = number(64, at_least=1)
    gradient_minibatch_size: int = number(0, at_least=0)
    max_grad_norm: float = number(1.0, above=0, finite=False)


@dataclass(frozen=True)
class CloningArgs(CloningLoss):
    """Behavioural cloning of the BabyAI bot by the LLM: cross-entropy over the actions' texts.

    Attributes:
        num_steps: Steps of each environment between two updates.
    """

    lr: float = number(5e-4, at_least=0)
    num_steps: int = number(32, at_least=1)


@dataclass(frozen=True)
class SupervisedOptions(CloningLoss):
    """What a request says besides.

    Attributes:
        seed: Fixes the shuffling into minibatches.
    """

    adam_eps: float = number(1e-8, above=0)
    seed: int = number(0, at_least=0)
