"""Nested plain values as JSON and raw tensor bytes: what a user of Lamorel may hand to a call.

==========================  ======================================================================
None, bool, int, float,     themselves
str, list
tuple                       ``{"tuple": [...]}``; not a named one
dictionary                  ``{"dict": [[key, value], ...]}``; keys are strings, numbers or bools;
                            ordered and default ones arrive as plain ones
torch tensor                ``{"tensor": place}``, its place among the tensors of the message
numpy array, numpy number   ``{"array": place}``, ``{"number": place}``
numpy array of texts        ``{"texts": [...], "shape": [...]}``
==========================  ======================================================================

Nothing else can be packed, and nothing else can come out of any bytes that arrive.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # which imports this module
    from lamorel_ext.rpc.wire.fields import TensorReader, TensorWriter

MAX_DEPTH = 64
MAX_CHARACTERS = 2**28
"""Of an array of texts, in which a short text takes as much room as the longest one."""
_PLAIN = (bool, int, float, str)
_DICTIONARIES = (dict, OrderedDict, defaultdict)
_MORE_THAN_ARRAYS = (np.ma.MaskedArray, np.matrix)
_INSTEAD: dict[type, str] = {
    np.ma.MaskedArray: "an array and its mask, as value.data and value.mask are",
    np.matrix: "an array",
    Set: "a list",
    Mapping: "a dict, as dict(...) or OmegaConf.to_container(...) does",
    tuple: "a tuple or a dict",
}
"""To hand over in the place of what cannot be sent, or would lose what its class can do."""


def pack_values(value: Any, tensors: TensorWriter) -> list[list[Any]]:
    """Pack a dictionary of arguments.

    Raises:
        ValueError: Something in it cannot be sent; the message says where it is.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("expected a dictionary with names as keys")
    return [[key, _pack(item, tensors, key, 0)] for key, item in value.items()]


def unpack_values(raw: Any, tensors: TensorReader) -> dict[str, Any]:
    """Read what ``pack_values`` wrote.

    Raises:
        ValueError: It is something else.
    """
    pairs = _pairs(raw)
    if not all(type(key) is str for key, _ in pairs):
        raise ValueError("expected names as keys")
    return {key: _unpack(item, tensors, 0) for key, item in pairs}


def _pack(value: Any, tensors: TensorWriter, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep")
    if value is None:
        return None
    if isinstance(value, Tensor):
        return {"tensor": _add(value, tensors, where)}
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, np.generic):
        return {"number": _add(_numbers(np.asarray(value), where), tensors, where)}
    if isinstance(value, np.ndarray) and not isinstance(value, _MORE_THAN_ARRAYS):
        return _pack_array(value, tensors, where, depth)
    for kind in _PLAIN:  # bool first: it is an int too
        if isinstance(value, kind):
            return kind(value)
    if type(value) in _DICTIONARIES:
        return {
            "dict": [
                [_key(key, where), _pack(value[key], tensors, f"{where}[{key!r}]", depth + 1)]
                for key in value
            ]
        }
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": _pack_all(value, tensors, where, depth)}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview, tuple)):
        return _pack_all(value, tensors, where, depth)
    kinds = "None, numbers, strings, lists, tuples, dictionaries, tensors and arrays can be sent"
    hint = next(
        (f"; make it {own}" for kind, own in _INSTEAD.items() if isinstance(value, kind)), ""
    )
    raise ValueError(f"{where} is a {type(value).__name__}; {kinds}{hint}")


def _pack_all(values: Sequence[Any], tensors: TensorWriter, where: str, depth: int) -> list[Any]:
    # Lists of plain values are long and common: no message of where they are is needed for them.
    return [
        item
        if type(item) in (str, int, float, bool)
        else _pack(item, tensors, f"{where}[{place}]", depth + 1)
        for place, item in enumerate(values)
    ]


