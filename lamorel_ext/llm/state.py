"""What a model's answers depend on besides the question: its weights, and the settings of its
modules. And a bounded memory of answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, SimpleNamespace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as calling
from transformers import PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lamorel_ext.llm.fsdp import own_part

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_WHOLE = (Tensor, nn.Parameter)
"""What is no part of a divided tensor, told without asking each of them."""
_PLAIN = (bool, int, float, str, bytes, type(None), np.generic)
_SETTINGS = frozenset({bool, int, float, str, type(None)})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
GIVEN = len(_OF_EVERY_MODULE)
"""Attributes that PyTorch gives to every module, before any others."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What PyTorch calls the hooks of a module, and behind ``_global`` those of all modules."""
_LIBRARIES = ("torch.nn.", "transformers.")
"""Of whose modules the plain settings count; what others put on them is still seen."""
_WITHOUT_SETTINGS: frozenset[Any] = frozenset({nn.Linear, nn.Dropout, nn.ModuleList})
_STAYING = (type, BuiltinFunctionType, Enum, torch.dtype, torch.device)
_KEPT = ("transformers.", "tokenizers.", "peft.", "torch.distributed.")
"""Whose objects stay as they are while a module has them."""
_DEPTH = 6
"""Of collections within collections that count by value."""


@dataclass(frozen=True)
class State:
    """Of a model at one moment; equal ones give equal answers.

    Attributes:
        weights: Differs after a change of a weight or buffer: in place, by another tensor in its
            place, of its precision or device. PyTorch counts in-place changes, so that one nobody
            announced is noticed; it counts none that is made through ``.data``.
        settings: Differs where a module has another training mode, hook, forward function, or
            attribute of its own: an adapter that is switched on or off, chosen, merged or rescaled;
            where a number or text of a configuration or of a module of transformers is another; and
            with what acts on all models. Numbers, texts and collections count by value, other
            things by which they are.
        told: False where a module has something of which only is known which it is, so that a
            change inside goes unnoticed.
    """

    weights: Hashable
    settings: Hashable
    told: bool = True


def state_of(*models: nn.Module, with_weights: bool = True) -> State:
    """The present state of models; some microseconds for each of their modules.

    ``nn.Module.modules`` puts their names together too, which takes longer than all the rest.
    """
    weights: list[Hashable] = []
    settings: list[Hashable] = [_around()]
    told = True
    after, before, back, early = HOOKS
    seen: set[int] = set()
    kinds: dict[Any, bool] = {}
    configs: dict[int, Any] = {}
    left: list[nn.Module | None] = [*models]
    while left:
        module = left.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        own = vars(module)
        left += own["_modules"].values()
        if with_weights:
            for tensor in own["_parameters"].values():
                if tensor is not None:
                    weights.append(_stamp(tensor))
            for tensor in own["_buffers"].values():
                if tensor is not None:
                    weights.append(_stamp(tensor))
        settings.append((id(module), own["training"], len(own), id(own.get("forward"))))
        if own[before] or own[after] or own[back] or own[early]:
            settings += [(name, *own[name]) for name in HOOKS]
        kind = type(module)
        if kind in _WITHOUT_SETTINGS:
            continue
        if kind not in kinds:
            kinds[kind] = kind.__module__.startswith(_LIBRARIES)
        if kinds[kind]:
            if len(own) > GIVEN:
                values = list(own.values())[GIVEN:]
                settings += [value for value in values if type(value) in _SETTINGS]
            if "config" in own:
                configs[id(own["config"])] = own["config"]
            continue
        reached: list[Any] = []
        settings += (
            (name, _frozen(own[name], reached)) for name in own if name not in _OF_EVERY_MODULE
        )
        configs |= {id(each): each for each in reached if isinstance(each, PretrainedConfig)}
        if not kind.__module__.startswith(_KEPT):
            told &= all(map(_stays, reached))
    for config in configs.values():
        settings += [value for value in vars(config).values() if type(value) in _SETTINGS]
    for kind, of_library in kinds.items():
        settings.append(kind.forward)
        if of_library:
            settings += map(id, vars(kind).values())
    return State(tuple(weights), tuple(settings), told)


def _around() -> Hashable:
    """What acts on every module: hooks, attention functions and masks, automatic precision."""
    hooks = [each for name in HOOKS for each in vars(calling)[f"_global{name}"]]
    precision = [
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in ("cpu", "cuda")
    ]
    attention = [
        id(known.get(name))
        for known in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
        for name in ("eager", "sdpa")
    ]
    return (*hooks, *precision, *attention, *[kind.forward for kind in _WITHOUT_SETTINGS])


def _frozen(value: Any, reached: list[Any], depth: int = _DEPTH) -> Hashable:
    """By value as far as it goes; what counts by which it is goes into ``reached`` too."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _stamp(value)
    if depth:
        if isinstance(value, dict):
            return tuple(
                (_frozen(key, reached, depth - 1), _frozen(item, reached, depth - 1))
                for key, item in value.items()
            )
        if isinstance(value, (list, tuple)):
            return tuple([_frozen(item, reached, depth - 1) for item in value])
        if isinstance(value, (set, frozenset)):
            return frozenset([_frozen(item, reached, depth - 1) for item in value])
        if isinstance(value, np.ndarray) and value.dtype != object:
            return value.shape, value.dtype.str, value.tobytes()
        if isinstance(value, SimpleNamespace) or (
            is_dataclass(value) and hasattr(value, "__dict__") and not _stays(value)
        ):
            return _frozen(vars(value), reached, depth - 1)
    reached.append(value)
    return id(value)


def _stays(value: Any) -> bool:
    """Whether a thing does not change inside while a module has it."""
    if isinstance(value, FunctionType):
        return value.__closure__ is None
    return isinstance(value, _STAYING) or (
        type(value).__module__.startswith(_KEPT) and not isinstance(value, nn.Module)
    )


def _stamp(tensor: Tensor) -> Hashable:
    held = tensor if type(tensor) in _WHOLE else own_part(tensor)
    changes = 0 if held.is_inference() else held._version
    return id(tensor), changes, held.data_ptr(), held.dtype


class Memory(Generic[K, V]):
    """Remembers values of at most ``size`` together, 0 none; the least recently used one is
    forgotten first.

    Args:
        size: Of all of them.
        size_of: Of one; None means that each counts 1.
    """

    def __init__(self, size: int, size_of: Callable[[K, V], int] | None = None) -> None:
        self._size, self._size_of = size, size_of
        self._values: OrderedDict[K, V] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        if (before := self._values.pop(key, None)) is not None:
            self._held -= self._size_in(key, before)
        own = self._size_in(key, value)
        if own > self._size:  # it would drive out all the others
            return
        self._values[key] = value
        self._held += own
        while self._held > self._size:
            self._held -= self._size_in(*self._values.popitem(last=False))

    def clear(self) -> None:
        self._values.clear()
        self._held = 0

    def _size_in(self, key: K, value: V) -> int:
        return 1 if self._size_of is None else self._size_of(key, value)
