"""Which engine reads which model."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lamorel_ext.llm.fsdp import model_is_divided
from lamorel_ext.llm.scoring.any_model import PlainEngine
from lamorel_ext.llm.scoring.causal import CausalEngine, takes_trees
from lamorel_ext.llm.scoring.scorer import Engine
from lamorel_ext.llm.scoring.t5_forward import CALLED, T5Engine, is_t5

_MAKERS = ("torch.nn.", "transformers.")
"""Of the modules that a fast engine knows: it works with their weights, not through them."""


def make_engine(model: PreTrainedModel, minibatch_size: int) -> Engine:
    """The fastest engine that is right for the model as it is now; the plain one suits all.

    A hook, another forward function or a learnt prompt may come later: whoever holds an engine
    makes another one when the model's settings change (``state.State``).
    """
    called = callable_of(model)
    config: Any = called.config
    # The layers of a divided model are whole only within forward passes of its own.
    if called is unwrap(model) and not model_is_divided(called) and is_as_made(called):
        if is_t5(called):
            return T5Engine(called)
        if not config.is_encoder_decoder and takes_trees(called):
            return CausalEngine(called)
    return PlainEngine(called, config.is_encoder_decoder, minibatch_size)


def unwrap(model: Any) -> Any:
    """The transformers model inside an adapter's wrapper (PEFT's), whose layers the adapters have
    taken the place of.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def callable_of(model: Any) -> Any:
    """Whom to call for an answer: the transformers model, or the adapter's wrapper where that adds
    something to every pass, as learnt prompts and prefixes do.
    """
    adapter: Any = getattr(model, "active_peft_config", None)
    adds = any(
        getattr(adapter, name, False) for name in ("is_prompt_learning", "is_adaption_prompt")
    )
    return model if adds else unwrap(model)


def is_as_made(model: Any) -> bool:
    """Whether a transformers model does what its classes say: no part has a hook or a forward
    function of somebody else's, or is of a class of somebody else's where an engine would pass it
    over. Layers in the place of those that every engine calls (LoRA) change nothing.
    """
    return not any(is_hooked(module) for module in model.modules()) and _is_known(
        model, deep=is_t5(model)
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class says.

    What accelerate puts on a model of several devices only moves tensors.
    """
    own = vars(module)
    hooks = [
        hook
        for kind in ("forward", "forward_pre", "backward", "backward_pre")
        for hook in own[f"_{kind}_hooks"].values()
    ]
    # transformers leaves hooks of its own behind a pass that was asked for hidden states.
    others = [hook for hook in hooks if not hook.__module__.startswith("transformers.")]
    return bool(others or ("forward" in own and "_hf_hook" not in own))


def _is_known(module: nn.Module, deep: bool) -> bool:
    """``deep``: its parts too, down to those that are called."""
    if not f"{type(module).__module__}.".startswith(_MAKERS):
        return False
    return not deep or all(
        name in CALLED or _is_known(child, deep) for name, child in module.named_children()
    )