def _pack_array(array: np.ndarray, tensors: TensorWriter, where: str, depth: int) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {"texts": array.reshape(-1).tolist(), "shape": list(array.shape)}
    if array.dtype.kind == "O":
        return {
            "objects": _pack_all(array.reshape(-1).tolist(), tensors, where, depth),
            "shape": list(array.shape),
        }
    return {"array": _add(_numbers(array, where), tensors, where)}


def _numbers(array: np.ndarray, where: str) -> Tensor:
    try:
        native = array.dtype.newbyteorder("=")  # PyTorch knows no other
        return torch.from_numpy(np.array(array, dtype=native, order="C", copy=True))
    except TypeError as error:
        raise ValueError(f"{where} is an array of {array.dtype}, which cannot be sent") from error


def _add(tensor: Tensor, tensors: TensorWriter, where: str) -> int:
    try:
        return tensors.add(tensor)
    except (ValueError, TypeError, RuntimeError) as error:  # the latter of masked and nested ones
        raise ValueError(f"{where}: {error}") from error


def _key(key: Any, where: str) -> Any:
    if isinstance(key, np.str_):
        return str(key)
    if key is not None and type(key) not in _PLAIN:
        raise ValueError(f"{where} has the key {key!r:.80}; keys can be strings, numbers and bools")
    return key


def _unpack(raw: Any, tensors: TensorReader, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if raw is None or type(raw) in _PLAIN:
        return raw
    if type(raw) is list:
        return [_unpack(item, tensors, depth + 1) for item in raw]
    if type(raw) is not dict:
        raise ValueError(f"a {type(raw).__name__} has no meaning here")
    if raw.keys() in ({"texts", "shape"}, {"objects", "shape"}):
        return _unpack_array(raw, tensors, depth)
    if len(raw) != 1:
        raise ValueError("expected a single tag")
    ((tag, content),) = raw.items()
    if tag == "tensor":
        return tensors.take(content)
    if tag in ("array", "number"):
        array = tensors.take(content)
        if array.dtype == torch.bfloat16 or (tag == "number" and array.dim()):
            raise ValueError(f"no {tag} is like this")
        return array.numpy() if tag == "array" else array.numpy()[()]
    if tag == "dict":
        pairs = _pairs(content)
        if not all(key is None or type(key) in _PLAIN for key, _ in pairs):
            raise ValueError("a key that is no plain value")
        return {key: _unpack(item, tensors, depth + 1) for key, item in pairs}
    if tag == "tuple" and type(content) is list:
        return tuple([_unpack(item, tensors, depth + 1) for item in content])
    raise ValueError(f"unknown tag {tag!r:.20}")


def _unpack_array(raw: dict[str, Any], tensors: TensorReader, depth: int) -> np.ndarray:
    shape = raw["shape"]
    values = raw["texts"] if "texts" in raw else raw["objects"]
    if (
        type(shape) is not list
        or any(type(size) is not int or size < 0 for size in shape)
        or type(values) is not list
    ):
        raise ValueError("expected values and a shape")
    if len(shape) > np.iinfo(np.int8).max or math.prod(shape) != len(values):
        raise ValueError("an array whose shape does not fit its values")
    if "texts" in raw:
        if not all(type(text) is str for text in values):
            raise ValueError("expected texts")
        if len(values) * max(map(len, values), default=0) > MAX_CHARACTERS:
            raise ValueError(
                "an array of texts that no memory holds: each is as long as the longest"
            )
        return np.array(values, dtype=np.str_).reshape(shape)
    array = np.empty(len(values), dtype=object)
    for place, item in enumerate(values):
        array[place] = _unpack(item, tensors, depth + 1)
    return array.reshape(shape)


def _pairs(raw: Any) -> list[tuple[Any, Any]]:
    if type(raw) is not list or not all(type(pair) is list and len(pair) == 2 for pair in raw):
        raise ValueError("expected pairs of key and value")
    return [(key, item) for key, item in raw]
