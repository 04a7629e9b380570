"""One optimiser step over several servers: sum the gradients, measure and clip their norm, let Adam
step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.adam import adam

from lamorel_ext.finite import not_finite, sizes
from lamorel_ext.llm.fsdp import any_rank, gradient_norm, is_divided, own_part, part_of, whole_as
from lamorel_ext.types import ServerGroup

FULL_PRECISION = (torch.float32, torch.float64)
FUSED_DEVICES = ("cpu", "cuda")
LARGE = 2**18
"""Numbers from which on a gradient is summed by itself: to copy it to others (1 MiB) takes longer
than a sum more.
"""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
BETAS = (0.9, 0.999)


def sum_dtype(gradients: Sequence[Tensor]) -> torch.dtype:
    """Precision to add gradients in: float64 where any of them has it, else float32."""
    return (
        torch.float64
        if any(gradient.dtype == torch.float64 for gradient in gradients)
        else torch.float32
    )


def sum_over_servers(
    tensors: Sequence[Tensor], group: ServerGroup, dtype: torch.dtype
) -> list[Tensor]:
    """Sum tensors over all servers. Every server must call it.

    Args:
        tensors: Of the same shapes on every server. A large one is summed where it is, so that what
            it held is lost.
        group: The servers.
        dtype: Precision of the sum.

    Returns:
        On the first tensor's device. The small ones are views into one flat buffer.
    """
    device = tensors[0].device
    sums = {
        place: tensor.detach()
        for place, tensor in enumerate(tensors)
        if tensor.numel() >= LARGE and tensor.dtype == dtype and tensor.device == device
    }
    small = {place: tensor for place, tensor in enumerate(tensors) if place not in sums}
    flat = [tensor.detach().reshape(-1).to(device, dtype) for tensor in small.values()]
    buffers = [torch.cat(flat)] if flat else []
    # In one call, for which the servers meet once.
    group.all_reduce_sum(*sums.values(), *buffers)
    parts = [part for buffer in buffers for part in buffer.split([len(each) for each in flat])]
    for (place, tensor), part in zip(small.items(), parts, strict=True):
        sums[place] = part.view(tensor.shape)
    return [sums[place] for place in range(len(tensors))]


class _Adam:
    """``torch.optim.Adam``, step for step, without its class: making one imports the compiler,
    which takes longer than loading a small model.

    Args:
        parameters: Each has a gradient when ``step`` is called.
        fused: One operation for all of them; else one for each part of the formula.
    """

    def __init__(self, parameters: Sequence[Tensor], fused: bool) -> None:
        self._parameters = list(parameters)
        self._fused = fused
        self.moments: dict[str, list[Tensor]] = {}
        """By ``MOMENTS``, in the parameters' order; empty before the first step."""

    def fresh(self) -> dict[str, list[Tensor]]:
        """What Adam starts with."""
        steps = [
            torch.zeros((), dtype=torch.float32, device=p.device if self._fused else "cpu")
            for p in self._parameters
        ]
        first, second = ([torch.zeros_like(p) for p in self._parameters] for _ in range(2))
        return dict(zip(MOMENTS, (first, second, steps), strict=True))

    @torch.no_grad()
    def step(self, lr: float, eps: float) -> None:
        self.moments = self.moments or self.fresh()
        adam(
            self._parameters,
            [each.grad for each in self._parameters if each.grad is not None],
            self.moments["exp_avg"],
            self.moments["exp_avg_sq"],
            [],
            self.moments["step"],
            foreach=not self._fused,
            fused=self._fused,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=lr,
            weight_decay=0.0,
            eps=eps,
            maximize=False,
        )


