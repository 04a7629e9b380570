"""What a host goes back to: a model's weights, its other buffers, and which of its parameters are
trained, as they were at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from lamorel_ext.errors import RequestError
from lamorel_ext.llm.fsdp import own_part
from lamorel_ext.llm.weights import copy_into, distinct_tensors, named_tensors

_ADAPTERS = "peft."
"""Whose modules say themselves which of their parameters are trained: those of the active one."""


class Start:
    """A model as it was given, in main memory.

    Attributes:
        weights: By name; of a divided model this rank's parts.
        buffers: Those that no checkpoint holds.
    """

    def __init__(self, model: nn.Module) -> None:
        self._given = {name: ref(tensor) for name, tensor in named_tensors(model).items()}
        self.weights = _copies(distinct_tensors(model))
        self.buffers = _copies(unsaved_buffers(model))
        self._trained = _flags(model)

    def take_in(self, model: nn.Module) -> None:
        """Count what was put into the model since as its start too, such as an updater's adapters:
        before the first question nothing can have trained it. What was there keeps its weights,
        also under another name.
        """
        names = {id(held()): name for name, held in self._given.items()}
        weights: dict[str, Tensor] = {}
        for name, tensor in named_tensors(model).items():
            before = self.weights.get(names.get(id(tensor), name))
            if before is None or before.shape != own_part(tensor).shape:
                before = _copy(tensor)
            weights[name] = before
        self.weights = weights
        self.buffers = _copies(unsaved_buffers(model)) | self.buffers
        self._trained = _flags(model)

    def check(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Refuse where the model's tensors are no longer those of the start.

        Raises:
            RequestError: It names the first.
        """
        own = distinct_tensors(model)
        if new := [name for name in own if name not in weights]:
            raise RequestError(
                f"{new[0]} was put into the model after its start: it has no weights to go back to"
                " (an initializer, or an updater's set_llm_module, puts it in in time)"
            )
        if gone := [name for name in weights if name not in own]:
            raise RequestError(
                f"{gone[0]} is no longer in the model, which cannot go back to its start"
            )
        for name, tensor in own.items():
            if weights[name].shape not in (tensor.shape, own_part(tensor).shape):
                raise RequestError(
                    f"{name} had shape {tuple(weights[name].shape)} at the start and has"
                    f" {tuple(tensor.shape)} now"
                )

    def restore(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Give a model these weights, and the buffers and the trained parameters of the start."""
        copy_into(model, weights)
        set_unsaved_buffers(model, self.buffers)
        for name, parameter in _parameters(model):
            parameter.requires_grad_(self._trained.get(name, parameter.requires_grad))

    def held(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[int, object]:
        """For ``copy.deepcopy``: what a copy with these weights takes in the place of the model's
        tensors; on the CPU the remembered weights themselves.
        """
        held: dict[int, object] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in weights:
                value = weights[name].to(tensor.device)
                held[id(tensor)] = (
                    nn.Parameter(value, requires_grad=False)
                    if isinstance(tensor, nn.Parameter)
                    else value.clone()  # a pass may change it in place
                )
        for name, buffer in unsaved_buffers(model).items():
            if name in self.buffers:
                held[id(buffer)] = self.buffers[name].to(buffer.device, copy=True)
        return held


def unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers by name that no checkpoint holds. Not those of transformers' own modules, which
    compute them, and remember for which length.
    """
    return {
        f"{prefix}.{name}".lstrip("."): part._buffers[name]
        for prefix, part in module.named_modules()
        if not type(part).__module__.startswith("transformers.")
        for name in sorted(part._non_persistent_buffers_set)
        if part._buffers[name] is not None
    }


def set_unsaved_buffers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give ``unsaved_buffers`` other values; a module may have another tensor in its place."""
    with torch.no_grad():
        for name, buffer in unsaved_buffers(module).items():
            if name in values and buffer.shape == values[name].shape:
                buffer.copy_(values[name])
            elif name in values:
                prefix, _, last = name.rpartition(".")
                setattr(module.get_submodule(prefix), last, values[name].to(buffer))


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """All but those of adapters."""
    adapters: list[Any] = [
        part
        for part in model.modules()
        if type(part).__module__.startswith(_ADAPTERS) and not hasattr(part, "peft_config")
    ]
    theirs = {id(parameter) for part in adapters for parameter in part.parameters()}
    return (pair for pair in model.named_parameters() if id(pair[1]) not in theirs)


def _flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in _parameters(model)}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _copy(tensor) for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    return own_part(tensor.detach()).to("cpu", copy=True)
