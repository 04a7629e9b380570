"""Which engine reads which model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lamorel_ext.models.scoring import Engine
from lamorel_ext.models.scoring_causal import CausalEngine, takes_trees
from lamorel_ext.models.scoring_plain import PlainEngine
from lamorel_ext.models.scoring_t5 import T5Engine
from lamorel_ext.models.t5 import is_t5


def make_engine(model: PreTrainedModel, minibatch_size: int) -> Engine:
    """The fastest engine that is right for the model; the plain one suits all."""
    inner = unwrap(model)
    if is_t5(inner):
        return T5Engine(inner)
    if not inner.config.is_encoder_decoder and takes_trees(inner):
        return CausalEngine(inner)
    return PlainEngine(inner, inner.config.is_encoder_decoder, minibatch_size)


def unwrap(model: Any) -> Any:
    """The transformers model inside an adapter's wrapper (PEFT's), whose layers the adapters have taken the place of."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
