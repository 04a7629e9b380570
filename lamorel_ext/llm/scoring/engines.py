"""Which engine reads which model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as calling
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lamorel_ext.llm.fsdp import model_is_divided, own_class
from lamorel_ext.llm.scoring.causal import MASKED, CausalEngine, takes_trees
from lamorel_ext.llm.scoring.graphs import GraphEngine
from lamorel_ext.llm.scoring.plain import PlainEngine
from lamorel_ext.llm.scoring.scorer import Engine
from lamorel_ext.llm.scoring.t5_forward import CALLED, T5Engine, has_its_parts, is_t5
from lamorel_ext.llm.state import GIVEN, HOOKS

_MAKERS = ("torch.nn.", "transformers.")
"""Of the modules that a fast engine knows: it works with their weights, not through them."""
_MOVERS = ("accelerate.",)
"""Whose hooks move tensors to where the weights are, and do nothing else."""
_FUNCTIONS = frozenset({FunctionType, MethodType, partial})
_ATTENTION = ("eager", "sdpa", None)
"""What the fast engines' sums are, under any of these names; None is transformers' default."""
_IN_LAYERS = frozenset(
    {"LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "LN_TUNING", "VERA", "FOURIERFT"}
    | {"HRA", "MISS", "BONE", "RANDLORA", "SHIRA", "C3A", "ROAD", "WAVEFT", "VBLORA", "DELORA"}
    | {"TRAINABLE_TOKENS"}
)
"""PEFT's methods whose adapters stand in the place of layers, and do nothing else to a pass."""


def make_engine(model: PreTrainedModel, minibatch_size: int) -> Engine:
    """The fastest engine that is right for the model as it is now; the plain one suits all.

    A hook, another forward function or a learnt prompt may come later: whoever holds an engine
    makes another one when the model's settings change (``state.State``).
    """
    called = callable_of(model)
    config: Any = called.config
    if is_as_made(model):
        if is_t5(called):
            return GraphEngine(called) if can_capture(called) else T5Engine(called)
        if not config.is_encoder_decoder and takes_trees(called):
            return CausalEngine(called)
    return PlainEngine(called, config.is_encoder_decoder, minibatch_size)


def can_capture(model: PreTrainedModel) -> bool:
    """Whether a call of this model is nothing but kernels on one GPU of NVIDIA's: layers of others
    than transformers and PEFT might ask the GPU for a value in between.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return (
        {device.type for device in devices} == {"cuda"}
        and len(devices) == 1
        and torch.version.hip is None
        and all(_is_by(module, (*_MAKERS, "peft.")) for module in model.modules())
    )


def unwrap(model: Any) -> Any:
    """The transformers model inside an adapter's wrapper (PEFT's), whose layers the adapters have
    taken the place of.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def callable_of(model: Any) -> Any:
    """Whom to call for an answer: the transformers model, or the adapter's wrapper where that may
    add something to a pass: learnt prompts, a choice among adapters, a hook of the user's.
    """
    inner = unwrap(model)
    plain = inner is model or (_wrapped_as_made(model) and _act_in_layers(model))
    return inner if plain else model


def _wrapped_as_made(model: Any) -> bool:
    """Whether PEFT's wrapper, if there is one, and what it holds the adapters in are as PEFT made
    them.
    """
    inner = unwrap(model)
    wrappers = [] if inner is model else [model, getattr(model, "base_model", inner)]
    return not (wrappers and all_are_hooked()) and all(
        part is inner or (_is_by(part, ("peft.",)) and not is_hooked(part)) for part in wrappers
    )


def _act_in_layers(model: Any) -> bool:
    """Whether adapters do all they do in the layers that they stand for, chosen or not."""
    return all(
        getattr(adapter.peft_type, "value", adapter.peft_type) in _IN_LAYERS
        and getattr(adapter, "alora_invocation_tokens", None) is None
        for adapter in model.peft_config.values()
    )


def is_as_made(model: Any) -> bool:
    """Whether a fast engine computes what a call of this model, with its wrapper, would.

    The layers of a divided model are whole only within forward passes of its own.
    """
    inner = unwrap(model)
    return (
        callable_of(model) is inner
        and not model_is_divided(inner)
        and _is_steady(inner)
        and (not is_t5(inner) or has_its_parts(inner))
    )


