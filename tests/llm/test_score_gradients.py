"""Gradients of scores and heads are those of plain transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lamorel_ext.llm.module_functions import ValueHead
from lamorel_ext.llm.scoring import packing
from lamorel_ext.llm.scoring import vocabulary_head as head
from tests.llm.tiny_models import (
    ACTIONS,
    make_causal,
    make_host,
    make_t5,
    make_tokenizer,
    plain_scores,
)

PROMPTS = [
    "you see a red ball 1 step left",
    "",
    "you see a red ball 1 step right and a wall",
    "you see a red ball 1 step left",
]
CANDIDATES = [ACTIONS, ["go forward"], [*ACTIONS[:2], ""], ["turn", "turn left"]]
WEIGHTS = torch.linspace(-1, 2, 12, dtype=torch.float64)
"""A different weight for every score, so that no two can be mixed up."""


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
        assert not ours[name].isnan().any()


MODELS = {
    "t5": lambda: make_t5(),
    "t5-tied-relu": lambda: make_t5("relu", own_head=False),
    "llama": make_causal,
    "gpt2": lambda: make_causal("gpt2"),
    "bloom": lambda: make_causal("bloom"),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_scores(name: str) -> None:
    model = MODELS[name]()
    result = make_host(model, minibatch_size=7).score(PROMPTS, CANDIDATES, require_grad=True)
    ours = gradients(model, (result.log_probs * WEIGHTS).sum())
    same(
        ours,
        gradients(
            model, (plain_scores(model, make_tokenizer(), PROMPTS, CANDIDATES) * WEIGHTS).sum()
        ),
    )


def test_gradients_of_scores_worked_out_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "TRAINING_ROWS", 8)
    monkeypatch.setattr(head, "TRAINING_LOGITS", 2 * 35)
    test_gradients_of_scores("t5")


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_gradients_of_the_value_head(name: str) -> None:
    model = MODELS[name]()
    value = ValueHead(8)
    host = make_host(model, {"value": value})
    prompts = PROMPTS[2:]
    ours = gradients(
        host,
        host.score(prompts, [["go"]] * 2, ("value",), require_grad=True)
        .modules["value"]
        .square()
        .sum(),
    )
    total = torch.zeros((), dtype=torch.float64)
    for prompt in prompts:
        inputs = {
            "input_ids": torch.tensor([make_tokenizer()(prompt)["input_ids"]]),
            "output_hidden_states": True,
        }
        if name == "t5":
            state = model(**inputs, decoder_input_ids=torch.tensor([[0]])).decoder_hidden_states[
                -1
            ][:, 0]
        else:
            state = model(**inputs).hidden_states[-1][:, -1]
        total = total + value.layers(state).square().sum()
    same(ours, gradients(host, total))


def test_no_dropout_with_gradients() -> None:
    model = make_t5(dropout_rate=0.5)
    host = make_host(model).train()
    with_grad = host.score(PROMPTS, CANDIDATES, require_grad=True).log_probs
    assert with_grad.requires_grad
    without = host.score(PROMPTS, CANDIDATES).log_probs
    assert not without.requires_grad
    torch.testing.assert_close(with_grad.detach(), without, rtol=0, atol=1e-9)


def test_bfloat16_scores_train() -> None:
    model = make_t5(dtype=torch.bfloat16)
    host = make_host(model)
    host.score(PROMPTS, CANDIDATES, require_grad=True).log_probs.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
