"""How each type of field of a message becomes JSON and raw tensor bytes, and comes back checked.

``pack`` and ``unpack`` of a form raise ``ValueError`` with what was expected; the codec adds which
field it was.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamorel_ext.rpc.wire.nested import pack_values, unpack_values
from lamorel_ext.types import Scalar

ALIGNMENT = 16
"""Every tensor starts at a multiple of this many bytes, so that it can be used where it lies."""

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "bool",
        "complex64",
        "complex128",
    )
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorWriter:
    """Collects a message's tensors: their specs for the header, their bytes for the payload."""

    def __init__(self) -> None:
        self.specs: list[dict[str, Any]] = []
        self.buffers: list[memoryview | bytes] = []
        self.num_bytes = 0

    def add(self, tensor: Tensor) -> int:
        """Take a tensor; its bytes are copied only where it is not contiguous or not on the CPU.

        Returns:
            Its place among the tensors of the message.
        """
        if (
            tensor.dtype not in _DTYPE_NAMES
            or tensor.layout != torch.strided
            or tensor.dim() > MAX_DIMENSIONS
        ):
            raise ValueError(
                f"cannot send a tensor of {tensor.dtype}, {tensor.layout} and {tensor.dim()}"
                " dimensions"
            )
        plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
        # PyTorch gives an empty tensor strides with which it cannot be seen as bytes.
        empty = not plain.numel()
        raw = memoryview(b"") if empty else plain.reshape(-1).view(torch.uint8).numpy().data
        padding = -self.num_bytes % ALIGNMENT
        if padding:
            self.buffers.append(bytes(padding))
        self.buffers.append(raw)
        self.num_bytes += padding + raw.nbytes
        self.specs.append({"dtype": _DTYPE_NAMES[plain.dtype], "shape": list(plain.shape)})
        return len(self.specs) - 1


@dataclass(frozen=True)
class TensorSpec:
    """One tensor in the payload: where it starts and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_specs(raw: Any) -> tuple[TensorSpec, ...]:
    """The tensor specs of a header, with the place of each in the payload.

    Raises:
        ValueError: They are no list of known dtypes with shapes.
    """
    if type(raw) is not list:
        raise ValueError("tensors: expected a list")
    specs: list[TensorSpec] = []
    end = 0
    for each in raw:
        if type(each) is not dict or each.keys() != {"dtype", "shape"}:
            raise ValueError("tensors: expected dtype and shape")
        dtype, shape = each["dtype"], each["shape"]
        if type(dtype) is not str or dtype not in DTYPES:
            raise ValueError(f"tensors: unknown dtype {dtype!r}")
        if (
            type(shape) is not list
            or len(shape) > MAX_DIMENSIONS
            or any(type(size) is not int or not 0 <= size < MAX_ELEMENTS for size in shape)
        ):
            raise ValueError("tensors: impossible shape")
        if math.prod(max(size, 1) for size in shape) >= MAX_ELEMENTS:
            raise ValueError("tensors: impossible shape")  # an empty one too needs strides
        spec = TensorSpec(DTYPES[dtype], tuple(shape), end + -end % ALIGNMENT)
        end = spec.start + spec.num_bytes
        specs.append(spec)
    return tuple(specs)


def payload_bytes(specs: Sequence[TensorSpec]) -> int:
    """Size of the payload that holds these tensors."""
    return specs[-1].start + specs[-1].num_bytes if specs else 0


class TensorReader:
    """Hands out the tensors of a payload, each once, without copying."""

    def __init__(self, specs: Sequence[TensorSpec], payload: bytearray) -> None:
        self._specs: list[TensorSpec | None] = list(specs)
        self._payload = payload

    def take(self, place: Any) -> Tensor:
        """The tensor at ``place``; it shares the payload's memory."""
        if type(place) is not int or not 0 <= place < len(self._specs):
            raise ValueError("expected the place of a tensor")
        spec, self._specs[place] = self._specs[place], None
        if spec is None:
            raise ValueError("a tensor is used twice")
        count = math.prod(spec.shape)
        if not count:
            return torch.empty(spec.shape, dtype=spec.dtype)
        if spec.dtype == torch.bool:
            # A bool tensor with other bytes than 0 and 1 is undefined behaviour in PyTorch.
            octets = torch.frombuffer(
                self._payload, dtype=torch.uint8, count=count, offset=spec.start
            )
            if int(octets.max()) > 1:
                raise ValueError("a bool that is neither 0 nor 1")
        return torch.frombuffer(
            self._payload, dtype=spec.dtype, count=count, offset=spec.start
        ).reshape(spec.shape)

    def finish(self) -> None:
        """Check that nothing was sent in vain."""
        if any(spec is not None for spec in self._specs):
            raise ValueError("a tensor belongs to no field")


