"""Whether T5's output head is a tensor of its own.

flan-t5 and T5 1.1 have an untied head; the first T5 uses the input embeddings. Transformers 5
announces tied weights for every T5 and keeps a head apart only where it finds it in the checkpoint,
with other values. What it decided is checked, and mended, here.
"""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from lamorel_ext.llm.fsdp import own_class
from lamorel_ext.llm.scoring.t5_forward import is_t5


def wants_own_head(model: Any) -> bool:
    """Whether a freshly made model is a T5 with an untied head: one that does not scale the
    decoder's output.
    """
    return is_t5(model) and not getattr(model.config, "scale_decoder_outputs", False)


def has_own_head(model: Any) -> bool:
    """Whether the output head is a tensor of its own."""
    return model.get_output_embeddings().weight is not model.get_input_embeddings().weight


def give_own_head(model: Any) -> None:
    """Make the head of a T5 a tensor of its own, with the values it has."""
    if is_t5(model) and not has_own_head(model):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def config_values(model: Any) -> dict[str, Any]:
    """The configuration to save: it says of the head what is true of this model, as the hub's own
    files do.
    """
    values: dict[str, Any] = json.loads(model.config.to_json_string())
    values["architectures"] = [own_class(model).__name__]
    if is_t5(model):
        values["tie_word_embeddings"] = not has_own_head(model)
    return values
