"""Which engine reads which model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lamorel_ext.llm.fsdp import model_is_divided
from lamorel_ext.llm.scoring.any_model import PlainEngine
from lamorel_ext.llm.scoring.causal import CausalEngine, takes_trees
from lamorel_ext.llm.scoring.scorer import Engine
from lamorel_ext.llm.scoring.t5_forward import T5Engine, is_t5


def make_engine(model: PreTrainedModel, minibatch_size: int) -> Engine:
    """The fastest engine that is right for the model; the plain one suits all."""
    inner = unwrap(model)
    if model_is_divided(inner):  # its layers are whole only within forward passes of its own
        return PlainEngine(inner, inner.config.is_encoder_decoder, minibatch_size)
    if is_t5(inner):
        return T5Engine(inner)
    if not inner.config.is_encoder_decoder and takes_trees(inner):
        return CausalEngine(inner)
    return PlainEngine(inner, inner.config.is_encoder_decoder, minibatch_size)


def unwrap(model: Any) -> Any:
    """The transformers model inside an adapter's wrapper (PEFT's), whose layers the adapters have
    taken the place of.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model