@dataclass(frozen=True)
class Form:
    """How one type of field travels."""

    pack: Callable[[Any, TensorWriter], Any]
    unpack: Callable[[Any, TensorReader], Any]


# --- plain values ---------------------------------------------------------------------------------


def _exactly(kind: type) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    return check


def _integer(value: Any, _: Any = None) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"expected int, got {type(value).__name__}")
    return int(value)


def _real(value: Any, _: Any = None) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"expected float, got {type(value).__name__}")
    return float(value)


def _scalar(value: Any, _: Any = None) -> Scalar:
    if isinstance(value, (bool, str)):
        return value
    return _integer(value) if isinstance(value, numbers.Integral) else _real(value)


# --- collections ----------------------------------------------------------------------------------


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)) or not all(isinstance(text, str) for text in value):
        raise ValueError("expected strings in a tuple")
    return tuple(value)


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)):
        raise ValueError("expected integers in a tuple")
    return tuple(_integer(number) for number in value)


def _pack_interned(value: Any, _: TensorWriter) -> dict[str, Any]:
    """Candidates are mostly the same for every prompt: each distinct tuple travels once."""
    if not isinstance(value, (tuple, list)):
        raise ValueError("expected tuples of strings in a tuple")
    distinct: dict[tuple[str, ...], int] = {}
    places = [distinct.setdefault(_strings(texts), len(distinct)) for texts in value]
    return {"distinct": list(distinct), "places": places}


def _unpack_interned(raw: Any, _: TensorReader) -> tuple[tuple[str, ...], ...]:
    if (
        type(raw) is not dict
        or raw.keys() != {"distinct", "places"}
        or type(raw["distinct"]) is not list
        or type(raw["places"]) is not list
    ):
        raise ValueError("expected distinct tuples and places")
    distinct = [_strings(texts) for texts in raw["distinct"]]
    if not all(type(place) is int and 0 <= place < len(distinct) for place in raw["places"]):
        raise ValueError("a place that is not there")
    return tuple([distinct[place] for place in raw["places"]])


def _dictionary(convert: Callable[[Any, Any], Any]) -> Callable[[Any, Any], dict[str, Any]]:
    def each(value: Any, tensors: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(type(key) is str for key in value):
            raise ValueError("expected a dictionary with names as keys")
        converted = {}
        for key, item in value.items():
            try:
                converted[key] = convert(item, tensors)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return converted

    return each


def _pack_tensor(value: Any, tensors: TensorWriter) -> int:
    if not isinstance(value, Tensor):
        raise ValueError(f"expected a tensor, got {type(value).__name__}")
    return tensors.add(value)


def _unpack_tensor(place: Any, tensors: TensorReader) -> Tensor:
    return tensors.take(place)


FORMS: dict[Any, Form] = {
    str: Form(_exactly(str), _exactly(str)),
    bool: Form(_exactly(bool), _exactly(bool)),
    int: Form(_integer, _integer),
    Tensor: Form(_pack_tensor, _unpack_tensor),
    tuple[str, ...]: Form(lambda value, _: _strings(value), lambda raw, _: _strings(raw)),
    tuple[int, ...]: Form(lambda value, _: _integers(value), lambda raw, _: _integers(raw)),
    tuple[tuple[str, ...], ...]: Form(_pack_interned, _unpack_interned),
    dict[str, Tensor]: Form(_dictionary(_pack_tensor), _dictionary(_unpack_tensor)),
    dict[str, float]: Form(_dictionary(_real), _dictionary(_real)),
    dict[str, Any]: Form(pack_values, unpack_values),
    dict[str, Scalar]: Form(_dictionary(_scalar), _dictionary(_scalar)),
}
"""The form of every type that a field of a message may have."""
