"""Turns a ``model.checkpoint`` of Lamorel's scripts into safetensors, without running what is in
it.

``python -m lamorel_ext.lamorel.checkpoints model.checkpoint model.safetensors``

Such a file is a zip archive: one pickle that describes tensors, and a file of bytes for each. The
pickle is disassembled and never executed: of its instructions only those are understood that a
dictionary of tensors needs, and any other ends in an error that names it.
"""

from __future__ import annotations

import math
import pickletools
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lamorel_ext.errors import ModelLoadError

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETERS = (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",  # where transformers left a note on it
)
_DICT = "collections OrderedDict"
_MARK = object()


@dataclass(frozen=True)
class _Global:
    """A name in the pickle; nothing is imported for it."""

    name: str


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        path: Written by PyTorch 1.6 or later.

    Raises:
        ModelLoadError: The file holds something else than a dictionary of tensors, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ModelLoadError(f"{path}: expected one data.pkl, got {len(pickles)}")
            reader = _Reader(archive, pickles[0].removesuffix("data.pkl"))
            found = reader.read(archive.read(pickles[0]))
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from error
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, IndexError, TypeError) as error:
        raise ModelLoadError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ModelLoadError(
            f"{path}: expected a dictionary of tensors, got a {type(found).__name__}"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelLoadError(f"{path}: {name!r:.80} is a {type(value).__name__}, not a tensor")
    return found


class _Reader:
    """Follows the instructions of one pickle."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive, self._root = archive, root
        self._bytes: dict[str, Tensor] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, instructions: bytes) -> Any:
        for code, argument, _ in pickletools.genops(instructions):
            if code.name == "STOP":
                return self._stack.pop()
            self._step(code.name, argument)
        raise ModelLoadError("its pickle has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("EMPTY_TUPLE", "TUPLE"):
            stack.append(() if name == "EMPTY_TUPLE" else tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments))
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "BUILD" and isinstance(stack[-2], dict):
            stack.pop()  # what state_dict() notes of versions; no tensor
        elif name != "PROTO":
            raise ModelLoadError(f"its pickle has the instruction {name}, which no tensor needs")

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
        found = self._stack[place + 1 :]
        del self._stack[place:]
        return found

    def _storage(self, what: Any) -> Tensor:
        kind, storage, key, _, size = what
        dtype = _DTYPES.get(storage.name.removeprefix("torch ")) if kind == "storage" else None
        if dtype is None:
            raise ModelLoadError(f"it has {what!r:.80}, expected the storage of a tensor")
        if key not in self._bytes:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            expected = size * dtype.itemsize
            if len(data) != expected:
                raise ModelLoadError(f"storage {key} has {len(data)} bytes, expected {expected}")
            empty = torch.empty(0, dtype=dtype)
            self._bytes[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self._bytes[key]


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE UNICODE INT LONG".split()
)


def _made(function: Any, arguments: Sequence[Any]) -> Any:
    name = function.name if isinstance(function, _Global) else repr(function)
    if name == _DICT and not arguments:
        return {}
    if name in _PARAMETERS:
        return arguments[0]
    if name == _TENSOR:
        storage, offset, size, stride = arguments[:4]
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or (math.prod(size) and last >= len(storage)):
            raise ModelLoadError(f"a tensor of {size} reaches beyond its {len(storage)} numbers")
        return torch.as_strided(storage, size, stride, offset)
    raise ModelLoadError(f"its pickle calls {name}, which no tensor needs")


def main(argv: Sequence[str]) -> int:
    """Convert one file."""
    if len(argv) != 2:
        print("usage: python -m lamorel_ext.lamorel.checkpoints FROM TO", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    try:
        tensors = read_checkpoint(source)
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, target)
    except ModelLoadError as error:
        print(error, file=sys.stderr)
        return 1
    except (SafetensorError, OSError) as error:
        print(f"{target} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {len(tensors)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
