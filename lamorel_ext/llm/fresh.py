"""Weights that no training has touched, drawn from a seed: the same on every server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lamorel_ext.llm.devices import seeded
from lamorel_ext.llm.ties import give_own_head, has_own_head, wants_own_head

LOGIT_STD = 2.0
"""Spread of the logits of freshly drawn weights, about that of a trained model; transformers' own
draw of T5 makes it so wide that most probabilities are denormal numbers, on which a CPU is ten
times slower."""


def draw_model(
    build: Callable[[], Any],
    seed: int,
    own_head: bool | None = None,
    embeddings: Tensor | None = None,
) -> Any:
    """Make a model with fresh weights, on the CPU.

    Args:
        build: Makes the model; its draws follow from ``seed``.
        seed: PyTorch's random states, those of GPUs too, are left as they were.
        own_head: Whether the output head of a T5 is a tensor of its own; None goes by its
            configuration.
        embeddings: ``(vocabulary, size)``, token embeddings to take in place of drawn ones; None
            draws them.
    """
    with seeded(seed, torch.device("cpu")), torch.no_grad():
        model = build().eval()
        head = model.get_output_embeddings()
        if wants_own_head(model) if own_head is None else own_head:
            give_own_head(model)
            head.weight.normal_()
        if embeddings is not None:
            model.get_input_embeddings().weight.copy_(embeddings)
        if embeddings is None or has_own_head(model):
            for _ in range(
                3
            ):  # with a tied head, its scale changes the states a little, and so the spread again
                head.weight.mul_(LOGIT_STD / _logit_std(model))
    return model


def _logit_std(model: Any) -> float:
    config = model.config
    tokens = torch.randint(config.vocab_size, (4, 16))
    inputs = {"input_ids": tokens}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(config.vocab_size, (4, 8))
    return float(model(**inputs).logits.std())
