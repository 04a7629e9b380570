"""What a model's answers depend on besides the question: its weights, and the settings of its
modules. And a bounded memory of answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from lamorel_ext.llm.fsdp import own_part

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_WHOLE = (Tensor, nn.Parameter)
"""What is no part of a divided tensor, told without asking each of them."""
_PLAIN = (bool, int, float, str, bytes, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}
_LIBRARIES = ("torch.nn.", "transformers.")
"""Whose modules keep the settings that they were made with; what others put on them is still seen.
"""


@dataclass(frozen=True)
class State:
    """Of a model at one moment; equal ones give equal answers.

    Attributes:
        weights: Differs after a change of a weight or buffer: in place, by another tensor in its
            place, of its precision or device. PyTorch counts in-place changes, so that one nobody
            announced is noticed; it counts none that is made through ``.data``.
        settings: Differs where a module has another training mode, hook, forward function, or
            attribute of its own: an adapter that is switched on or off, chosen, merged or rescaled.
            Numbers, texts and collections count by value, other things by which they are.
    """

    weights: Hashable
    settings: Hashable


def state_of(*models: nn.Module) -> State:
    """The present state of models; some microseconds for each of their modules.

    ``nn.Module.modules`` puts their names together too, which takes longer than all the rest.
    """
    weights: list[Hashable] = []
    settings: list[Hashable] = []
    seen: set[int] = set()
    left: list[nn.Module | None] = [*models]
    while left:
        module = left.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        own = vars(module)
        left += own["_modules"].values()
        for tensors in (own["_parameters"], own["_buffers"]):
            for tensor in tensors.values():
                if tensor is not None:
                    weights.append(_stamp(tensor))
        hooks = (*own["_forward_hooks"], *own["_forward_pre_hooks"])
        settings.append((id(module), own["training"], len(own), id(own.get("forward")), *hooks))
        if not type(module).__module__.startswith(_LIBRARIES):
            settings += ((name, _frozen(own[name])) for name in own if name not in _OF_EVERY_MODULE)
    return State(tuple(weights), tuple(settings))


def _frozen(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return _stamp(value)
    if isinstance(value, dict):
        return tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_frozen(item) for item in value)
    return id(value)


def _stamp(tensor: Tensor) -> Hashable:
    held = tensor if type(tensor) in _WHOLE else own_part(tensor)
    changes = 0 if held.is_inference() else held._version
    return id(tensor), changes, held.data_ptr(), held.dtype


class Memory(Generic[K, V]):
    """Remembers at most ``size`` values, 0 none; the least recently used one is forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        if self._size:
            self._values[key] = value
            self._values.move_to_end(key)
            if len(self._values) > self._size:
                self._values.popitem(last=False)

    def clear(self) -> None:
        self._values.clear()