def is_steady(model: Any) -> bool:
    """Whether a model, with its wrapper, answers by its weights and settings (``state.State``)
    alone: a hook, or a part of somebody else's, may heed anything.
    """
    return _is_steady(unwrap(model)) and _wrapped_as_made(model)


def _is_steady(model: Any) -> bool:
    """Whether a transformers model does what its classes say: no part has a hook or a forward
    function of somebody else's, or is of a class of somebody else's where an engine would pass it
    over, and attention is transformers' own. Layers in the place of those that every engine calls
    (LoRA) change nothing.
    """
    modules, t5 = list(model.modules()), is_t5(model)
    if all_are_hooked() or any(map(is_hooked, modules)) or not _attends_as_made():
        return False
    kinds = {type(module): module for module in modules}
    made = {kind: _is_by(module, _MAKERS) for kind, module in kinds.items()}
    # A fast engine may do the work of these without a call.
    spared = _MAKERS if t5 else _MAKERS[:1]
    if any(kind.__module__.startswith(spared) and not made[kind] for kind in kinds):
        return False
    if t5:
        return _is_known(model, made, lambda name: name not in CALLED)
    return _is_known(model, made, lambda name: name in MASKED or name.isdigit())


def all_are_hooked() -> bool:
    """Whether there are hooks on every module that is called."""
    return any(vars(calling)[f"_global{name}"] for name in HOOKS)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says.

    What accelerate puts on a model of several devices only moves tensors.
    """
    own = vars(module)
    hooks = [hook for name in HOOKS if own[name] for hook in own[name].values()]
    # transformers leaves hooks of its own behind a pass that was asked for hidden states; those of
    # a divided model make its layers whole.
    if any(not _home(hook).startswith(("transformers.", "torch.distributed.")) for hook in hooks):
        return True
    if "forward" in own:
        moves = own.get("_hf_hook")
        if not all(_is_by(hook, _MOVERS) for hook in getattr(moves, "hooks", [moves])):
            return True
    functions = [
        name for name, value in islice(own.items(), GIVEN, None) if type(value) in _FUNCTIONS
    ]
    return any(
        name != "forward"
        and callable(getattr(type(module), name, None))
        and not _home(own[name]).startswith((*_MAKERS, *_MOVERS, "peft."))
        for name in functions
    )


def _is_known(
    module: nn.Module, made: Mapping[type, bool], passes_over: Callable[[str], bool]
) -> bool:
    """A module, and those of its parts, told by their names, that are passed over.

    Args:
        module: Of the model.
        made: Whether a class is one of the makers', as they made it.
        passes_over: Whether an engine passes over a part of this name.
    """
    config = vars(module).get("config")
    return (
        made[type(module)]
        and getattr(config, "_attn_implementation", None) in _ATTENTION
        and all(
            _is_known(child, made, passes_over)
            for name, child in module.named_children()
            if passes_over(name)
        )
    )


def _is_by(thing: Any, makers: tuple[str, ...]) -> bool:
    """Whether a thing is of a class of these makers, as they made it."""
    kind = own_class(thing)
    return f"{kind.__module__}.".startswith(makers) and not _is_patched(kind)


def _is_patched(kind: type) -> bool:
    """Whether a class has a method from elsewhere than its library."""
    library = f"{kind.__module__.split('.')[0]}."
    methods = [getattr(kind, "forward", None), *vars(kind).values()]
    functions = (getattr(method, "__func__", method) for method in methods)
    return any(
        isinstance(function, FunctionType) and not _home(function).startswith((library, "torch."))
        for function in functions
    )


def _attends_as_made() -> bool:
    """Whether nobody has put another function under the names of transformers' own."""
    found = [
        known.get(name)
        for known in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
        for name in _ATTENTION
    ]
    return all(_home(each).startswith("transformers.") for each in found if each is not None)


def _home(function: Any) -> str:
    """The module that a function was written in, whatever it says of itself (``functools.wraps``);
    that of its class where it is no function.
    """
    function = getattr(function, "__func__", function)
    if isinstance(function, partial):
        return _home(function.func)
    if not isinstance(function, FunctionType):
        return type(function).__module__
    home = str(function.__globals__.get("__name__"))
    return _home(vars(function)["__wrapped__"]) if home == "contextlib" else home