class GradientStepper:
    """Adam over a list of parameters that every server holds.

    A parameter without a gradient counts as one with a gradient of zero, on every server alike.
    Parameters of less than single precision
    are stepped on in float32 copies: an update of 1e-6 would be lost in rounding. Of a divided
    parameter this rank steps on its part.

    Args:
        named_parameters: Names and parameters, in the same order on every server.
        group: The servers.
    """

    def __init__(
        self, named_parameters: Sequence[tuple[str, Parameter]], group: ServerGroup
    ) -> None:
        self.names = [name for name, _ in named_parameters]
        self.parameters = [parameter for _, parameter in named_parameters]
        self._group = group
        self._divided = any(map(is_divided, self.parameters))
        self._parts = [own_part(parameter) for parameter in self.parameters]
        self._held: list[Tensor] = [
            part if part.dtype in FULL_PRECISION else part.detach().float() for part in self._parts
        ]
        held_parts = zip(self._parts, self._held, strict=True)
        self._rounded = [(part, held) for part, held in held_parts if held is not part]
        self._apart = [
            (p, held) for p, held in zip(self.parameters, self._held, strict=True) if held is not p
        ]
        # The fused kernel takes everything in the order in which it lies in memory.
        fused = all(
            held.device.type in FUSED_DEVICES and held.is_contiguous() for held in self._held
        )
        self._adam = _Adam(self._held, fused)

    def clear(self) -> None:
        """Forget all gradients."""
        for parameter, held in zip(self.parameters, self._held, strict=True):
            parameter.grad = held.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Add up, in float32, what a backward pass left on parameters of less than single
        precision, and on divided ones. To be called after each of several.

        Autograd itself would add to a sum of that precision, in which a small part is lost beside a
        large sum.
        """
        given = [(p, held) for p, held in self._apart if p.grad is not None]
        if not given:
            return
        parts = [own_part(parameter.grad) for parameter, _ in given]  # type: ignore[arg-type]
        found = [torch.empty_like(held) for _, held in given]
        torch._foreach_copy_(found, parts)
        for (parameter, held), part in zip(given, found, strict=True):
            held.grad = part if held.grad is None else held.grad.add_(part)
            parameter.grad = None

    def reduce(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradients, and some numbers besides, over all servers. Every server must call it.

        Args:
            sums: ``(k,)``, numbers of this server.

        Returns:
            The gradients' norm before clipping, a scalar, and ``sums`` summed.
        """
        self.collect()
        gradients = [
            torch.zeros_like(held) if held.grad is None else held.grad for held in self._held
        ]
        if self._group.size > 1:
            dtype = sum_dtype(gradients)
            *gradients, sums = sum_over_servers([*gradients, sums], self._group, dtype)
        for place, held in enumerate(self._held):
            held.grad = gradients[place] = gradients[place].to(held.device, held.dtype)
        if self._divided:
            return gradient_norm(self.parameters, gradients), sums
        return get_total_norm(gradients), sums

    @torch.no_grad()
    def step(self, norm: Tensor, lr: float, eps: float, max_norm: float) -> None:
        """Clip the gradients that ``reduce`` left, and step.

        Args:
            norm: Their norm, as ``reduce`` gave it.
            lr: Step size.
            eps: Adam's epsilon.
            max_norm: Gradients longer than this are scaled down to it.
        """
        if float(norm) > max_norm:
            clip_grads_with_norm_(self._held, max_norm, norm)
        self._refresh_copies()
        self._adam.step(lr, eps)
        if self._rounded:
            torch._foreach_copy_([p for p, _ in self._rounded], [held for _, held in self._rounded])

    def not_finite(self) -> str:
        """The first weight, or number of Adam's, that is not finite after a step; empty where all
        are, on every rank that holds a part of the model.
        """
        weights = dict(zip(self.names, self._parts, strict=True))
        found = not_finite(weights) or not_finite(self.state())
        if self._divided and any_rank(bool(found), self.parameters):
            return found or "a weight of which another rank holds a part is not finite"
        return found

    def state(self) -> dict[str, Tensor]:
        """Adam's moments, and the float32 copies, by ``kind/parameter name``; empty before the
        first step.
        """
        tensors: dict[str, Tensor] = {}
        if not self._adam.moments:
            return tensors
        rows = zip(self.names, self._held, self.parameters, strict=True)
        for place, (name, held, parameter) in enumerate(rows):
            tensors |= {f"{kind}/{name}": self._adam.moments[kind][place] for kind in MOMENTS}
            if parameter.dtype not in FULL_PRECISION:
                tensors[f"copy/{name}"] = held
        return tensors

    def whole_state(self) -> dict[str, Tensor]:
        """``state`` of whole parameters; every rank that holds a part of them must call it."""
        parameter_of = dict(zip(self.names, self.parameters, strict=True))
        whole: dict[str, Tensor] = {}
        for key, tensor in self.state().items():
            kind, name = key.split("/", 1)
            whole[key] = tensor if kind == "step" else whole_as(tensor, parameter_of[name])
        return whole

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what ``state`` gives after a step."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            shape = tuple(parameter.shape)
            shapes |= {f"exp_avg/{name}": shape, f"exp_avg_sq/{name}": shape, f"step/{name}": ()}
            if parameter.dtype not in FULL_PRECISION:
                shapes[f"copy/{name}"] = shape
        return shapes

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``whole_state`` gave.

        The keys and shapes must be those of ``expected``, or there are none.
        """
        self._adam.moments = {}
        if tensors:
            for kind, own in self._adam.fresh().items():
                self._adam.moments[kind] = [
                    part_of(tensors[f"{kind}/{name}"], parameter).to(fresh)
                    for name, parameter, fresh in zip(self.names, self.parameters, own, strict=True)
                ]
        for name, held, parameter in zip(self.names, self._held, self.parameters, strict=True):
            if f"copy/{name}" in tensors:
                held.copy_(part_of(tensors[f"copy/{name}"], parameter))

    def _refresh_copies(self) -> None:
        """A copy counts as long as it rounds to its weight; where something else changed the
        weight, start from there.
        """
        if not self._rounded:
            return
        weights, copies = ([pair[place] for pair in self._rounded] for place in (0, 1))
        apart = [torch.empty_like(weight) for weight in weights]
        torch._foreach_copy_(apart, copies)
        torch._foreach_sub_(apart, weights)
        for place in sizes(apart, math.inf).nonzero().flatten().tolist():
            weight, held = self._rounded[place]
            held.copy_(torch.where(held.to(weight.dtype) == weight, held, weight.to(held.dtype)))
