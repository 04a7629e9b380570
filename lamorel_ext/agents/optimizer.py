"""Adam over one flat buffer.

A small network's step is all overhead: with its parameters and gradients as views of two flat
tensors, clipping and Adam are a dozen operations rather than a dozen for each parameter. (The first
step of ``torch.optim`` also imports the compiler, some seconds.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lamorel_ext.errors import CheckpointError, UpdateError
from lamorel_ext.finite import not_finite


class FlatAdam:
    """Adam (Kingma & Ba 2015) with gradient clipping, for float32 parameters on one device.

    It moves the parameters' data, and their gradients, into flat tensors of its own; both stay
    views of them.

    Args:
        parameters: All of them are updated together.
        eps: Added to the root of the second moment; 1e-5 is what PPO implementations use.
        name: Whose parameters they are, for messages.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        eps: float = 1e-5,
        name: str = "student",
    ) -> None:
        self._name = name
        self._eps = eps
        self._steps = 0
        self._weights = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self._gradients, self._first, self._second, self._scratch = (
            torch.zeros_like(self._weights) for _ in range(4)
        )
        start = 0
        for parameter in parameters:
            place = slice(start, start + parameter.numel())
            parameter.data = self._weights[place].view_as(parameter)
            parameter.grad = self._gradients[place].view_as(parameter)
            start = place.stop

    @property
    def steps(self) -> int:
        """Steps that were taken, also before a checkpoint."""
        return self._steps

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._gradients.zero_()

    def minimise(self, loss: Tensor, lr: float, max_grad_norm: float) -> Tensor:
        """``step`` down the gradient of ``loss``.

        Raises:
            UpdateError: Loss or gradient is not finite, and no step was taken; or what the step led
                to is not.
        """
        self.zero_grad()
        loss.backward()
        try:
            if not math.isfinite(loss.detach()):
                raise UpdateError(f"loss in optimiser step {self._steps + 1}, which was not taken")
            return self.step(lr, max_grad_norm)
        except UpdateError as error:
            raise UpdateError(
                f"{self._name}: not finite: {error} (loss {float(loss.detach()):.4g}, lr {lr:g})"
            ) from error

    def step(self, lr: float, max_grad_norm: float) -> Tensor:
        """Clip the gradient to a norm of ``max_grad_norm`` and step.

        Returns:
            The norm before clipping.

        Raises:
            UpdateError: The gradient is not finite, and no step was taken; or what the step led to
                is not.
        """
        norm: Tensor = self._gradients.norm()
        if not math.isfinite(norm):
            raise UpdateError(
                f"gradient norm {float(norm)} in optimiser step {self._steps + 1}, which was not"
                " taken"
            )
        self._steps += 1
        beta_1, beta_2 = 0.9, 0.999
        gradients = self._gradients.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self._first.lerp_(gradients, 1 - beta_1)
        self._second.mul_(beta_2).addcmul_(gradients, gradients, value=1 - beta_2)
        # Fresh memory for a temporary of this size would cost more than the arithmetic.
        spread = (
            torch.sqrt(self._second, out=self._scratch)
            .mul_(1 / math.sqrt(1 - beta_2**self._steps))
            .add_(self._eps)
        )
        # PyTorch refuses what a float32 cannot hold.
        size = min(lr / (1 - beta_1**self._steps), torch.finfo(torch.float32).max)
        self._weights.addcdiv_(self._first, spread, value=-size)
        held = {
            "weights": self._weights,
            "first moment": self._first,
            "second moment": self._second,
        }
        if found := not_finite(held):
            raise UpdateError(f"{found} after optimiser step {self._steps}")
        return norm

    def tensors(self, prefix: str = "adam.") -> dict[str, Tensor]:
        """A copy of its state, ``prefix`` before each name: ``steps`` (int64 scalar), ``first`` and
        ``second`` moments (flat).
        """
        return {
            f"{prefix}steps": torch.tensor(self._steps),
            f"{prefix}first": self._first.clone(),
            f"{prefix}second": self._second.clone(),
        }

    def load(self, tensors: dict[str, Tensor], prefix: str = "adam.") -> None:
        """Come back to a saved state.

        Raises:
            CheckpointError: See ``expect_tensor``.
        """
        self._steps = int(expect_tensor(tensors, f"{prefix}steps", torch.Size()))
        for name, own in (("first", self._first), ("second", self._second)):
            own.copy_(expect_tensor(tensors, f"{prefix}{name}", own.shape))


def weights_of(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A copy of a network's weights, ``prefix`` before their names."""
    return {f"{prefix}{name}": own.detach().clone() for name, own in network.named_parameters()}


def load_weights(network: nn.Module, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Come back to saved ``weights_of`` a network.

    Raises:
        CheckpointError: See ``expect_tensor``.
    """
    with torch.no_grad():
        for name, own in network.named_parameters():
            own.copy_(expect_tensor(tensors, f"{prefix}{name}", own.shape))


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The saved tensors whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: own for name, own in tensors.items() if name.startswith(prefix)}


def expect_tensor(tensors: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """The saved tensor of that name.

    Raises:
        CheckpointError: It is missing or has another shape.
    """
    saved = tensors.get(name)
    if saved is None or saved.shape != shape:
        got = "nothing" if saved is None else str(tuple(saved.shape))
        raise CheckpointError(f"{name}: expected shape {tuple(shape)}, got {got}")
    return saved
