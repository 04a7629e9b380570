"""The model's shape, and its training from the first random weights to the last step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from experiments.pretraining.samples import Sample
from experiments.pretraining.tokenizer import EOS_ID, PAD_ID
from lamorel_ext.llm.ties import config_values, give_own_head
from lamorel_ext.llm.weights import whole_tensors, write_tensors
from lamorel_ext.options import number

_POOL_SIZE = 2048
_IGNORED = -100
"""transformers leaves labels of this value out of the loss."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the T5; the rest is as in flan-t5: gated GELU, untied output head, relative
    positions.
    """

    d_model: int = number(96, at_least=1)
    d_kv: int = number(24, at_least=1)
    d_ff: int = number(256, at_least=1)
    num_heads: int = number(4, at_least=1)
    num_layers: int = number(3, at_least=1)
    num_decoder_layers: int = number(2, at_least=1)


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast.

    Attributes:
        num_steps: Optimiser steps; the learning rate rises linearly over ``warmup_steps`` and falls
            to zero at the last one (cosine).
    """

    num_steps: int
    warmup_steps: int = 100
    lr: float = 1e-3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


def make_model(shape: ModelShape, vocab_size: int, seed: int) -> T5ForConditionalGeneration:
    """A T5 with random weights."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        **asdict(shape),
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": PAD_ID,
    }
    model = T5ForConditionalGeneration(T5Config(**options))
    give_own_head(model)
    # at the standard deviation of the embeddings, 1, the first logits would be ten times too large
    with torch.no_grad():
        model.lm_head.weight.mul_(shape.d_model**-0.5)
    return model


def save_model(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Write ``model.safetensors`` and a ``config.json`` that says of the head what is true."""
    write_tensors(whole_tensors(model), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(config_values(model), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def train(
    model: T5ForConditionalGeneration, batches: Iterator[list[Sample]], plan: TrainingPlan
) -> Iterator[float]:
    """Train in place for ``plan.num_steps`` steps; gives the loss of each in nats per token."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.lr, betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, plan)
    )
    model.train()
    for batch in islice(batches, plan.num_steps):
        source = _padded([sample.source for sample in batch], PAD_ID)
        target = _padded([sample.target for sample in batch], _IGNORED)
        loss = model(input_ids=source, attention_mask=(source != PAD_ID).long(), labels=target).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        optimizer.step()
        schedule.step()
        yield float(loss.detach())
    model.eval()


def learning_rate_factor(step: int, plan: TrainingPlan) -> float:
    """Share of the learning rate at a step, from 0: linear rise, then half a cosine to zero."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.num_steps - plan.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def make_batches(
    samples: Iterator[Sample], tokens_per_batch: int, rng: np.random.Generator
) -> Iterator[list[Sample]]:
    """Batches of samples of similar length, in random order, without end."""
    while True:
        pool = sorted(
            islice(samples, _POOL_SIZE), key=lambda sample: (len(sample.source), len(sample.target))
        )
        if not pool:
            return
        batches: list[list[Sample]] = [[]]
        for sample in pool:
            if batches[-1] and len(sample.source) * (len(batches[-1]) + 1) > tokens_per_batch:
                batches.append([])
            batches[-1].append(sample)
        for index in rng.permutation(len(batches)):
            yield batches[index]


def _padded(rows: list[tuple[int, ...]], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
    )
