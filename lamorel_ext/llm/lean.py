"""Import transformers without what it imports and our models never use.

``transformers.modeling_utils`` imports the compiler, distributed tensors, FSDP, Accelerate and
scipy's optimiser with all that these import: two thirds of the CPU time in which a server starts.
Within ``lean_imports`` a module of transformers gets a stand-in for what it names of them. A
stand-in is the real thing as soon as anything is done with it: called, subclassed, or asked for an
attribute.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import init

IMPORTER = "transformers"
COMPILER = "torch._dynamo"
DRAWS = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_")
LATER = (
    "accelerate",
    "scipy",
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
    "transformers.generation.continuous_batching.cache",
)
"""Packages and modules; what lies within them is meant too."""
_ONE_AT_A_TIME = threading.RLock()


class Later:
    """A name of a module that is imported when the name is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __repr__(self) -> str:
        return f"{self._module}.{self._name}, not imported yet"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: object) -> bool:
        # What has not been imported has no instances.
        return self._module in sys.modules and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return self._module in sys.modules and issubclass(subclass, self._real())

    def __or__(self, other: object) -> Any:
        return Any  # in an annotation

    __ror__ = __or__


def _same(function: Any = None, *args: Any, **options: Any) -> Any:
    """A decorator that changes nothing, also where it is called with options only."""
    return _same if function is None else function


class _Marks:
    """In the place of the compiler, which would be imported to mark functions for it."""

    allow_in_graph = assume_constant_result = disable = staticmethod(_same)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(COMPILER), name)


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within it, ``from MODULE import NAME`` in a module of transformers gives a stand-in where
    ``LATER`` has the module and nobody has imported it yet; what is marked for the compiler stays
    unmarked where that is not imported; and a model without memory is not filled with random
    numbers (which PyTorch would import the compiler for).

    Imports of all other code are what they were, also in other threads.
    """

    def lean_import(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType | SimpleNamespace:
        if fromlist and globals and _is_within(globals.get("__name__", ""), (IMPORTER,)):
            package = globals.get("__package__") or IMPORTER
            module = importlib.util.resolve_name("." * level + name, package)
            if module not in sys.modules and _is_within(module, LATER) and "*" not in fromlist:
                return SimpleNamespace(**{each: Later(module, each) for each in fromlist})
        return real_import(name, globals, locals, fromlist or (), level)

    with ExitStack() as held:
        held.enter_context(_ONE_AT_A_TIME)
        real_import = builtins.__import__
        draws: dict[str, Any] = {name: _nothing_on_meta(getattr(init, name)) for name in DRAWS}
        held.enter_context(patch.object(builtins, "__import__", lean_import))
        held.enter_context(patch.multiple(init, **draws))
        held.enter_context(_unmarked())
        yield


@contextmanager
def _unmarked() -> Iterator[None]:
    if COMPILER in sys.modules:
        yield
        return
    marks = _Marks()
    vars(torch)["_dynamo"] = marks
    try:
        with patch.multiple(torch.compiler, allow_in_graph=_same, disable=_same):
            yield
    finally:
        if vars(torch).get("_dynamo") is marks:
            del torch._dynamo


def _nothing_on_meta(fill: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``fill`` for tensors that have memory."""

    @functools.wraps(fill)
    def filled(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return tensor if tensor.is_meta else fill(tensor, *args, **options)

    return filled


def _is_within(module: str, packages: Sequence[str]) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in packages)
