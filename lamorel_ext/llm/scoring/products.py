"""Products of matrices in float32 by the faster of the two libraries that PyTorch comes with.

PyTorch multiplies by Intel's MKL, which holds processors of other makers back: an AMD one with
512-bit instructions does twice as many operations in a second through oneDNN. Which one is asked
depends on the processor and the size alone, never on a measurement, so that a seed gives the same
curve each time. Where answers are to be in 8 bits (``int8``), their products are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lamorel_ext.llm.devices import has_bfloat16
from lamorel_ext.llm.scoring.gradient_sums import LARGE, add_product, running_sum
from lamorel_ext.processes.cores import CPUINFO, said_of_cpu

LEAST = 2**21
"""Multiplications from which oneDNN is ahead: each of its calls takes some microseconds more."""
_PLAIN = (Tensor, nn.Parameter)
_Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Rounded(Protocol):
    """Weights of less precision (``int8``)."""

    def suits(self, x: Tensor, weight: Tensor) -> bool: ...

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor: ...


ROUNDED: ContextVar[Rounded | None] = ContextVar("ROUNDED", default=None)
"""What products take in place of a layer's weights where it suits."""


def apply_linear(layer: Any, x: Tensor) -> Tensor:
    """What a layer gives for ``(..., in_features)``, as the layer itself up to rounding.

    Args:
        layer: Any module; one that is no plain ``nn.Linear`` is called.
        x: What it is given.
    """
    if type(layer) is nn.Linear and (product := _faster(x, layer.weight)):
        return product(x, layer.weight, layer.bias)
    called: Tensor = layer(x)
    return called


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's function of this name."""
    return (_faster(x, weight) or F.linear)(x, weight, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention without a scale, ``(b, heads, n, d)`` for queries ``(b, heads, n, d)``, keys and
    values ``(b, heads, m, d)`` and a bias that broadcasts to ``(b, heads, n, m)``.

    Where answers are in 8 bits, both products are in bfloat16, whole: PyTorch's kernel for CPUs
    cuts them into pieces that are too small for its instructions.
    """
    if ROUNDED.get() is None or not has_bfloat16():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    scores = (q.bfloat16() @ k.bfloat16().transpose(-1, -2)).float()
    if bias is not None:
        scores += bias
    return (scores.softmax(-1).bfloat16() @ v.bfloat16()).to(q.dtype)


def fast_linears(model: nn.Module) -> AbstractContextManager[object]:
    """Where a model's own layers are called: their products are the faster ones too."""
    # One that is training may compute parts again for its backward pass, outside of this.
    wanted = prefers_onednn() or ROUNDED.get() is not None
    return _Linears() if wanted and not model.training else nullcontext()


def prefers_onednn() -> bool:
    """Whether oneDNN is the faster library here, and allowed: ``run.portable`` switches it off."""
    return _is_wide_amd() and bool(torch.backends.mkldnn.enabled)


@cache
def _is_wide_amd() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # PyTorch's own, which may change it
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and said_of_cpu("vendor_id", CPUINFO) == "AuthenticAMD"
    )


class _Linears(TorchFunctionMode):
    """Takes the place of ``F.linear``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def _faster(x: Tensor, weight: Tensor) -> _Linear | None:
    """What takes the place of ``F.linear``, if anything does."""
    rounded = ROUNDED.get()
    if rounded is not None and rounded.suits(x, weight):
        return rounded.multiply
    return _multiplied if _suits(x, weight) else None


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= LEAST
        and x.device.type == weight.device.type == "cpu"
        and type(x) in _PLAIN
        and type(weight) in _PLAIN
        and (prefers_onednn() or _learns_at_once(weight))
        and not torch.is_autocast_enabled("cpu")
    )


def _learns_at_once(weight: Tensor) -> bool:
    """Whether its gradient is better added to the sum of the passes before at once."""
    return weight.numel() >= LARGE and weight.requires_grad and torch.is_grad_enabled()


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    product: Tensor = _Product.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return product.view(*x.shape[:-1], len(weight))


class _Product(torch.autograd.Function):
    """``(n, in)`` times the transposed ``(out, in)`` weights, plus ``(out,)``; gradients by the
    same library.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t()) if to_x else None,
            _to_weight(ctx.next_functions[1][0], gradient, x) if to_weight else None,
            gradient.sum(0) if to_bias else None,
        )


def _to_weight(node: Any, gradient: Tensor, x: Tensor) -> Tensor:
    large = gradient.shape[1] * x.shape[1] >= LARGE
    total = running_sum(node) if large else None
    if total is None or total.dtype != gradient.dtype:
        return _multiply(gradient.t(), x.t())
    return add_product(total, gradient, x, _multiply)


def _multiply(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``(n, k)`` times the transposed ``(m, k)``, plus ``(m,)``: by oneDNN what PyTorch's compiler
    makes of a linear layer on a CPU. That has no derivative: with one asked for, in a backward pass
    of which there will be another one, by PyTorch's own.
    """
    if not prefers_onednn() or torch.is_grad_enabled():
        return F.linear(left, right, bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product
